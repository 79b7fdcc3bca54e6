"""Slides of which every tile is known: texture on glass along whole tiles, another picture in each version."""

from __future__ import annotations

import functools
import io
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile

from tests.fuzz.honest.painting import Picture
from tests.support.dicom_wsi import write_dicom_slide

MPP = 0.5
TILE_PX = 392
MAGS = "20x 10x"
_STEPS = {"20x": TILE_PX, "10x": 2 * TILE_PX}
"""Level-0 px from a tile to the next."""
_SIDE = 2048
_GLASS = 243
_APERIO = "Aperio Image Library v11.2.1 \n{w}x{h} (256x256) JPEG/RGB Q=90|AppMag = 20|MPP = 0.5000"

SOUND = ("svs", "jpeg", "deflate", "dicom", "large")
POISON = {"die": "WorkerDied", "eat": "WorkerDied", "hang": "TimedOut"}
"""Sound slides that do harm to their workers as long as they are let, and how they fail then."""
BROKEN = {
    "text": ("failed", "UnreadableSlide"),
    "zero": ("failed", "UnreadableSlide"),
    "cut": ("failed", "UnreadableSlide DamagedSlide"),
    "claims": ("failed", "UnreadableSlide DamagedSlide"),
    "unscaled": ("excluded", "MissingMpp"),
    "empty": ("empty", ""),
}
"""What must come of those that are not sound: the status, and the names of errors that are true of them."""
_ENDINGS = {"svs": "svs", "dicom": "dcm", "text": "svs", "zero": "svs"}


@dataclass(frozen=True)
class Slide:
    """One slide: `across` x `down` tiles of 10x are tissue, and four times as many of 20x."""

    name: str
    kind: str
    seed: int
    across: int
    down: int

    @classmethod
    def of(cls, number: int, kind: str, seed: int) -> Slide:
        """The slide of a number; its size follows from the seed."""
        mark = zlib.crc32(f"{seed} {number}".encode())
        side = (4, 4) if kind == "large" else (1 + mark % 2, 1 + mark // 2 % 2)
        return cls(f"{number:03d}-{kind}.{_ENDINGS.get(kind, 'tiff')}", kind, mark, *side)

    @property
    def is_sound(self) -> bool:
        """Whether tiles can be made of it."""
        return self.kind in SOUND or self.kind in POISON

    def tiles(self) -> set[tuple[str, int, int]]:
        """Magnification, row and column of each tile that must be made."""
        if not self.is_sound:
            return set()
        return {
            (name, row, col)
            for name, times in (("20x", 2), ("10x", 1))
            for row in range(self.down * times)
            for col in range(self.across * times)
        }

    def verdict(self, *, poisoned: bool) -> tuple[str, list[str]]:
        """The status that its row must have, and the error types that may stand there."""
        if self.kind in POISON:
            return ("failed", [POISON[self.kind]]) if poisoned else ("ok", [""])
        status, errors = BROKEN.get(self.kind, ("ok", ""))
        return status, errors.split() or [""]


@functools.cache
def _texture() -> np.ndarray:
    """(_SIDE, _SIDE, 3) float32 around 0: grain, nuclei, and waves by which any two places differ."""
    rng = np.random.default_rng(11)

    def smooth(sigma: float, spread: float) -> np.ndarray:
        noise = cv2.GaussianBlur(
            rng.normal(0, 1, (_SIDE, _SIDE)).astype(np.float32), (0, 0), sigma, borderType=cv2.BORDER_REFLECT
        )
        return (noise * (spread / noise.std()))[..., None]

    dots = cv2.GaussianBlur((rng.random((_SIDE, _SIDE)) > 0.9985).astype(np.float32), (0, 0), 4)[..., None] * 80
    return smooth(2, 6) + smooth(30, 16) - np.clip(dots, 0, 1) * np.float32((110, 90, 50))


def painted(slide: Slide, version: int) -> Picture:
    """The slide's picture in a version; its tissue lies at the upper left, along whole tiles."""
    rng = np.random.default_rng((slide.seed, version))
    width, height = (count * 2 * TILE_PX for count in (slide.across, slide.down))
    pixels = np.full((height + 904, width + 904, 3), _GLASS, np.uint8)
    tissue = np.zeros(tuple(-(-n // 8) for n in pixels.shape[:2]), bool)
    if slide.is_sound or slide.kind not in ("empty", "text", "zero"):
        dy, dx, flip = rng.integers((0, 0, 0), (_SIDE, _SIDE, 8))
        side = max(width, height)
        part = _texture()[np.ix_((dy + np.arange(side)) % _SIDE, (dx + np.arange(side)) % _SIDE)]
        part = part.transpose(1, 0, 2) if flip & 1 else part
        part = part[:: -1 if flip & 2 else 1, :: -1 if flip & 4 else 1]
        shade = np.float32((208, 140, 185)) + rng.uniform(-9, 9, 3).astype(np.float32)
        pixels[:height, :width] = np.clip(part[:height, :width] + shade, 0, 255)
        tissue[: height // 8, : width // 8] = True
    return Picture(pixels, tissue, MPP, MPP)


def encoded(slide: Slide, version: int) -> bytes:
    """The slide's file in a version."""
    if slide.kind == "zero":
        return b""
    if slide.kind == "text":
        return f"dear colleague, this is letter {version} about slide {slide.name}\n".encode()
    pixels = painted(slide, version).pixels
    if slide.kind == "dicom":
        with tempfile.TemporaryDirectory() as folder:
            return write_dicom_slide(Path(folder), [pixels], MPP)[0].read_bytes()
    data = _tiff(slide, pixels)
    if slide.kind == "cut":
        return data[: len(data) // 3]
    return _claiming(data) if slide.kind == "claims" else data


def _tiff(slide: Slide, pixels: np.ndarray) -> bytes:
    common = {"photometric": "rgb", "tile": (256, 256), "metadata": None}
    scale = {} if slide.kind in ("svs", "unscaled") else {"resolution": (20_000, 20_000), "resolutionunit": 3}
    lossless = slide.kind in ("deflate", "claims")
    coded = {"compression": "zlib"} if lossless else {"compression": "jpeg", "compressionargs": {"level": 90}}
    about = {}
    if slide.kind == "svs":
        about = {"description": _APERIO.format(w=pixels.shape[1], h=pixels.shape[0])}
    reduced = cv2.resize(pixels, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as tiff:
        tiff.write(pixels, **common, **scale, **coded, **about)
        tiff.write(reduced, **common, **coded, **about, subfiletype=0 if about else 1)
    return file.getvalue()


def _claiming(data: bytes) -> bytes:
    """A TIFF that says of itself that it is 900,000 px a side."""
    file = io.BytesIO(data)
    with tifffile.TiffFile(file) as tiff:
        for name in ("ImageWidth", "ImageLength"):
            tag = tiff.pages[0].tags[name]
            file.seek(tag.valueoffset)
            file.write((900_000).to_bytes(4, "little"))
    return file.getvalue()


def under(picture: Picture, magnification: str, row: int, col: int) -> np.ndarray:
    """(392, 392, 3) float32: area means of what is painted under a tile."""
    step = _STEPS[magnification]
    part = picture.pixels[row * step : (row + 1) * step, col * step : (col + 1) * step]
    return cv2.resize(part, (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
