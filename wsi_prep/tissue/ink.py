"""Ink of pens, and black borders, found on a picture of the whole slide: what no dye of this slide's tissue looks like.

A stain fills the tissue and follows its texture. Ink is a stroke with edges of its own: a layer of one colour, even
inside, over glass and tissue alike.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_prep.tissue.background_model import BackgroundModel
from wsi_prep.tissue.picture import deviation, largest, morphed

_MPP = 16.0
"""um per pixel at which ink is looked for: strokes are wide."""

_RIM_UM = 32.0
_LEAST_EVEN_SHARE = 0.35
_SATURATED = 1.0
_REACH_UM = 96.0
_PALEST = 0.06
_MOST_ALIKE = 0.3
_MOST_ELSEWHERE = 1.0
_NEARLY_ALIKE = 0.1


class _Kind(NamedTuple):
    """One kind of ink: where it is for sure, how far it may reach, the density by which its layer is even, and how much
    each pixel's colour is the ink's; the narrowest stroke in um, and the most that the layer varies, as a share of it.
    """

    sure: NDArray[np.bool_]
    reach: NDArray[np.bool_]
    layer: NDArray[np.float32]
    likeness: NDArray[np.float32]
    width_um: float = 130.0
    uneven: float = 0.16


def ink(picture: NDArray[np.uint8], mpp: float, glass: BackgroundModel) -> NDArray[np.bool_]:
    """(h, w): pen strokes and black borders with their soft rim, in an (h, w, 3) uint8 RGB picture of a whole slide.

    `glass` is the picture's, whose pixels measure `mpp` um.
    """
    height, width = picture.shape[:2]
    factor = max(1, round(_MPP / mpp))
    size = (max(1, width // factor), max(1, height // factor))
    small = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    um = mpp * factor
    density = glass.density(small)
    unscanned = glass.unscanned(small)
    if unscanned is not None:
        density[unscanned] = 0.0
    tissue = largest(density) > _PALEST
    found = np.zeros(tissue.shape, bool)
    for kind in _kinds(density):
        found |= _strokes(kind, tissue, um)
    if not found.any():
        return np.zeros((height, width), bool)
    grown = morphed(found, cv2.MORPH_DILATE, _RIM_UM / um).astype(np.uint8) * 255
    marked: NDArray[np.bool_] = cv2.resize(grown, (width, height), interpolation=cv2.INTER_LINEAR) > 127
    return marked


def _kinds(density: NDArray[np.float32]) -> list[_Kind]:
    red, green, blue = cv2.split(density)
    highest, lowest = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    cold = (red - green) / np.maximum(highest, 0.05)
    least = min(0.06, _usually_below(cold[highest > 0.12]) + 0.1)
    sure_cold = (cold > least) & (red > 0.25)
    reach_cold = (red > 0.12) & (cold > least - 0.1)
    hot = (red < 0.3 * green) & (blue > 0.8 * green)
    dark = ((highest > 0.85) & (lowest > 0.3)) | (lowest > 0.5)
    green_pen = (green < 0.75 * red) & (green < 0.75 * blue)
    hotness = (blue - red) / np.maximum(green, 0.05)
    reach_hot = (green > 0.15) & (red < 0.5 * green) & (blue > 0.7 * green)
    return [
        _Kind(green_pen & (highest > 0.25), green_pen & (highest > 0.12), highest, cold, 50.0, 0.35),
        _Kind(sure_cold, reach_cold, red, cold),
        _Kind(hot & (green > 0.5), reach_hot, green, hotness),
        _Kind(dark, (highest > 0.6) & (lowest > 0.2), highest, highest),
    ]


def _usually_below(values: NDArray[np.float32]) -> float:
    """What most values of a slide do not reach; a part of other values does not move it far."""
    if not len(values):
        return 0.0
    low, high = np.percentile(values, [25, 75])
    return float(high + 1.5 * (high - low))


def _strokes(kind: _Kind, tissue: NDArray[np.bool_], um: float) -> NDArray[np.bool_]:
    """The parts that are even, wide enough for a pen and unlike the rest of the slide, and what they reach."""
    layer = np.minimum(kind.layer, _SATURATED)
    even = kind.sure & (deviation(layer, 3) < kind.uneven * layer)
    wide = morphed(even, cv2.MORPH_OPEN, math.floor(0.5 * kind.width_um / um))
    if not wide.any():
        return wide
    near = morphed(wide, cv2.MORPH_DILATE, _REACH_UM / um)
    count, labels = cv2.connectedComponents((near & (kind.reach | wide)).astype(np.uint8), connectivity=8)
    inner = labels[wide]
    size = np.maximum(np.bincount(inner, minlength=count), 1)
    mean = np.bincount(inner, kind.likeness[wide], count) / size
    spread = np.sqrt(np.maximum(np.bincount(inner, kind.likeness[wide] ** 2, count) / size - mean**2, 0.0))
    rest = np.sort(kind.likeness[tissue & ~near])
    alike = len(rest) - np.searchsorted(rest, mean - np.maximum(spread, _NEARLY_ALIKE))
    share = size / np.maximum(np.bincount(labels[kind.sure], minlength=count), 1)
    most_alike = min(_MOST_ALIKE * len(rest), _MOST_ELSEWHERE * len(inner))
    stroke = (share >= _LEAST_EVEN_SHARE) & (alike <= most_alike) & (size > 1)
    stroke[0] = False
    found: NDArray[np.bool_] = stroke[labels]
    return found
