"""Pictures to fit the stain classifier to: real tissue as other laboratories might have made it, and in other dyes."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_prep.stain.classify import tissue_densities
from wsi_prep.stain.features import stain_features
from wsi_prep.stain.fit.dyes import RECIPES, Recipe
from wsi_prep.stain.fit.recolour import MAP_MPP, Map, Structures, dye, scan, varied
from wsi_prep.stain.model import CLASSES

_MOST_PX = 30_000
_COARSEST_MPP = 32.0
_VARIED_SHARE = 0.3

_TURNS = ("SPECIAL", "HE", "SPECIAL", "IHC", "SPECIAL", "HE", "SPECIAL")
"""Classes in the order in which they are dyed: SPECIAL, of many stains, more often; IHC, whose dyes are few, less."""

Values = TypeVar("Values", bound=np.generic)


@dataclass(frozen=True)
class Picture:
    """Real tissue as the classifier sees it: (n, 3) float32 `densities`, its `stain` of CLASSES, case, laboratory.

    `whole`: a picture of a slide, and not a few crops of one put together.
    """

    name: str
    case: str
    laboratory: str
    stain: str
    densities: NDArray[np.float32]
    whole: bool = True


@dataclass(frozen=True)
class Base:
    """H&E of one slide, taken apart: (n, side, side, 2) float32 `maps` of nuclei and the rest at MAP_MPP, to dye."""

    case: str
    laboratory: str
    maps: Map


@dataclass(frozen=True)
class Example:
    """One picture's features, the class that it is, where its tissue is from, and its name or how it was made."""

    features: NDArray[np.float32]
    stain: str
    case: str
    laboratory: str
    name: str


def laboratory_of(case: str) -> str:
    """The series that a case belongs to by its name, as there is nothing else to tell laboratories by: eas of eas12."""
    return re.sub(r"[-_ ]*\d+$", "", case) or case


def as_it_is(picture: Picture) -> Example | None:
    """The picture unchanged; None where it shows too little tissue."""
    return _example(picture, stain_features(picture.densities), picture.name)


def dyed(bases: Sequence[Base], count: int, seed: int) -> list[Example]:
    """`count` pictures of tissue in other dyes, the classes by `_TURNS`; laboratories take turns as in `changed`."""
    rng = np.random.default_rng(seed)
    by_class = {stain: [recipe for recipe in RECIPES if recipe.stain == stain] for stain in CLASSES}
    chances = _chances([(base.laboratory, base.case) for base in bases])
    found = []
    for number in range(count):
        recipes = by_class[_TURNS[number % len(_TURNS)]]
        weights = np.array([recipe.weight for recipe in recipes])
        recipe = recipes[rng.choice(len(recipes), p=weights / weights.sum())]
        example = _dyed(bases[rng.choice(len(bases), p=chances)], recipe, rng)
        found += [example] if example else []
    return found


def changed(pictures: Sequence[Picture], count: int, seed: int) -> list[Example]:
    """`count` pictures of real tissue as other laboratories and scanners might have made it, each class as often.

    Within a class a laboratory is drawn by the root of how many cases it has, then one of its cases.
    """
    rng = np.random.default_rng(seed)
    found = []
    groups = [[picture for picture in pictures if picture.stain == stain] for stain in CLASSES]
    chances = [_chances([(picture.laboratory, picture.case) for picture in group]) for group in groups]
    for number in range(count):
        group, chance = groups[number % len(CLASSES)], chances[number % len(CLASSES)]
        if group:
            picture = group[rng.choice(len(group), p=chance)]
            example = _example(picture, stain_features(varied(picture.densities, rng)), picture.name)
            found += [example] if example else []
    return found


def _chances(origins: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    """(n,) that add up to 1, by each one's laboratory and case."""
    cases: dict[str, list[str]] = defaultdict(list)
    for laboratory, case in origins:
        cases[laboratory].append(case)
    weight = [len(set(cases[lab])) ** -0.5 / cases[lab].count(case) for lab, case in origins]
    return np.asarray(np.array(weight) / sum(weight))


def _dyed(base: Base, recipe: Recipe, rng: np.random.Generator) -> Example | None:
    structures = Structures.of(mosaic(base.maps[_some(len(base.maps), rng)]), rng)
    densities = _seen(dye(structures, recipe, rng), MAP_MPP, rng)
    if rng.random() < _VARIED_SHARE and len(densities):
        densities = varied(densities, rng)
    features = stain_features(densities)
    return features if features is None else Example(features, recipe.stain, base.case, base.laboratory, recipe.name)


def _example(picture: Picture, features: NDArray[np.float32] | None, name: str) -> Example | None:
    return features if features is None else Example(features, picture.stain, picture.case, picture.laboratory, name)


def _some(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A few pieces of a slide, or just one."""
    wanted = 1 if rng.random() < 0.35 else round(math.exp(rng.uniform(math.log(4), math.log(60))))
    return rng.permutation(count)[:wanted]


def mosaic(pieces: NDArray[Values]) -> NDArray[Values]:
    """(n, side, side, c) pieces side by side, about as wide as high; an incomplete last row is left out."""
    columns = math.isqrt(len(pieces))
    rows = len(pieces) // columns
    return np.concatenate([np.concatenate(list(pieces[i * columns : (i + 1) * columns]), axis=1) for i in range(rows)])


def _seen(density: Map, mpp: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """(n, 3) densities as the classifier takes them of a picture of these, at `mpp` um/px.

    It is scanned and reduced to some coarser scale, with or without glass.
    """
    height, width = density.shape[:2]
    least = max(0, math.ceil(math.log2(height * width / _MOST_PX) / 2))
    most = max(least, min(int(math.log2(_COARSEST_MPP / mpp)), int(math.log2(min(height, width) / 8))))
    factor = 2 ** int(rng.integers(least, most + 1))
    margin = factor * math.ceil(rng.uniform(0.1, 0.4) * width / factor) if rng.random() < 0.6 else 0
    padded = cv2.copyMakeBorder(density, 0, 0, margin, 0, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    picture = scan(padded, factor, rng)
    tissue = np.broadcast_to(np.arange(picture.shape[1]) >= margin // factor, picture.shape[:2])
    return tissue_densities(picture, tissue)
