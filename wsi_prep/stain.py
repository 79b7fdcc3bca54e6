"""Stains, from the light that tissue takes away: how much of each dye, and which kind of slide it is."""

from __future__ import annotations

import functools

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.color import hed_from_rgb

from wsi_prep.tissue import Glass

STAINS = ("HE", "IHC", "SPECIAL", "FLUORESCENCE", "UNKNOWN")
"""What a slide's stain can be called."""

_LEAST_PIXELS = 50
_STAINED_DENSITY = 0.08
_LEAST_BROWN = 0.03
_TWO_DYES = 0.22
"""Correlation of blueness with density: 0.34 to 0.62 on six H&E slides, 0.07 and 0.13 on two of PAS."""


def stain_densities(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(h, w, 3) uint8 RGB to (h, w, 3) float32 optical densities of haematoxylin, eosin and DAB; >= 0.

    Density is -log10 of the light let through, taken apart by the dye vectors of Ruifrok and Johnston, Anal Quant Cytol
    Histol 23 (2001): `skimage.color.rgb2hed` times 6, whose logarithm has another base.
    """
    separated = cv2.transform(cv2.LUT(rgb, density_table()), np.ascontiguousarray(unmixing().T))
    _, light = cv2.threshold(separated, 0.0, 0.0, cv2.THRESH_TOZERO)
    return np.asarray(light, dtype=np.float32)


@functools.cache
def unmixing() -> NDArray[np.float32]:
    """(3, 3): densities of red, green and blue, times this, are densities of haematoxylin, eosin and DAB."""
    return np.ascontiguousarray(hed_from_rgb, dtype=np.float32)


@functools.cache
def density_table() -> NDArray[np.float32]:
    """(256,) optical density of each level."""
    return -np.log10(np.maximum(np.arange(256) / 255.0, 1e-6)).astype(np.float32)


def classify_stain(
    thumbnail: NDArray[np.uint8], tissue: NDArray[np.bool_], glass: Glass | None = None
) -> tuple[str, float]:
    """The stain of a slide from an (h, w, 3) uint8 picture and its (h, w) tissue mask, with a confidence of 0 to 1.

    DAB is the one dye here that darkens blue most. H&E is two dyes: pink all over, and the denser a place the more of
    it is nuclei, so the bluer. Pink of one hue at every density is another stain (PAS), as is one that darkens red far
    more than green (Giemsa, toluidine blue). What fits none, such as an IHC slide without a positive cell, is UNKNOWN.
    A first rule, set on a dozen slides.
    """
    density = (glass or Glass.of(thumbnail)).density(thumbnail)[tissue]
    stained = density[density.max(axis=1) > _STAINED_DENSITY]
    if len(stained) < _LEAST_PIXELS:
        return "UNKNOWN", 0.0
    red, green, blue = stained.T
    brown = float(((blue > 1.15 * red) & (blue > green)).mean())
    if brown > _LEAST_BROWN:
        return "IHC", min(1.0, 0.5 + 5 * (brown - _LEAST_BROWN))
    pink = float(((green > 1.25 * blue) & (green > 1.1 * red)).mean())
    if pink > 0.5:
        bluer = _bluer_where_denser(stained)
        return ("HE" if bluer > _TWO_DYES else "SPECIAL"), pink * min(1.0, 0.5 + 3 * abs(bluer - _TWO_DYES))
    azure = float((red > 1.3 * green).mean())
    return ("SPECIAL", azure) if azure > 0.5 else ("UNKNOWN", 0.2)


def _bluer_where_denser(stained: NDArray[np.float32]) -> float:
    """Correlation of blueness, log red over green density, with total density over the (n, 3) pixels; 0 where flat."""
    blueness = np.log(np.maximum(stained[:, 0], 0.005) / np.maximum(stained[:, 1], 0.005))
    total = stained.sum(axis=1)
    if blueness.std() < 1e-3 or total.std() < 1e-3:
        return 0.0
    return float(np.corrcoef(blueness, total)[0, 1])
