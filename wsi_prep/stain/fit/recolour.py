"""Real tissue in other dyes: how much of it is nucleus and how much the rest, and its look in any stain."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_prep.stain.fit.dyes import DYES, Layer, Recipe

Map = NDArray[np.float32]

MAP_MPP = 2.0
"""um per pixel at which tissue is dyed."""

_LEAST_DENSITY = 0.15
_HUE_SPREAD, _VECTOR_SPREAD = 0.10, 0.02
"""Spread of a dye's vector between laboratories and scanners: of its logarithm, and beside it."""

_MOST_CROSSTALK, _NO_CROSSTALK = 0.5, 0.15
_PEN_SHARE = 0.12
_PENS = ((1.2, 0.5, 0.7), (1.3, 1.0, 0.3), (1.0, 1.0, 1.0), (0.1, 1.0, 1.0), (1.0, 0.3, 0.4))
"""Densities of green, blue, black, red and bright green ink."""


def stain_vectors(density: Map) -> NDArray[np.float64] | None:
    """(2, 3) unit vectors of haematoxylin and eosin in (n, 3) densities of an H&E slide; None where it has too little.

    The extreme directions in the plane of the two main axes: Macenko et al., ISBI 2009. Haematoxylin is the one that
    takes more red.
    """
    dense = density[density.max(axis=1) > _LEAST_DENSITY].astype(np.float64)
    if len(dense) < 200:
        return None
    plane = np.linalg.eigh(np.cov(dense.T))[1][:, 1:]
    plane *= np.sign(plane.sum(axis=0))
    angles = np.arctan2(*(dense @ plane).T[::-1])
    low, high = np.percentile(angles, [1, 99])
    vectors = np.array([plane @ [np.cos(angle), np.sin(angle)] for angle in (low, high)])
    vectors = np.maximum(vectors, 0.01)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors[np.argsort(-vectors[:, 0])])


def tissue_maps(density: Map, vectors: NDArray[np.float64]) -> tuple[Map, Map]:
    """Amounts of nuclei and of all else, (h, w) each, about 1 where there is much, from (h, w, 3) densities."""
    amounts = np.maximum(density @ np.linalg.pinv(vectors), 0.0)
    scale = np.percentile(amounts.reshape(-1, 2), 98, axis=0)
    nuclei, rest = (np.clip(amounts[..., i] / max(scale[i], 0.05), 0, 1.5).astype(np.float32) for i in range(2))
    return nuclei, rest


@dataclass(frozen=True)
class Structures:
    """Where a dye can go, on (h, w) maps of `nuclei` and `cytoplasm` (all that is no nucleus).

    `territory`: (h, w) ranks of 0 to 1; collagen has the lower ones.
    """

    nuclei: Map
    cytoplasm: Map
    territory: Map

    @classmethod
    def of(cls, maps: Map, rng: np.random.Generator) -> Structures:
        """From (h, w, 2) maps of nuclei and cytoplasm."""
        field = _noise(maps.shape, rng.uniform(30, 200) / MAP_MPP, rng)
        order = np.argsort(field, axis=None)
        ranks = np.empty(order.size, np.float32)
        ranks[order] = np.linspace(0, 1, order.size, dtype=np.float32)
        return cls(maps[..., 0], maps[..., 1], ranks.reshape(field.shape))

    def find(self, where: str, share: float, rng: np.random.Generator) -> Map:
        """(h, w) of the structure, 0 to some 1.5; `share` of the tissue has it where it is not everywhere.

        nuclei, cytoplasm, tissue (both); collagen and muscle (two parts of the cytoplasm), patches, cells and positive
        nuclei (some), fibres (thin lines).
        """
        tissue = np.minimum(self.nuclei + self.cytoplasm, 1.2)
        if where in ("nuclei", "cytoplasm", "tissue"):
            return np.asarray({"nuclei": self.nuclei, "cytoplasm": self.cytoplasm, "tissue": tissue}[where])
        if where in ("collagen", "muscle"):
            collagen = np.clip((share - self.territory) / 0.1 + 0.5, 0, 1)
            return np.asarray(self.cytoplasm * (collagen if where == "collagen" else 1 - collagen))
        grain = {"patches": rng.uniform(30, 200), "cells": rng.uniform(6, 16), "positive nuclei": 9.0, "fibres": 18.0}
        field = _noise(tissue.shape, grain[where] / MAP_MPP, rng)
        if where == "fibres":
            return np.asarray(tissue * _above(-np.abs(field), share, 0.05))
        return np.asarray((self.nuclei if where == "positive nuclei" else tissue) * _above(field, share, 0.15))


