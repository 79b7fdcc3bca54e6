"""What the colours of tissue say of its dyes, as a few numbers that neither scanner nor staining strength changes much.

A dye takes red, green and blue from light in fixed proportions (Beer-Lambert), so the direction of a pixel's optical
density is its mixture of dyes, and its length how much of them there is. Directions are taken in the plane of equal
density, as in the colour triangle of Ruifrok and Johnston (Anal Quant Cytol Histol 23, 2001): the angle there is a hue
that no thickness of the section changes, the distance from the middle tells colour from grey.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

FEATURE_VERSION = 1
"""Changes with every change of what the numbers mean; weights are fitted to one version."""

HUES = 24
_TIERS = (0.0, 0.5, 0.85, 0.98, 1.0)
"""Pixels are looked at in four groups, by rank of density: pale half, middle, dense, densest."""

_STAINED_DENSITY = 0.07
_LEAST_PIXELS = 50
_FULL_COLOUR = 0.35
"""Distance from grey at which a pixel counts as wholly coloured; haematoxylin has 0.6, eosin 1.4."""

_LEAST_SHARE, _LEAST_RARE_SHARE = 0.01, 2e-4

_OF_A_TIER = HUES + 5

COUNT = (len(_TIERS) - 1) * _OF_A_TIER + HUES + 5
"""How many numbers `stain_features` gives."""

HUE_PLACES = tuple(slice(tier * _OF_A_TIER, tier * _OF_A_TIER + HUES) for tier in range(len(_TIERS)))
"""Where among them the hues are: of each tier, and of the dense pixels of all."""


def stain_features(density: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """(COUNT,) float32 of (n, 3) optical densities (log10) of tissue; None where fewer than 50 pixels are stained.

    Of each tier of density: the logarithms of the shares of 24 hues and of grey, and the mean colourfulness. Of all:
    the logarithm of how often a dense pixel has each hue, so that few coloured cells are seen; density's median and
    spread; how much bluer the dense pixels are.
    """
    stained = density[density.max(axis=1) > _STAINED_DENSITY] if len(density) else density
    if len(stained) < _LEAST_PIXELS:
        return None
    amount = stained.mean(axis=1)
    angle, colour = _hue_and_colour(stained, amount)
    coloured = np.minimum(1.0, colour / _FULL_COLOUR)
    phase = np.exp(1j * angle)
    edges = np.quantile(amount, _TIERS)
    found = []
    for lower, upper in pairwise(edges):
        tier = (amount >= lower) & (amount <= upper)
        weight = amount[tier]
        hues = _hue_histogram(angle[tier], weight * coloured[tier])
        grey = (weight * (1 - coloured[tier])).sum()
        shares = np.append(hues, grey) / weight.sum()
        direction = np.average(phase[tier], weights=weight * coloured[tier] + 1e-6)
        spread = np.average(np.abs(phase[tier] - direction), weights=weight)
        found += [np.log(shares + _LEAST_SHARE), [direction.real, direction.imag, spread]]
        found.append([np.average(colour[tier], weights=weight)])
    middle, dense, densest = np.quantile(amount, [0.5, 0.9, 0.98])
    rare = coloured * (amount > 1.2 * middle) / len(amount)
    found.append(np.log10(_hue_histogram(angle, rare) + _LEAST_RARE_SHARE))
    found.append([np.log(middle), np.log(dense / middle), np.log(densest / middle), *_bluer_where_denser(stained)])
    return np.concatenate(found).astype(np.float32)


def _hue_and_colour(
    density: NDArray[np.float32], amount: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Angle (radians) and distance from grey of each density's direction, in the plane where the mean channel is 1."""
    red, green, blue = (density / amount[:, None]).T
    across, along = (red - green) / np.sqrt(2), (red + green - 2 * blue) / np.sqrt(6)
    return np.arctan2(along, across), np.hypot(across, along)


def _hue_histogram(angle: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float64]:
    """(HUES,): weights by angle, each shared between the two nearest hues."""
    place = (angle / (2 * np.pi) * HUES) % HUES
    below = np.floor(place).astype(np.int64)
    part = place - below
    lower = np.bincount(below % HUES, weight * (1 - part), minlength=HUES)
    return np.asarray(lower + np.bincount((below + 1) % HUES, weight * part, minlength=HUES))


def _bluer_where_denser(density: NDArray[np.float32]) -> tuple[float, float]:
    """Correlation of log red over green density with total density over the (n, 3) pixels, and its slope; 0 where flat.

    Two dyes of which the denser one is blue (H&E) correlate; pink of one hue at every density (PAS) does not.
    """
    blueness = np.log(np.maximum(density[:, 0], 0.005) / np.maximum(density[:, 1], 0.005))
    total = np.log(density.sum(axis=1))
    if blueness.std() < 1e-3 or total.std() < 1e-3:
        return 0.0, 0.0
    correlation = float(np.corrcoef(blueness, total)[0, 1])
    return correlation, correlation * float(blueness.std() / total.std())
