"""Pictures of any um/px out of blocks of 2 x 2 tiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from wsi_prep.format.magnifications import TILE_PX

BLOCK_PX = 2 * TILE_PX


@dataclass(frozen=True)
class AnyMpp:
    """How pictures of any um/px are made of some tiles: (B, ...) for B of them.

    `wanted`: float32, the um/px at which crops are wanted. `beside`: (B, 3) int64, the index rows of the tiles right
    of, below and across from the tile in its block, -1 where it serves alone. `corner`: (B, 2) int64, x and y of what
    is cut from the block, in its tiles' px from its upper left corner, and `side` (B,) int64 how wide and high it is:
    whole px, which hardly differ from what is wanted, and make up for that in how crops are cut.
    """

    wanted: NDArray[np.float32]
    beside: NDArray[np.int64]
    corner: NDArray[np.int64]
    side: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> AnyMpp:
        """These rows alone."""
        return AnyMpp(self.wanted[rows], self.beside[rows], self.corner[rows], self.side[rows])

    def replaced(self, row: int, other: AnyMpp) -> AnyMpp:
        """The same with the one row of the other in that place."""
        made = []
        for mine, its in zip(vars(self).values(), vars(other).values(), strict=True):
            made.append(mine.copy())
            made[-1][row] = its[0]
        return AnyMpp(*made)

    def put(self, row: int, number: int, tile: NDArray[np.uint8], into: NDArray[np.uint8]) -> None:
        """What this row wants of a (392, 392, 3) tile of its block, into (side, side, 3).

        `number`: 0 the tile, 1 the one right of it, 2 below, 3 across.
        """
        side = int(self.side[row])
        first = np.array(divmod(number, 2)) * TILE_PX - self.corner[row, ::-1]  # of the tile, in what is wanted
        begin, end = np.maximum(first, 0), np.minimum(first + TILE_PX, side)
        (y, x), (y_end, x_end) = begin.tolist(), end.tolist()
        (top, left), (bottom, right) = (begin - first).tolist(), (end - first).tolist()
        into[y:y_end, x:x_end] = tile[top:bottom, left:right]


def shrink(picture: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """(side, side, 3) uint8 as (392, 392, 3) into `out`: an antialiased bicubic, Pillow's to rounding."""
    source = torch.from_numpy(picture).permute(2, 0, 1)[None]
    small = functional.interpolate(source, size=out.shape[:2], mode="bicubic", antialias=True)
    torch.from_numpy(out).copy_(small[0].permute(1, 2, 0))
