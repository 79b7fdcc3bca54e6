"""A tissue mask as polygons with holes, in the GeoJSON that QuPath reads."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.measure import find_contours

_CLASSIFICATION = {"name": "Tissue", "color": [0, 160, 80]}


def tissue_geojson(tissue: NDArray[np.bool_], step_x0: float, step_y0: float) -> dict[str, Any]:
    """A GeoJSON FeatureCollection of the mask's connected regions, one annotation each, largest first.

    `tissue` is (h, w); one of its pixels covers `step_x0` by `step_y0` level-0 px. Coordinates are level-0 px from the
    file's own origin; rings are closed and run as RFC 7946 asks (outer ring counter-clockwise with y upwards).
    """
    polygons = sorted(_polygons(tissue), key=lambda rings: -abs(_area(rings[0])))
    scale = np.array([step_x0, step_y0])
    return {
        "type": "FeatureCollection",
        "features": [
            {
                "type": "Feature",
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [np.round(ring * scale, 1).tolist() for ring in rings],
                },
                "properties": {"objectType": "annotation", "classification": _CLASSIFICATION},
            }
            for rings in polygons
        ],
    }


def _polygons(tissue: NDArray[np.bool_]) -> list[list[NDArray[np.float64]]]:
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
