"""A whole slide as one small picture at the tissue detector's resolution, in bounded memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_prep.errors import ImplausibleMpp, UnreadableSlide
from wsi_prep.slides.base import SlideReader, steps0
from wsi_prep.slides.pyramid.resample import area_resample

_BLOCK_PX = 2048
_MAX_PIXELS = 128 * 2**20
"""A thumbnail beyond this (9 x 9 cm at 8 um/px) means a scale, or a header, that cannot be true."""

_LEAST_SIDE = 2
"""Pixels; what is smaller has no room for a tile of any magnification, and no background to compare with."""


@dataclass(frozen=True)
class Thumbnail:
    """`pixels` (h, w, 3) uint8 RGB; one of its pixels covers `step_x0` by `step_y0` level-0 px and `mpp` um.

    `level` is the one that it was made from.
    """

    pixels: NDArray[np.uint8]
    mpp: float
    step_x0: float
    step_y0: float
    level: int = 0


def read_thumbnail(reader: SlideReader, mpp_x: float, mpp_y: float, target_mpp: float) -> Thumbnail:
    """The slide at `target_mpp` um/px by area mean, or at its own scale where that is coarser."""
    info = reader.info
    target = max(target_mpp, mpp_x, mpp_y)
    width = max(1, round(info.width0 * mpp_x / target))
    height = max(1, round(info.height0 * mpp_y / target))
    if width * height > _MAX_PIXELS:
        raise ImplausibleMpp(
            f"{info.width0} x {info.height0} px at {mpp_x:g} um/px would be {info.width0 * mpp_x * 1e-4:.0f} x "
            f"{info.height0 * mpp_y * 1e-4:.0f} cm; correct the mpp in the manifest"
        )
    if min(width, height) < _LEAST_SIDE:
        raise UnreadableSlide(f"its picture is {info.width0} x {info.height0} px, which is no slide")
    level = _level_for(reader, target / max(mpp_x, mpp_y))
    shape = info.levels[level]
    factor = max(1, min(shape.width // width, shape.height // height))
    reduced = _reduced(reader, level, factor)
    step_x0, step_y0 = info.width0 / width, info.height0 / height
    across, down = steps0(info.levels[0], shape)
    step_x, step_y = step_x0 / across / factor, step_y0 / down / factor
    reduced = _extended(reduced, math.ceil(step_x * width), math.ceil(step_y * height))
    pixels = area_resample(reduced, np.arange(float(width)) * step_x, np.arange(float(height)) * step_y, step_x, step_y)
    return Thumbnail(pixels, target, step_x0, step_y0, level)


def _extended(picture: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """At least so large, by repeating the last column and row: a level may lack the slide's last pixels."""
    right, bottom = max(0, width - picture.shape[1]), max(0, height - picture.shape[0])
    if not right and not bottom:
        return picture
    return np.asarray(cv2.copyMakeBorder(picture, 0, bottom, 0, right, cv2.BORDER_REPLICATE), dtype=np.uint8)


def _level_for(reader: SlideReader, downsample: float) -> int:
    """The coarsest level that is still as fine as wanted."""
    levels = reader.info.levels
    fine_enough = [
        i for i, level in enumerate(levels) if i not in reader.lost and level.downsample <= downsample * 1.001
    ]
    return max(fine_enough, key=lambda i: levels[i].downsample, default=0)


def _reduced(reader: SlideReader, level: int, factor: int) -> NDArray[np.uint8]:
    """The level reduced by an integer factor, block by block; a partial last row or column repeats its edge."""
    shape = reader.info.levels[level]
    shrink = next((s for s in (8, 4, 2) if level == 0 and s <= reader.most_shrink and factor % s == 0), 1)
    rest = factor // shrink
    full = -(-shape.width // shrink), -(-shape.height // shrink)
    out = np.empty((-(-full[1] // rest), -(-full[0] // rest), 3), np.uint8)
    block = max(1, _BLOCK_PX // factor) * rest
    for y in range(0, full[1], block):
        for x in range(0, full[0], block):
            width, height = min(block, full[0] - x), min(block, full[1] - y)
            if shrink == 1:
                piece = reader.read(level, x, y, width, height)
            else:
                piece = reader.read_shrunk(shrink, x, y, width, height)
            size = (-(-width // rest), -(-height // rest))
            padded = cv2.copyMakeBorder(
                piece, 0, size[1] * rest - height, 0, size[0] * rest - width, cv2.BORDER_REPLICATE
            )
            small = cv2.resize(padded, size, interpolation=cv2.INTER_AREA)
            out[y // rest : y // rest + size[1], x // rest : x // rest + size[0]] = small
    return out
