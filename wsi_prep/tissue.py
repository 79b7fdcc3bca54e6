"""Where the tissue is, found on a picture of the whole slide at a fixed physical resolution.

The glass is estimated first: its colour, and a smooth surface of its brightness. Everything is then judged by the light
that it takes away from the glass (optical density, Beer-Lambert) in whichever channel takes most, so pale and blue-only
tissue counts as much as pink, and grey or unevenly lit glass does not count at all. What has a pen's colour, or is
black or grey debris, is taken out again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_prep.errors import BadOption, NotBrightField

MASK_MPP = 8.0
"""um per pixel of the mask."""

_ASSUMED_GLASS = 243.0
"""Brightness of glass (0 to 255) where a slide shows none: what scanners are commonly set to."""

_DARKEST_GLASS, _GLASS_COLOUR_SPREAD = 170, 22
_LEAST_GLASS_SHARE = 0.02
_GLASS_DENSITY_SPREAD = 0.015
_ROWS_AT_ONCE = 256
_SAMPLED_PX = 100_000
"""Glass is estimated from about so many pixels, however large the slide."""

_LEVEL_NOISE, _TILT_PRIOR = 0.01, 0.05
"""Spread (optical density) of glass about its surface, and of the tilt and bend that lamps are expected to have."""

_ARTEFACT_MPP = 16.0
"""Pens and borders are looked for at this resolution."""

_TEXTURE_UM = 50.0
_RIM_UM = 32.0

_NEUTRAL = 0.2
"""(strongest - weakest channel) / strongest, in optical density, below which a thing is grey: no dye looks so."""


@dataclass(frozen=True)
class TissueSettings:
    """Thresholds of the detector, all physical.

    `seed_density` marks tissue for certain, `edge_density` is how far it then reaches (optical density, smoothed over
    20 um); noisy glass raises both. `gap_um` is the widest gap that is closed; what is smaller than `least_speck_um2`
    bridges no gap. Holes and fragments below `least_hole_um2` and `least_fragment_um2` are filled and dropped, grey
    ones (dust) below `least_grey_um2`.
    """

    seed_density: float = 0.07
    edge_density: float = 0.035
    gap_um: float = 48.0
    least_speck_um2: float = 2_000.0
    least_hole_um2: float = 10_000.0
    least_fragment_um2: float = 10_000.0
    least_grey_um2: float = 60_000.0

    def __post_init__(self) -> None:
        if not 0 < self.edge_density <= self.seed_density < 2:
            raise BadOption(f"tissue densities {self.edge_density:g}, {self.seed_density:g}: need 0 < edge <= seed < 2")
        for name in ("gap_um", "least_speck_um2", "least_hole_um2", "least_fragment_um2", "least_grey_um2"):
            if not 0 <= getattr(self, name) < 1e9:
                raise BadOption(f"tissue {name} {getattr(self, name):g} is not between 0 and 1e9")


def check_bright_field(thumbnail: NDArray[np.uint8]) -> None:
    """Raise NotBrightField where (h, w, 3) uint8 RGB shows light on a dark ground: fluorescence or dark field."""
    highest, lowest = brightest(thumbnail), darkest(thumbnail)
    lit = float((highest >= 60).mean())
    # stained tissue lets some light of every colour through; what glows is coloured, or no brighter than dim
    through = float(((highest >= 130) & (lowest >= 40)).mean())
    if lit < 0.005 or (through < 0.5 * lit and (lit < 0.5 or through < 0.05)):
        raise NotBrightField(
            f"{1 - lit:.0%} of the slide is nearly black and only {through:.0%} lets light through: "
            "fluorescence or dark field, where bright-field tiles are made"
        )


def detect_tissue(
    thumbnail: NDArray[np.uint8], mpp: float, settings: TissueSettings | None = None, glass: Glass | None = None
) -> NDArray[np.bool_]:
    """(h, w) mask of tissue in an (h, w, 3) uint8 RGB picture whose pixels measure `mpp` um.

    `glass`: the picture's, where it is known.
    """
    settings = settings or TissueSettings()
    glass = glass or Glass.of(thumbnail)
    density = glass.density(thumbnail)
    artefact = _artefacts(density, mpp)
    strongest = np.empty(artefact.shape, np.float32)
    for rows in _bands(len(density)):
        red, green, blue = cv2.split(density[rows])
        cv2.max(cv2.max(red, green), blue, dst=strongest[rows])
    del density  # of a large slide each of these has tens of MB
    strongest[artefact] = 0.0
    smooth = cv2.GaussianBlur(strongest, (0, 0), max(0.4, 10.0 / mpp))
    evidence = _deviation(strongest, max(3, round(_TEXTURE_UM / mpp) | 1))
    evidence += smooth
    del strongest
    noise = glass.noise_floor(evidence)
    reach = max(settings.edge_density, noise)
    certain, likely = evidence > max(settings.seed_density, 2 * noise), evidence > reach
    del evidence
    grown = _hysteresis(certain, likely)
    # texture is seen half its window beyond the edge: there, density alone decides
    inner = _morphed(grown, cv2.MORPH_ERODE, 0.5 * _TEXTURE_UM / mpp)
    sharp = (inner | (grown & (smooth > 0.5 * reach))) & ~artefact
    del smooth
    clean = _drop_debris(sharp, thumbnail, glass, mpp, settings)
    closed = _morphed(clean, cv2.MORPH_CLOSE, 0.5 * settings.gap_um / mpp) & ~artefact
    filled = ~_drop_small(~closed, settings.least_hole_um2 / mpp**2)
    return _drop_small(filled, settings.least_fragment_um2 / mpp**2)


def brightest(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(h, w): the highest of the three channels; several times as fast as a reduction over the last axis."""
    red, green, blue = cv2.split(picture)
    return np.asarray(cv2.max(cv2.max(red, green), blue), dtype=np.uint8)


