"""A slide whose mask is given."""

from __future__ import annotations

import json
from pathlib import Path

import cv2

from tests.support.prepared import prepare
from wsi_prep.slides.find.sources import find_slides
from wsi_prep.tissue.masks import find_masks


def prepared(slide, out, mask=None, name="mask.geojson", magnifications=("20x", "10x")):
    """One slide's row and tiles, made without a cluster; `mask` is what its mask file holds."""
    (out / "masks").mkdir(parents=True)
    (found,) = find_slides(str(slide))
    given = None
    if mask is not None:
        file = out / "masks" / name.replace("mask", found.slide_id)
        file.write_bytes(mask if isinstance(mask, bytes) else json.dumps(mask).encode())
        given = find_masks(str(file.parent), Path("/elsewhere"), [found])[0][found.slide_id]
    made = prepare(slide, out, " ".join(magnifications), mask=given, assume_mpp=0.5)
    return made.row, {(t["magnification"], t["row"], t["col"]): t for t in made.tiles}


def encoded(pixels):
    """A PNG of grey or BGR(A) pixels."""
    return cv2.imencode(".png", pixels)[1].tobytes()
