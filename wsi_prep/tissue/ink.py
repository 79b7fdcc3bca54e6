"""Ink of pens, and black borders, found on a picture of the whole slide: what no dye of this slide's tissue looks like.

A stain fills the tissue and follows its texture. Ink is a stroke: an even layer, wide, on top of glass and tissue, of a
colour that the rest of the slide's tissue does not have. So a colour alone is never ink.
"""

from __future__ import annotations

import functools
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

_FINE_UM, _LOOSER = 16.25, 0.03
"""Pixels of at most so many um are fine enough for a first look at every other one; colours so much looser will do
there, as a slide's own are known less well.
"""

_RIM_UM, _REACH_UM, _BESIDE_UM = 32.0, 96.0, 200.0
"""The soft rim of a stroke; how far it goes on beyond its even middle; what counts as beside it."""

_PALEST = 0.06
_SATURATED = 1.0
"""Optical densities: of the palest tissue; and above which a camera and JPEG measure nothing but noise."""

_LEAST_EVEN = 0.35
"""Share of a stroke's area that is even. A stain has even places too, but most of it is not."""

_LEAST_SMOOTH = 0.66
"""The same of all that a stroke reaches, where a dye comes close: broad fields of collagen in a trichrome follow the
tissue's texture, and most have less.
"""

_MOST_ALIKE, _MOST_ELSEWHERE, _ALIKE = 0.3, 1.0, 0.1
"""Of the tissue outside, the share that may look like the stroke; and how large that may be next to all strokes. Alike:
no further off than one standard deviation, or this.
"""

_LEAST_BESIDE, _ADDED = 0.05, 0.6
_MOST_DOTS, _MOST_RARE = 0.3, 0.02
"""Small parts of a stroke's colour are ink where they are at most such shares of all strokes, and of tissue outside."""


class _Colours:
    """Optical densities of a picture, (h, w) each, and what is made of them when it is first asked for."""

    def __init__(self, channels: list[NDArray[np.float32]]) -> None:
        self.channels = channels
        self.red, self.green, self.blue = channels
        self.highest = cv2.max(cv2.max(self.red, self.green), self.blue)

    @functools.cached_property
    def lowest(self) -> NDArray[np.float32]:
        """The least of the three."""
        return np.asarray(cv2.min(cv2.min(self.red, self.green), self.blue), dtype=np.float32)

    @functools.cached_property
    def some(self) -> NDArray[np.float32]:
        """The most of the three, and never nothing."""
        return np.asarray(cv2.max(self.highest, 0.05), dtype=np.float32)

    @functools.cached_property
    def cold(self) -> NDArray[np.float32]:
        """How much more red light is taken than green, as a share of the most."""
        return np.asarray(cv2.divide(cv2.subtract(self.red, self.green), self.some), dtype=np.float32)


class _Kind(NamedTuple):
    """One kind of ink: where it is for sure, how far it may reach, the density by which its layer is even, and how much
    each pixel's colour is the ink's.
    """

    sure: NDArray[np.bool_]
    reach: Callable[[], NDArray[np.bool_]]
    layer: NDArray[np.float32]
    likeness: Callable[[], NDArray[np.float32]]


class _Pen(NamedTuple):
    """How a kind of ink is found: from the colours, and how much less than usual is enough; the narrowest stroke, and
    the `side` of the square of every other pixel, each way, that such a stroke holds; the most that its layer varies,
    as a share of itself; whether dyes that come close have to be told from it by what is beside it.
    """

    kind: Callable[[_Colours, float], _Kind]
    side: int = 3
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
    unscanned = glass.unscanned(small)
    found = np.zeros(small.shape[:2], bool)
    pens = _likely(small, glass, unscanned, mpp * factor)
    if pens:
        colours = _colours(small, glass, unscanned)
        seen = colours.highest > _PALEST
        for pen in pens:
            found |= _strokes(pen, colours, seen, mpp * factor)
    if not found.any():
        return np.zeros((height, width), bool)
    grown = _within(found, _RIM_UM / (mpp * factor)).astype(np.uint8) * 255
    marked: NDArray[np.bool_] = cv2.resize(grown, (width, height), interpolation=cv2.INTER_LINEAR) > 127
    return marked


