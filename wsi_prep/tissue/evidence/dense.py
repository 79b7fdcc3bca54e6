"""What takes so much light, or varies so much, that it is tissue."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_prep.tissue.background_model import BackgroundModel
from wsi_prep.tissue.evidence.light import Light
from wsi_prep.tissue.evidence.regions import hysteresis
from wsi_prep.tissue.picture import deviation, morphed, reduced

_TEXTURE_UM = 50.0


@dataclass(frozen=True)
class Signs:
    """What density and its spread say of each pixel, (h, w): whether it is tissue for certain (`seed`), whether it may
    be (`reach`), and whether its density `alone` says so.

    `smooth`: density over 20 um; `evidence`: that and its spread; both (h / step, w / step) float32. Evidence from
    `likely` on may be tissue, from `certain` on it is.
    """

    seed: NDArray[np.bool_]
    reach: NDArray[np.bool_]
    alone: NDArray[np.bool_]
    smooth: NDArray[np.float32]
    evidence: NDArray[np.float32]
    likely: float
    certain: float

    @classmethod
    def of(cls, light: Light, glass: BackgroundModel, seed_density: float, edge_density: float) -> Signs:
        """Of the strongest density; noisy `glass` raises both limits."""
        mpp, step = light.mpp, light.step
        smooth = cv2.GaussianBlur(light.strongest, (0, 0), max(0.4, 10.0 / mpp))
        evidence = deviation(light.strongest, max(3, round(_TEXTURE_UM / mpp) | 1))
        evidence += smooth
        noise = glass.noise_floor(evidence)
        likely, certain = max(edge_density, noise), max(seed_density, 2 * noise)
        alone, small = smooth > 0.5 * likely, reduced(smooth, step)
        del smooth  # of a large slide it has tens of MB
        return cls(evidence > certain, evidence > likely, alone, small, reduced(evidence, step), likely, certain)


@dataclass(frozen=True)
class Dense:
    """The `mask` (h, w) of what density and its spread show to be tissue; the others as its `Signs` have them."""

    mask: NDArray[np.bool_]
    smooth: NDArray[np.float32]
    evidence: NDArray[np.float32]
    likely: float
    certain: float

    @classmethod
    def of(cls, signs: Signs, mpp: float) -> Dense:
        """What is certain, and what hangs together with that; `mpp`: um of a pixel."""
        grown = hysteresis(signs.seed, signs.reach)
        # texture is seen half its window beyond the edge: there, density alone decides
        inner = morphed(grown, cv2.MORPH_ERODE, 0.5 * _TEXTURE_UM / mpp)
        mask = np.asarray(inner | (grown & signs.alone), dtype=np.bool_)
        return cls(mask, signs.smooth, signs.evidence, signs.likely, signs.certain)
