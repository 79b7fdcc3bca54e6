"""Where the tissue is, found on a picture of the whole slide at a fixed physical resolution.

The glass is estimated first, as a smooth surface of brightness and a colour. Everything is then judged by the light
that it takes away from the glass (optical density, Beer-Lambert) in whichever channel takes most, so pale and blue-only
tissue counts as much as pink, and grey or unevenly lit glass does not count at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_prep.errors import BadOption, NotBrightField

MASK_MPP = 8.0
"""um per pixel of the mask."""

_ASSUMED_GLASS = 243.0
_DARKEST_GLASS, _GLASS_COLOUR_SPREAD = 170, 22
_LEAST_GLASS_SHARE = 0.02
_TEXTURE_UM = 50.0
_RIM_UM = 40.0


@dataclass(frozen=True)
class TissueSettings:
    """Thresholds of the detector, all physical.

    `seed_density` marks tissue for certain, `edge_density` is how far it then reaches (optical density, smoothed over
    20 um); `gap_um` is the widest gap that is closed; holes and fragments below `least_hole_um2` and
    `least_fragment_um2` are filled and dropped.
    """

    seed_density: float = 0.07
    edge_density: float = 0.035
    gap_um: float = 48.0
    least_hole_um2: float = 10_000.0
    least_fragment_um2: float = 10_000.0

    def __post_init__(self) -> None:
        if not 0 < self.edge_density <= self.seed_density < 2:
            raise BadOption(f"tissue densities {self.edge_density:g}, {self.seed_density:g}: need 0 < edge <= seed < 2")
        for name in ("gap_um", "least_hole_um2", "least_fragment_um2"):
            if not 0 <= getattr(self, name) < 1e9:
                raise BadOption(f"tissue {name} {getattr(self, name):g} is not between 0 and 1e9")


def check_bright_field(thumbnail: NDArray[np.uint8]) -> None:
    """Raise NotBrightField where (h, w, 3) uint8 RGB shows light on a dark ground: fluorescence or dark field."""
    brightest = thumbnail.max(axis=2)
    dark = float((brightest < 60).mean())
    bright = float((thumbnail.min(axis=2) > 150).mean())
    if dark > 0.5 and bright < 0.05:
        raise NotBrightField(
            f"{dark:.0%} of the slide is nearly black and only {bright:.0%} bright: fluorescence or dark field, "
            "where bright-field tiles are made"
        )


def detect_tissue(
    thumbnail: NDArray[np.uint8], mpp: float, settings: TissueSettings | None = None
) -> NDArray[np.bool_]:
    """(h, w) mask of tissue in an (h, w, 3) uint8 RGB picture whose pixels measure `mpp` um."""
    settings = settings or TissueSettings()
    density = optical_density(thumbnail)
    artefact = _artefacts(thumbnail, density, mpp)
    strongest = np.where(artefact, np.float32(0.0), density.max(axis=2))
    smooth = cv2.GaussianBlur(strongest, (0, 0), max(0.4, 10.0 / mpp))
    evidence = smooth + _texture(strongest, mpp)
    grown = _hysteresis(evidence > settings.seed_density, evidence > settings.edge_density)
    # texture is seen half its window beyond the edge: there, density alone decides
    inner = _morphed(grown, cv2.MORPH_ERODE, 0.5 * _TEXTURE_UM / mpp)
    sharp = inner | (grown & (smooth > settings.edge_density))
    closed = _morphed(sharp, cv2.MORPH_CLOSE, 0.5 * settings.gap_um / mpp)
    return _without_small(closed & ~artefact, mpp, settings)


def optical_density(thumbnail: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(h, w, 3) float32: -log10 of the light that each pixel lets through, relative to the glass beside it; >= 0."""
    glass = _glass(thumbnail)
    light = (thumbnail.astype(np.float32) + 1.0) / (glass + 1.0)
    return np.maximum(-np.log10(light), 0.0).astype(np.float32)


