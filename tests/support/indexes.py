"""Indexes without pixels."""

from __future__ import annotations

import numpy as np

from pretrain.data.index import Index
from pretrain.data.parts import CELL, SLIDE, TILE, open_part, write_part
from pretrain.data.sources import LocalFolder
from tests.support.shard_folders import MPP
from wsi_prep.format.magnifications import MAGNIFICATIONS

MAGS = [m.name for m in MAGNIFICATIONS]


def make_index(tmp_path, cohort, name="part"):
    """An index without pixels: `cohort` lists (stain, institution, {magnification: tiles}) of each slide."""
    stains, places = (sorted({row[k] for row in cohort}) for k in (0, 1))
    slides = np.zeros(len(cohort), SLIDE)
    cells, start = [], 0
    for number, (stain, place, counts) in enumerate(cohort):
        slides[number] = (number, (number + 0.5) / len(cohort), 1, stains.index(stain), places.index(place), 0)
        for mag, count in counts.items():
            cells.append((start, count, number, MAGS.index(mag), MPP[mag]))
            start += count
    names = {"stain": stains, "institution": places, "tissue": ["unknown"]}
    ids = [f"slide{number}" for number in range(len(cohort))]
    write_part(tmp_path / name, np.zeros(start, TILE), np.array(cells, CELL), slides, names, ids)
    return Index([(LocalFolder(str(tmp_path)), open_part(tmp_path / name))])
