"""A plan's tiles as pixels, each source pixel decoded once.

A slide is walked by the cells of its coarsest grid. Of each cell the part that kept tiles cover is read at the finest
magnification wanted there; the coarser ones are halved from it, or all are resampled where the native scale is off.
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


@dataclass(frozen=True)
class TileGroup:
    """Tiles of one magnification of a cell, cut out of one image.

    `tiles`: their places in the plan. `image`: (h, w, 3) uint8 RGB; `corner`: (n, 2) x, y of each tile's upper left
    pixel in it. `quarter`: the image halved twice, if that is at hand.
    """

    tiles: range
    image: NDArray[np.uint8]
    corner: NDArray[np.int64]
    quarter: NDArray[np.uint8] | None

    def pixels(self, number: int) -> NDArray[np.uint8]:
        """The (392, 392, 3) pixels of the group's tile `number`, a view."""
        x, y = self.corner[number].tolist()
        return self.image[y : y + TILE_PX, x : x + TILE_PX]


def read_groups(reader: SlideReader, plan: TilePlan) -> Iterator[TileGroup]:
    """All tiles of `plan`, in its order; a group's images may be written over once the next is asked for."""
    for tiles in plan.cells():
        yield from _read_cell(reader, plan, tiles)


def _read_cell(reader: SlideReader, plan: TilePlan, tiles: slice) -> Iterator[TileGroup]:
    grid = plan.grid
    factors = np.array([grid.factor(m) if m in grid.magnifications else 0 for m in MAGNIFICATIONS])[plan.mag[tiles]]
    # upper left corner and side of each tile in base pixels
    side = TILE_PX * factors.astype(np.int64)
    corner = np.stack([plan.col[tiles] * side, plan.row[tiles] * side], axis=1)
    source = _read_source(reader, grid, int(factors.min()), corner, side)
    made: dict[int, NDArray[np.uint8]] = {}

    def image(factor: int) -> NDArray[np.uint8]:
        if factor not in made:
            made[factor] = source.image(factor, made.get(factor // 2))
        return made[factor]

    first = tiles.start
    for factor in np.unique(factors).tolist():  # ascending, as the plan is sorted
        of_factor = np.flatnonzero(factors == factor)
        places = range(first + int(of_factor[0]), first + int(of_factor[-1]) + 1)
        whole = image(factor)
        quarter = None
        if source.halves(factor) and not any(length % 4 for length in whole.shape[:2]):
            image(2 * factor)
            quarter = image(4 * factor)
        yield TileGroup(places, whole, (corner[of_factor] - source.corner) // factor, quarter)


@dataclass(frozen=True)
class _Source:
    """Decoded pixels of one level that hold a cell's kept tiles.

    The tiles' bounding rectangle has its `corner` and `size` (x, y) in base px, and begins at `left`, `top` of the
    level; a base px is `step` (x, y) level px wide, and a level px `downsample` level-0 px.
    """

    pixels: NDArray[np.uint8]
    left: int
    top: int
    downsample: int
    step: tuple[float, float]
    corner: NDArray[np.int64]
    size: NDArray[np.int64]

    def halves(self, factor: int) -> bool:
        """Whether images coarser than `factor` are halved from finer ones."""
        step_x, step_y = (step * factor for step in self.step)
        return step_x == step_y == round(step_x)

    def image(self, factor: int, finer: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
        """The rectangle at `factor` base px a pixel, (h, w, 3) uint8; `finer` is the same at half that, if made.

        Where the level's pixels divide evenly, the finer image is halved. Where they do not, every magnification is
        taken from the source by itself, so that each tile begins exactly at its own level-0 pixel: halving would carry
        the rounding of four neighbours into their parent.
        """
        step_x, step_y = (step * factor for step in self.step)
        if self.halves(factor):
            return halve(finer) if finer is not None else reduce_by(self.pixels, round(step_x))
        starts = [
            _pixel_starts(int(self.corner[axis]) // factor, int(self.size[axis]) // factor, step, self.downsample)
            for axis, step in enumerate((step_x, step_y))
        ]
        return area_resample(self.pixels, starts[0] - self.left, starts[1] - self.top, step_x, step_y)


def _read_source(
    reader: SlideReader, grid: Grid, finest: int, corner: NDArray[np.int64], side: NDArray[np.int64]
) -> _Source:
    """Read what the tiles with these corners and sides (base px) need, from the coarsest level as fine as `finest`."""
    level, downsample = _best_level(reader.info, grid, finest)
    step = (grid.step_x0 / downsample, grid.step_y0 / downsample)
    boxes = _boxes_in_level(corner, side, step)
    left, top = boxes[:, :2].min(axis=0).tolist()
    right, bottom = (boxes[:, :2] + boxes[:, 2:]).max(axis=0).tolist()
    pixels = reader.read(level, left, top, right - left, bottom - top, boxes)
    first = corner.min(axis=0)
    return _Source(pixels, left, top, downsample, step, first, (corner + side[:, None]).max(axis=0) - first)


def _boxes_in_level(corner: NDArray[np.int64], side: NDArray[np.int64], step: tuple[float, float]) -> NDArray[np.int64]:
    """(n, 4) x, y, width, height of the tiles in level px."""
    start, stop = corner * step, (corner + side[:, None]) * step
    even = all(s.is_integer() or (1 / s).is_integer() for s in step)
    slack = 0 if even else 1  # tiles begin at rounded positions
    first = np.floor(start + _WHOLE).astype(np.int64) - slack
    last = np.ceil(stop - _WHOLE).astype(np.int64) + slack
    return np.concatenate([first, last - first], axis=1)


def _pixel_starts(first: int, count: int, step: float, downsample: int) -> NDArray[np.float64]:
    """Where `count` pixels of `step` level px begin, from the `first` on: each tile at its rounded level-0 position."""
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
