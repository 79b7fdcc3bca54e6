"""A plan's tiles as pixels, each source pixel decoded once: as RGB, or as the planes that the file stores.

A slide is walked by the cells of its coarsest grid. Of each cell the part that kept tiles cover is read at the finest
magnification wanted there; the coarser ones are halved from it, or all are resampled where the native scale is off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from wsi_prep.format.magnifications import MAGNIFICATIONS, TILE_PX, to_level0
from wsi_prep.slides.base import SlideInfo, SlideReader
from wsi_prep.slides.images import Image, Rgb
from wsi_prep.tiles.grid import Grid
from wsi_prep.tiles.plan import TilePlan

_WHOLE = 1e-9
_BAND_PX = 2 * TILE_PX
"""Two tiles, so that planes of colour can be halved three times as well."""


@dataclass(frozen=True)
class TileGroup:
    """Tiles of one magnification of a cell, cut out of one image.

    `tiles`: their places in the plan. `image` holds them; `corner`: (n, 2) x, y of each tile's upper left pixel in it.
    `quarter`: the image at a quarter of its sides, (h / 4, w / 4, 3) uint8 RGB, if that is at hand.
    """

    tiles: range
    image: Image
    corner: NDArray[np.int64]
    quarter: NDArray[np.uint8] | None

    def tile(self, number: int) -> Image:
        """The 392 x 392 px of the group's tile `number`, a view."""
        x, y = self.corner[number].tolist()
        return self.image.window(x, y, TILE_PX, TILE_PX)


@dataclass(frozen=True)
class StoredPlanes:
    """A level that is stored as planes of YCbCr: the JPEG `quality` of these, 0 where nobody knows it, and how many of
    its pixels lie side by side under a pixel of a tile; None where that is no whole number, or not the same down as
    across.
    """

    quality: int
    step: int | None


def stored_planes(reader: SlideReader, plan: TilePlan) -> StoredPlanes | None:
    """The level that the finest tiles of `plan` are cut from; None where it is stored as anything else."""
    grid = plan.grid
    finest = min(grid.factor(MAGNIFICATIONS[mag]) for mag in np.unique(plan.mag).tolist())
    level, downsample = _best_level(reader.info, grid, finest)
    quality = reader.planar_quality(level)
    if quality is None:
        return None
    step_x, step_y = grid.step_x0 * finest / downsample, grid.step_y0 * finest / downsample
    return StoredPlanes(quality, round(step_x) if step_x == step_y == round(step_x) else None)


def read_groups(reader: SlideReader, plan: TilePlan, *, planar: bool = False) -> Iterator[TileGroup]:
    """All tiles of `plan`, in its order. The reader is told of each cell while the one before it is read.

    `planar`: as planes of YCbCr, where the tiles of a cell are cut from a level that stores such.
    """
    cells = [None, *plan.cells(), None]
    for tiles, coming in pairwise(cells):
        if coming is not None:
            factors, corner, side = _in_base_px(plan, coming)
            begin, end = corner.min(axis=0), (corner + side[:, None]).max(axis=0)
            asked = _Request.of(reader, plan.grid, _Tiles(int(factors.min()), corner, side), begin, end)
            reader.expect(asked.level, *asked.rectangle, asked.boxes)
        if tiles is not None:
            yield from _read_cell(reader, plan, tiles, planar=planar)


def _in_base_px(plan: TilePlan, tiles: slice) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Of each of these tiles the factor, and the upper left corner (x, y) and the side in base pixels."""
    grid = plan.grid
    factors = np.array([grid.factor(m) if m in grid.magnifications else 0 for m in MAGNIFICATIONS])[plan.mag[tiles]]
    side = TILE_PX * factors.astype(np.int64)
    return factors, np.stack([plan.col[tiles] * side, plan.row[tiles] * side], axis=1), side


def _read_cell(reader: SlideReader, plan: TilePlan, tiles: slice, *, planar: bool) -> Iterator[TileGroup]:
    grid = plan.grid
    factors, corner, side = _in_base_px(plan, tiles)
    finest = int(factors.min())
    step_x, step_y = grid.step_x0 * finest, grid.step_y0 * finest
    if step_x == step_y == round(step_x):
        groups = _halved(reader, grid, _Tiles(finest, corner, side), factors, planar=planar)
    else:
        groups = _resampled(reader, grid, _Tiles(finest, corner, side), factors, planar=planar)
    for factor, which, image, at, quarter in groups:
        places = range(tiles.start + int(which[0]), tiles.start + int(which[-1]) + 1)
        yield TileGroup(places, image, at // factor, quarter)


_Groups = Iterator[tuple[int, NDArray[np.int64], Image, NDArray[np.int64], NDArray[np.uint8] | None]]
"""Factor, numbers of the cell's tiles, their image, their corners in it in base px, and the image at a quarter."""


