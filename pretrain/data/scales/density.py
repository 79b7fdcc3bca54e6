"""How often each um/px is drawn: a density over its logarithm, cut to what the tiles can serve."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from wsi_prep.errors import BadOption

Knots = tuple[tuple[float, float], ...]
"""Pairs of um/px and weight, um/px rising."""

_LEAST, _MOST = 1e-3, 1e3  # um/px
_SAME = 1e-6  # of the logarithm: gaps below are of rounding
_MOMENTS_AT = 1 << 16


def check_knots(knots: Knots) -> None:
    """Raise BadOption where these are no density."""
    mpps, weights = [mpp for mpp, _ in knots], [weight for _, weight in knots]
    if len(knots) < 2:
        raise BadOption("a density has at least two knots, each um/px:weight, as in 0.25:1,2:1")
    if wrong := [mpp for mpp in mpps if not _LEAST <= mpp <= _MOST]:
        raise BadOption(f"{wrong[0]:g} um/px in the density is not between {_LEAST:g} and {_MOST:g}")
    if wrong := [weight for weight in weights if not (math.isfinite(weight) and weight >= 0)]:
        raise BadOption(f"weight {wrong[0]:g} in the density is not a number of at least 0")
    if any(a >= b for a, b in itertools.pairwise(mpps)):
        raise BadOption(
            f"the um/px of the density must rise from knot to knot, not {', '.join(f'{m:g}' for m in mpps)}"
        )
    if not any(weights):
        raise BadOption("every weight of the density is 0; give some um/px a weight")


class Density:
    """Chances of um/px: linear over log um/px between the knots, and 0 outside `served`.

    `served`: (k, 2) float64, ranges of log um/px, apart and rising. `share`: how much of the knots' density they hold.

    >>> Density(((0.5, 1.0), (2.0, 1.0)), np.log([[0.5, 1.0]])).at(np.array([0.0, 0.5])).round(3).tolist()
    [0.5, 0.707]
    """

    def __init__(self, knots: Knots, served: NDArray[np.float64]) -> None:
        at = np.log([mpp for mpp, _ in knots])
        weight = np.array([float(weight) for _, weight in knots])
        ends = np.unique(np.clip(np.concatenate([at, served.ravel()]), at[0], at[-1]))
        begin, end = ends[:-1], ends[1:]
        middle = (begin + end) / 2
        of = np.searchsorted(served[:, 0], middle, side="right") - 1
        inside = (of >= 0) & (middle < served[of, 1]) if len(served) else np.zeros(len(middle), bool)
        first, last = np.interp(begin, at, weight), np.interp(end, at, weight)
        mass = (first + last) / 2 * (end - begin)
        kept = inside & (mass > 0)
        self.share = float(mass[kept].sum() / mass.sum())
        lost = ~inside & (mass > 0) & (end - begin > _SAME)
        gaps = np.exp(joined([np.stack([begin[lost], end[lost]], axis=1)]))
        self.missing: list[tuple[float, float]] = [(low, high) for low, high in gaps.tolist()]
        self._begin, self._length, self._first = begin[kept], (end - begin)[kept], first[kept]
        self._slope = (last - first)[kept] / self._length
        self._upto = np.concatenate([[0.0], np.cumsum(mass[kept])])

    def at(self, u: NDArray[np.float64]) -> NDArray[np.float64]:
        """The um/px below which a share `u` of the draws lies."""
        rest = u * self._upto[-1]
        piece = np.clip(np.searchsorted(self._upto, rest, side="right") - 1, 0, len(self._begin) - 1)
        rest = rest - self._upto[piece]
        first = self._first[piece]
        root = first + np.sqrt(np.maximum(first**2 + 2 * self._slope[piece] * rest, 0.0))
        within = np.where(root > 0, 2 * rest / np.where(root > 0, root, 1.0), 0.0)
        mpp: NDArray[np.float64] = np.exp(self._begin[piece] + np.minimum(within, self._length[piece]))
        return mpp

    def below(self, log_mpp: NDArray[np.float64]) -> NDArray[np.float64]:
        """The share of the draws below these, rising, of the um/px's logarithm."""
        piece = np.maximum(np.searchsorted(self._begin, log_mpp, side="right") - 1, 0)
        within = np.clip(log_mpp - self._begin[piece], 0.0, self._length[piece])
        mass = self._upto[piece] + self._first[piece] * within + self._slope[piece] * within**2 / 2
        share: NDArray[np.float64] = mass / self._upto[-1]
        return share

    def moments(self) -> tuple[float, float]:
        """Mean and standard deviation of the um/px."""
        mpps = self.at((np.arange(_MOMENTS_AT) + 0.5) / _MOMENTS_AT)
        return float(mpps.mean()), float(mpps.std())


def joined(ranges: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """(n, 2) ranges of several kinds as the ranges that they cover together, apart and rising."""
    every = np.concatenate([np.empty((0, 2)), *ranges])
    every = every[np.argsort(every[:, 0], kind="stable")]
    if not len(every):
        return every
    ends = np.maximum.accumulate(every[:, 1])
    apart = np.flatnonzero(every[1:, 0] > ends[:-1] + _SAME)
    return np.stack([every[np.append(0, apart + 1), 0], ends[np.append(apart, len(every) - 1)]], axis=1)