def _colours(small: NDArray[np.uint8], glass: BackgroundModel, unscanned: NDArray[np.bool_] | None) -> _Colours:
    channels = glass.channels(small)
    if unscanned is not None:
        for channel in channels:
            channel[unscanned] = 0.0
    return _Colours(channels)


def _likely(
    small: NDArray[np.uint8], glass: BackgroundModel, unscanned: NDArray[np.bool_] | None, um: float
) -> list[_Pen]:
    """The pens that a picture may have by every other of its rows and columns, in a quarter of the time."""
    if um > _FINE_UM:
        return list(_PENS)
    colours = _colours(np.ascontiguousarray(small[::2, ::2]), glass, None if unscanned is None else unscanned[::2, ::2])
    likely = []
    for pen in _PENS:
        sure = pen.kind(colours, _LOOSER).sure.view(np.uint8)
        if cv2.erode(sure, np.ones((pen.side, pen.side), np.uint8)).any():
            likely.append(pen)
    return likely


def _dense(colours: _Colours, _: float) -> _Kind:
    dense = (colours.highest > 0.5) & (colours.lowest > 0.1)
    return _Kind(dense, lambda: dense, colours.highest, lambda: colours.highest)


def _green(colours: _Colours, _: float) -> _Kind:
    green = (colours.green < 0.75 * colours.red) & (colours.green < 0.75 * colours.blue)
    sure = green & (colours.highest > 0.25)
    return _Kind(sure, lambda: green & (colours.highest > 0.12), colours.highest, lambda: colours.cold)


def _cold(colours: _Colours, looser: float) -> _Kind:
    # most dyes take more green light than red; by how much less this slide's do so is its own
    sample = colours.cold[::3, ::3][colours.highest[::3, ::3] > 2 * _PALEST]
    least = min(0.06, _usually_below(sample) + 0.1) if len(sample) else 0.06
    sure = (colours.cold > least - looser) & (colours.red > 0.25)
    reach = lambda: (colours.cold > least - 0.1) & (colours.red > 0.12)  # noqa: E731 - as the others
    return _Kind(sure, reach, colours.red, lambda: colours.cold)


def _hot(colours: _Colours, _: float) -> _Kind:
    red, green, blue = colours.channels
    return _Kind(
        (green > 0.5) & (red < 0.3 * green) & (blue > 0.8 * green),
        lambda: (red < 0.5 * green) & (blue > 0.7 * green) & (green > 0.15),
        green,
        lambda: (blue - red) / colours.some,
    )


def _dark(colours: _Colours, _: float) -> _Kind:
    highest, lowest = colours.highest, colours.lowest
    sure = ((highest > 0.85) & (lowest > 0.3)) | (lowest > 0.5)
    return _Kind(sure, lambda: (highest > 0.6) & (lowest > 0.2), highest, lambda: highest)


_PENS = (
    _Pen(_dense, side=4, width_um=200.0, uneven=0.05),
    _Pen(_green, side=1, width_um=50.0, uneven=0.35),
    _Pen(_cold, on_top=True),
    _Pen(_hot),
    _Pen(_dark),
)


def _usually_below(values: NDArray[np.float32]) -> float:
    """What most values of a slide do not reach; a part of other values does not move it far."""
    low, high = np.percentile(values, [25, 75])
    return float(high + 1.5 * (high - low))


