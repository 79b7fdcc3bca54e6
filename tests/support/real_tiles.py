"""Tiles of slides as the slide stage makes them, for tests of what is measured of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from wsi_prep.format.jpeg import decode_tile
from wsi_prep.run.slide import prepare_slide
from wsi_prep.run.task import PrepareSettings, SlideTask
from wsi_prep.slides.find.manifest import ManifestRow
from wsi_prep.slides.find.sources import find_slides
from wsi_prep.tiles.plan import PlanSettings

MAGNIFICATIONS = ("40x", "20x", "10x", "5x")


def prepared(slide: Path, out: Path, settings: PrepareSettings, mpp: float | None = None) -> tuple[dict, list[dict]]:
    """The slide's row and its tiles' rows, made in the new folder `out`; `mpp` as a manifest says it."""
    for kind in ("slides", "tiles"):
        (out / "catalog" / kind).mkdir(parents=True)
    (out / ".lock").write_text("token")
    (source,) = find_slides(str(slide))
    source = replace(source, slide_id=slide.stem)  # ids hold the path, and choose the tiles
    row = prepare_slide(SlideTask(source, ManifestRow(mpp=mpp), None, settings, str(out), "token"))
    return row, pq.read_table(out / "catalog" / "tiles").to_pylist() if row["status"] == "ok" else []


def tiles_of(slide: Path, out: Path, most: int) -> dict[str, list[np.ndarray]]:
    """By magnification, at most `most` (392, 392, 3) tiles of a slide."""
    settings = PrepareSettings(plan=PlanSettings(max_tiles=tuple((name, most) for name in MAGNIFICATIONS)))
    row, tiles = prepared(slide, out, settings)
    assert row["status"] == "ok", row["error"]
    found = {}
    for tile in tiles:
        data = (out / tile["shard"]).read_bytes()[tile["offset"] : tile["offset"] + tile["nbytes"]]
        found.setdefault(tile["magnification"], []).append(decode_tile(data))
    return found
