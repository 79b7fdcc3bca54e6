"""Tiles that were decoded for a look at the slide, kept until they are cut."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wsi_prep.slides.fetch.ranges import Span

_MOST_BYTES = 16 * 2**20


class SampledTiles:
    """Decoded tiles by where their data lie in the file; each is given out once."""

    def __init__(self) -> None:
        self._tiles: dict[Span, NDArray[np.uint8]] = {}
        self._bytes = 0
        self._ended = False

    def keep(self, span: Span, tile: NDArray[np.uint8]) -> None:
        """Keep a copy of a tile, as long as there is room and the looks have not ended."""
        if not self._ended and span not in self._tiles and self._bytes + tile.nbytes <= _MOST_BYTES:
            self._tiles[span] = tile.copy()
            self._bytes += tile.nbytes

    def take(self, span: Span) -> NDArray[np.uint8] | None:
        """The tile whose data lie there, if it was kept; it is kept no longer."""
        tile = self._tiles.pop(span, None)
        if tile is not None:
            self._bytes -= tile.nbytes
        return tile

    def end(self) -> None:
        """From here on each tile is cut once."""
        self._ended = True
