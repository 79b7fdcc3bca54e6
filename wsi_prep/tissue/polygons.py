"""A tissue mask as polygons with holes, in the GeoJSON that QuPath reads; and polygons as a mask."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.measure import find_contours

from wsi_prep.errors import BadMask
from wsi_prep.tissue.geojson import Polygon

_MOST_CROSSINGS, _MOST_FILLED_PX = 10_000_000, 1 << 32
"""Bounds on the work of filling: real outlines stay below a hundredth of them."""


def tissue_polygons(tissue: NDArray[np.bool_], step_x0: float, step_y0: float) -> list[Polygon]:
    """The outlines of the mask's connected regions, largest first, in level-0 px from the file's own origin.

    `tissue` is (h, w); one of its pixels covers `step_x0` by `step_y0` level-0 px. Rings run as RFC 7946 asks (outer
    ring counter-clockwise with y upwards).
    """
    scale = np.array([step_x0, step_y0])
    outlines = sorted(_outlines(tissue), key=lambda rings: -abs(_area(rings[0])))
    return [[ring * scale for ring in rings] for rings in outlines]


def filled(polygons: Sequence[Polygon], shape: tuple[int, int], step_x0: float, step_y0: float) -> NDArray[np.bool_]:
    """The (h, w) mask of the pixels whose centre lies in any of the polygons, which are in level-0 px.

    Inside is what a ray crosses the rings an odd number of times to reach, so rings within rings are holes, and an
    outline that crosses itself has a meaning. What lies beyond the mask is left out. Raises BadMask where an outline
    would take absurd work.
    """
    scaled = [[ring / (step_x0, step_y0) for ring in polygon] for polygon in polygons]
    boxes = [_box(rings, shape) for rings in scaled]
    if sum((bottom - top) * (right - left) for left, top, right, bottom in boxes) > _MOST_FILLED_PX:
        raise BadMask("its polygons cover the slide over and over; merge them")
    mask = np.zeros(shape, bool)
    for rings, (left, top, right, bottom) in zip(scaled, boxes, strict=True):
        if right > left and bottom > top:
            inside = _inside([ring - (left, top) for ring in rings], (bottom - top, right - left))
            mask[top:bottom, left:right] |= inside
    return mask


def _box(rings: Polygon, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the pixels that the rings can reach."""
    points = np.concatenate(rings)
    left, top = np.clip(np.floor(points.min(axis=0)), 0, shape[::-1]).astype(int).tolist()
    right, bottom = np.clip(np.ceil(points.max(axis=0)), 0, shape[::-1]).astype(int).tolist()
    return left, top, right, bottom


def _inside(rings: Polygon, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """(h, w): the pixels whose centre lies inside the rings, by the even-odd rule, one line of pixels after another."""
    begin = np.concatenate([ring[:-1] for ring in rings])
    end = np.concatenate([ring[1:] for ring in rings])
    lowest, highest = np.minimum(begin[:, 1], end[:, 1]), np.maximum(begin[:, 1], end[:, 1])
    first, last = (np.clip(np.ceil(y - 0.5), 0, shape[0]).astype(np.int64) for y in (lowest, highest))
    crossed = last - first  # lines of pixel centres that each edge crosses
    total = int(crossed.sum())
    if total > _MOST_CROSSINGS:
        raise BadMask("one of its outlines goes to and fro too often; simplify it")
    edge = np.repeat(np.arange(len(begin)), crossed)
    row = np.arange(total) - np.repeat(np.cumsum(crossed) - crossed - first, crossed)
    run = (end[edge] - begin[edge]).T
    x = begin[edge, 0] + (row + 0.5 - begin[edge, 1]) * run[0] / run[1]
    column = np.clip(np.ceil(x - 0.5), 0, shape[1]).astype(np.int64)
    turns = np.zeros((shape[0], shape[1] + 1), np.uint8)
    np.add.at(turns, (row, column), 1)  # wraps at 256, which keeps what is odd
    inside: NDArray[np.bool_] = np.bitwise_xor.accumulate(turns[:, :-1] & 1, axis=1).astype(bool)
    return inside


def _outlines(tissue: NDArray[np.bool_]) -> list[Polygon]:
    """Rings, outer first, of each 4-connected region; (n, 2) of x, y in mask px from the mask's corner."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(tissue.astype(np.uint8), connectivity=4)
    polygons = []
    for label in range(1, count):
        left, top, width, height = stats[label, : cv2.CC_STAT_AREA]
        region = labels[top : top + height, left : left + width] == label
        contours = find_contours(np.pad(region, 1).astype(np.float32), 0.5, fully_connected="low")
        # find_contours gives (row, col) of pixel centres in the padded region; pixel edges are half a pixel off
        rings = [_straightened(contour[:, ::-1] - 0.5) + (left, top) for contour in contours]
        rings.sort(key=lambda ring: -abs(_area(ring)))
        polygons.append([_turned(ring, outer=number == 0) for number, ring in enumerate(rings)])
    return polygons


def _straightened(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """A closed ring without the points that lie on a straight line between their neighbours."""
    points = ring[:-1]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    corner = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-9
    kept = points[corner]
    return np.concatenate([kept, kept[:1]])


def _area(ring: NDArray[np.float64]) -> float:
    """Signed area, positive for a ring that is clockwise on a screen (y downwards)."""
    x, y = ring[:, 0], ring[:, 1]
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) / 2)


def _turned(ring: NDArray[np.float64], *, outer: bool) -> NDArray[np.float64]:
    return ring if (_area(ring) > 0) == outer else ring[::-1]
