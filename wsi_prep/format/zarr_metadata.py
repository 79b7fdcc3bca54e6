"""The zarr.json files of a tile store, to the byte. Source: Zarr v3 specification, sharding codec 1.0."""

from __future__ import annotations

import json
from collections.abc import Mapping

from wsi_prep.format.jpeg import JpegSettings
from wsi_prep.format.magnifications import TILE_PX
from wsi_prep.format.records import TILES_PER_SHARD

SHARD_TILES = TILES_PER_SHARD
"""Most tiles in one shard file: some 100 MB of JPEG and 32 kB of index."""


def group_metadata(attributes: dict[str, object]) -> bytes:
    """The zarr.json of a store, to the byte."""
    return _json({"zarr_format": 3, "node_type": "group", "attributes": attributes})


def array_metadata(count: int, magnification: str, jpeg: JpegSettings, attributes: dict[str, object]) -> bytes:
    """The zarr.json of an array of `count` tiles, to the byte; `attributes` are the store's."""
    tile = [1, TILE_PX, TILE_PX, 3]
    per_shard = min(count, SHARD_TILES)
    metadata = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [count, *tile[1:]],
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [per_shard, *tile[1:]]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": 255,
        "codecs": [
            {
                "name": "sharding_indexed",
                "configuration": {
                    "chunk_shape": tile,
                    "codecs": [jpeg.zarr_codec()],
                    "index_codecs": [
                        {"name": "bytes", "configuration": {"endian": "little"}},
                        {"name": "crc32c"},
                    ],
                    "index_location": "end",
                },
            }
        ],
        "dimension_names": ["tile", "y", "x", "channel"],
        "attributes": {**attributes, "magnification": magnification},
    }
    return _json(metadata)


def _json(value: dict[str, object]) -> bytes:
    return json.dumps(value, indent=2).encode()


def store_attributes(slide_id: str, mpp: Mapping[str, float]) -> dict[str, object]:
    """What the metadata of a slide's store say of it: its id, and the um/px of each magnification that it can give."""
    return {"slide_id": slide_id, "mpp": dict(mpp)}
