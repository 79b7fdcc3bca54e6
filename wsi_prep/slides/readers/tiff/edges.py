"""Decoded tiles at the edge of a rectangle, kept for the neighbour that will want the rest of them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from wsi_prep.slides.images import Planes
from wsi_prep.slides.readers.tiff.decode import Tile, paste

Rectangle = tuple[int, int, int, int]
"""X, y, width and height in px of a level."""

EdgeKey = tuple[int, int, bool]
"""Level, the tile's index there, and whether it was decoded to planes."""


@dataclass(frozen=True)
class _Part:
    """What is kept of a tile, and the upper left pixel of that in the level."""

    pixels: Tile
    x: int
    y: int

    def covers(self, left: int, top: int) -> bool:
        """Whether nothing of the tile, from there on down and to the right, is missing."""
        return self.x <= left and self.y <= top


class EdgeTiles:
    """Tiles that reach beyond what they were decoded for: of those beyond one edge the part that lies there.

    `nbytes` of memory in all; past `most_bytes` the oldest are dropped by `trim`. Threads may keep tiles side by side.
    """

    def __init__(self, most_bytes: int) -> None:
        self.nbytes = 0
        self._most_bytes = most_bytes
        self._parts: OrderedDict[EdgeKey, _Part] = OrderedDict()
        self._lock = threading.Lock()

    def has(self, key: EdgeKey, corner: tuple[int, int], rectangle: Rectangle) -> bool:
        """Whether all is here that a rectangle wants of the tile at `corner` (x, y)."""
        part = self._parts.get(key)
        return part is not None and part.covers(max(corner[0], rectangle[0]), max(corner[1], rectangle[1]))

    def paste(self, key: EdgeKey, out: Tile, x: int, y: int) -> None:
        """Copy what is here of a tile into `out`, whose corner is at x, y."""
        part = self._parts[key]
        paste(out, part.pixels, part.x, part.y, x, y)

    def keep(self, key: EdgeKey, tile: Tile, corner: tuple[int, int], rectangle: Rectangle) -> None:
        """Keep a copy of what a `tile` at `corner` holds for the neighbours of the rectangle."""
        self.drop(key)
        height, width = tile.sides if isinstance(tile, Planes) else tile.shape[:2]
        right, below = rectangle[0] + rectangle[2] - corner[0], rectangle[1] + rectangle[3] - corner[1]
        if right >= width and below >= height:
            return
        left = right // 2 * 2 if below >= height else 0  # planes are cut at even pixels
        top = below // 2 * 2 if right >= width else 0
        pixels = _copied(tile, left, top)
        with self._lock:
            self._parts[key] = _Part(pixels, corner[0] + left, corner[1] + top)
            self.nbytes += pixels.nbytes

    def drop(self, key: EdgeKey) -> None:
        """Let go of a tile, if it is here."""
        with self._lock:
            part = self._parts.pop(key, None)
            if part is not None:
                self.nbytes -= part.pixels.nbytes

    def drop_before(self, level: int, index: int) -> None:
        """Let go of the tiles of a level with lower indices."""
        for key in [key for key in self._parts if key[0] == level and key[1] < index]:
            self.drop(key)

    def trim(self) -> None:
        """Let go of the oldest, while there are too many."""
        while self.nbytes > self._most_bytes:
            self.drop(next(iter(self._parts)))


def _copied(tile: Tile, left: int, top: int) -> Tile:
    """A copy of a tile from that pixel on, to the right and down; the rest of its memory is free to go."""
    if not isinstance(tile, Planes):
        return tile[top:, left:].copy()
    height, width = tile.sides
    copy = Planes.empty(height - top, width - left)
    copy.fill(tile.window(left, top, width - left, height - top))
    return copy