def _noise(shape: tuple[int, ...], grain_px: float, rng: np.random.Generator) -> Map:
    """(h, w) smooth random field of mean 0 and standard deviation 1, whose grain is about `grain_px` wide."""
    coarse = [max(4, round(side / max(1.0, grain_px / 2))) for side in shape[:2]]
    field = cv2.GaussianBlur(rng.standard_normal(coarse).astype(np.float32), (0, 0), 1.0)
    wide = cv2.resize(field, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray((wide - wide.mean()) / max(float(wide.std()), 1e-6), dtype=np.float32)


def _above(field: Map, share: float, softness: float) -> Map:
    """1 in the highest `share` of the field, softly 0 in the rest."""
    edge = float(np.quantile(field, 1 - min(max(share, 0.0), 1.0)))
    return np.asarray(np.clip((field - edge) / softness + 0.5, 0, 1), dtype=np.float32)


def dye_vector(dye: str, crosstalk: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """(3,) unit vector of the dye in one laboratory: between its published ones, and a little off them.

    A scanner whose channels overlap, by `crosstalk` of 0 to 1, sees a greyer dye.
    """
    published = np.array(DYES[dye])
    mixed = rng.dirichlet(np.full(len(published), 0.6)) @ published
    varied = mixed * np.exp(rng.normal(0, _HUE_SPREAD, 3)) + np.abs(rng.normal(0, _VECTOR_SPREAD, 3))
    seen = (1 - crosstalk) * varied + crosstalk * varied.mean()
    return np.asarray(seen / np.linalg.norm(seen), dtype=np.float32)


def dye(structures: Structures, recipe: Recipe, rng: np.random.Generator) -> Map:
    """(h, w, 3) float32 optical densities of the tissue stained by the recipe, as one laboratory does it."""
    density = np.zeros((*structures.nuclei.shape, 3), np.float32)
    vectors: dict[str, NDArray[np.float32]] = {}
    crosstalk = max(0.0, float(rng.uniform(-_NO_CROSSTALK, _MOST_CROSSTALK)))
    strength = float(np.exp(rng.normal(-0.3, 0.4)))
    collagen_share = float(rng.uniform(0.1, 0.7))
    for layer in recipe.layers:
        if rng.random() >= layer.chance:
            continue
        if layer.dye not in vectors:
            vectors[layer.dye] = dye_vector(layer.dye, crosstalk, rng)
        share = collagen_share if layer.where in ("collagen", "muscle") else _draw_share(layer, rng)
        here = structures.find(layer.where, share, rng)
        amount = strength * rng.uniform(*layer.amount)
        density += (amount * here)[..., None] * vectors[layer.dye]
    return density


def _draw_share(layer: Layer, rng: np.random.Generator) -> float:
    low, high = np.log(layer.share)
    return float(np.exp(rng.uniform(low, high)))


def varied(densities: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """(m, 3) of (n, 3) densities of real tissue, as another laboratory and scanner might have made them.

    A part of the slide; its dyes stronger, paler, mixed or greyer, the camera's gamma, the glass a little off, noise,
    and at times a pen's ink over a part.
    """
    if rng.random() < 0.5:
        kept = int(len(densities) * rng.uniform(0.25, 0.7))
        first = int(rng.integers(0, len(densities) - kept + 1))
        densities = densities[first : first + kept]
    few = rng.permutation(len(densities))[: int(rng.uniform(800, 3000))]
    density = densities[few].astype(np.float64)
    if rng.random() < 0.5:
        power = np.exp(rng.normal(0, 0.15))
        density = density**power * 0.4 ** (1 - power)
    mixing = np.diag(np.exp(rng.normal(0, 0.1, 3))) + rng.normal(0, 0.036, (3, 3))
    grey = rng.uniform(-0.18, 0.3)
    mixing = mixing @ ((1 - grey) * np.eye(3) + grey / 3)
    density = density @ mixing.T * np.exp(rng.normal(0, 0.3)) + rng.normal(0, 0.015, 3)
    density += rng.normal(0, rng.uniform(0.002, 0.015), density.shape)
    if rng.random() < _PEN_SHARE:
        inked = int(len(density) * rng.uniform(0.02, 0.45))
        ink = np.array(_PENS[rng.integers(len(_PENS))]) * rng.uniform(0.5, 1.5)
        density[:inked] = ink * np.exp(rng.normal(0, 0.3, (inked, 1))) + 0.3 * density[:inked]
    return np.asarray(np.maximum(density, 0.0), dtype=np.float32)


def scan(density: Map, factor: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """(h // factor, w // factor, 3) uint8 picture of the densities by some scanner.

    BackgroundModel of some colour, colour correction, gamma, noise and JPEG vary.
    """
    light = np.power(np.float32(10), -density)
    size = (max(8, light.shape[1] // factor), max(8, light.shape[0] // factor))
    light = cv2.resize(light, size, interpolation=cv2.INTER_AREA)
    correction = np.eye(3) + rng.normal(0, 0.02, (3, 3))
    correction /= correction.sum(axis=1, keepdims=True)
    light = np.clip(light @ correction.T.astype(np.float32), 1e-3, None) ** rng.uniform(0.8, 1.25)
    glass = np.minimum(rng.uniform(222, 254) * np.exp(rng.normal(0, 0.02, 3)), 255)
    picture = light * glass + rng.normal(0, rng.uniform(0.3, 1.5), light.shape)
    pixels = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    return compress(pixels, int(rng.integers(50, 96)))


def compress(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """The (h, w, 3) RGB picture after JPEG of that quality."""
    encoded = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    decoded = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.ascontiguousarray(decoded[..., ::-1], np.uint8)
