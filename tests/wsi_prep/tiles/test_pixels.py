"""Tiles against what the slide holds at their place, from sources that share no code with ours."""

import math

import numpy as np
import openslide
import pytest
from PIL import Image

from sample_slides.coordinates import coordinate_slide as make_coordinate_slide
from sample_slides.coordinates import expected
from wsi_prep.format.jpeg import JpegSettings, decode_tile, encode_tile
from wsi_prep.format.magnifications import MAGNIFICATIONS, TILE_PX
from wsi_prep.slides.images import Planes, Rgb
from wsi_prep.slides.readers.select import open_slide
from wsi_prep.tiles.grid import Grid
from wsi_prep.tiles.pixels import read_groups
from wsi_prep.tiles.plan import PlanSettings, plan_tiles

pytestmark = pytest.mark.slow


def read_tiles(slide, plan):
    for group in read_groups(slide, plan):
        yield from ((index, group.tile(number).rgb().copy()) for number, index in enumerate(group.tiles))


def all_tiles(path, mpp, reader="auto", mpp_y=None, **settings):
    slide = open_slide(str(path), reader)
    grid = Grid.of_slide(slide.info.width0, slide.info.height0, mpp, mpp_y or mpp)
    step = slide.info.width0 / 100, slide.info.height0 / 100
    plan = plan_tiles(grid, np.ones((100, 100), bool), *step, PlanSettings(**settings), "s")
    return plan, dict(read_tiles(slide, plan))


def worst_difference(plan, tiles):
    """Greatest difference from the exact area mean over whole tiles, in grey levels."""
    worst = 0.0
    for index, pixels in tiles.items():
        mag = MAGNIFICATIONS[plan.mag[index]]
        span_x, span_y = plan.grid.span_x0(mag), plan.grid.span_y0(mag)
        exact = expected(plan.x0[index], plan.y0[index], span_x, span_y, TILE_PX)
        worst = max(worst, np.abs(pixels - exact).max())
    return worst


@pytest.mark.parametrize("reader", ["tiff", "openslide"])
def test_native_tiles_hold_exactly_what_their_position_says(coordinate_slide, reader):
    plan, tiles = all_tiles(coordinate_slide, 0.25, reader)
    assert [plan.count(m) for m in MAGNIFICATIONS] == [16 * 8, 8 * 4, 4 * 2, 2 * 1]
    # each halving rounds to whole levels: at most half a level each
    assert worst_difference(plan, tiles) <= 1.5


@pytest.mark.parametrize("mpp", [0.2281, 0.19, 0.14, 0.46, 0.125, 0.0625, 0.5 / 3])
def test_resampled_tiles_hold_what_their_position_says(coordinate_slide, mpp):
    plan, tiles = all_tiles(coordinate_slide, mpp)
    assert plan.grid.step_x0 > 1.05
    assert len(tiles) == len(plan) > 5
    assert worst_difference(plan, tiles) <= 1.5


@pytest.mark.parametrize(("mpp_x", "mpp_y"), [(0.2, 0.25), (0.25, 0.19), (0.125, 0.25)])
def test_pixels_that_are_not_square_become_square(coordinate_slide, mpp_x, mpp_y):
    plan, tiles = all_tiles(coordinate_slide, mpp_x, mpp_y=mpp_y)
    assert len(tiles) == len(plan) > 20
    assert worst_difference(plan, tiles) <= 1.5


@pytest.mark.parametrize("mags", [("20x",), ("10x",), ("5x",), ("10x", "5x")])
@pytest.mark.parametrize("mpp", [0.25, 0.5 / 3])
def test_coarse_tiles_alone_hold_what_their_position_says(coordinate_slide, mags, mpp):
    plan, tiles = all_tiles(coordinate_slide, mpp, magnifications=mags)
    assert worst_difference(plan, tiles) <= 1.5


def test_coarse_tiles_of_a_slide_without_levels_whose_finest_scale_is_off(tmp_path):
    """40x would be 1.5 px of the slide wide, 20x is exactly 3: nothing around the tiles may be taken along."""
    path = make_coordinate_slide(tmp_path / "s.tiff", 3300, 3200, 0.25, factors=())
    plan, tiles = all_tiles(path, 0.5 / 3, magnifications=("20x", "10x"))
    assert len(tiles) == 5
    assert worst_difference(plan, tiles) <= 1.5


