"""Stains, from the light that tissue takes away: how much of each dye, and which kind of slide it is."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_prep.format.records import SlideRow, told, warned
from wsi_prep.stain.features import stain_features
from wsi_prep.stain.model import CLASSES, packaged_model
from wsi_prep.tissue.background_model import BackgroundModel
from wsi_prep.tissue.picture import brightest, darkest

SURE = 0.5
"""Confidence below which a stain is UNKNOWN: the best guess is then likelier wrong than right."""

_GLOWS = 0.6
"""How far from grey, of 1, light on a dark ground is that fluoresces."""

DISAGREES = 0.98
"""Confidence from which pixels that say another stain than the manifest are worth a warning: docs/stain.md has why."""

_LOOKED_AT_PX = 20_000
_SURELY_COLOURED, _COLOURLESS = 8.0, 3.0
"""Levels between the channels, the glass taken as grey: of pixels, and of means of 5 x 5, which have no noise."""

_NEUTRAL = 0.15
"""Share of the light taken away by which the channels of what has no colour differ at most."""

_NO_COLOUR = (
    "the picture has no colour, so its stain is unknown and dark tissue may be taken for ink: "
    "give the slide as it was scanned in colour, or a mask of the tissue (MASKS=)"
)
DISAGREEMENT = "the pixels look like "


class StainCall(NamedTuple):
    """A stain of STAINS, and how likely the best guess is right, 0 to 1; UNKNOWN where that is less than SURE."""

    stain: str
    confidence: float


def classify_stain(
    thumbnail: NDArray[np.uint8], tissue: NDArray[np.bool_], glass: BackgroundModel | None = None
) -> StainCall:
    """The stain of a slide, or of a tile, from an (h, w, 3) uint8 RGB picture and its (h, w) tissue mask.

    A picture without colour, or unlike all that the classifier was fitted to, is UNKNOWN with a confidence of 0. Some
    20,000 pixels of tissue are looked at. `glass`: the picture's, where it is known. docs/stain.md has how often
    this is right, and what it was fitted to.
    """
    glass = glass or _glass_beside(thumbnail, tissue)
    features = tissue_features(thumbnail, tissue, glass)
    if features is None or colour_warning(thumbnail, tissue, glass):
        return StainCall("UNKNOWN", 0.0)
    model = packaged_model()
    if model.distance(features) > model.farthest:
        return StainCall("UNKNOWN", 0.0)
    probabilities = model.probabilities(features)
    best = int(probabilities.argmax())
    confidence = float(probabilities[best])
    return StainCall(CLASSES[best] if confidence >= SURE else "UNKNOWN", confidence)


def _glass_beside(thumbnail: NDArray[np.uint8], tissue: NDArray[np.bool_]) -> BackgroundModel:
    """The glass of a picture, which is of no tint where all of it is tissue: that would be the tissue's."""
    return BackgroundModel.of(thumbnail, tinted=not tissue.all())


def colour_warning(thumbnail: NDArray[np.uint8], tissue: NDArray[np.bool_], glass: BackgroundModel) -> str | None:
    """What a slide's row says where nine tenths of its tissue have no colour, as in a grey picture; else None."""
    if not tissue.any():
        return None
    step = _step(tissue)
    where = tissue[::step, ::step]
    if np.median(_colour(thumbnail[::step, ::step][where], glass)) > _SURELY_COLOURED:
        return None
    even = np.asarray(cv2.blur(thumbnail, (5, 5)), dtype=np.uint8)[::step, ::step][where]
    colour = _colour(even, glass)
    darkening = float(np.median(glass.colour.mean() - even.mean(axis=1)))
    # very pale tissue differs little from grey, but much for how little light it takes
    grey = np.quantile(colour, 0.9) <= _COLOURLESS and np.median(colour) <= _NEUTRAL * darkening
    return _NO_COLOUR if grey else None


def _colour(pixels: NDArray[np.uint8], glass: BackgroundModel) -> NDArray[np.float64]:
    """(n,): how far apart the channels of (n, 3) pixels are, in levels, where glass is grey."""
    red, green, blue = (pixels[:, i] * (glass.colour.mean() / glass.colour[i]) for i in range(3))
    return np.asarray(
        np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue), dtype=np.float64
    )


def _step(tissue: NDArray[np.bool_]) -> int:
    """Every how many rows and columns are looked at."""
    return max(1, math.ceil(math.sqrt(np.count_nonzero(tissue) / _LOOKED_AT_PX)))


def tissue_features(
    thumbnail: NDArray[np.uint8], tissue: NDArray[np.bool_], glass: BackgroundModel | None = None
) -> NDArray[np.float32] | None:
    """What `classify_stain` judges by: `stain_features` of the tissue; None where it is too little."""
    return stain_features(tissue_densities(thumbnail, tissue, glass))


def tissue_densities(
    thumbnail: NDArray[np.uint8], tissue: NDArray[np.bool_], glass: BackgroundModel | None = None
) -> NDArray[np.float32]:
    """(n, 3) float32 optical densities of at most some 20,000 pixels of tissue, row by row."""
    glass = glass or _glass_beside(thumbnail, tissue)
    step = _step(tissue)
    at = np.nonzero(tissue[::step, ::step])
    return glass.density_at(thumbnail[::step, ::step], at) if len(at[0]) else np.empty((0, 3), np.float32)


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
    return StainCall("FLUORESCENCE" if confidence >= _GLOWS else "UNKNOWN", confidence)


def stain_columns(stated: str | None, seen: StainCall | None, warning: str | None) -> SlideRow:
    """The columns of a slide's row that concern its stain: what the manifest has `stated` wins over what was `seen`.

    `warning` is what the row warns of already; pixels that confidently say another stain are added to it.
    """
    columns: SlideRow = {}
    if seen:
        columns.update({"stain": seen.stain, "stain_confidence": seen.confidence, "stain_source": "pixels"})
        columns.update({"stain_pixels": seen.stain, "stain_pixels_confidence": seen.confidence})
    if stated:
        columns.update({"stain": stated, "stain_confidence": 1.0, "stain_source": "manifest"})
    warnings = [text for text in told(warning) if not text.startswith(DISAGREEMENT)]
    known = seen and stated and "UNKNOWN" not in (stated, seen.stain)
    if seen and known and stated != seen.stain and seen.confidence >= DISAGREES:
        warnings.append(f"{DISAGREEMENT}{seen.stain} ({seen.confidence:.2f}) where the manifest says {stated}")
    return {**columns, "warning": warned(*warnings)}
