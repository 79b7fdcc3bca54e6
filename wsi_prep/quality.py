"""Measures of one tile's quality and stain, cheap enough to take of every tile from pixels already in memory."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_prep.stain import stain_densities

MEASURES = ("focus", "pen", "dark", "white", "od_haematoxylin", "od_eosin", "od_dab")
"""What `measure_tile` returns, in this order; also the names of the catalog's columns."""

_SMALL_PX = 98
_DARK, _WHITE = 60, 215


def measure_tile(tile: NDArray[np.uint8]) -> tuple[float, ...]:
    """The MEASURES of a (392, 392, 3) uint8 RGB tile.

    focus: see `focus`; pen, dark, white: shares of the tile, 0 to 1; od_*: mean optical densities of the dyes.
    """
    # two exact halvings: OpenCV has a fast path for those, and a third of the time is enough
    half = cv2.resize(tile, (2 * _SMALL_PX, 2 * _SMALL_PX), interpolation=cv2.INTER_AREA)
    small = np.asarray(cv2.resize(half, (_SMALL_PX, _SMALL_PX), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    red, green, blue = cv2.split(small)
    highest = cv2.max(cv2.max(red, green), blue)
    lowest = cv2.min(cv2.min(red, green), blue)
    dark = float(np.count_nonzero(highest < _DARK)) / highest.size
    white = float(np.count_nonzero(lowest > _WHITE)) / lowest.size
    haematoxylin, eosin, dab, _ = cv2.mean(stain_densities(small))
    return focus(tile), pen_share(small), dark, white, haematoxylin, eosin, dab


def focus(tile: NDArray[np.uint8]) -> float:
    """Sharpness of a tile, no unit, higher is sharper.

    The mean squared difference of the green channel from its 3 x 3 mean, over the channel's variance: so contrast, and
    with it a pale stain, does not count.
    """
    green = cv2.extractChannel(tile, 1)
    detail = cv2.absdiff(green, cv2.blur(green, (3, 3)))
    _, spread = cv2.meanStdDev(green)
    return float(cv2.norm(detail, cv2.NORM_L2SQR) / green.size / (float(spread[0, 0]) ** 2 + 1.0))


def pen_share(rgb: NDArray[np.uint8]) -> float:
    """Share of the pixels of an (h, w, 3) picture with a colour that pens have and stains have not."""
    red, green, blue = (channel.astype(np.int16) for channel in cv2.split(rgb))
    green_pen = (green > red + 30) & (green > blue + 10)
    blue_pen = (blue > red + 90) & (blue > green + 60)
    red_pen = (red > green + 110) & (red > blue + 90)
    share: float = np.count_nonzero(green_pen | blue_pen | red_pen) / red.size
    return share