def test_a_coarser_level_is_used_where_it_serves(tmp_path):
    """One level is a factor of 4 coarser: where only 10x is wanted nothing of level 0 is read."""
    path = make_coordinate_slide(tmp_path / "s.tiff", 3300, 3200, 0.25, factors=(4,))
    slide = open_slide(str(path))
    levels = []
    read = slide.read

    def noting(level, *arguments):
        levels.append(level)
        return read(level, *arguments)

    slide.read = noting
    grid = Grid.of_slide(3300, 3200, 0.25, 0.25)
    plan = plan_tiles(grid, np.ones((100, 100), bool), 33.0, 32.0, PlanSettings(("10x", "5x")), "s")
    tiles = dict(read_tiles(slide, plan))
    assert set(levels) == {1}
    assert worst_difference(plan, tiles) <= 1.5


def stored_samples(tile):
    """The arrays that a tile is made of: its planes, or its channels."""
    return [tile.luma, tile.blue, tile.red] if isinstance(tile, Planes) else list(np.moveaxis(tile.pixels, 2, 0))


@pytest.mark.parametrize(("reader", "kind"), [("tiff", Planes), ("openslide", Rgb)])
def test_a_parent_is_the_mean_of_its_children(he_slide, reader, kind):
    slide = open_slide(str(he_slide), reader)
    grid = Grid.of_slide(slide.info.width0, slide.info.height0, 0.25, 0.25)
    step = slide.info.width0 / 100, slide.info.height0 / 100
    plan = plan_tiles(grid, np.ones((100, 100), bool), *step, PlanSettings(), "s")
    place = {(m, r, c): i for i, (m, r, c) in enumerate(zip(plan.mag, plan.row, plan.col, strict=True))}
    tiles = {}
    for group in read_groups(slide, plan, planar=True):
        assert isinstance(group.image, kind)
        tiles |= {i: [s.copy() for s in stored_samples(group.tile(n))] for n, i in enumerate(group.tiles)}
    checked = 0
    for (mag, row, col), index in place.items():
        if mag == 0:
            continue
        children = [[tiles[place[(mag - 1, 2 * row + dy, 2 * col + dx)]] for dx in (0, 1)] for dy in (0, 1)]
        for which, parent in enumerate(tiles[index]):
            joined = np.block([[child[which] for child in pair] for pair in children]).astype(float)
            mean = joined.reshape(len(parent), 2, len(parent), 2).mean((1, 3))
            assert np.abs(parent - mean).max() <= 0.5
        checked += 1
    assert checked == 8 * 4 + 4 * 2 + 2


def psnr(a, b):
    return 10 * np.log10(255**2 / max(((a.astype(float) - b) ** 2).mean(), 1e-9))


def stored_tile_psnr(path, mpp, mags=("40x", "20x"), every=5):
    """dB of stored (JPEG) tiles against OpenSlide's region of the same place, area-resampled by Pillow."""
    plan, tiles = all_tiles(path, mpp, magnifications=mags)
    values = []
    with openslide.OpenSlide(path) as reference:
        for index in list(tiles)[::every]:
            span = plan.grid.span_x0(MAGNIFICATIONS[plan.mag[index]])
            place, size = (int(plan.x0[index]), int(plan.y0[index])), (math.ceil(span), math.ceil(span))
            region = reference.read_region(place, 0, size).convert("RGB")
            theirs = region.resize((TILE_PX, TILE_PX), Image.Resampling.BOX, box=(0, 0, span, span))
            values.append(psnr(decode_tile(encode_tile(tiles[index], JpegSettings())), np.asarray(theirs)))
    return values


@pytest.mark.parametrize("mpp", [0.25, 0.2281])
def test_stored_tiles_are_close_to_an_independent_reading(he_slide, mpp):
    values = stored_tile_psnr(he_slide, mpp)
    assert np.mean(values) > 34
    assert min(values) > 30


@pytest.mark.parametrize(
    ("name", "mpp"),
    [
        ("celiac-duodenum_HE_40x.svs", 0.25),
        ("crohn-colon_HE_40x.tiff", 0.2281),
        ("net-duodenum_SYN-IHC_40x.svs", 0.2527),
    ],
)
def test_stored_tiles_of_real_slides_are_close_to_an_independent_reading(real_slides, name, mpp):
    values = stored_tile_psnr(real_slides / name, mpp)
    assert np.mean(values) > 34
    assert min(values) > 30
