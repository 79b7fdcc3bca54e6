"""Ink of pens, and black borders, found on a picture of the whole slide: what no dye of this slide's tissue looks like.

A stain fills the tissue and follows its texture. Ink is a stroke: an even layer, wide, on top of glass and tissue, of a
colour that the rest of the slide's tissue does not have. So a colour alone is never ink.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_prep.tissue.background_model import BackgroundModel
from wsi_prep.tissue.evidence.regions import Regions
from wsi_prep.tissue.picture import deviation, morphed

_MPP = 16.0
"""um per pixel at which ink is looked for: strokes are wide."""

_RIM_UM, _REACH_UM, _BESIDE_UM = 32.0, 96.0, 200.0
"""The soft rim of a stroke; how far it goes on beyond its even middle; what counts as beside it."""

_PALEST = 0.06
_SATURATED = 1.0
"""Optical densities: of the palest tissue; and above which a camera and JPEG measure nothing but noise."""

_LEAST_EVEN = 0.35
"""Share of a stroke's area that is even. A stain has even places too, but most of it is not."""

_MOST_ALIKE, _MOST_ELSEWHERE, _ALIKE = 0.3, 1.0, 0.1
"""Of the tissue outside, the share that may look like the stroke; and how large that may be next to all strokes. Alike:
no further off than one standard deviation, or this.
"""

_LEAST_BESIDE, _ADDED = 0.05, 0.6
_MOST_DOTS, _MOST_RARE = 0.3, 0.02
"""Small parts of a stroke's colour are ink where they are at most such shares of all strokes, and of tissue outside."""


class _Kind(NamedTuple):
    """One kind of ink: where it is for sure, how far it may reach, the density by which its layer is even, and how much
    each pixel's colour is the ink's; the narrowest stroke, and the most that its layer varies, as a share of itself;
    whether dyes that come close have to be told from it by what is beside it.
    """

    sure: NDArray[np.bool_]
    reach: Callable[[], NDArray[np.bool_]]
    layer: NDArray[np.float32]
    likeness: NDArray[np.float32]
    width_um: float = 130.0
    uneven: float = 0.16
    on_top: bool = False


