"""Outlines as QuPath writes them."""

from __future__ import annotations

SQUARE = [[0, 0], [100, 0], [100, 100], [0, 100], [0, 0]]


def feature(*rings, name=None, **properties):
    if name is not None:
        properties["classification"] = {"name": name}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": rings}, "properties": properties}
