"""Shard folders for tests of the trainer: real stores and a real catalog, with tiles that say which one they are."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from wsi_prep.format.jpeg import JpegSettings, encode_tile
from wsi_prep.format.magnifications import TILE_PX
from wsi_prep.format.records import SLIDE_SCHEMA, TILE_SCHEMA
from wsi_prep.output.catalog import Catalog
from wsi_prep.tiles.store import StoreWriter

MPP = {"40x": 0.25, "20x": 0.5, "10x": 1.0, "5x": 2.0}


def grey(slide: int, magnification: str, index: int) -> int:
    """The grey value of that tile: a different one for near tiles and slides."""
    return (slide * 37 + list(MPP).index(magnification) * 11 + index * 3) % 256


def flat(slide: int, magnification: str, index: int) -> np.ndarray:
    """A tile of that grey."""
    return np.full((TILE_PX, TILE_PX, 3), grey(slide, magnification, index), np.uint8)


def add_slide(out: Path, number: int, counts: dict[str, int], picture=flat, **slide) -> str:
    """Commit a slide with tiles as `picture` draws them, `counts` of them by magnification; returns its id."""
    slide_id = f"slide{number}-{number:08x}"
    catalog = Catalog(out)
    catalog.create()
    store = out / "stores" / f"{slide_id}.zarr"
    store.parent.mkdir(exist_ok=True)
    rows = []
    writer = StoreWriter(store, defaultdict(JpegSettings), attributes={})
    for name, count in counts.items():
        for index in range(count):
            at = writer.append(name, encode_tile(picture(number, name, index), JpegSettings()))
            span0 = TILE_PX * MPP[name] / 0.25
            place = {"row": index // 4, "col": index % 4, "span0": span0}
            place |= {"x0": round(place["col"] * span0), "y0": round(place["row"] * span0)}
            rows.append(
                place
                | {"slide_id": slide_id, "magnification": name, "mpp": MPP[name], "focus": index / 100}
                | {"array": f"stores/{slide_id}.zarr/{name}", "shard": f"stores/{slide_id}.zarr/{at.shard}"}
                | {field: getattr(at, field) for field in ("index", "offset", "nbytes", "crc32")}
            )
    writer.close()
    given = {"stain": "HE", "institution": "unknown", "tissue": "unknown", "status": "ok"} | slide
    tiles = {f"tiles_{name}": counts.get(name, 0) for name in MPP}
    row = dict.fromkeys(SLIDE_SCHEMA.names) | {"slide_id": slide_id} | given | tiles
    catalog.commit(row, pa.Table.from_pylist(rows, TILE_SCHEMA))
    return slide_id


def add_row(out: Path, slide_id: str, **values) -> None:
    """Commit a slide without tiles."""
    catalog = Catalog(out)
    catalog.create()
    catalog.commit(dict.fromkeys(SLIDE_SCHEMA.names) | {"slide_id": slide_id} | values, Catalog.no_tiles())


def add_overlay(out: Path, slide_id: str, colour: tuple[int, int, int] = (200, 90, 150)) -> None:
    """An overlay of one colour, 240 x 90 px."""
    (out / "overlays").mkdir(exist_ok=True)
    pixels = np.full((90, 240, 3), colour, np.uint8)
    (out / "overlays" / f"{slide_id}.jpg").write_bytes(encode_tile(pixels, JpegSettings()))
