"""Whether the zarr.json files of a slide's store are, to the byte, what is written of such a slide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wsi_prep.errors import StoreFailed, TooCoarse
from wsi_prep.format.jpeg import JpegSettings, encode_tile, tables_and_sampling
from wsi_prep.format.magnifications import MAGNIFICATIONS, TILE_PX
from wsi_prep.format.records import SlideRow, tile_counts
from wsi_prep.format.zarr_metadata import array_metadata, group_metadata, store_attributes
from wsi_prep.storage.base import Storage
from wsi_prep.storage.digests import sha256
from wsi_prep.tiles.grid import Grid
from wsi_prep.untrusted.small_json import read_object

_NAMES = tuple(m.name for m in MAGNIFICATIONS)
_MOST_BYTES = 2**20
_NO_SENSE = (OSError, ValueError, KeyError, TypeError, IndexError, ArithmeticError, RecursionError, TooCoarse)
_ANY_TILE = np.zeros((TILE_PX, TILE_PX, 3), np.uint8)


@dataclass
class Metadata:
    """What was found: `faults` in words, and how the tiles of each array are compressed, by magnification."""

    faults: list[str] = field(default_factory=list)
    jpeg: dict[str, JpegSettings] = field(default_factory=dict)


def check_metadata(storage: Storage, store: str, row: SlideRow, digests: Mapping[str, str] | None) -> Metadata:
    """Look at zarr.json of the group, and of the array of each magnification that the slide has tiles at."""
    found, counts = Metadata(), tile_counts(row)
    for name in ("", *(name for name in _NAMES if counts[name])):
        within, called = (f"{name}/zarr.json" if name else "zarr.json"), f"{name or 'group'}: zarr.json"
        try:
            data = storage.read(f"{store}/{within}", _MOST_BYTES)
            given = read_object(data)
            attributes = _attributes(given, row, name)
            if name:
                found.jpeg[name] = _settings(given)
                wanted = array_metadata(counts[name], name, found.jpeg[name], attributes)
            else:
                wanted = group_metadata(attributes)
        except StoreFailed:
            raise
        except _NO_SENSE as error:
            found.faults.append(f"{called} cannot be understood ({type(error).__name__})")
            continue
        if data != wanted:
            found.faults.append(
                f"{called} is not what is written of such a slide, from byte {_unlike(data, wanted)} on"
            )
        elif digests is not None and sha256(data) != digests.get(within):
            found.faults.append(f"{called} has another digest than its row")
    return found


def same_settings(jpeg: bytes, settings: JpegSettings) -> bool:
    """Whether a tile's JPEG is compressed as these say: an encoder writes the same tables and sampling of them."""
    return tables_and_sampling(jpeg) == tables_and_sampling(encode_tile(_ANY_TILE, settings))


def _settings(given: Any) -> JpegSettings:
    """What an array's metadata say of its JPEGs, which no row tells."""
    (sharding,) = given["codecs"]
    codec = sharding["configuration"]["codecs"][0]["configuration"]
    return JpegSettings(codec["level"], codec["subsampling"])


def _attributes(given: Any, row: SlideRow, name: str) -> dict[str, object]:
    """What the store should say of the slide, by its row; where that tells no scale, what the file says."""
    width, height, mpp_x, mpp_y = row.get("width"), row.get("height"), row.get("mpp_x"), row.get("mpp_y")
    if width is None or height is None or mpp_x is None or mpp_y is None:
        own = dict(given["attributes"])
        if name and own.pop("magnification") != name:
            raise ValueError("another magnification")
        return own
    grid = Grid.of_slide(width, height, mpp_x, mpp_y)
    return store_attributes(row["slide_id"], grid.mpp_by_magnification)


def _unlike(one: bytes, other: bytes) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
