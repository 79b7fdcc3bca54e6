"""Reduced levels, trusted only as far as they show what level 0 shows.

A pyramid's levels may lack tiles, be garbled in places, or be pictures of something else that has the slide's
proportions. So each level that may be used is compared with samples of level 0 first, and all that is read of it later
with the thumbnail. A level that disagrees, or cannot be decoded, is made of the next finer one from then on.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from wsi_prep.errors import DamagedSlide
from wsi_prep.readers.base import SlideInfo, SlideReader, steps0
from wsi_prep.readers.compare import alike, resized
from wsi_prep.readers.levels import Rectangle, finer_level, from_finer
from wsi_prep.resample import area_resample
from wsi_prep.thumbnail import Thumbnail

_SAMPLE_EVERY = 16
"""Tiles of level 0, in both directions, of which one is looked at: 1 in 256, wherever a tile of a usual level lies."""

_MOST_PX = 512
"""Of a tile's sides; larger ones are looked at in part."""

_LEAST_SAMPLES, _MOST_SAMPLES = 4, 48
"""In each direction, where the slide has so many tiles."""

_CONFIRMED = 16
"""Places in the tissue where the thumbnail is compared with level 0."""

_COMPARED_MPP = 8.0
"""Pictures are compared at so many um/px."""

_OTHER_PICTURE = "shows something else than level 0"
_UNDECODABLE = "cannot be decoded everywhere"


