"""Slides that are known everywhere: dark nuclei of one size, on a lattice that is the same at every magnification."""

from __future__ import annotations

import numpy as np

from tests.support.shard_folders import MPP
from wsi_prep.format.magnifications import TILE_PX

APART_UM = 35.0
"""From a nucleus to the next."""
WIDE_UM = 14.0
"""Across a nucleus."""
DARK, LIGHT = 60, 220


def nuclei(slide: int, magnification: str, index: int) -> np.ndarray:
    """A tile of the lattice, (392, 392, 3) uint8, where shard_folders puts it: four a row. Edges a pixel wide."""
    mpp, row, col = MPP[magnification], index // 4, index % 4
    y, x = np.meshgrid(*((at * TILE_PX + np.arange(TILE_PX) + 0.5) * mpp for at in (row, col)), indexing="ij")
    from_centre = np.hypot(x % APART_UM - APART_UM / 2, y % APART_UM - APART_UM / 2)
    inside = np.clip((WIDE_UM / 2 - from_centre) / mpp + 0.5, 0, 1)
    grey = np.round(LIGHT - inside * (LIGHT - DARK)).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def width_and_offset(profile: np.ndarray, centre: float) -> tuple[float, float]:
    """How wide the nucleus at `centre` of a line of pixels is where it is half dark, and how far off it lies, in px."""
    half = (DARK + LIGHT) / 2
    ends = []
    for step in (-1, 1):
        at = int(centre)
        while profile[at + step] < half:
            at += step
        share = (half - profile[at]) / (profile[at + step] - profile[at])
        ends.append(at + 0.5 + step * share)
    return ends[1] - ends[0], (ends[0] + ends[1]) / 2 - centre
