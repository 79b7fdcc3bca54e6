"""Stains, from the light that tissue takes away: how much of each dye, and which kind of slide it is."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.color import hed_from_rgb

from wsi_prep.stain_features import stain_features
from wsi_prep.stain_model import CLASSES, packaged_model
from wsi_prep.tissue import Glass, brightest, darkest
from wsi_prep.warning import told, warned

STAINS = ("HE", "IHC", "SPECIAL", "FLUORESCENCE", "UNKNOWN")
"""What a slide's stain can be called."""

SURE = 0.6
"""Confidence below which a stain is UNKNOWN: more than every third such guess is wrong."""

DISAGREES = 0.9
"""Confidence from which pixels that say another stain than the manifest are worth a warning."""

_LOOKED_AT_PX = 20_000
_WARNING = "the pixels look like "


class StainCall(NamedTuple):
    """A stain of STAINS, and how likely the best guess is right, 0 to 1; UNKNOWN where that is less than SURE."""

    stain: str
    confidence: float


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


def classify_stain(thumbnail: NDArray[np.uint8], tissue: NDArray[np.bool_], glass: Glass | None = None) -> StainCall:
    """The stain of a slide, or of a tile, from an (h, w, 3) uint8 RGB picture and its (h, w) tissue mask.

    Some 20,000 pixels of tissue are looked at. `glass`: the picture's, where it is known. docs/stain.md has how often
    this is right, and what it was fitted to.
    """
    features = tissue_features(thumbnail, tissue, glass)
    if features is None:
        return StainCall("UNKNOWN", 0.0)
    probabilities = packaged_model().probabilities(features)
    best = int(probabilities.argmax())
    confidence = float(probabilities[best])
    return StainCall(CLASSES[best] if confidence >= SURE else "UNKNOWN", confidence)


def tissue_features(
    thumbnail: NDArray[np.uint8], tissue: NDArray[np.bool_], glass: Glass | None = None
) -> NDArray[np.float32] | None:
    """What `classify_stain` judges by: `stain_features` of the tissue; None where it is too little."""
    glass = glass or Glass.of(thumbnail)
    step = max(1, math.ceil(math.sqrt(np.count_nonzero(tissue) / _LOOKED_AT_PX)))
    density = glass.density(np.ascontiguousarray(thumbnail[::step, ::step]))
    return stain_features(density[tissue[::step, ::step]])


def classify_glow(thumbnail: NDArray[np.uint8]) -> StainCall:
    """The stain of an (h, w, 3) uint8 RGB picture that is light on a dark ground.

    What fluoresces has a colour, of the filter or given to it; the confidence is how far from grey the light is. Dark
    field, a scan of nothing and a single grey channel are UNKNOWN.
    """
    highest, lowest = brightest(thumbnail).astype(np.float32), darkest(thumbnail)
    light = np.maximum(highest - 8, 0)  # beyond the camera's noise
    if light.mean() < 0.01:
        return StainCall("UNKNOWN", 0.0)
    confidence = float((light * (1 - lowest / np.maximum(highest, 1))).sum() / light.sum())
    return StainCall("FLUORESCENCE" if confidence >= SURE else "UNKNOWN", confidence)


def stain_columns(stated: str | None, seen: StainCall | None, warning: str | None) -> dict[str, Any]:
    """The columns of a slide's row that concern its stain: what the manifest has `stated` wins over what was `seen`.

    `warning` is what the row warns of already; pixels that confidently say another stain are added to it.
    """
    columns: dict[str, Any] = {}
    if seen:
        columns.update(stain=seen.stain, stain_confidence=seen.confidence, stain_source="pixels")
        columns.update(stain_pixels=seen.stain, stain_pixels_confidence=seen.confidence)
    if stated:
        columns.update(stain=stated, stain_confidence=1.0, stain_source="manifest")
    warnings = [text for text in told(warning) if not text.startswith(_WARNING)]
    known = seen and stated and "UNKNOWN" not in (stated, seen.stain)
    if seen and known and stated != seen.stain and seen.confidence >= DISAGREES:
        warnings.append(f"{_WARNING}{seen.stain} ({seen.confidence:.2f}) where the manifest says {stated}")
    return {**columns, "warning": warned(*warnings)}
