"""Whether a slide's tissue outlines and overlay are as they were written, and what they should be."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from wsi_prep.errors import StoreFailed
from wsi_prep.format.jpeg import decode_tile
from wsi_prep.format.stored_tiles import is_picture
from wsi_prep.storage.base import Storage
from wsi_prep.storage.digests import sha256
from wsi_prep.untrusted.small_json import read_object


def picture_faults(storage: Storage, path: str, name: str, digests: Mapping[str, str] | None) -> Iterator[str]:
    """What is wrong with the file at `path`, which is called `name` (one of PICTURES) among the slide's `digests`."""
    try:
        data = storage.read(path)
        if digests is not None and sha256(data) != digests.get(name):
            yield f"{path} is damaged (it has another digest than its row)"
        else:
            PICTURES[name](data)
    except StoreFailed:
        raise
    except OSError as error:
        yield f"{path}: {error.strerror or error}"
    except (ValueError, RuntimeError, KeyError, TypeError, IndexError) as error:
        yield f"{path} is damaged ({type(error).__name__})"


def _require_outlines(data: bytes) -> None:
    """Raise ValueError, KeyError, IndexError or TypeError unless this is GeoJSON of closed rings."""
    document = read_object(data)
    if document["type"] != "FeatureCollection":
        raise ValueError(document["type"])
    for feature in document["features"]:
        for ring in feature["geometry"]["coordinates"]:
            if ring[0] != ring[-1] or not all(math.isfinite(value) for point in ring for value in point):
                raise ValueError("a ring that is open")


def _require_picture(data: bytes) -> None:
    if not is_picture(data) or decode_tile(data).ndim != 3:
        raise ValueError("not a picture in colours")


PICTURES = {"tissue.geojson": _require_outlines, "overlay.jpg": _require_picture}
"""What is looked at, by its name among a slide's digests, and what must hold of it."""
