"""Pictures of any um/px out of blocks of 2 x 2 tiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsi_prep.format.magnifications import TILE_PX

BLOCK_PX = 2 * TILE_PX


@dataclass(frozen=True)
class AnyMpp:
    """How pictures of any um/px are made of some tiles: (B, ...) for B of them.

    `wanted`: float32, the um/px at which crops are wanted. `beside`: (B, 3) int64, the index rows of the tiles right
    of, below and across from the tile in its block, -1 where it serves alone. `corner`: (B, 2) float64, x and y of what
    is cut from the block, in its tiles' px from its upper left corner, and `side` (B,) float64 how wide and high it is.
    """

    wanted: NDArray[np.float32]
    beside: NDArray[np.int64]
    corner: NDArray[np.float64]
    side: NDArray[np.float64]

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

    def cut(self, row: int, block: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """Of a (784, 784, 3) uint8 block, what this row wants, as (392, 392, 3) uint8 into `out`: Pillow's bicubic."""
        x, y = self.corner[row].tolist()
        side = float(self.side[row])
        box = (x, y, min(x + side, BLOCK_PX), min(y + side, BLOCK_PX))
        out[:] = np.asarray(Image.fromarray(block).resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC, box))


def quarter(block: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
    """Where in a block the tile lies, or the one right of it, below it, or across from it: a view."""
    y, x = divmod(number, 2)
    return block[y * TILE_PX : (y + 1) * TILE_PX, x * TILE_PX : (x + 1) * TILE_PX]
