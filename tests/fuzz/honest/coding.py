"""Tiles as bytes: JPEG in every colour space with every mark that says so or says otherwise, and lossless ones."""

import struct
from dataclasses import dataclass

import imagecodecs
import numpy as np

_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"


@dataclass(frozen=True)
class Coding:
    """How tiles are stored: `compression` as tifffile names it, `photometric` as the tag says.

    Of JPEG: whether it `is_rgb` inside, which `mark` it bears ("jfif", "adobe" or none), and its chroma.
    """

    compression: str = "jpeg"
    photometric: str = "ycbcr"
    is_rgb: bool = False
    mark: str = "jfif"
    subsampling: str = "444"
    told: str = ""
    lie: bool = False

    def encode(self, tile: np.ndarray) -> bytes:
        """(h, w[, 3]) uint8 or uint16 as bytes."""
        tile = np.ascontiguousarray(tile)
        if self.compression == "jpeg":
            return _jpeg(tile, self) if tile.ndim == 3 else imagecodecs.jpeg8_encode(tile, level=93)
        if self.compression == "zlib":
            return imagecodecs.zlib_encode(tile.tobytes(), 1)
        if self.compression == "lzw":
            return imagecodecs.lzw_encode(tile.tobytes())
        return tile.tobytes()


SOUND = (
    Coding(),
    Coding(subsampling="420", told="4:2:0"),
    Coding(mark="", told="YCbCr JPEG without a mark"),
    Coding(photometric="rgb", is_rgb=True, mark="", told="RGB JPEG without a mark"),
    Coding(photometric="rgb", is_rgb=True, mark="adobe", told="RGB JPEG marked by Adobe"),
    Coding(photometric="rgb", told="JFIF tagged RGB"),
    Coding("zlib", "rgb", told="deflate"),
    Coding("lzw", "rgb", told="LZW"),
)
LIES = (
    Coding(photometric="rgb", mark="adobe", told="YCbCr JPEG marked by Adobe, tagged RGB", lie=True),
    Coding(is_rgb=True, mark="adobe", told="RGB JPEG marked by Adobe, tagged YCbCr", lie=True),
    Coding(photometric="rgb", mark="", subsampling="420", told="4:2:0 JPEG without a mark, tagged RGB", lie=True),
)
ABOUT_COLOUR = r"OpenSlide reads|colou?r|RGB|YCbCr|JPEG|photometric"


def _jpeg(tile: np.ndarray, how: Coding) -> bytes:
    if how.is_rgb:
        data = imagecodecs.jpeg8_encode(tile, level=93, colorspace="RGB", outcolorspace="RGB")
    else:
        data = imagecodecs.jpeg8_encode(tile, level=93, subsampling=how.subsampling)
    head, body = _without_marks(data)
    if how.is_rgb and not how.mark:
        body = _plain_components(body)
    marks = {"jfif": _JFIF, "adobe": b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([not how.is_rgb])}
    return head + marks.get(how.mark, b"") + body


def _without_marks(data: bytes) -> tuple[bytes, bytes]:
    """A JPEG's start, and the rest of it without JFIF's and Adobe's marks."""
    at = 2
    while data[at + 1] in (0xE0, 0xEE):
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return data[:2], data[at:]


def _plain_components(body: bytes) -> bytes:
    """The components called 1, 2, 3 instead of R, G, B, as Aperio's are."""
    out = bytearray(body)
    frame, scan = body.index(b"\xff\xc0"), body.index(b"\xff\xda")
    for number in range(3):
        out[frame + 10 + 3 * number] = out[scan + 5 + 2 * number] = number + 1
    return bytes(out)


def broken(data: bytes, way: str, rng) -> bytes:
    """A tile's bytes that do not decode, or only in part."""
    if way == "cut":
        return data[: len(data) // 2] + b"\xff\xd9"
    return b"\xff\xd8" + rng.integers(0, 255, 900, dtype=np.uint8).tobytes() + b"\xff\xd9"
