"""A level of a pyramid, where it is not to be used, made of a finer one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from wsi_prep.slides.base import Level, steps0
from wsi_prep.slides.images import reduce_by
from wsi_prep.slides.pyramid.resample import area_resample

_BLOCK_PX = 2048
"""Side of what is read of a finer level at once."""

_Read = Callable[[int, int, int, int, int], NDArray[np.uint8]]
Rectangle = tuple[int, int, int, int]
"""x, y, width, height, in pixels of a level."""


def finer_level(level: int, lost: set[int]) -> int:
    """The next finer level that is not lost; level 0 is always there."""
    return max(i for i in range(level) if i == 0 or i not in lost)


def from_finer(
    read: _Read,
    levels: Sequence[Level],
    finer: int,
    level: int,
    rectangle: Rectangle,
    boxes: NDArray[np.int64] | None = None,
) -> NDArray[np.uint8]:
    """A `rectangle` (x, y, width, height) of `level`, as `read` would give it, by area mean of the level `finer`.

    What no box touches may stay white.
    """
    x, y, width, height = rectangle
    fine, coarse = levels[finer], levels[level]
    step_x, step_y = steps0(fine, coarse)
    factor = round(step_x)
    out = np.full((height, width, 3), 255, np.uint8)
    block = max(1, int(_BLOCK_PX / max(step_x, step_y)))
    for top in range(0, height, block):
        for left in range(0, width, block):
            rows, cols = min(block, height - top), min(block, width - left)
            if boxes is not None and not _touches((x + left, y + top, cols, rows), boxes):
                continue
            across, down = (x + left + np.arange(cols)) * step_x, (y + top + np.arange(rows)) * step_y
            first_x, first_y = math.floor(across[0]), math.floor(down[0])
            size = math.ceil(across[-1] + step_x) - first_x, math.ceil(down[-1] + step_y) - first_y
            piece = read(finer, first_x, first_y, *size)
            if step_x == step_y == factor:
                small = reduce_by(piece, factor)
            else:
                small = area_resample(piece, across - first_x, down - first_y, step_x, step_y)
            out[top : top + rows, left : left + cols] = small
    return out


def _touches(rectangle: Rectangle, boxes: NDArray[np.int64]) -> bool:
    x, y, width, height = rectangle
    right, bottom = boxes[:, 0] + boxes[:, 2], boxes[:, 1] + boxes[:, 3]
    inside = (boxes[:, 0] < x + width) & (right > x) & (boxes[:, 1] < y + height) & (bottom > y)
    return bool(inside.any())
