"""Measures of one tile's quality and stain, cheap enough to take of every tile from pixels already in memory."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_prep.geometry import TILE_PX
from wsi_prep.stain import stain_densities

MEASURES = ("focus", "pen", "dark", "white", "od_haematoxylin", "od_eosin", "od_dab")
"""What `measure_tile` returns, in this order; also the names of the catalog's columns."""

_SMALL_PX = 98
_REDUCED = TILE_PX // _SMALL_PX
_DARK, _WHITE = 60, 215


def measure_tile(tile: NDArray[np.uint8]) -> tuple[float, ...]:
    """The MEASURES of a (392, 392, 3) uint8 RGB tile.

    focus: see `focus`; pen, dark, white: shares of the tile, 0 to 1; od_*: mean optical densities of the dyes.
    """
    return Measurer(np.zeros((1, 2), np.int64)).measure(0, tile)


class Measurer:
    """Measures tiles whose upper left pixels in one image are `corner` (n, 2) x, y.

    `quarter`: that image halved twice, where somebody has it.
    """

    def __init__(self, corner: NDArray[np.int64], quarter: NDArray[np.uint8] | None = None) -> None:
        self._scratch = _Scratch()
        self._corner = corner // _REDUCED
        self._quarter = None if (corner % _REDUCED).any() else quarter

    def measure(self, number: int, tile: NDArray[np.uint8]) -> tuple[float, ...]:
        """The MEASURES of the image's tile `number`, whose pixels are (392, 392, 3) uint8."""
        if self._quarter is None:
            small = self._scratch.reduced(tile)
        else:
            x, y = self._corner[number].tolist()
            small = self._quarter[y : y + _SMALL_PX, x : x + _SMALL_PX]
        return _focus(tile, self._scratch), *_colours(small)


def focus(tile: NDArray[np.uint8]) -> float:
    """Sharpness of a tile, no unit, higher is sharper.

    The mean squared difference of the green channel from its 3 x 3 mean, over the channel's variance: so contrast, and
    with it a pale stain, does not count.
    """
    return _focus(tile, _Scratch())


class _Scratch:
    """Memory that is written again for each tile: fresh pages cost more than what is done with them."""

    def __init__(self) -> None:
        self.planes = [np.empty((TILE_PX, TILE_PX), np.uint8) for _ in range(3)]
        self.blurred = np.empty((TILE_PX, TILE_PX), np.uint8)
        self._half, self._quarter = (np.empty((s, s, 3), np.uint8) for s in (2 * _SMALL_PX, _SMALL_PX))

    def reduced(self, tile: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The tile at a quarter of its side, by two exact halvings, for which OpenCV has a fast path."""
        cv2.resize(tile, (2 * _SMALL_PX, 2 * _SMALL_PX), dst=self._half, interpolation=cv2.INTER_AREA)
        cv2.resize(self._half, (_SMALL_PX, _SMALL_PX), dst=self._quarter, interpolation=cv2.INTER_AREA)
        return self._quarter


def _focus(tile: NDArray[np.uint8], scratch: _Scratch) -> float:
    cv2.split(tile, scratch.planes)  # several times as fast as extracting one
    green, blurred = scratch.planes[1], scratch.blurred
    cv2.blur(green, (3, 3), dst=blurred)
    _, spread = cv2.meanStdDev(green)
    return float(cv2.norm(green, blurred, cv2.NORM_L2SQR) / green.size / (float(spread[0, 0]) ** 2 + 1.0))


def _colours(small: NDArray[np.uint8]) -> tuple[float, ...]:
    """Shares of pen, dark and white, and mean densities of the dyes, of an (h, w, 3) picture."""
    red, green, blue = cv2.split(small)
    highest = cv2.max(cv2.max(red, green), blue)
    lowest = cv2.min(cv2.min(red, green), blue)
    marks = _pen(red, green, blue), cv2.compare(highest, _DARK, cv2.CMP_LT), cv2.compare(lowest, _WHITE, cv2.CMP_GT)
    pen, dark, white = (cv2.countNonZero(mark) / mark.size for mark in marks)
    haematoxylin, eosin, dab, _ = cv2.mean(stain_densities(small))
    return pen, dark, white, haematoxylin, eosin, dab


def _pen(red: NDArray[np.uint8], green: NDArray[np.uint8], blue: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """255 where a pixel has a colour that pens have and stains have not: green, blue or red ink."""

    def exceeds(one: NDArray[np.uint8], other: NDArray[np.uint8], by: int) -> NDArray[np.uint8]:
        above = cv2.compare(cv2.subtract(one, other), by, cv2.CMP_GT)  # the difference stops at 0
        return np.asarray(above, dtype=np.uint8)

    inks = (
        cv2.bitwise_and(exceeds(green, red, 30), exceeds(green, blue, 10)),
        cv2.bitwise_and(exceeds(blue, red, 90), exceeds(blue, green, 60)),
        cv2.bitwise_and(exceeds(red, green, 110), exceeds(red, blue, 90)),
    )
    return np.asarray(cv2.bitwise_or(cv2.bitwise_or(inks[0], inks[1]), inks[2]), dtype=np.uint8)
