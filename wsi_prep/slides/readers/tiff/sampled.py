"""Tiles that were decoded for a look at the slide, kept until they are cut."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

TileKey = tuple[int, int]
"""Where its page begins in the file, and the tile's index there. Not where its data lie: tiles may share those."""

_MOST_BYTES = 16 * 2**20


class SampledTiles:
    """Decoded tiles, clipped to their picture; each is given out once."""

    def __init__(self) -> None:
        self._tiles: dict[TileKey, NDArray[np.uint8]] = {}
        self._bytes = 0
        self._ended = False

    def keep(self, key: TileKey, tile: NDArray[np.uint8]) -> None:
        """Keep a copy of a tile, as long as there is room and the looks have not ended."""
        if not self._ended and key not in self._tiles and self._bytes + tile.nbytes <= _MOST_BYTES:
            self._tiles[key] = tile.copy()
            self._bytes += tile.nbytes

    def take(self, key: TileKey) -> NDArray[np.uint8] | None:
        """That tile, if it was kept; it is kept no longer."""
        tile = self._tiles.pop(key, None)
        if tile is not None:
            self._bytes -= tile.nbytes
        return tile

    def end(self) -> None:
        """From here on each tile is cut once."""
        self._ended = True
