"""Strata of tiles, and the rule by which a balanced sampler draws from them: the audit shows what the trainer does."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from wsi_prep.errors import BadOption
from wsi_prep.format.magnifications import MAGNIFICATIONS

STRATUM_LEVELS = ("stain", "institution", "tissue")
"""Columns of slides that, with the magnification, make a stratum."""

VIRCHOW2_MIX = {"40x": 0.2, "20x": 0.4, "10x": 0.2, "5x": 0.2}
"""Share of each magnification in what is drawn (Virchow2, arXiv 2408.00738)."""


def check_alpha(alpha: float) -> None:
    """Raise BadOption for an exponent that is none."""
    if not 0 <= alpha <= 1:
        raise BadOption(f"alpha {alpha} is not between 0 (uniform) and 1 (as found)")


def draw_probabilities(
    magnification: NDArray[np.int64], tiles: NDArray[np.int64], alpha: float, mix: Mapping[str, float] = VIRCHOW2_MIX
) -> NDArray[np.float64]:
    """What each stratum is drawn with, of `tiles` at that number in MAGNIFICATIONS: the magnification's share of the
    `mix` times n^alpha of its n tiles. They add up to 1, or all are 0.

    A magnification without tiles leaves its share to the others. Within a stratum slides are drawn evenly.
    """
    share = np.array([mix.get(m.name, 0.0) for m in MAGNIFICATIONS])
    weight = tiles.astype(np.float64) ** alpha
    total = np.bincount(magnification, weight, len(MAGNIFICATIONS))
    probability: NDArray[np.float64] = weight / total[magnification] * share[magnification]
    if probability.sum() > 0:
        probability /= probability.sum()
    return probability
