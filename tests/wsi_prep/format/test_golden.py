"""What is stored of a slide is, to the byte, what a slow reading of it gives: no gain in speed has changed anything.

The slow way: tifffile's picture of the whole slide, means of 2 x 2 pixels, one tile after another.
"""

import numpy as np
import pytest
import tifffile

from tests.support.real_tiles import prepared
from wsi_prep.format.jpeg import JpegSettings, encode_tile
from wsi_prep.run.task import PrepareSettings
from wsi_prep.tiles.plan import PlanSettings
from wsi_prep.tiles.quality import MEASURES, measure_tile


@pytest.mark.parametrize("magnifications", [("40x", "20x", "10x", "5x"), ("20x", "5x"), ("40x",)])
def test_stored_tiles_are_those_of_a_slow_reading(he_slide, tmp_path, magnifications):
    settings = PrepareSettings(plan=PlanSettings(magnifications=magnifications), own_quality=False)
    row, rows = prepared(he_slide, tmp_path, settings)
    assert row["status"] == "ok", row["error"]
    assert {row["magnification"] for row in rows} == set(magnifications)
    picture, pictures = tifffile.imread(he_slide, key=0).astype(np.uint16), {}
    for name in ("40x", "20x", "10x", "5x"):
        pictures[name] = picture.astype(np.uint8)
        height, width = (side // 2 for side in picture.shape[:2])
        blocks = picture[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
        picture = (blocks.sum((1, 3), dtype=np.uint16) + 2) // 4
    for row in rows:
        x, y = 392 * row["col"], 392 * row["row"]
        pixels = pictures[row["magnification"]][y : y + 392, x : x + 392]
        jpeg = encode_tile(pixels, JpegSettings())
        with (tmp_path / row["shard"]).open("rb") as shard:
            shard.seek(row["offset"])
            assert shard.read(row["nbytes"]) == jpeg, row
        alone = dict(zip(MEASURES, measure_tile(np.ascontiguousarray(pixels)), strict=True))
        assert {name: row[name] for name in MEASURES} == pytest.approx(
            alone | {name: row[name] for name in ("pen", "fat")}, rel=1e-6
        )
        assert 0 <= row["pen"] <= 1 - row["tissue_fraction"] + 1e-5  # what is ink is no tissue