def ink(picture: NDArray[np.uint8], mpp: float, glass: BackgroundModel) -> NDArray[np.bool_]:
    """(h, w): pen strokes and black borders with their soft rim, in an (h, w, 3) uint8 RGB picture of a whole slide.

    `glass` is the picture's, whose pixels measure `mpp` um.
    """
    height, width = picture.shape[:2]
    factor = max(1, round(_MPP / mpp))
    size = (max(1, width // factor), max(1, height // factor))
    small = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    channels = glass.channels(small)
    unscanned = glass.unscanned(small)
    if unscanned is not None:
        for channel in channels:
            channel[unscanned] = 0.0
    found = np.zeros(small.shape[:2], bool)
    seen = cv2.max(cv2.max(channels[0], channels[1]), channels[2]) > _PALEST
    for kind in _kinds(channels):
        found |= _strokes(kind, channels, seen, mpp * factor)
    if not found.any():
        return np.zeros((height, width), bool)
    grown = _within(found, _RIM_UM / (mpp * factor)).astype(np.uint8) * 255
    marked: NDArray[np.bool_] = cv2.resize(grown, (width, height), interpolation=cv2.INTER_LINEAR) > 127
    return marked


def _kinds(channels: list[NDArray[np.float32]]) -> list[_Kind]:
    red, green, blue = channels
    highest, lowest = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    some = np.maximum(highest, 0.05)
    # most dyes take more green light than red; by how much less this slide's do so is its own
    cold = (red - green) / some
    sample = cold[::3, ::3][highest[::3, ::3] > 2 * _PALEST]
    least = min(0.06, _usually_below(sample) + 0.1) if len(sample) else 0.06
    green_pen = (green < 0.75 * red) & (green < 0.75 * blue)
    hot = (green > 0.5) & (red < 0.3 * green) & (blue > 0.8 * green)
    dense = (highest > 0.5) & (lowest > 0.1)
    dark = ((highest > 0.85) & (lowest > 0.3)) | (lowest > 0.5)
    return [
        _Kind(dense, lambda: dense, highest, highest, width_um=200.0, uneven=0.05),
        _Kind(green_pen & (highest > 0.25), lambda: green_pen & (highest > 0.12), highest, cold, 50.0, 0.35),
        _Kind((cold > least) & (red > 0.25), lambda: (cold > least - 0.1) & (red > 0.12), red, cold, on_top=True),
        _Kind(
            hot,
            lambda: (red < 0.5 * green) & (blue > 0.7 * green) & (green > 0.15),
            green,
            (blue - red) / some,
        ),
        _Kind(dark, lambda: (highest > 0.6) & (lowest > 0.2), highest, highest),
    ]


def _usually_below(values: NDArray[np.float32]) -> float:
    """What most values of a slide do not reach; a part of other values does not move it far."""
    low, high = np.percentile(values, [25, 75])
    return float(high + 1.5 * (high - low))


def _strokes(kind: _Kind, channels: list[NDArray[np.float32]], seen: NDArray[np.bool_], um: float) -> NDArray[np.bool_]:
    """The parts that are even, wide enough for a pen and unlike the rest of the slide, and what they reach.

    `seen`: (h, w), where there is tissue or ink.
    """
    if np.count_nonzero(kind.sure) < (kind.width_um / um) ** 2:
        return np.zeros_like(kind.sure)
    layer = np.minimum(kind.layer, _SATURATED)
    even = kind.sure & (deviation(layer, 3) < kind.uneven * layer)
    wide = morphed(even, cv2.MORPH_OPEN, math.floor(0.5 * kind.width_um / um))
    if not wide.any():
        return wide
    near = _within(wide, _REACH_UM / um)
    regions = Regions.of(near & (kind.reach() | wide))
    size = regions.count_of(wide)
    stroke = (size > 0) & (size >= _LEAST_EVEN * regions.count_of(kind.sure & (regions.labels > 0)))
    outside = seen & ~near
    rest = np.sort(kind.likeness[outside]) if stroke.any() else np.empty(0, np.float32)
    for number in np.flatnonzero(stroke):
        top, left, bottom, right = regions.box[number]
        margin = math.ceil(_BESIDE_UM / um)
        box = np.s_[max(0, top - margin) : bottom + 1 + margin, max(0, left - margin) : right + 1 + margin]
        zone = regions.labels[box] == number
        own = kind.likeness[box][zone & wide[box]]
        alike = len(rest) - np.searchsorted(rest, own.mean() - max(float(own.std()), _ALIKE))
        stroke[number] = alike <= min(_MOST_ALIKE * len(rest), _MOST_ELSEWHERE * size.sum()) and (
            not kind.on_top or _adds([channel[box] for channel in channels], zone, outside[box], um)
        )
    found = regions.those(stroke)
    # where a slide has hardly any of that colour otherwise, dots and tails of strokes are ink too
    dots = morphed(kind.sure & ~found, cv2.MORPH_OPEN, 1)
    if np.count_nonzero(dots) < min(_MOST_DOTS * np.count_nonzero(found), _MOST_RARE * len(rest)):
        found |= dots
    return found


def _adds(channels: list[NDArray[np.float32]], zone: NDArray[np.bool_], tissue: NDArray[np.bool_], um: float) -> bool:
    """Whether a zone takes no less light of any colour than the tissue beside it: ink lies on top of what is there."""
    beside = tissue & _within(zone, _BESIDE_UM / um)
    if np.count_nonzero(beside) < _LEAST_BESIDE * np.count_nonzero(zone):
        return True
    border = zone & _within(beside, _BESIDE_UM / um)
    return all(np.median(each[border]) >= _ADDED * np.median(each[beside]) for each in channels)


def _within(mask: NDArray[np.bool_], radius_px: float) -> NDArray[np.bool_]:
    """Where `mask` is no further than that; quicker than a dilation by a large disc."""
    near = np.zeros_like(mask)
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    margin = math.ceil(radius_px)
    box = np.s_[max(0, top - margin) : top + height + margin, max(0, left - margin) : left + width + margin]
    if width:
        near[box] = cv2.distanceTransform((~mask[box]).view(np.uint8), cv2.DIST_L2, 3) <= radius_px
    return near