class TrustedLevels:
    """A slide reader that looks at its reduced levels; `thumbnail`, once set, is what they are compared with."""

    def __init__(self, reader: SlideReader) -> None:
        self._reader = reader
        self._notes: list[str] = []
        self.keeps_edges = reader.keeps_edges
        self.lost = reader.lost
        self.thumbnail: Thumbnail | None = None

    @property
    def info(self) -> SlideInfo:
        """The slide's facts."""
        return self._reader.info

    @property
    def warnings(self) -> list[str]:
        """What had to be done without, so far."""
        return [*self._reader.warnings, *self._notes]

    def close(self) -> None:
        """Let go of the file."""
        self._reader.close()

    def expect(
        self, level: int, x_level: int, y_level: int, width: int, height: int, boxes: NDArray[np.int64] | None = None
    ) -> None:
        """See `SlideReader.expect`."""
        if level not in self.lost:
            self._reader.expect(level, x_level, y_level, width, height, boxes)

    def read(
        self, level: int, x_level: int, y_level: int, width: int, height: int, boxes: NDArray[np.int64] | None = None
    ) -> NDArray[np.uint8]:
        """Pixels of a rectangle of one level, (height, width, 3) uint8 RGB; see `SlideReader.read`."""
        rectangle = (x_level, y_level, width, height)
        if level not in self.lost:
            try:
                pixels = self._reader.read(level, *rectangle, boxes)
            except DamagedSlide:
                if level == 0:
                    raise
                self._give_up(level, _UNDECODABLE)
            else:
                if level == 0 or self._agrees(level, rectangle, pixels, boxes):
                    return pixels
                self._give_up(level, _OTHER_PICTURE)
        return from_finer(self.read, self.info.levels, finer_level(level, self.lost), level, rectangle, boxes)

    def compare_levels(self, mpp: float, coarsest: float) -> None:
        """Compare the levels up to the downsample `coarsest` with samples of level 0, whose pixels measure `mpp` um."""
        used = [i for i, level in enumerate(self.info.levels) if i and level.downsample <= coarsest * 1.001]
        wanted = list(self._samples(mpp)) if used else []
        for level in used:  # the finer ones first: what a level lacks is made of them
            for site, picture in wanted:
                if level not in self.lost and not self._is_alike(level, site, picture):
                    self._give_up(level, _OTHER_PICTURE)

    def confirms(self, tissue: NDArray[np.bool_]) -> bool:
        """Whether level 0 shows what the thumbnail shows where (h, w) `tissue` was found on it.

        If not, the level that the thumbnail was made from is given up: make another, and look for tissue again.
        """
        if self.thumbnail is None or self.thumbnail.level == 0:
            return True
        found = np.flatnonzero(tissue)
        side = self.info.tile_px
        for place in found[:: max(1, len(found) // _CONFIRMED)]:
            row, col = divmod(int(place), tissue.shape[1])
            x, y = (int(col * self.thumbnail.step_x0) // side * side, int(row * self.thumbnail.step_y0) // side * side)
            site = (x, y, min(side, self.info.width0 - x), min(side, self.info.height0 - y))
            with contextlib.suppress(DamagedSlide):
                if not self._agrees(0, site, self._reader.read(0, *site), None):
                    self._give_up(self.thumbnail.level, _OTHER_PICTURE)
                    return False
        return True

    def _samples(self, mpp: float) -> Iterator[tuple[Rectangle, NDArray[np.uint8]]]:
        """Places of level 0, and their pixels reduced to what is compared."""
        for site in _sites(self.info):
            with contextlib.suppress(DamagedSlide):  # that fails the slide where a tile is cut from it
                yield site, resized(self._reader.read(0, *site), _compared_size(site, mpp))

    def _is_alike(self, level: int, site: Rectangle, wanted: NDArray[np.uint8]) -> bool:
        """Whether a level shows at a site of level 0 what level 0 shows, each compared pixel exactly where it lies."""
        steps = steps0(self.info.levels[0], self.info.levels[level])
        starts, ends, cells = [], [], []
        for at, side, step, count in zip(site[:2], site[2:], steps, wanted.shape[1::-1], strict=True):
            cells.append(max(1.0, side / step / count))
            starts.append(at / step + cells[-1] * np.arange(count))
            ends.append(math.ceil(starts[-1][-1] + cells[-1]))
        x, y = (math.floor(start[0]) for start in starts)
        try:
            found = self._reader.read(level, x, y, ends[0] - x, ends[1] - y)
        except DamagedSlide:
            self._give_up(level, _UNDECODABLE)
            return True
        return alike(wanted, area_resample(found, starts[0] - x, starts[1] - y, *cells))

    def _agrees(
        self, level: int, rectangle: Rectangle, pixels: NDArray[np.uint8], boxes: NDArray[np.int64] | None
    ) -> bool:
        """Whether what was read of a level looks like the thumbnail there."""
        if self.thumbnail is None:
            return True
        x, y = rectangle[:2]
        downsample = self.info.levels[level].downsample
        step_x, step_y = self.thumbnail.step_x0 / downsample, self.thumbnail.step_y0 / downsample
        height, width = self.thumbnail.pixels.shape[:2]
        for bx, by, bw, bh in [rectangle] if boxes is None else boxes.tolist():
            left, top = math.ceil(max(bx, x, 0) / step_x), math.ceil(max(by, y, 0) / step_y)
            right = min(width, math.floor(min(bx + bw, x + rectangle[2]) / step_x))
            bottom = min(height, math.floor(min(by + bh, y + rectangle[3]) / step_y))
            if right <= left or bottom <= top:
                continue
            across = slice(round(left * step_x) - x, round(right * step_x) - x)
            part = pixels[round(top * step_y) - y : round(bottom * step_y) - y, across]
            shown = self.thumbnail.pixels[top:bottom, left:right]
            if part.size and not alike(resized(part, shown.shape[1::-1]), shown):
                return False
        return True

    def _give_up(self, level: int, why: str) -> None:
        self.lost.add(level)
        sides = self.info.levels[level]
        self._notes.append(f"the level of {sides.width} x {sides.height} px {why}, so a finer one is used")


def _compared_size(site: Rectangle, mpp: float) -> tuple[int, int]:
    return max(1, round(site[2] * mpp / _COMPARED_MPP)), max(1, round(site[3] * mpp / _COMPARED_MPP))


def _sites(info: SlideInfo) -> Iterator[Rectangle]:
    """Tiles of level 0 spread over the slide, or the corners of large ones, as x, y, width, height."""
    side = info.tile_px
    down = _spread(-(-info.height0 // side))
    for col in _spread(-(-info.width0 // side)):
        for row in down:
            x, y = col * side, row * side
            yield x, y, min(side, info.width0 - x, _MOST_PX), min(side, info.height0 - y, _MOST_PX)


def _spread(tiles: int) -> list[int]:
    """Of so many tiles, those in the middle of equal stretches."""
    count = min(tiles, max(_LEAST_SAMPLES, -(-tiles // _SAMPLE_EVERY)), _MOST_SAMPLES)
    return [(2 * i + 1) * tiles // (2 * count) for i in range(count)]
