"""Rows of a catalog."""

from __future__ import annotations

import pyarrow as pa

from wsi_prep.format.records import SLIDE_SCHEMA, TILE_SCHEMA


def slide(number, status="ok", tiles=3):
    row = dict.fromkeys(SLIDE_SCHEMA.names)
    return row | {"slide_id": f"s{number}", "file": f"{number}.svs", "status": status, "tiles_20x": tiles}


def tiles(number, count=3):
    row = dict.fromkeys(TILE_SCHEMA.names)
    made = [row | {"slide_id": f"s{number}", "magnification": "20x", "index": i} for i in range(count)]
    return pa.Table.from_pylist(made, TILE_SCHEMA)
