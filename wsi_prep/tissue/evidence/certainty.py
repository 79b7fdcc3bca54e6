"""How far an outline of tissue can be relied on, by the picture alone."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_prep.tissue.evidence.dense import Dense
from wsi_prep.tissue.evidence.texture import ENOUGH, Texture
from wsi_prep.tissue.picture import shrunk

_LENIENT, _STRICT = 0.75, 1.25
"""Times the limits of density and texture: by how much they are moved to see what changes."""

_GAINED, _WEAK = 0.25, 0.5
"""What an area that lenient limits add counts for, next to one that strict limits drop: much of it is film and dirt.
What the share of the outline that lies on a weak step counts for.
"""

_ADDED_UM, _STEP_UM = 100.0, 40.0
"""How far from the outline density that is not certain may add to it; how far to both sides of it a step is seen."""


def certainty(tissue: NDArray[np.bool_], artefact: NDArray[np.bool_], dense: Dense, texture: Texture) -> float | None:
    """From 0 to 1, of an (h, w) mask of `tissue`, found by this evidence where there is no `artefact`; None if empty.

    It is lower by the share of the mask that limits a quarter higher would drop, by what limits a quarter lower would
    add, and by the share of the outline where density hardly changes. Faults that no limit sees, such as ink of the
    stain's own colour, leave it high.
    """
    inside, hidden = shrunk(tissue, texture.step), shrunk(artefact, texture.step)
    area = np.count_nonzero(inside)
    if not area:
        return None
    density, fine = dense.evidence / dense.likely, texture.share / ENOUGH
    lost = inside & ~hidden & (density <= _STRICT) & (fine <= _STRICT)
    near = cv2.dilate(inside.view(np.uint8), _square(_ADDED_UM / texture.mpp)) > 0
    seeds = (fine > _LENIENT) | (dense.evidence > _LENIENT * dense.certain)
    gained = ~inside & ~hidden & (seeds | (near & (density > _LENIENT)))
    stable = (1 - np.count_nonzero(lost) / area) / (1 + _GAINED * np.count_nonzero(gained) / area)
    return float(stable * (1 - _WEAK * _weak_share(inside, dense, texture.mpp)))


def _weak_share(inside: NDArray[np.bool_], dense: Dense, mpp: float) -> float:
    """Share of the outline at which density changes by less than half of what is likely tissue; 0 without one."""
    edge = inside & (cv2.erode(inside.view(np.uint8), np.ones((3, 3), np.uint8), borderValue=1) == 0)
    if not edge.any():
        return 0.0
    smooth, square = cv2.blur(dense.smooth, (3, 3)), _square(_STEP_UM / mpp)
    step = cv2.dilate(smooth, square) - cv2.erode(smooth, square)
    return float((step[edge] < 0.5 * dense.likely).mean())


def _square(radius_px: float) -> NDArray[np.uint8]:
    return np.ones((2 * max(1, math.floor(radius_px)) + 1,) * 2, np.uint8)
