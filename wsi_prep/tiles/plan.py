"""Which tiles a slide gives: a grid and a tissue mask in, a table of tiles out. No pixels, no files."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from wsi_prep.errors import BadOption
from wsi_prep.format.magnifications import MAGNIFICATIONS, Magnification, to_level0
from wsi_prep.tiles.grid import Grid

_ALL = tuple(m.name for m in MAGNIFICATIONS)


@dataclass(frozen=True)
class PlanSettings:
    """Which tiles are wanted.

    `magnifications` are names; a tile is kept when at least `tissue_threshold` of its area is tissue; `max_tiles`,
    pairs of a name and a count, bounds the tiles of a slide at a magnification (a random choice, always the same).

    >>> PlanSettings(("40x", "20x"), tissue_threshold=0.5, max_tiles=(("40x", 500),)).magnifications
    ('40x', '20x')
    """

    magnifications: tuple[str, ...] = _ALL
    tissue_threshold: float = 0.65
    max_tiles: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.tissue_threshold) and 0 <= self.tissue_threshold <= 1):
            raise BadOption(f"tissue threshold {self.tissue_threshold:g} is not between 0 and 1")
        for name, count in self.max_tiles:
            if name not in self.magnifications:
                raise BadOption(f"max tiles names {name!r}, which is not among {' '.join(self.magnifications)}")
            if count < 1:
                raise BadOption(f"max tiles of {name} is {count}; it must be at least 1")


@dataclass(frozen=True)
class TilePlan:
    """The kept tiles of one slide, one array entry a tile.

    Sorted by the cell of the coarsest grid that holds the tile (row by row), then finest magnification first, then row
    and column. `mag` indexes MAGNIFICATIONS; `x0`, `y0` are level-0 px of the upper left corner; `tissue_fraction` is
    the share of the tile's area that is tissue, `pen` and `fat` the shares that are ink (0 until `with_ink`) and
    fat (NaN until `with_fat`).

    >>> with open_slide("slide.svs") as slide:
    ...     plan = plan_tiles(slide, np.ones(slide.thumbnail.pixels.shape[:2], bool), PlanSettings(("10x", "5x")))
    >>> len(plan), plan.x0[:3].tolist(), plan.tissue_fraction.min() == 1
    (10, [0, 1568, 0], np.True_)
    """

    grid: Grid
    mag: NDArray[np.int8]
    row: NDArray[np.int32]
    col: NDArray[np.int32]
    x0: NDArray[np.int64]
    y0: NDArray[np.int64]
    tissue_fraction: NDArray[np.float32]
    pen: NDArray[np.float32]
    fat: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.mag)

    def count(self, mag: Magnification) -> int:
        """How many tiles are kept at `mag`."""
        return int((self.mag == MAGNIFICATIONS.index(mag)).sum())

    def only(self, kept: NDArray[np.bool_]) -> TilePlan:
        """The plan of those tiles alone for which `kept` (n,) is true."""
        return TilePlan(self.grid, *(getattr(self, field.name)[kept] for field in fields(self)[1:]))

    def with_ink(self, ink: NDArray[np.bool_], mask_step_x0: float, mask_step_y0: float) -> TilePlan:
        """The plan whose tiles know how much of them is ink, by an (h, w) mask as `plan_tiles` takes it of tissue."""
        return replace(self, pen=self._shares(ink, mask_step_x0, mask_step_y0))

    def with_fat(self, fat: NDArray[np.bool_], mask_step_x0: float, mask_step_y0: float) -> TilePlan:
        """The same of fat."""
        return replace(self, fat=self._shares(fat, mask_step_x0, mask_step_y0))

    def _shares(self, mask: NDArray[np.bool_], mask_step_x0: float, mask_step_y0: float) -> NDArray[np.float32]:
        """(n,): how much of each tile a mask covers."""
        shares, integral = np.zeros(len(self), np.float32), _integral(mask)
        for mag in self.grid.magnifications if mask.any() else ():
            of_mag = self.mag == MAGNIFICATIONS.index(mag)
            share = _fraction(self.grid, mag, integral, mask_step_x0, mask_step_y0)
            shares[of_mag] = share[self.row[of_mag], self.col[of_mag]]
        return shares

    def cells(self) -> Iterator[slice]:
        """The tiles of each cell of the coarsest grid, in order, as slices of the arrays."""
        if not len(self):
            return
        cell = self.cell()
        starts = np.flatnonzero(np.r_[True, (np.diff(cell, axis=0) != 0).any(axis=1)])
        for start, stop in zip(starts, np.r_[starts[1:], len(self)], strict=True):
            yield slice(int(start), int(stop))

    def cell(self) -> NDArray[np.int64]:
        """(n, 2) row and column of the coarsest grid's cell that holds each tile."""
        per_side = _tiles_per_cell_side(self.mag)
        return np.stack([self.row // per_side, self.col // per_side], axis=1)


def plan_tiles(
    grid: Grid,
    tissue: NDArray[np.bool_],
    mask_step_x0: float,
    mask_step_y0: float,
    settings: PlanSettings,
    seed: str,
) -> TilePlan:
    """The tiles to make of one slide.

    `tissue` is an (h, w) mask over the whole slide whose pixels cover `mask_step_x0` by `mask_step_y0` level-0 px;
    `seed` (the slide's id) fixes the choice that `max_tiles` makes.
    """
    integral = _integral(tissue)
    limits = dict(settings.max_tiles)
    parts = [_Part.empty()]
    for mag in grid.magnifications:
        if mag.name not in settings.magnifications:
            continue
        fraction = _fraction(grid, mag, integral, mask_step_x0, mask_step_y0)
        row, col = np.nonzero(fraction >= settings.tissue_threshold - 1e-6)
        chosen = _choose(len(row), limits.get(mag.name), f"{seed} {mag.name}")
        parts.append(_Part.of(mag, row[chosen], col[chosen], fraction))
    return _sorted_plan(grid, parts)


class _Part(NamedTuple):
    """Kept tiles of one magnification, unsorted."""

    mag: NDArray[np.int8]
    row: NDArray[np.int32]
    col: NDArray[np.int32]
    fraction: NDArray[np.float32]

    @classmethod
    def empty(cls) -> _Part:
        return cls(np.empty(0, np.int8), np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))

    @classmethod
    def of(
        cls, mag: Magnification, row: NDArray[np.int64], col: NDArray[np.int64], fraction: NDArray[np.float64]
    ) -> _Part:
        number = np.full(len(row), MAGNIFICATIONS.index(mag), np.int8)
        return cls(number, row.astype(np.int32), col.astype(np.int32), fraction[row, col].astype(np.float32))


def _fraction(
    grid: Grid, mag: Magnification, integral: NDArray[np.int32], mask_step_x0: float, mask_step_y0: float
) -> NDArray[np.float64]:
    """(rows, cols) share of each tile's area that a mask covers, exact for mask pixels that a tile covers in part."""
    rows, cols = grid.shape(mag)
    span_x_mask, span_y_mask = grid.span_x0(mag) / mask_step_x0, grid.span_y0(mag) / mask_step_y0
    along_y = _interpolate(integral, np.arange(rows + 1.0) * span_y_mask)
    at_corners = _interpolate(along_y.T, np.arange(cols + 1.0) * span_x_mask).T
    area = at_corners[1:, 1:] - at_corners[:-1, 1:] - at_corners[1:, :-1] + at_corners[:-1, :-1]
    fraction: NDArray[np.float64] = np.clip(area / (span_x_mask * span_y_mask), 0.0, 1.0)
    return fraction


def _integral(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    integral = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int32)
    np.cumsum(mask, axis=0, out=integral[1:, 1:])
    np.cumsum(integral[1:, 1:], axis=1, out=integral[1:, 1:])
    return integral


def _interpolate(table: NDArray[np.float64] | NDArray[np.int32], position: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of `table` at fractional positions, linear between rows, which is exact for an integral image."""
    position = np.clip(position, 0, len(table) - 1)
    below = np.minimum(position.astype(np.int64), max(len(table) - 2, 0))
    share = (position - below)[:, None]
    return np.asarray(table[below] * (1 - share) + table[np.minimum(below + 1, len(table) - 1)] * share)


def _choose(count: int, limit: int | None, seed: str) -> NDArray[np.int64]:
    """Which of `count` tiles to keep, in order: all of them, or `limit` drawn by `seed`."""
    if limit is None or count <= limit:
        return np.arange(count)
    generator = np.random.default_rng(int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=8).digest()))
    return np.sort(generator.choice(count, limit, replace=False))


def _sorted_plan(grid: Grid, parts: list[_Part]) -> TilePlan:
    mag, row, col, fraction = (np.concatenate([part[i] for part in parts]) for i in range(len(_Part._fields)))
    per_side = _tiles_per_cell_side(mag)
    order = np.lexsort((col, row, mag, col // per_side, row // per_side))
    mag, row, col, fraction = mag[order], row[order], col[order], fraction[order]
    x0, y0 = np.empty(len(mag), np.int64), np.empty(len(mag), np.int64)
    for known in grid.magnifications:
        of_mag = mag == MAGNIFICATIONS.index(known)
        x0[of_mag] = to_level0(col[of_mag], grid.span_x0(known))
        y0[of_mag] = to_level0(row[of_mag], grid.span_y0(known))
    return TilePlan(
        grid, mag, row, col, x0, y0, fraction, np.zeros(len(mag), np.float32), np.full(len(mag), np.nan, np.float32)
    )


def _tiles_per_cell_side(mag: NDArray[np.int8]) -> NDArray[np.int64]:
    """How many tiles at each of the magnifications `mag` lie side by side in a cell of the coarsest grid."""
    return np.asarray(2 ** (len(MAGNIFICATIONS) - 1 - mag.astype(np.int64)), dtype=np.int64)
