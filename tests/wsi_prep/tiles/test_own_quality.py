"""Tiles of a slide of YCbCr JPEG keep its quality where they are not scaled."""

import json
from dataclasses import replace

import numpy as np
import openslide
import pytest
import tifffile

from tests.support.real_tiles import prepared
from wsi_prep.format.jpeg import JpegSettings, decode_tile, encode_tile, ijg_quality
from wsi_prep.format.magnifications import MAGNIFICATIONS, TILE_PX
from wsi_prep.run.task import PrepareSettings
from wsi_prep.tiles.plan import PlanSettings

pytestmark = pytest.mark.slow

SETTINGS = PrepareSettings(plan=PlanSettings(max_tiles=tuple((m.name, 12) for m in MAGNIFICATIONS)))


def jpeg_of(out, tile):
    return (out / tile["shard"]).read_bytes()[tile["offset"] : tile["offset"] + tile["nbytes"]]


def stated_quality(out, tile):
    (sharding,) = json.loads((out / tile["array"] / "zarr.json").read_text())["codecs"]
    return sharding["configuration"]["codecs"][0]["configuration"]["level"]


def qualities(out, tiles):
    """By magnification, the qualities that its tiles' own tables say, which the array's metadata must repeat."""
    found = {}
    for tile in tiles:
        quality = ijg_quality(jpeg_of(out, tile))
        assert stated_quality(out, tile) == quality
        found.setdefault(tile["magnification"], set()).add(quality)
    return found


def luma_error(jpeg, region):
    weights = np.array((0.299, 0.587, 0.114))
    return (((decode_tile(jpeg).astype(float) - region) @ weights) ** 2).mean()


@pytest.fixture(scope="module")
def made(tmp_path_factory, he_slide):
    out = tmp_path_factory.mktemp("made") / "out"
    row, tiles = prepared(he_slide, out, SETTINGS)
    assert row["status"] == "ok", row["error"]
    return out, tiles


def test_unscaled_tiles_have_the_slides_quality_and_reduced_ones_the_usual(made):
    assert qualities(*made) == {"40x": {75}, "20x": {91}, "10x": {91}, "5x": {91}}


def test_one_quality_is_for_all_tiles(tmp_path, he_slide):
    settings = replace(SETTINGS, own_quality=False, jpeg=JpegSettings(80))
    _, tiles = prepared(he_slide, tmp_path / "out", settings)
    assert qualities(tmp_path / "out", tiles) == {key: {80} for key in ("40x", "20x", "10x", "5x")}


def test_a_reduced_level_that_is_cut_unscaled_gives_its_own_quality(tmp_path, he_slide):
    settings = replace(SETTINGS, plan=PlanSettings(("10x", "5x")))
    _, tiles = prepared(he_slide, tmp_path / "out", settings)
    assert qualities(tmp_path / "out", tiles) == {"10x": {75}, "5x": {91}}


def test_they_are_nearer_to_the_slide_at_fewer_bytes(made, he_slide):
    out, tiles = made
    own, usual, sizes = [], [], []
    with openslide.OpenSlide(he_slide) as slide:
        for tile in tiles:
            if tile["magnification"] == "40x":
                region = np.asarray(slide.read_region((tile["x0"], tile["y0"]), 0, (TILE_PX, TILE_PX)))[..., :3]
                again = encode_tile(region, JpegSettings(90))
                own.append(luma_error(jpeg_of(out, tile), region))
                usual.append(luma_error(again, region))
                sizes.append(tile["nbytes"] / len(again))
    assert np.mean(own) < 0.6 * np.mean(usual)
    assert np.mean(sizes) < 0.85


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"compression": "zlib", "photometric": "rgb"}, 90),
        ({"compression": "jpeg", "photometric": "rgb", "compressionargs": {"outcolorspace": "rgb", "level": 60}}, 90),
        ({"compression": "jpeg", "photometric": "rgb", "compressionargs": {"level": 95}}, 90),
        ({"compression": "jpeg", "photometric": "rgb", "compressionargs": {"level": 90}}, 90),
        ({"compression": "jpeg", "photometric": "rgb", "compressionargs": {"level": 85}}, 85),
        ({"compression": "jpeg", "photometric": "rgb", "compressionargs": {"level": 75}}, 75),
        ({"compression": "jpeg", "photometric": "rgb", "compressionargs": {"level": 60}}, 90),
        ({"compression": "jpeg", "photometric": "rgb", "compressionargs": {"level": 30}}, 90),
    ],
)
def test_own_quality_is_kept_only_where_tiles_are_nearer_by_it(tmp_path, he_slide, how, expected):
    with openslide.OpenSlide(he_slide) as slide:
        pixels = np.asarray(slide.read_region((200, 200), 0, (2400, 2400)))[..., :3]
    about = "Aperio Image Library v11.2.1 \n2400x2400 JPEG|AppMag = 40|MPP = 0.25"
    tifffile.imwrite(tmp_path / "s.svs", pixels, tile=(256, 256), description=about, metadata=None, **how)
    row, tiles = prepared(tmp_path / "s.svs", tmp_path / "out", replace(SETTINGS, plan=PlanSettings(("40x",))))
    assert row["status"] == "ok", row["error"]
    assert qualities(tmp_path / "out", tiles) == {"40x": {expected}}
