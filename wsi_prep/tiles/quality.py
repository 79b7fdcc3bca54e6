"""Measures of one tile's quality and stain, cheap enough to take of every tile from pixels already in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_prep.compute.compiled import compile_loop
from wsi_prep.format.magnifications import TILE_PX
from wsi_prep.slides.images import Image, Rgb
from wsi_prep.stain.densities import density_table, unmixing
from wsi_prep.tiles.focus import focus

MEASURES = ("focus", "pen", "dark", "white", "saturation", "od_haematoxylin", "od_eosin", "od_dab", "fat")
"""What `measure_tile` returns, in this order; also the names of the catalog's columns."""

_SMALL_PX = 98
_REDUCED = TILE_PX // _SMALL_PX


def measure_tile(tile: NDArray[np.uint8]) -> tuple[float, ...]:
    """The MEASURES of a (392, 392, 3) uint8 RGB tile.

    focus: see `wsi_prep.tiles.focus`. pen: 0, and fat: NaN, as only the whole slide shows them. The others are of
    the tile at a quarter of its side, see `colours`.
    """
    return Measurer(np.zeros((1, 2), np.int64)).measure(0, Rgb(tile))


class Measurer:
    """Measures tiles whose upper left pixels in one image are `corner` (n, 2) x, y.

    `quarter`: that image at a quarter of its sides, RGB, where somebody has it. `pen`: (n,) shares of them that are
    ink, by the slide's overview (`wsi_prep.tissue.ink`); 0 without it. `fat`: the same of fat; NaN without it. Threads
    may share it.
    """

    def __init__(
        self,
        corner: NDArray[np.int64],
        quarter: NDArray[np.uint8] | None = None,
        pen: NDArray[np.float32] | None = None,
        fat: NDArray[np.float32] | None = None,
    ) -> None:
        self._fat = np.full(len(corner), np.nan, np.float32) if fat is None else fat
        self._pen = np.zeros(len(corner), np.float32) if pen is None else pen
        self._corner = corner // _REDUCED
        self._quarter = None if quarter is None or (corner % _REDUCED).any() else np.ascontiguousarray(quarter)

    def measure(self, number: int, tile: Image) -> tuple[float, ...]:
        """The MEASURES of the image's tile `number`, of 392 x 392 px."""
        sharp, pen, fat = focus(tile.brightness()), float(self._pen[number]), float(self._fat[number])
        if self._quarter is not None:
            x, y = self._corner[number].tolist()
            return sharp, pen, *_colours(self._quarter, x, y, _SMALL_PX), fat
        half = tile.reduced(2)  # by two exact halvings, for which OpenCV has a fast path
        return sharp, pen, *_colours(half.reduced(2).rgb(half), 0, 0, _SMALL_PX), fat


def colours(picture: NDArray[np.uint8]) -> tuple[float, ...]:
    """The MEASURES between pen and fat of a square (n, n, 3) uint8 RGB picture.

    dark, white: shares of it, 0 to 1. A pixel is dark where no channel reaches 60 (folds, black), white where all pass
    215.
    saturation: mean of HSV saturation, (max - min) / max, 0 to 1, 0 where black.
    od_*: mean optical densities of the dyes, as `stain_densities` has them.
    """
    return _colours(np.ascontiguousarray(picture), 0, 0, len(picture))


def _colours(picture: NDArray[np.uint8], x: int, y: int, side: int) -> tuple[float, ...]:
    sums = np.zeros(len(MEASURES) - 3)
    _loop()(picture, x, y, side, density_table(), unmixing(), sums)
    return tuple((sums / side**2).tolist())


@functools.cache
def _loop() -> Callable[..., None]:
    """The loop over a square of `picture`: adds up what `colours` takes the means of, a row at a time."""

    def loop(
        picture: Any, left: int, top: int, side: int, table: Any, unmix: Any, sums: Any
    ) -> None:  # pragma: no cover - compiled
        one, zero = np.float32(1), np.float32(0)
        h_r, h_g, h_b = unmix[0, 0], unmix[1, 0], unmix[2, 0]
        e_r, e_g, e_b = unmix[0, 1], unmix[1, 1], unmix[2, 1]
        d_r, d_g, d_b = unmix[0, 2], unmix[1, 2], unmix[2, 2]
        levels = np.empty((3, side), np.float32)
        densities = np.empty((3, side), np.float32)
        for i in range(side):
            row = picture[top + i, left : left + side].reshape(3 * side)
            for channel in range(3):
                for j in range(side):
                    level = row[3 * j + channel]
                    levels[channel, j] = level
                    densities[channel, j] = table[level]
            reds, greens, blues = levels[0], levels[1], levels[2]
            od_r, od_g, od_b = densities[0], densities[1], densities[2]
            dark = white = saturation = haematoxylin = eosin = dab = zero
            for j in range(side):
                r, g, b = reds[j], greens[j], blues[j]
                high, low = max(r, g, b), min(r, g, b)
                dark += one if high < 60 else zero
                white += one if low > 215 else zero
                saturation += (high - low) / max(high, one)
                haematoxylin += max(h_r * od_r[j] + h_g * od_g[j] + h_b * od_b[j], zero)
                eosin += max(e_r * od_r[j] + e_g * od_g[j] + e_b * od_b[j], zero)
                dab += max(d_r * od_r[j] + d_g * od_g[j] + d_b * od_b[j], zero)
            sums[0] += dark
            sums[1] += white
            sums[2] += saturation
            sums[3] += haematoxylin
            sums[4] += eosin
            sums[5] += dab

    return compile_loop(loop, reorder=True)
