"""Regions of a mask: grown, closed, filled, and kept or dropped by their size and shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_prep.tissue.picture import bands

_DENSE_SHARE = 0.3
"""Of a fragment, how much has to be dense for it to count as no faint one."""

_RING_PX, _MOST_HOLES = 4, 2_000
"""How wide a ring around a hole is looked at, and at how many holes, each of which costs time: later ones stay open."""


@dataclass(frozen=True)
class Regions:
    """The 8-connected regions of a mask: `labels`, (h, w) int32, 0 outside; by label, (n,) the `area` of each in px,
    and (n, 4) the first and last row and column of its `box`: top, left, bottom, right.

    Label 0 has no area. Several times as quick as OpenCV's statistics, since lines of pixels are counted, not pixels.
    """

    labels: NDArray[np.int32]
    area: NDArray[np.int64]
    box: NDArray[np.int64]

    @classmethod
    def of(cls, mask: NDArray[np.bool_]) -> Regions:
        """The regions of an (h, w) mask."""
        count, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
        row, left, length = _lines(mask)
        of_line = labels[row, left]
        area = np.bincount(of_line, length, count).astype(np.int64)
        box = np.zeros((count, 4), np.int64)
        box[:, :2] = max(mask.shape)
        np.minimum.at(box[:, 0], of_line, row)
        np.minimum.at(box[:, 1], of_line, left)
        np.maximum.at(box[:, 2], of_line, row)
        np.maximum.at(box[:, 3], of_line, left + length - 1)
        return cls(np.asarray(labels, dtype=np.int32), area, box)

    def count_of(self, part: NDArray[np.bool_]) -> NDArray[np.int64]:
        """(n,): how many pixels of each region are in a `part` (h, w) of the mask."""
        row, left, length = _lines(part)
        return np.bincount(self.labels[row, left], length, len(self.area)).astype(np.int64)

    def those(self, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(h, w): the regions whose label is `kept` (n,)."""
        kept[0] = False
        return _taken(kept, self.labels)


def _lines(mask: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Of each unbroken line of a mask's pixels along its row: the row, the first column, and the length."""
    padded = cv2.copyMakeBorder(mask.view(np.uint8), 0, 0, 1, 1, cv2.BORDER_CONSTANT, value=0)
    turns = np.flatnonzero(padded[:, 1:] != padded[:, :-1])
    first, end = turns[::2], turns[1::2]
    row, left = np.divmod(first, mask.shape[1] + 1)
    return row, left, end - first


def hysteresis(seed: NDArray[np.bool_], reach: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The connected parts of `reach` that hold a `seed`."""
    row, left, _ = _lines(seed & reach)
    count, labels = cv2.connectedComponents(reach.view(np.uint8), connectivity=8)
    keep = np.zeros(count, bool)
    keep[labels[row, left]] = True
    return _taken(keep, labels)


def _taken(kept: NDArray[np.bool_], labels: NDArray[np.int32]) -> NDArray[np.bool_]:
    """(h, w): `kept` (n,) of each label; some rows at a time, since NumPy wants eight bytes for each number."""
    mask = np.empty(labels.shape, np.bool_)
    for rows in bands(len(labels)):
        kept.take(labels[rows], out=mask[rows], mode="clip")
    return mask


def without_faint_fragments(
    mask: NDArray[np.bool_], dense: NDArray[np.bool_], least_px: float, least_faint_px: float
) -> NDArray[np.bool_]:
    """The regions of at least `least_px`; of those that hardly hold anything `dense`, of `least_faint_px`."""
    regions = Regions.of(mask)
    keep = regions.area >= least_px
    small = keep & (regions.area < least_faint_px)
    if small.any():
        keep &= ~small | (regions.count_of(dense & mask) > _DENSE_SHARE * regions.area)
    return regions.those(keep)


def with_holes_filled(
    mask: NDArray[np.bool_], dense: NDArray[np.bool_], least_px: float, least_in_fat_px: float
) -> NDArray[np.bool_]:
    """A mask without holes of less than `least_px`; or `least_in_fat_px`, where what is around is hardly `dense`."""
    holes = Regions.of(~mask)
    fill = holes.area < least_px
    for hole in np.flatnonzero((holes.area >= least_px) & (holes.area < least_in_fat_px))[:_MOST_HOLES]:
        top, left, bottom, right = holes.box[hole]
        rows = slice(max(0, top - _RING_PX), bottom + 1 + _RING_PX)
        cols = slice(max(0, left - _RING_PX), right + 1 + _RING_PX)
        inside = holes.labels[rows, cols] == hole
        square = np.ones((2 * _RING_PX + 1, 2 * _RING_PX + 1), np.uint8)
        ring = (cv2.dilate(inside.astype(np.uint8), square) > 0) & ~inside
        around = dense[rows, cols][ring]
        fill[hole] = around.size > 0 and 2 * np.count_nonzero(around) < around.size
    filled: NDArray[np.bool_] = mask | holes.those(fill)
    return filled
