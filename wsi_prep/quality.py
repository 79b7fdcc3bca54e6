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

    focus: mean squared Laplacian of the green channel over its variance, no unit, higher is sharper; pen, dark, white:
    shares of the tile, 0 to 1; od_*: mean densities as `stain_densities` gives them.
    """
    small = np.asarray(cv2.resize(tile, (_SMALL_PX, _SMALL_PX), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    lowest, highest = small.min(axis=2), small.max(axis=2)
    dark = float((highest < _DARK).mean())
    white = float((lowest > _WHITE).mean())
    densities = stain_densities(small).reshape(-1, 3).mean(axis=0)
    return focus(tile), pen_share(small), dark, white, *(float(d) for d in densities)


def focus(tile: NDArray[np.uint8]) -> float:
    """Sharpness of a tile: the mean squared Laplacian of green over green's variance, so that pale is not blurred."""
    green = np.ascontiguousarray(tile[..., 1])
    edges = cv2.Laplacian(green, cv2.CV_16S)
    _, spread = cv2.meanStdDev(green)
    return float(cv2.norm(edges, cv2.NORM_L2SQR) / edges.size / (float(spread[0, 0]) ** 2 + 1.0))


def pen_share(rgb: NDArray[np.uint8]) -> float:
    """Share of the pixels with a colour that pens have and stains have not: green, saturated blue or red."""
    red, green, blue = (rgb[..., i].astype(np.int16) for i in range(3))
    green_pen = (green > red + 30) & (green > blue + 10)
    blue_pen = (blue > red + 90) & (blue > green + 60)
    red_pen = (red > green + 110) & (red > blue + 90)
    return float((green_pen | blue_pen | red_pen).mean())
