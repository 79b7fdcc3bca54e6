"""Draws of any um/px: the um/px first, then a slide that serves it, then a tile or a block of 2 x 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pretrain.compute.randomness import Purpose, uniforms
from pretrain.data.scales.blocks import Blocks
from pretrain.data.scales.cut import BLOCK_PX, AnyMpp
from pretrain.data.scales.served import Served
from wsi_prep.format.magnifications import TILE_PX

_TRIES_IN_SLIDE, _TRIES = 8, 24
_ROUNDING = 1e-3  # px
_NUMBERS = 5  # of each draw: um/px, slide, tile, and where in a block


class Drawn(NamedTuple):
    """(B,) cells, tiles as rows of the index, um/px of the pixels that come of them, and how these are made."""

    cell: NDArray[np.int64]
    tile: NDArray[np.int64]
    mpp: NDArray[np.float32]
    how: AnyMpp


@dataclass(frozen=True)
class AnyMppDraws:
    """Draws from n cells: what they serve, their `blocks` and their numbers there, where their tiles start in the
    index, how many there are, and their um/px.
    """

    served: Served
    blocks: Blocks
    number: NDArray[np.int64]
    start: NDArray[np.int64]
    count: NDArray[np.uint32]
    mpp: NDArray[np.float32]

    def draw(self, seed: int, step: int, size: int) -> Drawn:
        """A batch. The um/px of each place stands; what serves it is drawn again where a tile would come twice.

        First of its own slide. Where no others are left, a tile comes twice after all, at another um/px.
        """
        tile, cell, whole = np.empty((size, 4), np.int64), np.empty(size, np.int64), np.empty(size, bool)
        u = uniforms(seed, Purpose.ANY_MPP, step, range(size), _NUMBERS)
        wanted, corner = self.served.density.at(u[:, 0]).astype(np.float32), u[:, 3:]
        todo = np.arange(size)
        for attempt in range(_TRIES + 1):
            if attempt:
                u = uniforms(seed, Purpose.ANY_MPP, step, range(size), _NUMBERS, attempt)
            if not 0 < attempt <= _TRIES_IN_SLIDE:
                cell[todo], whole[todo] = self.served.choose(wanted[todo], u[todo, 1])
            tile[todo] = self._tiles(cell[todo], whole[todo], u[todo, 2])
            first = np.zeros(size, bool)
            first[np.unique(tile[:, 0], return_index=True)[1]] = True
            todo = np.flatnonzero(~first)
            if not len(todo):
                break
        return self._drawn(cell, tile, wanted, corner)

    def other(self, u: NDArray[np.float64], wanted: NDArray[np.float32]) -> Drawn:
        """Others that serve these um/px, by (B, 4) numbers in [0, 1)."""
        cell, whole = self.served.choose(wanted, u[:, 1])
        return self._drawn(cell, self._tiles(cell, whole, u[:, 2]), wanted, u[:, [0, 3]])

    def _tiles(self, cell: NDArray[np.int64], whole: NDArray[np.bool_], u: NDArray[np.float64]) -> NDArray[np.int64]:
        """(B, 4) rows of the index: a block's tiles, or a tile and three times -1; all of a cell are as likely."""
        found = np.full((len(cell), 4), -1)
        found[:, 0] = self.start[cell] + (u * self.count[cell]).astype(np.int64)
        number = self.number[cell[whole]]
        found[whole] = self.blocks.tiles(number, (u[whole] * self.blocks.count[number]).astype(np.int64))
        return found

    def _drawn(
        self,
        cell: NDArray[np.int64],
        tile: NDArray[np.int64],
        wanted: NDArray[np.float32],
        corner: NDArray[np.float64],
    ) -> Drawn:
        whole = tile[:, 1] >= 0
        of_tile = self.mpp[cell]
        needed = np.ceil(TILE_PX * (wanted / of_tile.astype(np.float64)) - _ROUNDING)
        side = np.where(whole, np.clip(needed, TILE_PX, BLOCK_PX), TILE_PX).astype(np.int64)
        room = np.where(whole, BLOCK_PX - side + 1, 1)
        how = AnyMpp(wanted, tile[:, 1:], (corner * room[:, None]).astype(np.int64), side)
        return Drawn(cell, tile[:, 0].copy(), (of_tile * (side / TILE_PX)).astype(np.float32), how)
