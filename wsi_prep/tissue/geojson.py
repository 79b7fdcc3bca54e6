"""Annotations in the GeoJSON that QuPath writes, as polygons of tissue and of what is cut out of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_prep.errors import BadMask, BadOutput, one_line
from wsi_prep.storage.base import Storage

Polygon = list[NDArray[np.float64]]
"""Closed rings, (n, 2) of x, y, the outer one first."""

FRAME = "frame"

FILE_FRAME, QUPATH_FRAME = "level-0", "qupath"
"""What the member FRAME of our GeoJSON says: level-0 px from the file's own origin, or from its bounds, as in QuPath. A
file of QuPath's own has no such member."""

_CLASSIFICATION = {"name": "Tissue", "color": [0, 160, 80]}


_MOST_BYTES = 64 * 2**20
_MOST_POINTS = 2_000_000
_FARTHEST = 1e7
"""Level-0 px from the origin: several times the largest slide."""

_ANNOTATIONS = (None, "annotation", "unknown", "PathAnnotationObject")
"""objectType as QuPath wrote it over the years; what has none is an annotation too."""


@dataclass(frozen=True)
class Outlines:
    """What a file draws, in level-0 px from the slide file's own origin: tissue is `kept` without `cut`."""

    kept: list[Polygon]
    cut: list[Polygon]


def bounded_bytes(storage: Storage, path: str) -> bytes:
    """What a file holds; BadMask where that is too much or cannot be read, FileNotFoundError where there is none."""
    try:
        if storage.sizes(path).get(path, 0) > _MOST_BYTES:
            raise BadMask(f"it is larger than {_MOST_BYTES >> 20} MiB; simplify it")
        return storage.read(path, _MOST_BYTES)
    except FileNotFoundError:
        raise
    except BadOutput as error:
        raise BadMask("it is a link, or no file") from error
    except OSError as error:
        raise BadMask(f"it cannot be read ({error.strerror})") from error


def read_outlines(data: bytes, bounds_x0: int, bounds_y0: int) -> Outlines:
    """The outlines of a GeoJSON file: a FeatureCollection, a list of features, or one feature.

    Annotations classified "Tissue" are kept, or all of them where none is so classified; those classified "Hole" or
    "Ignore*" are cut out. Points and lines, and QuPath's detections, cells and tiles are passed by. A file counts from
    the slide's bounds, as QuPath does, unless its member `frame` says "level-0". Raises BadMask.
    """
    document = _parsed(data)
    frame = document.get(FRAME, QUPATH_FRAME) if isinstance(document, dict) else QUPATH_FRAME
    if frame not in (FILE_FRAME, QUPATH_FRAME):
        raise BadMask(f"its frame is {str(frame)[:40]!r}; {FILE_FRAME!r} and {QUPATH_FRAME!r} are known")
    origin = np.array([bounds_x0, bounds_y0] if frame == QUPATH_FRAME else [0, 0], float)
    drawn = [(classes, [ring + origin for ring in polygon]) for classes, polygon in _drawn(_features(document))]
    tissue = [polygon for classes, polygon in drawn if "tissue" in classes]
    others = [polygon for classes, polygon in drawn if not _is_cut(classes)]
    return Outlines(tissue or others, [polygon for classes, polygon in drawn if _is_cut(classes)])


def _parsed(data: bytes) -> object:
    try:
        return json.loads(data)
    except RecursionError as error:
        raise BadMask("it is nested too deeply") from error
    except ValueError as error:
        raise BadMask(f"it is not JSON ({one_line(error, 100)})") from error


def _features(document: Any) -> list[dict[str, Any]]:
    if isinstance(document, dict) and document.get("type") == "FeatureCollection":
        document = document.get("features")
    features = document if isinstance(document, list) else [document]
    for number, feature in enumerate(features, 1):
        if not isinstance(feature, dict) or feature.get("type") != "Feature":
            raise BadMask(f"it is no GeoJSON of features: item {number} has no type 'Feature'")
    return features


