"""The background of a slide: what bare glass looks like, by which all density is measured."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_prep.tissue.background import (
    RIM_SPREAD,
    WITHIN,
    Flat,
    brightest_quiet,
    ends_with_tiles,
    flat_parts,
    hugs,
    opened,
    rim_of_glass,
    square,
)
from wsi_prep.tissue.picture import bands, brightest, darkest

_ASSUMED_GLASS = 243.0
"""Brightness of glass (0 to 255) where a slide shows none: what scanners are commonly set to."""

_DARKEST_GLASS, _GLASS_COLOUR_SPREAD = 170, 22
_SURELY = 6
_LEAST_GLASS_SHARE, _LEAST_BESIDE_FLAT, _MOST_ABOVE_FLAT = 0.02, 0.05, 0.002
_GLASS_DENSITY_SPREAD = 0.015
_NEARLY = 0.75
_SAMPLED_PX = 100_000
"""BackgroundModel is estimated from about so many pixels, however large the slide."""

_LEVEL_NOISE, _TILT_PRIOR = 0.01, 0.05
"""Spread (optical density) of glass about its surface, and of the tilt and bend that lamps are expected to have."""

_FILLING_NOISE, _FILLING_PX, _FILLING_RIM_PX, _MIXED_PX = 2, 5, 2, 3
_SPOILT_NOISE, _SPOILT_PX = 12, 6
_RIM_ABOVE, _RIM_BELOW = 3, 4
"""Levels by which glass beside filling must be brighter than what is even elsewhere, or may be darker where filling
goes all around, since what is even within may be tissue or fat."""

_BESIDE_PX, _CLEAN_PERCENT, _USUAL_SPREAD = 12, 12.5, 0.25
"""How wide a rim of glass is looked at, how much of it lies clear of tissue at least, and how its noise is spread, of
itself."""


@dataclass(frozen=True)
class BackgroundModel:
    """Bare glass: its `colour`, (3,) float, times 10 ** -`surface`, the six terms of a quadratic over the picture.

    `sampled` marks, at every `stride`-th row and column, the pixels that it was taken from. `fillings`: what parts that
    were not scanned are filled with, where that is darker; `beside`: where it is not. `assumed`: the picture shows no
    glass. `thin`: it was taken from the rim beside filling alone, most of which may be near tissue.
    """

    colour: NDArray[np.float64]
    surface: NDArray[np.float64]
    sampled: NDArray[np.bool_]
    stride: int
    fillings: tuple[Flat, ...] = ()
    beside: tuple[Flat, ...] = ()
    assumed: bool = False
    thin: bool = False

    @property
    def warning(self) -> str | None:
        """What a slide's row says of it: where it was assumed, in one line."""
        if not self.assumed:
            return None
        return (
            f"no bare glass was found, so its brightness was assumed ({_ASSUMED_GLASS:g} of 255) and all of the "
            "picture may count as tissue: look at the overlay, and where that is wrong give a mask (MASKS=)"
        )

    @classmethod
    def of(
        cls,
        thumbnail: NDArray[np.uint8],
        *,
        tinted: bool = True,
        filling: tuple[int, int, int] | None = None,
        tile: tuple[float, float] | None = None,
    ) -> BackgroundModel:
        """The glass of an (h, w, 3) picture, whatever its colour; assumed where the picture shows too little.

        `filling` is the colour of parts that are known to be left out, `tile` the width and height, in pixels of the
        picture, of the tiles that the file stores.

        Not `tinted`: glass is white or light grey, and there is no filling, as in a crop of tissue alone, of which the
        palest part would pass for glass of its tint.
        """
        stride = max(1, math.isqrt(thumbnail.shape[0] * thumbnail.shape[1] // _SAMPLED_PX))
        sample = thumbnail[::stride, ::stride]
        grey, spread = _smoothness(thumbnail, stride)
        flats = flat_parts(thumbnail, stride, spread, tile) if tinted else []
        if filling is not None and all(flat.colour != filling for flat in flats):
            flats.append(Flat(filling, True))
            flats[-1] = replace(flats[-1], tiled=ends_with_tiles(flats[-1], thumbnail, tile))
        mode = brightest_quiet(thumbnail, flats) if tinted else None
        tiled = [flat for flat in flats if flat.tiled]
        rim = rim_of_glass(thumbnail, tiled) if tiled else None
        if rim is not None and mode is not None and any(flat.is_colour(rim) for flat in flats if not flat.tiled):
            rim = None  # beside one filling lies another
        if rim is not None and (mode is None or rim.mean() > mode.mean() - _RIM_BELOW):
            beside = cls._beside(rim, thumbnail, spread, stride, flats)
            if beside.thin or mode is None or rim.mean() > mode.mean() + _RIM_ABOVE:
                return beside
        white = [
            flat
            for flat in flats
            if not (WITHIN[-1] in flat.tiled or (flat.colour == filling and _outshines(flat, sample)))
        ]
        balanced, candidate = _candidates(sample, grey, spread, flats, white, mode)
        if candidate is None:
            colour = np.full(3, _ASSUMED_GLASS)
            return cls(colour, np.zeros(6), np.zeros(spread.shape, bool), stride, *_sorted(flats, colour), assumed=True)
        lowest = darkest(balanced)
        near = candidate & (np.abs(lowest.astype(int) - _bright_mode(lowest[candidate])) <= 8)
        return cls._around(np.median(sample[near], axis=0).astype(np.float64), sample, candidate, stride, flats)

    @classmethod
    def _beside(
        cls,
        rim: NDArray[np.float64],
        thumbnail: NDArray[np.uint8],
        spread: NDArray[np.float32],
        stride: int,
        flats: list[Flat],
    ) -> BackgroundModel:
        """Glass of the colour that the rim beside filling has; taken from the rim alone where that goes all around."""
        filled = opened(thumbnail, flats)
        thin = hugs(filled)
        near = cv2.dilate(filled, square(_BESIDE_PX)) if thin else np.full_like(filled, 255)
        candidate = (near & ~cv2.dilate(filled, square(_MIXED_PX)))[::stride, ::stride] > 0
        model = cls._around(rim, thumbnail[::stride, ::stride], candidate & (spread <= RIM_SPREAD), stride, flats)
        return replace(model, thin=thin)

    @classmethod
    def _around(
        cls,
        colour: NDArray[np.float64],
        sample: NDArray[np.uint8],
        candidate: NDArray[np.bool_],
        stride: int,
        flats: list[Flat],
    ) -> BackgroundModel:
        """Glass of about this colour, among the candidates of a sampled picture."""
        sorted_flats = _sorted(flats, colour)
        taken = _taken(colour, sample)
        mean = (taken[0] + taken[1] + taken[2]) / np.float32(3)
        surface = np.zeros(6)
        # starting from the commonest brightness, follow the lamp's fall-off outwards; a channel apart is pale tissue
        for _ in range(5):
            level = _surface(surface, candidate.shape)
            near = candidate.copy()
            for channel in taken:
                near &= np.abs(channel - level) <= _GLASS_DENSITY_SPREAD
            if not near.any():  # noisy glass of which no pixel has the middle of every channel
                return cls(colour, np.zeros(6), near, stride, *sorted_flats)
            surface = _fit_surface(mean, near)
        return cls(colour, surface, near, stride, *sorted_flats)

    def density(self, thumbnail: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(h, w, 3) float32: -log10 of the light that each pixel lets through, relative to the glass there; >= 0.

        `thumbnail` is the picture that the glass was taken from.
        """
        density = np.empty(thumbnail.shape, np.float32)
        for rows in bands(len(thumbnail)):
            cv2.merge(self.channels(thumbnail, rows), dst=density[rows])
        return density

    def channels(self, thumbnail: NDArray[np.uint8], rows: slice = slice(None)) -> list[NDArray[np.float32]]:
        """The three channels of `density`, these rows of them, each (rows, w): twice as quick as all in one."""
        taken = _taken(self.colour, thumbnail[rows])
        surface = _surface(self.surface, thumbnail.shape[:2], rows) if self.surface.any() else None
        for density in taken:
            if surface is not None:
                cv2.subtract(density, surface, dst=density)
            cv2.max(density, 0.0, dst=density)
        return taken

    def density_at(self, thumbnail: NDArray[np.uint8], at: tuple[NDArray[np.int64], ...]) -> NDArray[np.float32]:
        """(n, 3): `density` of the pixels at these n rows and columns."""
        taken = np.stack(_taken(self.colour, thumbnail[at][None]), axis=-1)[0]
        y, x = (2 * place / max(1, size - 1) - 1 for place, size in zip(at, thumbnail.shape[:2], strict=True))
        surface = sum(c * y**up_y * x**up_x for c, (up_y, up_x) in zip(self.surface, _POWERS, strict=True))
        return np.asarray(np.maximum(taken - np.clip(surface, *_WITHIN)[:, None], 0), dtype=np.float32)

    def noise_floor(self, evidence: NDArray[np.float32], spreads: float = 4.0) -> float:
        """What (h, w) `evidence` of tissue reaches on bare glass by noise alone, at most 0.05: so many `spreads` above
        the usual.
        """
        found = evidence[:: self.stride, :: self.stride][self.sampled]
        if not len(found):
            return 0.0
        if self.thin:
            return min(0.05, float(np.percentile(found, _CLEAN_PERCENT)) * (1 + _USUAL_SPREAD * spreads))
        middle = float(np.median(found))
        return min(0.05, middle + spreads * 1.4826 * float(np.median(np.abs(found - middle))))

    def unscanned(self, thumbnail: NDArray[np.uint8]) -> NDArray[np.bool_] | None:
        """(h, w): the parts that are filled with one of `fillings`, and their rim; None where there are none."""
        if not self.fillings:
            return None
        filled = _any_shown(self.fillings, thumbnail, _FILLING_NOISE)
        # a few pixels of tissue may have the colour; a narrow strip is filling beside another one, or at the edge
        square = np.ones((_FILLING_PX, _FILLING_PX), np.uint8)
        large = (filled | _any_shown(self.beside, thumbnail, _FILLING_NOISE)).astype(np.uint8)
        joined = cv2.morphologyEx(large, cv2.MORPH_CLOSE, np.ones((_MIXED_PX, _MIXED_PX), np.uint8), borderValue=1)
        opened = filled & (np.asarray(cv2.morphologyEx(joined, cv2.MORPH_OPEN, square, borderValue=1)) > 0)
        # JPEG spoils it near what is not filling, and resampling mixes both
        near = _grown(opened, _SPOILT_PX) & _any_shown(self.fillings, thumbnail, _SPOILT_NOISE)
        return _grown(opened | near, _FILLING_RIM_PX)

    def filled(self, thumbnail: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """(h, w): all flat parts, those brighter than the glass too, and the pixels around them that are mixed."""
        return _grown(_any_shown((*self.fillings, *self.beside), thumbnail, _FILLING_NOISE), _MIXED_PX)


def _candidates(
    sample: NDArray[np.uint8],
    grey: NDArray[np.float32],
    spread: NDArray[np.float32],
    flats: list[Flat],
    white: list[Flat],
    mode: NDArray[np.float64] | None,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """The sampled picture, balanced so that its glass looks as it usually does, and where that may be glass, or None.

    `mode` is the colour of its brightest quiet part.

    `white`, flat parts that may be saturated glass, are it only where nothing else looks like it, or is brighter.
    """
    tiled = [flat for flat in flats if flat.tiled]
    beside = ~(_any_shown(flats, sample) | _grown(_any_shown(tiled, sample), _MIXED_PX))
    usual = _smooth_and_bright(sample, grey, spread, beside)
    if mode is None and white and usual.sum() <= _LEAST_BESIDE_FLAT * beside.sum():
        lightest = max(white, key=lambda flat: sum(flat.colour))
        above = (sample[beside].astype(np.int64).sum(axis=1) > sum(lightest.colour) + 18).sum()
        if above <= _MOST_ABOVE_FLAT * spread.size:
            beside = ~_any_shown([flat for flat in flats if flat != lightest], sample)
            mode = np.array(lightest.colour, np.float64)
            usual = _smooth_and_bright(sample, grey, spread, beside)
    if mode is not None and (
        mode.min() < _DARKEST_GLASS + _SURELY or mode.max() - mode.min() > _GLASS_COLOUR_SPREAD - _SURELY
    ):
        mode = np.maximum(mode, 1)  # pure black, too, may be the commonest colour
        table = np.rint(np.arange(256)[:, None] * (_ASSUMED_GLASS / mode)).clip(0, 255).astype(np.uint8)
        sample = np.asarray(cv2.LUT(sample, table[:, None, :]), dtype=np.uint8)
        usual = _smooth_and_bright(sample, grey * np.float32(_ASSUMED_GLASS / mode.mean()), spread, beside)
    return sample, usual if usual.sum() >= _LEAST_GLASS_SHARE * beside.sum() > 0 else None


def _any_shown(flats: Iterable[Flat], picture: NDArray[np.uint8], within: int = 1) -> NDArray[np.bool_]:
    shown = np.zeros(picture.shape[:2], bool)
    for flat in flats:
        shown |= flat.shown(picture, within)
    return shown


def _grown(mask: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """A mask, and what is within so many pixels of it."""
    square = np.ones((2 * by + 1, 2 * by + 1), np.uint8)
    return np.asarray(cv2.dilate(mask.astype(np.uint8), square), dtype=np.bool_)


def _outshines(flat: Flat, picture: NDArray[np.uint8]) -> bool:
    """Whether nothing else in a picture is nearly as bright: beside saturated glass there is thin tissue."""
    rest = brightest(picture)[~_grown(flat.shown(picture), 3)]
    return not len(rest) or float(np.percentile(rest, 98)) < _NEARLY * max(flat.colour)


def _sorted(flats: list[Flat], glass: NDArray[np.float64]) -> tuple[tuple[Flat, ...], tuple[Flat, ...]]:
    """The flats that would pass for tissue on such glass, and those beside them at the picture's edge."""
    fillings = tuple(flat for flat in flats if flat.darkens(glass))
    return fillings, tuple(flat for flat in flats if flat.outer and flat not in fillings)


def _smoothness(thumbnail: NDArray[np.uint8], stride: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Brightness at every `stride`-th row and column of a picture, and how much it varies within 3 x 3 pixels there."""
    grey = cv2.cvtColor(thumbnail, cv2.COLOR_RGB2GRAY)
    around = cv2.copyMakeBorder(grey, 1, 1, 1, 1, cv2.BORDER_REFLECT_101)
    height, width = grey.shape
    total, squares = (np.zeros(grey[::stride, ::stride].shape, np.float32) for _ in range(2))
    for y, x in itertools.product(range(3), range(3)):
        values = around[y : y + height : stride, x : x + width : stride].astype(np.float32)
        total += values
        squares += np.multiply(values, values, out=values)
    total /= 9
    squares /= 9
    squares -= np.multiply(total, total, out=total)
    spread = cv2.sqrt(cv2.max(squares, 0.0))
    return grey[::stride, ::stride].astype(np.float32), np.asarray(spread, dtype=np.float32)


def _smooth_and_bright(
    sample: NDArray[np.uint8], grey: NDArray[np.float32], spread: NDArray[np.float32], beside: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Where (h, w, 3) pixels look like glass and vary as little as the smoothest of them; pale tissue does not."""
    bright = spread[(grey >= _DARKEST_GLASS) & beside]
    if not len(bright):
        return np.zeros(spread.shape, bool)
    smooth = beside & (spread <= max(3.0, 2.5 * float(np.percentile(bright, 10))))
    lowest = darkest(sample)
    candidate = smooth & (lowest >= _DARKEST_GLASS) & (brightest(sample) - lowest <= _GLASS_COLOUR_SPREAD)
    # pure white is not the glass where there is other glass
    scanned: NDArray[np.bool_] = candidate & (lowest < 255)
    return scanned if scanned.mean() > 0.05 else candidate


def _bright_mode(levels: NDArray[np.uint8]) -> int:
    """The brightest level that is a peak of the histogram, and at least a quarter of the highest."""
    counts = np.bincount(levels, minlength=256)
    histogram = np.convolve(counts, np.hanning(11)[1:-1], mode="same")
    around = np.pad(histogram, 1)
    peak = (histogram >= around[:-2]) & (histogram >= around[2:]) & (histogram >= 0.25 * histogram.max())
    return int(np.flatnonzero(peak)[-1])


_POWERS = ((0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0))
"""Of y and x, in the six terms of a quadratic."""


_WITHIN = (-0.06, 0.1)
"""Optical density by which a lamp's fall-off can darken the glass."""


def _taken(colour: NDArray[np.float64], picture: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """-log10 of the light that each channel of a picture lets through, relative to glass of that colour."""
    levels = np.log10(colour + 1.0)[:, None] - np.log10(np.arange(1.0, 257.0))
    tables = levels.astype(np.float32)
    return [
        np.asarray(cv2.LUT(channel, table), dtype=np.float32)
        for channel, table in zip(cv2.split(picture), tables, strict=True)
    ]


def _surface(
    coefficients: NDArray[np.float64], shape: tuple[int, ...], rows: slice = slice(None)
) -> NDArray[np.float32]:
    """Some rows of a quadratic over a picture of that shape, within what a lamp may do; both axes run from -1 to 1."""
    one, by_x, by_y, by_xx, by_xy, by_yy = coefficients
    y, x = np.linspace(-1.0, 1.0, shape[0])[rows], np.linspace(-1.0, 1.0, shape[1])
    surface = np.multiply.outer((by_xy * y).astype(np.float32), x.astype(np.float32))
    surface += (one + by_x * x + by_xx * x * x).astype(np.float32)
    surface += (by_y * y + by_yy * y * y).astype(np.float32)[:, None]
    cv2.max(surface, _WITHIN[0], dst=surface)
    cv2.min(surface, _WITHIN[1], dst=surface)
    return np.asarray(surface, dtype=np.float32)


def _fit_surface(darkening: NDArray[np.float32], glass: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Quadratic through the glass pixels of an (h, w) sample, held flat where few parts of the picture show glass.

    The sums of the normal equations are moments, x to the a times y to the b, so rows are summed before columns.
    """
    y, x = (np.linspace(-1.0, 1.0, size) ** np.arange(5)[:, None] for size in glass.shape)
    weight = _weights(glass)
    # einsum, as a product of matrices would start threads, which on busy cores take a hundred times as long
    moments, right = (np.einsum("ph,hw->pw", y, part) @ x.T for part in (weight, weight * darkening))
    normal = [[moments[yi + yj, xi + xj] for yj, xj in _POWERS] for yi, xi in _POWERS]
    prior = np.diag([0.0, *[(_LEVEL_NOISE / _TILT_PRIOR) ** 2] * 5])
    return np.asarray(np.linalg.solve(normal + prior, [right[yi, xi] for yi, xi in _POWERS]))


def _weights(glass: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(h, w): so that each of 8 x 8 parts of the picture weighs the same, however much of it is glass."""
    counts, parts = glass.astype(np.float32), []
    for axis, size in enumerate(glass.shape):
        _, first, part = np.unique(np.arange(size) * 8 // size, return_index=True, return_inverse=True)
        counts = np.add.reduceat(counts, first, axis=axis)
        parts.append(part)
    share = (1 / np.maximum(counts, 1)).take(parts[0], axis=0).take(parts[1], axis=1)
    return np.asarray(share * glass, dtype=np.float32)
