"""Fat inside an outline of tissue: clear cells, as bright as glass, with thin walls between them."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_prep.tissue.evidence.texture import ENOUGH, Texture, enlarged
from wsi_prep.tissue.picture import morphed, shrunk

_CLEAR, _CLEAR_SHARE, _AROUND_UM = 0.07, 0.5, 200.0
"""Density below which a pixel may be of a fat cell, and the share of the tissue so far around that is."""

_WALLS = 0.5
"""Fine texture over density, from which the little density that there is stands in walls. Pale stroma has less."""

_LEAST_UM = 60.0
"""Half the width of what is judged: narrower fat, and narrower gaps in it, do not count."""


def fat(tissue: NDArray[np.bool_], faint: NDArray[np.float32], texture: Texture) -> NDArray[np.bool_]:
    """(h, w): the fat in an (h, w) mask of tissue. `faint`: its strongest density, in the pixels of its `texture`.

    Whatever else has clear holes between thin walls is taken for it: the air cells of lungs, loose mucus, smears.
    """
    inside = shrunk(tissue, texture.step)
    side = 2 * round(0.5 * _AROUND_UM / texture.mpp) + 1
    clear, all_around = (_share(mask, side) for mask in (inside & (faint < _CLEAR), inside))
    found = inside & (clear > _CLEAR_SHARE * all_around) & (texture.relative > _WALLS) & (texture.share > ENOUGH)
    for operation in (cv2.MORPH_OPEN, cv2.MORPH_CLOSE):
        found = morphed(found, operation, _LEAST_UM / texture.mpp)
    return enlarged(found, tissue.shape) & tissue


def _share(mask: NDArray[np.bool_], side: int) -> NDArray[np.float32]:
    return np.asarray(cv2.boxFilter(mask.view(np.uint8), cv2.CV_32F, (side, side)), dtype=np.float32)
