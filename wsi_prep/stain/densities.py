"""Dyes as optical densities: how much of each the light that tissue takes away tells of."""

from __future__ import annotations

import functools

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.color import hed_from_rgb


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
