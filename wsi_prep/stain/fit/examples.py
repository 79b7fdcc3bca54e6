"""Pictures to fit the stain classifier to: real tissue as it is, a little changed, and in other dyes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_prep.stain.classify import tissue_features
from wsi_prep.stain.fit.dyes import RECIPES, Recipe
from wsi_prep.stain.fit.recolour import MAP_MPP, Map, Structures, dye, restain, scan
from wsi_prep.stain.network import CLASSES

REAL = "real"
"""Name of pictures of tissue in its own dyes."""

_MOST_PX = 30_000
_COARSEST_MPP = 32.0
_SMALL_SLIDE = 25

Values = TypeVar("Values", bound=np.generic)


@dataclass(frozen=True)
class Tissue:
    """Real tissue of one slide: (n, side, side, 3) float32 `densities` of its pieces at `mpp` um/px, and its stain.

    `maps`: (n, side, side, 2) nuclei and the rest at MAP_MPP, where it is H&E that could be taken apart.
    """

    case: str
    stain: str
    mpp: float
    densities: Map
    maps: Map | None = None


@dataclass(frozen=True)
class Example:
    """One picture's features, the class that it is, the case of its tissue, and how it was made."""

    features: NDArray[np.float32]
    stain: str
    case: str
    name: str


def recoloured(tissues: Sequence[Tissue], count: int, seed: int) -> list[Example]:
    """`count` pictures of dyed tissue, each class as often; the cases of H&E that could be taken apart take turns."""
    rng = np.random.default_rng(seed)
    bases = [tissue for tissue in tissues if tissue.maps is not None]
    by_class = {stain: [recipe for recipe in RECIPES if recipe.stain == stain] for stain in CLASSES}
    found = []
    for number in range(count):
        recipes = by_class[CLASSES[number % len(CLASSES)]]
        weights = np.array([recipe.weight for recipe in recipes])
        recipe = recipes[rng.choice(len(recipes), p=weights / weights.sum())]
        example = _recoloured(_take(bases, rng), recipe, rng)
        found += [example] if example else []
    return found


def _recoloured(tissue: Tissue, recipe: Recipe, rng: np.random.Generator) -> Example | None:
    assert tissue.maps is not None
    structures = Structures.of(mosaic(tissue.maps[_some(len(tissue.maps), rng)]), rng)
    features = _seen(dye(structures, recipe, rng), MAP_MPP, rng)
    return None if features is None else Example(features, recipe.stain, tissue.case, recipe.name)


def changed(tissues: Sequence[Tissue], count: int, seed: int) -> list[Example]:
    """`count` pictures of real tissue in its own dyes, as other laboratories and scanners might have made it."""
    rng = np.random.default_rng(seed)
    by_class = {stain: [tissue for tissue in tissues if tissue.stain == stain] for stain in CLASSES}
    found = []
    for number in range(count):
        tissue = _take(by_class[CLASSES[number % len(CLASSES)]], rng)
        pieces = tissue.densities[_some(len(tissue.densities), rng)]
        features = _seen(restain(mosaic(pieces), rng), tissue.mpp, rng)
        found += [Example(features, tissue.stain, tissue.case, REAL)] if features is not None else []
    return found


def _take(tissues: Sequence[Tissue], rng: np.random.Generator) -> Tissue:
    """Any of the tissues, more often one of many pieces, by the root of their number; a small slide counts as some."""
    weights = np.sqrt([max(len(tissue.densities), _SMALL_SLIDE) for tissue in tissues])
    return tissues[rng.choice(len(tissues), p=weights / weights.sum())]


def _some(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A few pieces of a slide, or just one."""
    wanted = 1 if rng.random() < 0.35 else round(math.exp(rng.uniform(math.log(4), math.log(60))))
    return rng.permutation(count)[:wanted]


def mosaic(pieces: NDArray[Values]) -> NDArray[Values]:
    """(n, side, side, c) pieces side by side, about as wide as high; an incomplete last row is left out."""
    columns = math.isqrt(len(pieces))
    rows = len(pieces) // columns
    return np.concatenate([np.concatenate(list(pieces[i * columns : (i + 1) * columns]), axis=1) for i in range(rows)])


def _seen(density: Map, mpp: float, rng: np.random.Generator) -> NDArray[np.float32] | None:
    """Features of the densities at `mpp` um/px, scanned and reduced to some coarser scale, with or without glass."""
    height, width = density.shape[:2]
    least = max(0, math.ceil(math.log2(height * width / _MOST_PX) / 2))
    most = max(least, min(int(math.log2(_COARSEST_MPP / mpp)), int(math.log2(min(height, width) / 8))))
    factor = 2 ** int(rng.integers(least, most + 1))
    margin = factor * math.ceil(rng.uniform(0.1, 0.4) * width / factor) if rng.random() < 0.6 else 0
    padded = cv2.copyMakeBorder(density, 0, 0, margin, 0, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    picture = scan(padded, factor, rng)
    tissue = np.broadcast_to(np.arange(picture.shape[1]) >= margin // factor, picture.shape[:2])
    return tissue_features(picture, tissue)
