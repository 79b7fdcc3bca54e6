"""Tissue of an open slide: the thumbnail, the glass and the tissue on it, from levels that show what level 0 shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_prep.slides.pyramid.thumbnail import Thumbnail, read_thumbnail
from wsi_prep.slides.pyramid.trusted import TrustedLevels
from wsi_prep.slides.scale import Scale
from wsi_prep.tissue.background_model import BackgroundModel
from wsi_prep.tissue.detect import MASK_MPP, Outline, TissueSettings, check_bright_field, fat_in, outline_tissue
from wsi_prep.tissue.ink import ink

_BESIDE = 0.1
"""Of a given mask, and of the tissue that is seen, at least so much is common to both where the mask is the slide's."""


@dataclass(frozen=True)
class FoundTissue:
    """`tissue`, the `fat` in it, and `ink`, (h, w) bool, in the pixels of `thumbnail`; `glass` is no tissue there.

    `certain`: how far the outline can be relied on, from 0 to 1; None where a mask was given, or nothing found.
    `beside`: whether a mask that was given lies where no tissue is seen, and what is seen lies elsewhere.
    """

    thumbnail: Thumbnail
    glass: BackgroundModel
    tissue: NDArray[np.bool_]
    ink: NDArray[np.bool_]
    fat: NDArray[np.bool_]
    certain: float | None
    beside: bool = False


def find_tissue(
    reader: TrustedLevels,
    scale: Scale,
    settings: TissueSettings,
    mask: Callable[[Thumbnail], NDArray[np.bool_]] | None = None,
    check: Callable[[Thumbnail, BackgroundModel], None] = lambda seen, glass: check_bright_field(seen.pixels, glass),
) -> FoundTissue:
    """Where the tissue is, at MASK_MPP; by `mask`, where one is given, and not by the picture.

    A level whose picture is not that of level 0 is given up, and all of it done again. Raises what `check` raises of a
    thumbnail and its glass: NotBrightField.
    """
    while True:
        thumbnail = reader.thumbnail = read_thumbnail(reader, scale.mpp_x, scale.mpp_y, MASK_MPP)
        if not reader.confirms():
            continue
        tile = reader.info.tile_px / thumbnail.step_x0, reader.info.tile_px / thumbnail.step_y0
        glass = BackgroundModel.of(thumbnail.pixels, filling=reader.info.filling, tile=tile)
        check(thumbnail, glass)
        marks = ink(thumbnail.pixels, thumbnail.mpp, glass)
        found, beside = outline_tissue(thumbnail.pixels, thumbnail.mpp, settings, glass, marks), False
        if mask:
            given, seen = mask(thumbnail), found.tissue
            common, least = np.count_nonzero(given & seen), min(np.count_nonzero(given), np.count_nonzero(seen))
            beside = bool(common < _BESIDE * least)
            found = Outline(given, fat_in(given, thumbnail.pixels, thumbnail.mpp, glass, marks), None)
        if reader.confirms(found.tissue):
            return FoundTissue(thumbnail, glass, found.tissue, marks, found.fat, found.certain, beside)
