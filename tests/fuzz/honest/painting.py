"""Painted slides whose tissue is known, and what glass, lamp and camera make of them."""

import functools
import math
from dataclasses import dataclass, replace

import cv2
import numpy as np

from sample_slides.layout import MASK_MPP, Layout, noise
from sample_slides.scene import make_scene
from sample_slides.texture import he_stain

STEP = 8
"""Level-0 px along the side of a pixel of the known tissue masks."""

ABOUT_GLASS = r"glass|background|illuminat|bright|dark|tint|outline|filled"
_GLASS = np.array([243.5, 243.0, 244.0])

# width, height in px, um/px, seed, and the tissue: centre x, centre y, half width, half height as shares of the slide
_BASES = {
    "landscape at 0.5": (
        3500,
        2600,
        0.5,
        31,
        ((0.3, 0.45, 0.27, 0.42), (0.78, 0.3, 0.14, 0.2), (0.75, 0.78, 0.17, 0.13)),
    ),
    "large at 0.25": (3900, 3300, 0.25, 41, ((0.42, 0.5, 0.38, 0.46),)),
    "portrait at 0.5": (2621, 3517, 0.5, 51, ((0.6, 0.66, 0.37, 0.29), (0.25, 0.2, 0.2, 0.14))),
}
BASES = tuple(_BASES)


@dataclass(frozen=True)
class Picture:
    """`pixels` (h, w, 3) uint8 RGB of level 0; `tissue`, bool, of every STEP px of it; um/px."""

    pixels: np.ndarray
    tissue: np.ndarray
    mpp_x: float
    mpp_y: float
    coloured: bool = True

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[1], self.pixels.shape[0]


