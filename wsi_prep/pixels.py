"""A plan's tiles as pixels, each source pixel decoded once.

A slide is walked by the cells of its coarsest grid. Of each cell the part that kept tiles cover is read at the finest
magnification wanted there, resampled where the native scale is off, and halved for the coarser ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_prep.geometry import MAGNIFICATIONS, TILE_PX, Grid, to_level0
from wsi_prep.plan import TilePlan
from wsi_prep.readers.base import SlideInfo, SlideReader
from wsi_prep.resample import area_resample, halve, reduce_by

_WHOLE = 1e-9


def read_tiles(reader: SlideReader, plan: TilePlan) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Each tile of `plan`, in its order: its index and its (392, 392, 3) uint8 RGB pixels (a view; copy to keep)."""
    for tiles in plan.cells():
        yield from _read_cell(reader, plan, tiles)


@dataclass(frozen=True)
class _Block:
    """The rectangle, in pixels of `factor` base px each, that holds the kept tiles of one cell."""

    factor: int
    x: int
    y: int
    width: int
    height: int


def _read_cell(reader: SlideReader, plan: TilePlan, tiles: slice) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    grid = plan.grid
    factors = np.array([grid.factor(m) if m in grid.magnifications else 0 for m in MAGNIFICATIONS])[plan.mag[tiles]]
    finest = int(factors.min())
    # upper left corner and side of each tile, in pixels of the finest magnification wanted here
    side = TILE_PX * factors // finest
    left, top = plan.col[tiles] * side, plan.row[tiles] * side
    block = _bounding_block(finest, left, top, side)
    image = _read_block(reader, grid, block, np.stack([left, top, side, side], axis=1).astype(np.int64))
    pyramid = {finest: image}
    for factor in sorted({int(f) for f in factors}):
        reached = max(pyramid)
        while reached < factor:
            pyramid[reached * 2] = halve(pyramid[reached])
            reached *= 2
    for number, index in enumerate(range(tiles.start, tiles.stop)):
        factor = int(factors[number])
        ratio = factor // finest
        x, y = (int(left[number]) - block.x) // ratio, (int(top[number]) - block.y) // ratio
        yield index, pyramid[factor][y : y + TILE_PX, x : x + TILE_PX]


def _bounding_block(factor: int, left: NDArray[np.int64], top: NDArray[np.int64], side: NDArray[np.int64]) -> _Block:
    x, y = int(left.min()), int(top.min())
    return _Block(factor, x, y, int((left + side).max()) - x, int((top + side).max()) - y)


def _read_block(reader: SlideReader, grid: Grid, block: _Block, boxes: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Pixels of `block`, (height, width, 3) uint8, from the coarsest level that is still as fine."""
    level, downsample = _best_level(reader.info, grid, block.factor)
    step_x, step_y = (step * block.factor / downsample for step in (grid.step_x0, grid.step_y0))
    start_x = _pixel_starts(block.x, block.width, step_x, downsample)
    start_y = _pixel_starts(block.y, block.height, step_y, downsample)
    left, top = int(np.floor(start_x[0] + _WHOLE)), int(np.floor(start_y[0] + _WHOLE))
    width = int(np.ceil(start_x[-1] + step_x - _WHOLE)) - left
    height = int(np.ceil(start_y[-1] + step_y - _WHOLE)) - top
    source = reader.read(level, left, top, width, height, _boxes_in_level(boxes, step_x, step_y))
    if step_x == step_y == round(step_x):
        return reduce_by(source, round(step_x))
    return area_resample(source, start_x - left, start_y - top, step_x, step_y)


def _pixel_starts(first: int, count: int, step: float, downsample: int) -> NDArray[np.float64]:
    """Where pixels `first` to `first + count` begin, in level px: each tile at its own rounded level-0 position.

    So a resampled tile begins exactly where the catalog says; its neighbour begins up to half a level-0 pixel off the
    seam.
    """
    tile, within = np.divmod(np.arange(first, first + count), TILE_PX)
    starts: NDArray[np.float64] = to_level0(tile, TILE_PX * step * downsample) / downsample + within * step
    return starts


def _best_level(info: SlideInfo, grid: Grid, factor: int) -> tuple[int, int]:
    """Index and exact integer downsample of the coarsest level that need not be upsampled for `factor`.

    Only levels that lie on level 0's grid count: an integer downsample, off by less than one pixel over the slide.
    """
    finest_step = min(grid.step_x0, grid.step_y0) * factor
    best = (0, 1)
    for index, level in enumerate(info.levels):
        downsample = round(level.downsample)
        aligned = abs(info.width0 / downsample - level.width) < 1 and abs(info.height0 / downsample - level.height) < 1
        if aligned and best[1] < downsample <= finest_step + _WHOLE:
            best = (index, downsample)
    return best


def _boxes_in_level(boxes: NDArray[np.int64], step_x: float, step_y: float) -> NDArray[np.int64]:
    steps = np.array([step_x, step_y])
    start = np.floor(boxes[:, :2] * steps) - 1  # a pixel of slack for the rounding of each tile's position
    stop = np.ceil((boxes[:, :2] + boxes[:, 2:]) * steps) + 1
    return np.concatenate([start, stop - start], axis=1).astype(np.int64)