def _halved(reader: SlideReader, grid: Grid, tiles: _Tiles, factors: NDArray[np.int64], *, planar: bool) -> _Groups:
    """Where the level's pixels divide evenly: each band of finest tiles is read, given away, and halved down.

    A band, of two rows of tiles, fits the processor's cache, where the whole cell does not.
    """
    finest, corner, side, coarsest = tiles.finest, tiles.corner, tiles.side, int(factors.max())
    first, last = corner.min(axis=0), (corner + side[:, None]).max(axis=0)
    height, width = ((last - first)[::-1] // finest).tolist()
    images: dict[int, Image] = {}
    band_height = _BAND_PX * finest if reader.keeps_edges else int(last[1] - first[1])
    for top in range(int(first[1]), int(last[1]), band_height):
        band = (top, min(top + band_height, int(last[1])))
        touched = (corner[:, 1] < band[1]) & (corner[:, 1] + side > band[0])
        if not touched.any():
            continue  # nothing here is part of any tile
        some = _Tiles(finest, corner[touched], side[touched])
        image = _read_source(reader, grid, some, (first[0], last[0]), band, planar=planar).image(finest)
        if not images:
            steps = {finest * 2**n: 2**n for n in range(1, 4) if finest * 2**n <= coarsest}
            images = {factor: image.room(height // n, width // n) for factor, n in steps.items()}
        pyramid = [image]
        for factor in (2 * finest, 4 * finest, *(f for f in images if f == 8 * finest)):
            at, rows = (top - int(first[1])) // factor, pyramid[-1].sides[0] // 2
            into = images[factor].window(0, at, width * finest // factor, rows) if factor in images else None
            pyramid.append(pyramid[-1].reduced(2, into))
        which = np.flatnonzero((factors == finest) & touched)
        if len(which):
            yield finest, which, image, corner[which] - (first[0], top), pyramid[2].rgb(pyramid[1])
    for factor, image in images.items():
        which = np.flatnonzero(factors == factor)
        if len(which):
            quarter = images[4 * factor].rgb(images[2 * factor]) if 4 * factor in images else None
            yield factor, which, image, corner[which] - first, quarter


def _resampled(reader: SlideReader, grid: Grid, tiles: _Tiles, factors: NDArray[np.int64], *, planar: bool) -> _Groups:
    """Where they do not, every magnification is taken from the source by itself, so that each tile begins exactly at
    its own level-0 pixel: halving would carry the rounding of four neighbours into their parent.
    """
    corner = tiles.corner
    first, last = corner.min(axis=0), (corner + tiles.side[:, None]).max(axis=0)
    source = _read_source(reader, grid, tiles, (first[0], last[0]), (first[1], last[1]), planar=planar)
    for factor in np.unique(factors).tolist():  # ascending, as the plan is sorted
        which = np.flatnonzero(factors == factor)
        if source.fits(factor):
            yield factor, which, source.image(factor), corner[which] - first, None
            continue
        rows = np.split(which, np.flatnonzero(np.diff(corner[which, 1])) + 1)
        for row, image in zip(rows, source.rows_of_tiles(factor, [corner[row] for row in rows]), strict=True):
            yield factor, row, image, corner[row] - (first[0], corner[row[0], 1]), None


@dataclass(frozen=True)
class _Tiles:
    """Tiles by their upper left `corner` (n, 2) and `side` (n,), in base px, and the smallest of their factors."""

    finest: int
    corner: NDArray[np.int64]
    side: NDArray[np.int64]


@dataclass(frozen=True)
class _Source:
    """Decoded pixels of one level that hold a rectangle of `corner` and `size` (x, y) in base px.

    They begin at `left`, `top` of the level; a base px is `step` (x, y) level px wide, a level px `downsample` level-0
    px.
    """

    pixels: Image
    left: int
    top: int
    downsample: int
    step: tuple[float, float]
    corner: tuple[int, int]
    size: tuple[int, int]

    def fits(self, factor: int) -> bool:
        """Whether a pixel at `factor` base px covers whole pixels of these, and they are no more than it takes."""
        step_x, step_y = (step * factor for step in self.step)
        exact = tuple(round(size * step) for size, step in zip(self.size, self.step, strict=True))
        return step_x == step_y == round(step_x) and self.pixels.sides == exact[::-1]

    def image(self, factor: int) -> Image:
        """The rectangle at `factor` base px a pixel, each pixel the mean of what it covers."""
        if self.fits(factor):
            return self.pixels.reduced(round(self.step[0] * factor))
        return self.pixels.resampled(*self._starts(factor), *(step * factor for step in self.step))

    def rows_of_tiles(self, factor: int, rows: Sequence[NDArray[np.int64]]) -> Iterator[Image]:
        """The same where it has to be resampled, of each of these rows of tiles alone, as wide as the rectangle.

        A row is (n, 2) x, y of its tiles' corners in base px; between them, the image is undefined.
        """
        start_x, start_y = self._starts(factor)
        steps = self.step[0] * factor, self.step[1] * factor
        for row in rows:
            image = self.pixels.room(TILE_PX, len(start_x))
            for x, y, width in _runs((row - self.corner) // factor):
                part = self.pixels.resampled(start_x[x : x + width], start_y[y : y + TILE_PX], *steps)
                image.window(x, 0, width, TILE_PX).fill(part)
            yield image

    def _starts(self, factor: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where the columns and rows of pixels at `factor` begin, in pixels of these."""
        x, y = (
            _pixel_starts(self.corner[axis] // factor, self.size[axis] // factor, step * factor, self.downsample)
            for axis, step in enumerate(self.step)
        )
        return x - self.left, y - self.top


def _runs(tiles: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """x, y and width of runs of tiles that touch, of corners (n, 2) x, y that are sorted by rows."""
    begins = np.flatnonzero(np.r_[True, (np.diff(tiles, axis=0) != (TILE_PX, 0)).any(axis=1)])
    ends = np.r_[begins[1:], len(tiles)]
    return [(*tiles[a].tolist(), TILE_PX * int(b - a)) for a, b in zip(begins, ends, strict=True)]


@dataclass(frozen=True)
class _Request:
    """What to ask a reader for, in pixels of `level`; see `SlideReader.read`. A base px is `step` level px wide."""

    level: int
    downsample: int
    step: tuple[float, float]
    rectangle: tuple[int, int, int, int]
    boxes: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        reader: SlideReader,
        grid: Grid,
        tiles: _Tiles,
        begin: NDArray[np.int64],
        end: NDArray[np.int64],
    ) -> _Request:
        """The rectangle `begin` to `end` (x, y) in base px, from the coarsest level as fine as the finest of the tiles.

        Only what these tiles need of it will be used.
        """
        finest, corner, side = tiles.finest, tiles.corner, tiles.side
        level, downsample = _best_level(reader.info, grid, finest)
        step = (grid.step_x0 / downsample, grid.step_y0 / downsample)
        slack = 0 if all((s * finest).is_integer() for s in step) else 1  # tiles begin at rounded positions
        boxes = _boxes_in_level(np.maximum(corner, begin), np.minimum(corner + side[:, None], end), step, slack)
        ((left, top, width, height),) = _boxes_in_level(begin[None], end[None], step, slack).tolist()
        return cls(level, downsample, step, (left, top, width, height), boxes)


def _read_source(
    reader: SlideReader,
    grid: Grid,
    tiles: _Tiles,
    across: tuple[int, int],
    down: tuple[int, int],
    *,
    planar: bool = False,
) -> _Source:
    """The rectangle `across` (x from, to) and `down` (y from, to) in base px; as stored planes, where wanted."""
    begin, end = np.array([across[0], down[0]]), np.array([across[1], down[1]])
    asked = _Request.of(reader, grid, tiles, begin, end)
    left, top, width, height = asked.rectangle
    pixels: Image
    if planar and reader.planar_quality(asked.level) is not None:
        aside, above = left % 2, top % 2  # planes begin at even pixels
        left, top = left - aside, top - above
        pixels = reader.read_planes(asked.level, left, top, width + aside, height + above, asked.boxes)
    else:
        pixels = Rgb(reader.read(asked.level, left, top, width, height, asked.boxes))
    size = end - begin
    at = (int(begin[0]), int(begin[1]))
    return _Source(pixels, left, top, asked.downsample, asked.step, at, (int(size[0]), int(size[1])))


def _boxes_in_level(
    begin: NDArray[np.int64], end: NDArray[np.int64], step: tuple[float, float], slack: int
) -> NDArray[np.int64]:
    """(n, 4) x, y, width, height in level px of rectangles `begin` to `end` (n, 2) in base px, with `slack` around."""
    first = np.floor(begin * step + _WHOLE).astype(np.int64) - slack
    last = np.ceil(end * step - _WHOLE).astype(np.int64) + slack
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
