"""Tiles as JPEG, by libjpeg-turbo."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from wsi_prep.errors import BadOption

CODEC_NAME = "imagecodecs_jpeg"
"""The codec's name in Zarr metadata, that of imagecodecs' own Zarr v3 codec."""

_START_OF_SCAN = 0xDA
_TABLES = 0xDB
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class JpegSettings:
    """How tiles are compressed: `quality` 1 to 100, `subsampling` of the chroma ("420", "422" or "444")."""

    quality: int = 90
    subsampling: str = "420"

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise BadOption(f"JPEG quality {self.quality} is not between 1 and 100")
        if self.subsampling not in ("420", "422", "444"):
            raise BadOption(f"JPEG subsampling {self.subsampling!r} is not known; choose from 420 422 444")

    def zarr_codec(self) -> dict[str, object]:
        """The codec as Zarr metadata."""
        return {
            "name": CODEC_NAME,
            "configuration": {
                "level": self.quality,
                "colorspace_data": "RGB",
                "colorspace_jpeg": "YCbCr",
                "subsampling": self.subsampling,
            },
        }


def first_frame(jpeg: bytes) -> tuple[int, int, int] | None:
    """(SOF marker, height, width) of a JPEG's first frame, or None where it has none; ITU-T T.81, B.1.1.3."""
    at = 2
    while at + 9 <= len(jpeg) and jpeg[at] == 0xFF:
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if marker in _START_OF_FRAME:
            return marker, int.from_bytes(jpeg[at + 5 : at + 7], "big"), int.from_bytes(jpeg[at + 7 : at + 9], "big")
        at += 2 + length
    return None


def tables_and_sampling(jpeg: bytes) -> tuple[bytes, ...]:
    """A JPEG's quantisation tables, then its components with their sampling factors: what its quality decides."""
    found = []
    at = 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF and jpeg[at + 1] != _START_OF_SCAN:
        marker, end = jpeg[at + 1], at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if marker == _TABLES:
            found.append(jpeg[at + 4 : end])
        elif marker in _START_OF_FRAME:
            found.append(jpeg[at + 9 : end])
        at = end
    return tuple(found)


def ijg_quality(jpeg: bytes) -> int | None:
    """The quality, 1 to 100, at which libjpeg writes the quantisation tables of this JPEG; None where at none.

    `jpeg` may be the abbreviated stream of tables alone that a TIFF has of all of its tiles.
    """
    return _qualities().get(_tables(jpeg))


@functools.cache
def _qualities() -> dict[tuple[tuple[int, bytes], ...], int]:
    """The quality of each pair of tables that the encoder knows; of 1 and 2, which have the same, the higher."""
    any_tile = np.zeros((16, 16, 3), np.uint8)
    return {_tables(encode_tile(any_tile, JpegSettings(quality))): quality for quality in range(1, 101)}


def _tables(jpeg: bytes) -> tuple[tuple[int, bytes], ...]:
    """Number and values of each 8-bit quantisation table, in order; ITU-T T.81, B.2.4.1."""
    found: dict[int, bytes] = {}
    at = 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF and jpeg[at + 1] != _START_OF_SCAN:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if jpeg[at + 1] == _TABLES:
            for table in range(at + 4, end, 65):
                found[jpeg[table]] = jpeg[table + 1 : min(table + 65, end)]
        at = end
    return tuple(sorted(found.items()))


def is_ycc(jpeg: bytes) -> bool | None:
    """Whether a JPEG says of itself that it is stored as YCbCr or as RGB; None where it does not.

    JFIF is YCbCr by definition (ITU-T T.871); Adobe's marker tells (ITU-T T.872, 6.5.3), as do components that are
    named R, G and B; and where the second and third have fewer samples than the first, these are chroma.
    """
    at = 2
    while at + 16 <= len(jpeg) and jpeg[at] == 0xFF and jpeg[at + 1] != _START_OF_SCAN:
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if marker == 0xE0 and jpeg[at + 4 : at + 9] == b"JFIF\0":
            return True
        if marker == 0xEE and jpeg[at + 4 : at + 9] == b"Adobe" and length >= 14:
            return jpeg[at + 15] == 1
        if marker in _START_OF_FRAME:
            names, samples = jpeg[at + 10 : at + 19 : 3], jpeg[at + 11 : at + 19 : 3]
            if jpeg[at + 9] != 3 or names == b"RGB":
                return False if names == b"RGB" else None
            return True if samples[0] > max(samples[1:]) else None
        at += 2 + length
    return None


def encode_tile(pixels: NDArray[np.uint8], settings: JpegSettings) -> bytes:
    """(h, w, 3) uint8 RGB as one baseline JPEG."""
    return bytes(
        imagecodecs.jpeg8_encode(
            np.ascontiguousarray(pixels), level=settings.quality, colorspace="RGB", subsampling=settings.subsampling
        )
    )


def encode_planes(luma: NDArray[np.uint8], blue: NDArray[np.uint8], red: NDArray[np.uint8], quality: int) -> bytes:
    """Full-range YCbCr, `luma` (h, w) and both planes of colour (h / 2, w / 2), as one baseline JPEG of 4:2:0."""
    import simplejpeg  # noqa: PLC0415 - training needs it not

    return bytes(simplejpeg.encode_jpeg_yuv_planes(luma, blue, red, quality))


def decode_tile(jpeg: bytes, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """One JPEG as (h, w, 3) uint8 RGB, written into `out` if given; ValueError or RuntimeError if it cannot be."""
    pixels: NDArray[np.uint8] = imagecodecs.jpeg8_decode(jpeg, colorspace="YCbCr", outcolorspace="RGB", out=out)
    return pixels
