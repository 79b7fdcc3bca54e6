"""Reduced levels, trusted only as far as they show what level 0 shows.

A pyramid's levels may lack tiles, be garbled in places, or be pictures of something else that has the slide's
proportions. So the thumbnail, which tissue is found on, is compared with samples of level 0; and all that is read of
another level later, with the thumbnail. A level that disagrees, or cannot be decoded, is made of the next finer one
from then on.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from wsi_prep.errors import DamagedSlide
from wsi_prep.slides.base import SlideInfo, SlideReader
from wsi_prep.slides.images import Planes
from wsi_prep.slides.pyramid.compare import alike, cut_off, jumps_along, resized, striking
from wsi_prep.slides.pyramid.levels import Rectangle, finer_level, from_finer
from wsi_prep.slides.pyramid.thumbnail import Thumbnail

_SAMPLE_EVERY = 16
"""Tiles of level 0, in both directions, of which one is looked at, 1 in 256; or one for each tile of the level that the
thumbnail is made from, where these are smaller."""

_MOST_PX = 512
"""Of a tile's sides; larger ones are looked at in part."""

_LAST_TOO = 8
"""Where one of so many tiles, in both directions, is looked at, two places of each tile of the level are."""

_LEAST_SAMPLES, _MOST_SAMPLES = 3, 48
"""In each direction, where the slide has so many tiles."""

_IN_TISSUE = 4
"""Places in the tissue where the thumbnail is compared with level 0, beside those all over the slide."""

_MOST_STRIKING, _STRIKING_PX = 8, 5
"""Places that strike the eye, in each direction of the thumbnail; and their sides in its pixels."""

_MOST_JUMPS = 64

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

    def planar_quality(self, level: int) -> int | None:
        """See `SlideReader.planar_quality`; what is made of a finer level has none."""
        return None if level in self.lost else self._reader.planar_quality(level)

    def read_planes(
        self, level: int, x_level: int, y_level: int, width: int, height: int, boxes: NDArray[np.int64] | None = None
    ) -> Planes:
        """See `SlideReader.read_planes`."""
        rectangle = (x_level, y_level, width, height)
        if level == 0:
            return self._reader.read_planes(level, *rectangle, boxes)
        with contextlib.suppress(DamagedSlide):
            if level in self.lost:
                raise DamagedSlide
            planes = self._reader.read_planes(level, *rectangle, boxes)
            if self._agrees(level, rectangle, planes.rgb(), boxes):
                return planes
        return Planes.of_rgb(self.read(level, *rectangle, boxes))  # which notes what is wrong with the level

    @property
    def most_shrink(self) -> int:
        """See `SlideReader.most_shrink`."""
        return self._reader.most_shrink

    def read_shrunk(self, shrink: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """See `SlideReader.read_shrunk`."""
        return self._reader.read_shrunk(shrink, x, y, width, height)

    def confirms(self, tissue: NDArray[np.bool_] | None = None) -> bool:
        """Whether samples of level 0 show what the thumbnail shows: all over the slide, or where (h, w) `tissue` is.

        If not, the level that the thumbnail was made from is given up: make another, and look for tissue again.
        """
        thumbnail = self.thumbnail
        if thumbnail is None or thumbnail.level == 0:
            return True
        for site in _sites(self.info, thumbnail) if tissue is None else _in_tissue(self.info, thumbnail, tissue):
            with contextlib.suppress(DamagedSlide):  # that fails the slide where a tile is cut from it
                if not self._agrees(0, site, self._reader.read(0, *site), None):
                    self._give_up(thumbnail.level, _OTHER_PICTURE)
                    self.thumbnail = None
                    return False
        return True

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


def _sites(info: SlideInfo, thumbnail: Thumbnail) -> Iterator[Rectangle]:
    """Where the thumbnail strikes the eye (letters, say), is cut off, or jumps where a tile ends, and tiles of
    level 0 spread over the slide, so that each tile of the level that it was made from has one.
    """
    picture = thumbnail.pixels
    tile0 = info.tile_px * info.levels[thumbnail.level].downsample  # level 0's px, if its tiles are as large
    jumps = jumps_along(picture, tile0 / thumbnail.step_x0, tile0 / thumbnail.step_y0)
    struck = striking(picture, _MOST_STRIKING, _STRIKING_PX) + cut_off(picture, _MOST_STRIKING, _STRIKING_PX)
    for x, y in struck + jumps[:: max(1, len(jumps) // _MOST_JUMPS)]:
        yield _site(info, int(x * thumbnail.step_x0), int(y * thumbnail.step_y0))
    side = info.tile_px
    every = min(_SAMPLE_EVERY, max(1, math.floor(info.levels[thumbnail.level].downsample)))
    tiles = max(1, round(info.width0 / side)), max(1, round(info.height0 / side))  # without the sliver at an edge
    for last in (False, True) if every >= _LAST_TOO else (False,):
        down = _spread(tiles[1], every, last=last)
        for col in _spread(tiles[0], every, last=last):
            for row in down:
                yield _site(info, col * side, row * side)


def _site(info: SlideInfo, x0: int, y0: int) -> Rectangle:
    """The tile of level 0 that holds a pixel, or the corner of a large one, as x, y, width, height."""
    x, y = (min(at, most - 1) // info.tile_px * info.tile_px for at, most in ((x0, info.width0), (y0, info.height0)))
    return x, y, min(info.tile_px, info.width0 - x, _MOST_PX), min(info.tile_px, info.height0 - y, _MOST_PX)


def _in_tissue(info: SlideInfo, thumbnail: Thumbnail, tissue: NDArray[np.bool_]) -> Iterator[Rectangle]:
    """Tiles of level 0 at some places of the tissue."""
    found = np.flatnonzero(tissue)
    for place in found[:: max(1, len(found) // _IN_TISSUE)]:
        row, col = divmod(int(place), tissue.shape[1])
        yield _site(info, int(col * thumbnail.step_x0), int(row * thumbnail.step_y0))


def _spread(tiles: int, every: int, *, last: bool) -> list[int]:
    """Of so many tiles, about one of `every`: the middle of equal stretches, or their last, where the grey of a JPEG is
    that was cut off.
    """
    count = min(tiles, max(_LEAST_SAMPLES, -(-tiles // every)), _MOST_SAMPLES)
    whole = -(-tiles // every) == count
    edges = [min(tiles, every * i) if whole else i * tiles // count for i in range(count + 1)]
    return [end - 1 if last else (begin + end - 1) // 2 for begin, end in pairwise(edges)]