@functools.cache
def base(name: str) -> Picture:
    """One of the sound slides; painted once."""
    width, height, mpp, seed, pieces = _BASES[name]
    rng = np.random.default_rng(seed)
    node_px = MASK_MPP / mpp
    shape = (-int(-height // node_px), -int(-width // node_px))
    y, x = ((np.arange(count) + 0.5) * node_px for count in shape)
    rough = 45 * noise(rng, shape, 170 / MASK_MPP) + 12 * noise(rng, shape, 30 / MASK_MPP)
    ovals = [_oval(x / width, y / height, piece, min(piece[2] * width, piece[3] * height) * mpp) for piece in pieces]
    tissue = (np.max(ovals, axis=0) + 0.5 * rough).astype(np.float32)
    nothing = np.full_like(tissue, -1e3)
    layout = Layout(tissue, nothing, nothing, noise(rng, shape, 260 / MASK_MPP).astype(np.float32), node_px)
    pixels = make_scene(layout, he_stain(mpp, seed=seed + 1), seed=seed + 2).paint(0, 0, width, height)
    at_y, at_x = (
        np.minimum((np.arange(-(-n // STEP)) + 0.5) * STEP / node_px, m - 1).astype(int)
        for n, m in zip((height, width), shape, strict=True)
    )
    return Picture(pixels, layout.mask[np.ix_(at_y, at_x)], mpp, mpp)


def another_slide(name: str) -> np.ndarray:
    """The pixels of a slide that is not the one named: its tissue lies elsewhere."""
    return np.ascontiguousarray(base(name).pixels[::-1, ::-1])


def smaller_scene(name: str, like: Picture) -> Picture:
    """A corner of the slide named, at the scale of `like`, as if it were another piece of tissue."""
    whole = base(name)
    pixels, tissue = (np.ascontiguousarray(part[-n:, -n:]) for part, n in ((whole.pixels, 1600), (whole.tissue, 200)))
    return Picture(pixels, tissue, like.mpp_x, like.mpp_y)


def _oval(x, y, piece, reach):
    u, v = np.abs(x - piece[0]) / piece[2], np.abs(y - piece[1]) / piece[3]
    return (1 - (u[None, :] ** 3 + v[:, None] ** 3) ** (1 / 3)) * reach


def resized(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Area means where it shrinks; C-contiguous."""
    return np.ascontiguousarray(cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA))


def stretched(picture: Picture, factor: float) -> Picture:
    """The same slide by a scanner whose pixels are `factor` times as high as they are wide."""
    width, height = picture.size
    pixels = resized(picture.pixels, width, round(height / factor))
    rows = np.minimum((np.arange(-(-len(pixels) // STEP)) * factor).astype(int), len(picture.tissue) - 1)
    return replace(picture, pixels=pixels, tissue=picture.tissue[rows], mpp_y=picture.mpp_x * factor)


def padded(picture: Picture, right: int, below: int, colour) -> Picture:
    """More slide at the right and below, of one colour."""
    pixels = cv2.copyMakeBorder(picture.pixels, 0, below, 0, right, cv2.BORDER_CONSTANT, value=[int(c) for c in colour])
    height, width = (-(-n // STEP) for n in pixels.shape[:2])
    tissue = np.zeros((height, width), bool)
    tissue[: picture.tissue.shape[0], : picture.tissue.shape[1]] = picture.tissue
    return replace(picture, pixels=pixels, tissue=tissue)


def tinted(picture: Picture, rng) -> tuple[Picture, str]:
    """The glass of another colour: old mounting media, a lamp set warm."""
    colours = ((223, 215, 213), (240, 228, 205), (235, 215, 170), (245, 225, 235), (225, 235, 245), (228, 240, 225))
    colour = colours[int(rng.integers(len(colours)))]
    return _scaled(picture, colour), f"glass {colour}"


def dimmed(picture: Picture, rng) -> tuple[Picture, str]:
    """A scanner set dark, or so bright that glass is white."""
    level = int(rng.choice((130, 150, 170, 190, 210, 225, 235, 250, 255)))
    return _scaled(picture, (level,) * 3), f"glass {level}"


def _scaled(picture, colour):
    table = np.clip(np.rint(np.arange(256)[:, None] * (np.array(colour) / _GLASS)), 0, 255).astype(np.uint8)
    return replace(picture, pixels=np.ascontiguousarray(cv2.LUT(picture.pixels, table[:, None, :])))


def noisy(picture: Picture, rng) -> tuple[Picture, str]:
    """A camera with more noise."""
    sigma = float(rng.choice((2, 4, 7)))
    grain = rng.normal(0, sigma, (509, 521)).astype(np.float32)
    down, across = (-(-n // m) for n, m in zip(picture.pixels.shape[:2], grain.shape, strict=True))
    field = np.tile(grain, (down, across))[: picture.pixels.shape[0], : picture.pixels.shape[1]]
    noise_at = cv2.merge([field, np.roll(field, 101, axis=0), np.roll(field, 211, axis=1)])
    return replace(picture, pixels=cv2.add(picture.pixels, noise_at, dtype=cv2.CV_8U)), f"noise {sigma:g}"


def greyed(picture: Picture, rng) -> tuple[Picture, str]:
    """No colour at all: a grey camera, or a scan that was printed."""
    grey = cv2.cvtColor(picture.pixels, cv2.COLOR_RGB2GRAY)
    return replace(picture, pixels=cv2.merge([grey] * 3), coloured=False), "a slide without colour"


_LEAST_FILLING_UM = 40.0
"""Narrower strips are within what an outline may be off."""


def filled(picture: Picture, rng) -> tuple[Picture, str]:
    """What was not scanned around the scan is of one flat colour."""
    level = int(rng.choice((0, 128, 200, 255)))
    sides = rng.integers((0, 0, 1, 1), (6, 6, 14, 14)) * 64
    least = math.ceil(_LEAST_FILLING_UM / (64 * min(picture.mpp_x, picture.mpp_y))) * 64
    left, top, right, below = (int(n) if n == 0 else max(int(n), least) for n in sides)
    value = [level] * 3
    pixels = cv2.copyMakeBorder(picture.pixels, top, below, left, right, cv2.BORDER_CONSTANT, value=value)
    tissue = np.zeros([-(-n // STEP) for n in pixels.shape[:2]], bool)
    y, x = top // STEP, left // STEP
    tissue[y : y + picture.tissue.shape[0], x : x + picture.tissue.shape[1]] = picture.tissue
    return replace(picture, pixels=pixels, tissue=tissue), f"{level} fills {left}, {top}, {right}, {below} px around"


def glowing(picture: Picture) -> np.ndarray:
    """(h, w, 3): the tissue as fluorescence would show it, light on black."""
    glow = np.clip((245 - picture.pixels.astype(np.int16)) * 2 - 8, 0, 255)
    return glow.astype(np.uint8)


def macro(picture: Picture, width: int, height: int) -> np.ndarray:
    """The whole glass from afar: the label, in a colour that no tissue has, and the tissue small beside it."""
    out = np.full((height, width, 3), 228, np.uint8)
    out[:, : width // 3] = (250, 20, 240)
    small = resized(picture.pixels, max(1, width // 3), max(1, height // 2))
    out[height // 4 : height // 4 + small.shape[0], width // 2 : width // 2 + small.shape[1]] = small
    return out
