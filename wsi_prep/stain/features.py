"""What the colours of tissue say of its dyes, as a few numbers that neither scanner nor staining strength changes much.

A dye takes red, green and blue from light in fixed proportions (Beer-Lambert), so the direction of a pixel's optical
density is its mixture of dyes, and its length how much of them there is. Directions are taken in the plane of equal
density, as in the colour triangle of Ruifrok and Johnston (Anal Quant Cytol Histol 23, 2001): the angle there is a hue
that no thickness of the section changes, the distance from the middle tells colour from grey.
"""

from __future__ import annotations

from typing import NamedTuple

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
    red, green, blue = density.T
    stained = density[np.maximum(np.maximum(red, green), blue) > _STAINED_DENSITY]
    if len(stained) < _LEAST_PIXELS:
        return None
    # from pale to dense, so that a tier is a slice
    stained = stained[np.argsort(_total(stained))]
    amount = np.asarray(_total(stained) / 3, dtype=np.float32)
    hue = _Hue.of(stained, amount)
    coloured = np.minimum(1.0, hue.colour / _FULL_COLOUR)
    found = []
    edges = np.quantile(amount, _TIERS)
    firsts, ends = np.searchsorted(amount, edges[:-1]), np.searchsorted(amount, edges[1:], "right")
    for first, end in zip(firsts, ends, strict=True):
        tier = slice(int(first), int(end))
        weight, total = amount[tier], amount[tier].sum()
        by_colour = weight * coloured[tier]
        shares = np.append(hue.histogram(tier, by_colour), (weight * (1 - coloured[tier])).sum()) / total
        by_colour += 1e-6
        x, y = (float(by_colour @ each[tier] / by_colour.sum()) for each in (hue.cosine, hue.sine))
        spread = weight @ _length(hue.cosine[tier] - x, hue.sine[tier] - y) / total
        found += [np.log(shares + _LEAST_SHARE), [x, y, spread, weight @ hue.colour[tier] / total]]
    middle, dense, densest = np.quantile(amount, [0.5, 0.9, 0.98])
    rare = slice(int(np.searchsorted(amount, 1.2 * middle, "right")), None)
    found.append(np.log10(hue.histogram(rare, coloured[rare] / len(amount)) + _LEAST_RARE_SHARE))
    found.append([np.log(middle), np.log(dense / middle), np.log(densest / middle), *_bluer_where_denser(stained)])
    return np.concatenate(found).astype(np.float32)


class _Hue(NamedTuple):
    """Of n densities: the `cosine` and `sine` of the hue's angle, the two hues that it lies between by the `place` of
    the lower one, its `part` of the way to the other; and the `colour`, its distance from grey; (n,) each.
    """

    cosine: NDArray[np.float32]
    sine: NDArray[np.float32]
    place: NDArray[np.int64]
    part: NDArray[np.float32]
    colour: NDArray[np.float32]

    @classmethod
    def of(cls, density: NDArray[np.float32], amount: NDArray[np.float32]) -> _Hue:
        """In the plane where the mean channel, `amount`, is 1."""
        red, green, blue = (np.divide(channel, amount) for channel in density.T)
        across, along = (red - green) / np.sqrt(np.float32(2)), (red + green - 2 * blue) / np.sqrt(np.float32(6))
        colour = _length(across, along)
        grey = colour == 0
        divisor = np.where(grey, 1, colour)
        place = (np.arctan2(along, across) / (2 * np.pi) * HUES) % HUES
        below = np.floor(place)
        return cls(across / divisor + grey, along / divisor, below.astype(np.int64), place - below, colour)

    def histogram(self, those: slice, weight: NDArray[np.float32]) -> NDArray[np.float64]:
        """(HUES,): the weights of `those` densities, each shared between the two nearest hues."""
        below, part = self.place[those] % HUES, self.part[those]
        shared = np.bincount(below, weight * (1 - part), minlength=HUES)
        # what goes to the hue above is counted at the one below, and moved on
        return np.asarray(shared + np.roll(np.bincount(below, weight * part, minlength=HUES), 1))


def _total(density: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(density[:, 0] + density[:, 1] + density[:, 2])


def _length(x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(np.sqrt(x * x + y * y))


def _bluer_where_denser(density: NDArray[np.float32]) -> tuple[float, float]:
    """Correlation of log red over green density with total density over the (n, 3) pixels, and its slope; 0 where flat.

    Two dyes of which the denser one is blue (H&E) correlate; pink of one hue at every density (PAS) does not.
    """
    blueness = np.log(np.maximum(density[:, 0], 0.005) / np.maximum(density[:, 1], 0.005))
    total = np.log(_total(density))
    if blueness.std() < 1e-3 or total.std() < 1e-3:
        return 0.0, 0.0
    correlation = float(np.corrcoef(blueness, total)[0, 1])
    return correlation, correlation * float(blueness.std() / total.std())
