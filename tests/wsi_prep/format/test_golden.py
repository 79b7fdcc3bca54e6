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


def area_mean(picture, x0, y0, step):
    """A tile of a picture (h, w, 3) that begins at this pixel: rows first, sums in float32, in the pixels' order."""
    for axis, begin in ((0, y0), (1, x0)):
        start = begin + step * np.arange(392)
        first = np.floor(start + 1e-9).astype(int)
        total = np.float32(0)
        for pixel in (first + tap for tap in range(int(np.ceil(step)) + 1)):
            share = np.minimum(start + step, pixel + 1) - np.maximum(start, pixel)
            weight = (np.where(share > 1e-9, share, 0) / step).astype(np.float32)
            along = picture.take(np.minimum(pixel, picture.shape[axis] - 1), axis).astype(np.float32)
            total = total + weight.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1)) * along
        picture = total
    return np.rint(picture).astype(np.uint8)


def test_resampled_tiles_of_one_quality_are_those_of_a_slow_reading(he_slide, tmp_path):
    """`QUALITY=90` of a slide of YCbCr whose scale fits no magnification."""
    settings = PrepareSettings(plan=PlanSettings(max_tiles=(("40x", 12), ("20x", 6))), own_quality=False)
    row, rows = prepared(he_slide, tmp_path, settings, mpp=0.2281)
    assert row["status"] == "ok", row["error"]
    assert {row["magnification"] for row in rows} == {"40x", "20x", "10x"}
    picture = tifffile.imread(he_slide, key=0)
    for row in rows:
        step = 0.25 / 0.2281 * {"40x": 1, "20x": 2, "10x": 4}[row["magnification"]]
        pixels = area_mean(picture, row["x0"], row["y0"], step)
        with (tmp_path / row["shard"]).open("rb") as shard:
            shard.seek(row["offset"])
            assert shard.read(row["nbytes"]) == encode_tile(pixels, JpegSettings()), row
