"""Stains, from the light that tissue takes away: how much of each dye, and which kind of slide it is."""

from __future__ import annotations

import functools

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.color import hed_from_rgb

STAINS = ("HE", "IHC", "SPECIAL", "FLUORESCENCE", "UNKNOWN")
"""What a slide's stain can be called."""

_LEAST_PIXELS = 50


def stain_densities(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(h, w, 3) uint8 RGB to (h, w, 3) float32 optical densities of haematoxylin, eosin and DAB; >= 0.

    Density is -log10 of the light let through, taken apart by the dye vectors of Ruifrok and Johnston, Anal Quant Cytol
    Histol 23 (2001): `skimage.color.rgb2hed` times 6, whose logarithm has another base.
    """
    density = cv2.LUT(rgb, _density_table())
    separated = cv2.transform(density, np.ascontiguousarray(hed_from_rgb.T, dtype=np.float32))
    return np.asarray(cv2.max(separated, 0.0), dtype=np.float32)


@functools.cache
def _density_table() -> NDArray[np.float32]:
    return -np.log10(np.maximum(np.arange(256) / 255.0, 1e-6)).astype(np.float32)


def classify_stain(thumbnail: NDArray[np.uint8], tissue: NDArray[np.bool_]) -> tuple[str, float]:
    """The stain of a slide from an (h, w, 3) uint8 picture and its (h, w) tissue mask, with a confidence of 0 to 1.

    Looks at which channel tissue darkens: pink and purple darken green most (H&E), brown darkens blue most (DAB).
    """
    pixels = thumbnail[tissue].astype(np.float32)
    if len(pixels) < _LEAST_PIXELS:
        return "UNKNOWN", 0.0
    density = -np.log10((pixels + 1.0) / 244.0).clip(max=0.0)
    stained = density[density.max(axis=1) > 0.08]
    if len(stained) < _LEAST_PIXELS:
        return "UNKNOWN", 0.0
    red, green, blue = (stained[:, i] for i in range(3))
    brown = float(((blue > 1.15 * green) & (green > red)).mean())
    pink = float(((green > 1.25 * blue) & (green > 1.1 * red)).mean())
    if brown > 0.02:
        return "IHC", min(1.0, 0.5 + 5 * brown)
    if pink > 0.5:
        return "HE", min(1.0, pink)
    return "SPECIAL", min(1.0, 1.0 - pink)