def _drawn(features: list[dict[str, object]]) -> list[tuple[set[str], Polygon]]:
    """Every polygon of the features' annotations, with the classes that it bears."""
    drawn: list[tuple[set[str], Polygon]] = []
    points = 0
    for number, feature in enumerate(features, 1):
        try:
            polygons = list(_polygons(feature))
        except BadMask as error:
            raise BadMask(f"feature {number} of {len(features)}: {error}") from error
        points += sum(len(ring) for polygon in polygons for ring in polygon)
        if points > _MOST_POINTS:
            raise BadMask(f"it has more than {_MOST_POINTS:,} points; simplify it")
        drawn += [(_classes(feature), polygon) for polygon in polygons]
    if features and not drawn:
        raise BadMask(f"none of its {len(features)} features is an annotation that encloses an area")
    return drawn


def _properties(feature: dict[str, object]) -> dict[str, object]:
    properties = feature.get("properties")
    return properties if isinstance(properties, dict) else {}


def _classes(feature: dict[str, object]) -> set[str]:
    """The names of a feature's classification in lower case: QuPath's `name`, or `names` of a derived class."""
    given = _properties(feature).get("classification")
    names = [given.get("name"), *(given.get("names") or [])] if isinstance(given, dict) else [given]
    return {name.strip().lower() for name in names if isinstance(name, str)}


def _is_cut(classes: set[str]) -> bool:
    return any(name == "hole" or name.startswith("ignore") for name in classes)


def _polygons(feature: dict[str, object]) -> Iterator[Polygon]:
    properties = _properties(feature)
    kind = properties.get("objectType", properties.get("object_type"))
    legacy = feature.get("id")
    if kind is None and isinstance(legacy, str) and legacy.startswith("Path"):  # QuPath 0.2 wrote the type as an id
        kind = legacy
    if kind in _ANNOTATIONS and feature.get("geometry") is not None:
        yield from _geometry(feature["geometry"])


def _geometry(geometry: Any) -> Iterator[Polygon]:
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    parts = geometry.get("geometries" if kind == "GeometryCollection" else "coordinates") if kind else None
    if not isinstance(parts, list):
        raise BadMask("its geometry has no coordinates")
    if kind == "GeometryCollection":
        for part in parts:
            yield from _geometry(part)
    elif kind == "Polygon":
        yield _polygon(parts)
    elif kind == "MultiPolygon":
        for part in parts:
            yield _polygon(part)
    elif kind not in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        raise BadMask(f"its geometry is of the unknown type {str(kind)[:40]!r}")


def _polygon(rings: object) -> Polygon:
    if not isinstance(rings, list) or not rings:
        raise BadMask("a polygon has no ring")
    return [_ring(ring) for ring in rings]


def _ring(positions: object) -> NDArray[np.float64]:
    """A closed ring, (n, 2); a third coordinate is left out."""
    try:
        ring = np.asarray(positions, np.float64)
    except (TypeError, ValueError, OverflowError):
        ring = np.empty(0)
    if ring.ndim != 2 or ring.shape[1] not in (2, 3):
        raise BadMask("a ring is no list of [x, y]")
    ring = ring[:, :2]
    if not (np.abs(ring) <= _FARTHEST).all():  # NaN is not either
        raise BadMask(f"a coordinate is no number between -{_FARTHEST:.0f} and {_FARTHEST:.0f}")
    if len(ring) < 3:
        raise BadMask(f"a ring has {len(ring)} points; it needs three")
    return ring if (ring[0] == ring[-1]).all() else np.concatenate([ring, ring[:1]])


def feature_collection(polygons: Sequence[Polygon], frame: str) -> dict[str, object]:
    """A GeoJSON FeatureCollection, one annotation a polygon; `frame` says where its coordinates count from."""
    return {
        "type": "FeatureCollection",
        FRAME: frame,
        "features": [
            {
                "type": "Feature",
                "geometry": {"type": "Polygon", "coordinates": [np.round(ring, 1).tolist() for ring in rings]},
                "properties": {"objectType": "annotation", "classification": _CLASSIFICATION},
            }
            for rings in polygons
        ],
    }