def darkest(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(h, w): the lowest of the three channels."""
    red, green, blue = cv2.split(picture)
    return np.asarray(cv2.min(cv2.min(red, green), blue), dtype=np.uint8)


@dataclass(frozen=True)
class Glass:
    """Bare glass: its `colour`, (3,) float, times 10 ** -`surface`, the six terms of a quadratic over the picture.

    `sampled` marks, at every `stride`-th row and column, the pixels that it was taken from.
    """

    colour: NDArray[np.float64]
    surface: NDArray[np.float64]
    sampled: NDArray[np.bool_]
    stride: int

    @classmethod
    def of(cls, thumbnail: NDArray[np.uint8]) -> Glass:
        """The glass of an (h, w, 3) picture; assumed where the picture shows too little."""
        stride = max(1, math.isqrt(thumbnail.shape[0] * thumbnail.shape[1] // _SAMPLED_PX))
        smooth = _smooth_pixels(thumbnail)[::stride, ::stride]
        sample = thumbnail[::stride, ::stride]
        lowest = darkest(sample)
        candidate = smooth & (lowest >= _DARKEST_GLASS) & (brightest(sample) - lowest <= _GLASS_COLOUR_SPREAD)
        # unscanned parts are filled with pure white, which is not the glass where there is other glass
        scanned = candidate & (lowest < 255)
        if scanned.mean() > 0.05:
            candidate = scanned
        if candidate.mean() < _LEAST_GLASS_SHARE:
            return cls(np.full(3, _ASSUMED_GLASS), np.zeros(6), np.zeros_like(candidate), stride)
        near = candidate & (np.abs(lowest.astype(int) - _bright_mode(lowest[candidate])) <= 8)
        colour = np.median(sample[near], axis=0).astype(np.float64)
        levels = np.log10(colour + 1.0) - np.log10(np.arange(1.0, 257.0))[:, None]
        taken = [levels[:, channel][sample[..., channel]] for channel in range(3)]
        mean = (taken[0] + taken[1] + taken[2]) / 3
        surface = np.zeros(6)
        # starting from the commonest brightness, follow the lamp's fall-off outwards; a channel apart is pale tissue
        for _ in range(5):
            level = _surface(surface, candidate.shape)
            near = candidate.copy()
            for channel in taken:
                near &= np.abs(channel - level) <= _GLASS_DENSITY_SPREAD
            if not near.any():  # noisy glass of which no pixel has the middle of every channel
                return cls(colour, np.zeros(6), near, stride)
            surface = _fit_surface(mean, near)
        return cls(colour, surface, near, stride)

    def density(self, thumbnail: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(h, w, 3) float32: -log10 of the light that each pixel lets through, relative to the glass there; >= 0.

        `thumbnail` is the picture that the glass was taken from.
        """
        density = np.empty(thumbnail.shape, np.float32)
        for rows in _bands(len(thumbnail)):
            density[rows] = self.density_of_rows(thumbnail, rows)
        return density

    def density_of_rows(self, thumbnail: NDArray[np.uint8], rows: slice) -> NDArray[np.float32]:
        """These rows of `density`."""
        levels = np.log10(self.colour + 1.0) - np.log10(np.arange(1.0, 257.0))[:, None]
        density = np.asarray(cv2.LUT(thumbnail[rows], levels.astype(np.float32)[:, None, :]), dtype=np.float32)
        if self.surface.any():
            darkening = _surface(self.surface, thumbnail.shape[:2], rows).astype(np.float32)
            cv2.subtract(density, cv2.merge([darkening] * 3), dst=density)
        cv2.max(density, 0.0, dst=density)
        return density

    def noise_floor(self, evidence: NDArray[np.float32]) -> float:
        """What (h, w) `evidence` of tissue reaches on bare glass by noise alone, at most 0.05."""
        found = evidence[:: self.stride, :: self.stride][self.sampled]
        if not len(found):
            return 0.0
        middle = float(np.median(found))
        return min(0.05, middle + 4 * 1.4826 * float(np.median(np.abs(found - middle))))


def _bands(height: int) -> list[slice]:
    """The rows of a picture, some at a time."""
    return [slice(at, at + _ROWS_AT_ONCE) for at in range(0, height, _ROWS_AT_ONCE)]


def _smooth_pixels(thumbnail: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(h, w): where brightness varies as little as in the smoothest parts of the picture; pale tissue does not."""
    grey = cv2.cvtColor(thumbnail, cv2.COLOR_RGB2GRAY).astype(np.float32)
    spread = _deviation(grey, 3)
    bright = spread[grey >= _DARKEST_GLASS]
    if not len(bright):
        return np.zeros(grey.shape, bool)
    step = max(1, len(bright) // _SAMPLED_PX)
    smooth: NDArray[np.bool_] = spread <= max(3.0, 2.5 * float(np.percentile(bright[::step], 10)))
    return smooth


def _bright_mode(levels: NDArray[np.uint8]) -> int:
    """The brightest level that is a peak of the histogram, and at least a quarter of the highest."""
    counts = np.bincount(levels, minlength=256)
    histogram = np.convolve(counts, np.hanning(11)[1:-1], mode="same")
    around = np.pad(histogram, 1)
    peak = (histogram >= around[:-2]) & (histogram >= around[2:]) & (histogram >= 0.25 * histogram.max())
    return int(np.flatnonzero(peak)[-1])


_POWERS = ((0, 0), (0, 1), (1, 0), (0, 2), (1, 1), (2, 0))
"""Of y and x, in the six terms of a quadratic."""


def _terms(shape: tuple[int, ...], rows: slice) -> list[NDArray[np.float64]]:
    """The six terms of a quadratic over some rows of a picture, to be broadcast; both axes run from -1 to 1."""
    y = np.linspace(-1.0, 1.0, shape[0])[rows, None]
    x = np.linspace(-1.0, 1.0, shape[1])[None, :]
    return [np.ones((1, 1)), x, y, x * x, x * y, y * y]


def _surface(
    coefficients: NDArray[np.float64], shape: tuple[int, ...], rows: slice = slice(None)
) -> NDArray[np.float64]:
    one, x, y, xx, xy, yy = (c * term for c, term in zip(coefficients, _terms(shape, rows), strict=True))
    return np.asarray(np.clip((one + x + xx) + (y + yy) + xy, -0.06, 0.1))


def _fit_surface(darkening: NDArray[np.float64], glass: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Quadratic through the glass pixels of an (h, w) sample, held flat where few parts of the picture show glass.

    The sums of the normal equations are moments, x to the a times y to the b, so rows are summed before columns.
    """
    y, x = (np.linspace(-1.0, 1.0, size)[:, None] ** np.arange(5) for size in glass.shape)
    weight = glass / np.maximum(_count_around(glass), 1)
    moments = y.T @ weight @ x
    right = y.T @ (weight * darkening) @ x
    normal = [[moments[yi + yj, xi + xj] for yj, xj in _POWERS] for yi, xi in _POWERS]
    prior = np.diag([0.0, *[(_LEVEL_NOISE / _TILT_PRIOR) ** 2] * 5])
    return np.asarray(np.linalg.solve(normal + prior, [right[yi, xi] for yi, xi in _POWERS]))


def _count_around(glass: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(h, w): the glass pixels of the one of 8 x 8 parts that each pixel is in.

    So that each part weighs the same, however much of it is glass.
    """
    counts = glass.astype(np.int64)
    for axis, size in enumerate(glass.shape):
        _, first, part = np.unique(np.arange(size) * 8 // size, return_index=True, return_inverse=True)
        counts = np.add.reduceat(counts, first, axis=axis).take(part, axis=axis)
    return counts


def _deviation(picture: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """Standard deviation within `side` x `side` pixels of each."""
    mean = np.asarray(cv2.blur(picture, (side, side)), dtype=np.float32)
    square = np.asarray(cv2.sqrBoxFilter(picture, cv2.CV_32F, (side, side)), dtype=np.float32)
    square -= np.multiply(mean, mean, out=mean)
    cv2.max(square, 0.0, dst=square)
    cv2.sqrt(square, dst=square)
    return square


def _artefacts(density: NDArray[np.float32], mpp: float) -> NDArray[np.bool_]:
    """(h, w): pen strokes and black borders with their soft rim. They are wide, so a coarser picture shows them."""
    height, width = density.shape[:2]
    factor = max(1, round(_ARTEFACT_MPP / mpp))
    size = (max(1, width // factor), max(1, height // factor))
    small = cv2.resize(density, size, interpolation=cv2.INTER_AREA)
    red, green, blue = cv2.split(small)
    highest, lowest = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
    # dyes of tissue darken green most, or blue (DAB); an even stretch of a colour that does not is ink
    strong = (highest > 0.25) & (_deviation(highest, 3) < 0.35 * highest)
    green_pen = strong & (green < 0.75 * red) & (green < 0.75 * blue)
    blue_pen = strong & (blue < 0.35 * red) & (green < 0.85 * red) & (red > 0.5)
    red_pen = strong & (red < 0.2 * green) & (blue > 0.85 * green) & (green > 0.5)
    black = (lowest > 0.55) & (highest - lowest < 0.25)
    coarse = mpp * factor
    # no stain but a green one is green, so a narrow stroke is enough; the other colours may be pigment where narrow
    mask = _strokes(green_pen, 50.0 / coarse) | _strokes(blue_pen, 150.0 / coarse) | _strokes(red_pen, 150.0 / coarse)
    mask |= _morphed(black, cv2.MORPH_OPEN, 75.0 / coarse, outside=1)
    if not mask.any():
        return np.zeros((height, width), bool)
    grown = _morphed(mask, cv2.MORPH_DILATE, _RIM_UM / coarse).astype(np.uint8) * 255
    artefact: NDArray[np.bool_] = cv2.resize(grown, (width, height), interpolation=cv2.INTER_LINEAR) > 127
    return artefact


def _strokes(kind: NDArray[np.bool_], width_px: float) -> NDArray[np.bool_]:
    """The parts of regions that are at least `width_px` across; none where most are narrower: that is a dye."""
    wide = _morphed(kind, cv2.MORPH_OPEN, math.floor(width_px / 2))
    return wide if np.count_nonzero(wide) >= 0.4 * np.count_nonzero(kind) else np.zeros_like(kind)


def _morphed(
    mask: NDArray[np.bool_], operation: int, radius_px: float, outside: int | None = None
) -> NDArray[np.bool_]:
    """Morphology with a disc; beyond its edges the picture goes on as it is there, or is `outside` everywhere."""
    radius = round(radius_px)
    if radius < 1 or not mask.any():
        return mask
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    border, pad = cv2.BORDER_REPLICATE if outside is None else cv2.BORDER_CONSTANT, 2 * radius
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), pad, pad, pad, pad, border, value=outside or 0)
    changed: NDArray[np.bool_] = cv2.morphologyEx(padded, operation, disc)[pad:-pad, pad:-pad] > 0
    return changed


def _hysteresis(seed: NDArray[np.bool_], reach: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The connected parts of `reach` that hold a `seed`."""
    count, labels = cv2.connectedComponents(reach.astype(np.uint8), connectivity=8)
    keep = np.bincount(labels[seed & reach], minlength=count) > 0
    keep[0] = False
    kept: NDArray[np.bool_] = keep[labels]
    return kept


def _drop_small(mask: NDArray[np.bool_], least_px: float) -> NDArray[np.bool_]:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= least_px
    keep[0] = False
    kept: NDArray[np.bool_] = keep[labels]
    return kept


def _drop_debris(
    mask: NDArray[np.bool_], thumbnail: NDArray[np.uint8], glass: Glass, mpp: float, settings: TissueSettings
) -> NDArray[np.bool_]:
    """Without specks, and without what is grey and smallish or thin: dust, bubbles, edges of a coverslip."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    area = stats[:, cv2.CC_STAT_AREA]
    box = stats[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]]
    keep = area * mpp**2 >= settings.least_speck_um2
    thin = (box.min(axis=1) * mpp < 120) | (area < 0.1 * box.prod(axis=1))
    doubtful = keep & (thin | (area * mpp**2 < settings.least_grey_um2))
    doubtful[0] = keep[0] = False
    sums = np.zeros((count, 3))
    for rows in _bands(len(labels)) if doubtful.any() else ():
        where = doubtful[labels[rows]]
        density = glass.density_of_rows(thumbnail, rows)[where]
        for channel in range(3):
            sums[:, channel] += np.bincount(labels[rows][where], density[:, channel], minlength=count)
    strongest = sums.max(axis=1)
    grey = doubtful & (strongest - sums.min(axis=1) < _NEUTRAL * strongest)
    kept: NDArray[np.bool_] = (keep & ~grey)[labels]
    return kept