def _glass(thumbnail: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Colour of bare glass at each pixel, (h, w, 3) or (1, 1, 3) float32."""
    values = thumbnail.reshape(-1, 3)
    lowest, highest = values.min(axis=1), values.max(axis=1)
    candidate = (lowest >= _DARKEST_GLASS) & (highest - lowest <= _GLASS_COLOUR_SPREAD)
    if candidate.mean() < _LEAST_GLASS_SHARE:
        return np.full((1, 1, 3), _ASSUMED_GLASS, np.float32)
    histogram = cv2.GaussianBlur(np.bincount(lowest[candidate], minlength=256).astype(np.float32), (1, 0), 2.0).ravel()
    levels = np.flatnonzero(histogram > 0.25 * histogram.max())
    peak = int(levels[-1]) if histogram[levels[-1]] >= histogram.max() else int(levels[histogram[levels].argmax()])
    near = candidate & (np.abs(lowest.astype(int) - peak) <= 12)
    colour = np.median(values[near], axis=0).astype(np.float32)
    return _surface(thumbnail, near.reshape(thumbnail.shape[:2]), colour)


def _surface(
    thumbnail: NDArray[np.uint8], glass: NDArray[np.bool_], colour: NDArray[np.float32]
) -> NDArray[np.float32]:
    """A quadratic surface of brightness through the glass pixels, times the glass colour."""
    height, width = glass.shape
    rows, cols = np.nonzero(glass)
    if len(rows) < 0.05 * glass.size or min(height, width) < 16:
        return colour.reshape(1, 1, 3)
    chosen = np.linspace(0, len(rows) - 1, min(len(rows), 20_000)).astype(int)
    rows, cols = rows[chosen], cols[chosen]
    ratio = (thumbnail[rows, cols].astype(np.float32) / colour).mean(axis=1)
    coefficients, *_ = np.linalg.lstsq(_terms(cols / width, rows / height), ratio, rcond=None)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    surface = (_terms((x / width).ravel(), (y / height).ravel()) @ coefficients).reshape(height, width)
    return np.asarray(np.clip(surface, 0.85, 1.1)[..., None] * colour, dtype=np.float32)


def _terms(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    terms: NDArray[np.float64] = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
    return terms


def _texture(density: NDArray[np.float32], mpp: float) -> NDArray[np.float32]:
    """Standard deviation of density over `_TEXTURE_UM`: thin and pale tissue is uneven where glass is flat."""
    side = max(3, round(_TEXTURE_UM / mpp) | 1)
    mean = cv2.blur(density, (side, side))
    spread = cv2.blur(density * density, (side, side)) - mean * mean
    return np.asarray(np.sqrt(np.maximum(spread, 0.0)), dtype=np.float32)


def _artefacts(thumbnail: NDArray[np.uint8], density: NDArray[np.float32], mpp: float) -> NDArray[np.bool_]:
    """Pen strokes and dark borders: colours that no stain has, or black without texture."""
    red, green, blue = (density[..., i] for i in range(3))
    strong = density.max(axis=2) > 0.25
    green_pen = strong & (green < 0.75 * red) & (green < 0.75 * blue)
    blue_pen = strong & (blue < 0.3 * red) & (green < 0.8 * red) & (red > 0.5)
    red_pen = strong & (red < 0.25 * green) & (blue > 0.7 * green) & (blue < 1.25 * green) & (green > 0.5)
    neutral = density.max(axis=2) - density.min(axis=2) < 0.18
    black = (thumbnail.max(axis=2) < 70) & neutral
    # no stain is green, so a narrow stroke is enough; the other colours are pigment or stain where they are narrow
    mask = _broad(green_pen, 50.0 / mpp)
    for kind in (blue_pen, red_pen, black):
        mask |= _broad(kind, 150.0 / mpp)
    return _morphed(mask, cv2.MORPH_DILATE, _RIM_UM / mpp)


def _broad(kind: NDArray[np.bool_], width_px: float) -> NDArray[np.bool_]:
    """The parts of regions that are at least `width_px` across."""
    return _morphed(kind, cv2.MORPH_OPEN, width_px / 2) if kind.any() else kind


def _morphed(mask: NDArray[np.bool_], operation: int, radius_px: float) -> NDArray[np.bool_]:
    """Morphology with a disc; the picture goes on beyond its edges as it is there."""
    radius = round(radius_px)
    if radius < 1:
        return mask
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), radius, radius, radius, radius, cv2.BORDER_REPLICATE)
    changed: NDArray[np.bool_] = cv2.morphologyEx(padded, operation, disc)[radius:-radius, radius:-radius] > 0
    return changed


def _hysteresis(seed: NDArray[np.bool_], reach: NDArray[np.bool_]) -> NDArray[np.bool_]:
    count, labels = cv2.connectedComponents((reach | seed).astype(np.uint8), connectivity=8)
    keep = np.zeros(count, bool)
    keep[np.unique(labels[seed])] = True
    keep[0] = False
    kept: NDArray[np.bool_] = keep[labels]
    return kept


def _without_small(mask: NDArray[np.bool_], mpp: float, settings: TissueSettings) -> NDArray[np.bool_]:
    filled = ~_drop_small(~mask, settings.least_hole_um2 / mpp**2)
    return _drop_small(filled, settings.least_fragment_um2 / mpp**2)


def _drop_small(mask: NDArray[np.bool_], least_px: float) -> NDArray[np.bool_]:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    keep = stats[:, cv2.CC_STAT_AREA] >= least_px
    keep[0] = False
    kept: NDArray[np.bool_] = keep[labels] if count else mask
    return kept
