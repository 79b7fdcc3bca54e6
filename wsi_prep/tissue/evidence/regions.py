"""Regions of a mask: grown, closed, filled, and kept or dropped by their size and shape."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

_DENSE_SHARE = 0.3
"""Of a fragment, how much has to be dense for it to count as no faint one."""

_RING_PX, _MOST_HOLES = 4, 2_000
"""How wide a ring around a hole is looked at, and at how many holes, each of which costs time: later ones stay open."""


def hysteresis(seed: NDArray[np.bool_], reach: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The connected parts of `reach` that hold a `seed`."""
    count, labels = cv2.connectedComponents(reach.astype(np.uint8), connectivity=8)
    keep = np.bincount(labels[seed & reach], minlength=count) > 0
    keep[0] = False
    kept: NDArray[np.bool_] = keep[labels]
    return kept


def without_faint_fragments(
    mask: NDArray[np.bool_], dense: NDArray[np.bool_], least_px: float, least_faint_px: float
) -> NDArray[np.bool_]:
    """The regions of at least `least_px`; of those that hardly hold anything `dense`, of `least_faint_px`."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    area = stats[:, cv2.CC_STAT_AREA]
    keep = area >= least_px
    keep[0] = False
    small = keep & (area < least_faint_px)
    if small.any():
        within = np.bincount(labels[dense & small[labels]], minlength=count)
        keep &= ~small | (within > _DENSE_SHARE * area)
    kept: NDArray[np.bool_] = keep[labels]
    return kept


def with_holes_filled(
    mask: NDArray[np.bool_], dense: NDArray[np.bool_], least_px: float, least_in_fat_px: float
) -> NDArray[np.bool_]:
    """A mask without holes of less than `least_px`; or `least_in_fat_px`, where what is around is hardly `dense`."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=8)
    area = stats[:, cv2.CC_STAT_AREA]
    fill = area < least_px
    fill[0] = False
    for hole in np.flatnonzero((area >= least_px) & (area < least_in_fat_px))[:_MOST_HOLES]:
        if hole == 0:
            continue
        left, top, width, height = stats[hole, : cv2.CC_STAT_AREA]
        rows = slice(max(0, top - _RING_PX), top + height + _RING_PX)
        cols = slice(max(0, left - _RING_PX), left + width + _RING_PX)
        inside = labels[rows, cols] == hole
        square = np.ones((2 * _RING_PX + 1, 2 * _RING_PX + 1), np.uint8)
        ring = (cv2.dilate(inside.astype(np.uint8), square) > 0) & ~inside
        around = dense[rows, cols][ring]
        fill[hole] = around.size > 0 and 2 * np.count_nonzero(around) < around.size
    filled: NDArray[np.bool_] = mask | fill[labels]
    return filled