def _strokes(pen: _Pen, colours: _Colours, seen: NDArray[np.bool_], um: float) -> NDArray[np.bool_]:
    """The parts that are even, wide enough for a pen and unlike the rest of the slide, and what they reach.

    `seen`: (h, w), where there is tissue or ink.
    """
    kind = pen.kind(colours, 0.0)
    wide = np.zeros_like(kind.sure)
    radius = math.floor(0.5 * pen.width_um / um)
    opened = morphed(kind.sure, cv2.MORPH_OPEN, radius)
    if np.count_nonzero(kind.sure) < (pen.width_um / um) ** 2 or not opened.any():
        return wide
    at = _box(opened, 2)
    layer = np.minimum(kind.layer[at], _SATURATED)
    even = opened[at] & (deviation(layer, 3) < pen.uneven * layer)
    wide[at] = morphed(even, cv2.MORPH_OPEN, radius)
    if not wide.any():
        return wide
    near = _within(wide, _REACH_UM / um)
    regions = Regions.of(near & (kind.reach() | wide))
    size = regions.count_of(wide)
    stroke = (size > 0) & (size >= _LEAST_EVEN * regions.count_of(kind.sure & (regions.labels > 0)))
    if not stroke.any():
        return np.zeros_like(wide)
    outside = seen & ~near
    likeness = kind.likeness()
    rest = np.sort(likeness[outside])
    alike = len(rest) - np.searchsorted(rest, _least_alike(likeness[wide], regions.labels[wide], size))
    stroke &= alike <= min(_MOST_ALIKE * len(rest), _MOST_ELSEWHERE * size.sum())
    if pen.on_top:
        margin = math.ceil(_BESIDE_UM / um)
        for number in np.flatnonzero(stroke):
            top, left, bottom, right = regions.box[number]
            box = np.s_[max(0, top - margin) : bottom + 1 + margin, max(0, left - margin) : right + 1 + margin]
            zone = regions.labels[box] == number
            stroke[number] = _adds([channel[box] for channel in colours.channels], zone, outside[box], um) and _smooth(
                zone, kind.layer[box], pen.uneven, radius
            )
    if not stroke.any():
        return np.zeros_like(wide)
    found = regions.those(stroke)
    # where a slide has hardly any of that colour otherwise, dots and tails of strokes are ink too
    dots = morphed(kind.sure & ~found, cv2.MORPH_OPEN, 1)
    if np.count_nonzero(dots) < min(_MOST_DOTS * np.count_nonzero(found), _MOST_RARE * len(rest)):
        found |= dots
    return found


def _least_alike(
    values: NDArray[np.float32], labels: NDArray[np.int32], count: NDArray[np.int64]
) -> NDArray[np.float64]:
    """By label, of which there are `count` values: the mean less the standard deviation, or less _ALIKE."""
    several = np.maximum(count, 1)
    mean = np.bincount(labels, values, len(count)) / several
    square = np.bincount(labels, np.square(values - mean[labels]), len(count)) / several
    return np.asarray(mean - np.maximum(np.sqrt(square), _ALIKE))


def _adds(channels: list[NDArray[np.float32]], zone: NDArray[np.bool_], tissue: NDArray[np.bool_], um: float) -> bool:
    """Whether a zone takes no less light of any colour than the tissue beside it: ink lies on top of what is there."""
    beside = tissue & _within(zone, _BESIDE_UM / um)
    if np.count_nonzero(beside) < _LEAST_BESIDE * np.count_nonzero(zone):
        return True
    border = zone & _within(beside, _BESIDE_UM / um)
    return all(np.median(each[border]) >= _ADDED * np.median(each[beside]) for each in channels)


def _smooth(zone: NDArray[np.bool_], density: NDArray[np.float32], uneven: float, radius: int) -> bool:
    """Whether a zone is an even layer nearly all over, but for its rim and what lies on it."""
    layer = np.minimum(density, _SATURATED)
    even = morphed(zone & (deviation(layer, 3) < uneven * layer), cv2.MORPH_OPEN, radius)
    return bool(np.count_nonzero(even) >= _LEAST_SMOOTH * np.count_nonzero(zone))


def _within(mask: NDArray[np.bool_], radius_px: float) -> NDArray[np.bool_]:
    """Where `mask` is no further than that; quicker than a dilation by a large disc."""
    near = np.zeros_like(mask)
    if mask.any():
        box = _box(mask, math.ceil(radius_px))
        near[box] = cv2.distanceTransform((~mask[box]).view(np.uint8), cv2.DIST_L2, 3) <= radius_px
    return near


def _box(mask: NDArray[np.bool_], margin: int) -> tuple[slice, slice]:
    """The rows and columns that hold all of a mask, and so many pixels around."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    return (
        slice(max(0, top - margin), top + height + margin),
        slice(max(0, left - margin), left + width + margin),
    )
