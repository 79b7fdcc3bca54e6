"""Slides whose scale fits no magnification, cut as planes: against exact means of what was stored."""

import numpy as np
import pytest

from tests.support.real_tiles import prepared
from tests.support.ycc_slides import SAMPLINGS, area_means, picture, with_other_tables, write, ycc
from wsi_prep.format.jpeg import decode_tile, ijg_quality
from wsi_prep.format.magnifications import MAGNIFICATIONS, TILE_PX
from wsi_prep.run.task import PrepareSettings
from wsi_prep.slides.images import Planes
from wsi_prep.slides.readers.select import open_slide
from wsi_prep.tiles.grid import Grid
from wsi_prep.tiles.pixels import read_groups
from wsi_prep.tiles.plan import PlanSettings, plan_tiles

pytestmark = pytest.mark.slow

SIDE = 1760
MOVES = [(0.5, 0), (-0.5, 0), (0, 0.5), (0, -0.5)]


def coloured_edges(height, width):
    """Rectangles of strong colours on a smooth ground, at odd and even places."""
    pixels, rng = picture(height, width), np.random.default_rng(1)
    for number, (x, y) in enumerate(rng.integers(0, (width, height), (height * width // 20_000, 2))):
        wide, high = rng.integers(15, 120, 2)
        pixels[y : y + high, x : x + wide] = [(215, 110, 150), (120, 160, 215), (150, 190, 120)][number % 3]
    return pixels


def planar_tiles(path, mpp_x, mpp_y, **settings):
    """The plan of all tiles, and these as (place in the plan, planes)."""
    slide = open_slide(str(path), "tiff")
    grid = Grid.of_slide(slide.info.width0, slide.info.height0, mpp_x, mpp_y)
    step = slide.info.width0 / 100, slide.info.height0 / 100
    plan = plan_tiles(grid, np.ones((100, 100), bool), *step, PlanSettings(**settings), "s")
    groups = read_groups(slide, plan, planar=True)
    return plan, [(index, group.tile(number)) for group in groups for number, index in enumerate(group.tiles)]


def exact_tile(planes, plan, index, dx=0.0, dy=0.0):
    """Exact means of three planes of level 0 under a tile's luma, Cb and Cr, moved by (dx, dy) level-0 px."""
    mag = MAGNIFICATIONS[plan.mag[index]]
    place = plan.x0[index] + dx, plan.y0[index] + dy, plan.grid.span_x0(mag), plan.grid.span_y0(mag)
    sides = (TILE_PX, TILE_PX // 2, TILE_PX // 2)
    return [area_means(plane, *place, side) for plane, side in zip(planes, sides, strict=True)]


def errors(tile, exact):
    """Mean squared ones of luma, Cb and Cr, away from the tile's edges."""
    held = tile.luma, tile.blue, tile.red
    return [((a - b)[2:-2, 2:-2] ** 2).mean() for a, b in zip(held, exact, strict=True)]


@pytest.mark.parametrize(
    ("sampling", "mpp"),
    [
        *((sampling, (0.2281, 0.2281)) for sampling in SAMPLINGS),
        *(("420", mpp) for mpp in ((0.2275, 0.2275), (0.455, 0.455), (0.235, 0.225))),
    ],
)
def test_neither_brightness_nor_colour_is_shifted(tmp_path, sampling, mpp):
    """Half a pixel of level 0, a quarter of a sample of colour, would be seen."""
    pixels = coloured_edges(SIDE, SIDE)
    plan, tiles = planar_tiles(write(tmp_path / "s.svs", pixels, sampling, quality=98), *mpp)
    assert len({int(plan.mag[index]) for index, _ in tiles}) == 3
    assert {int(x) % 2 for x in np.append(plan.x0, plan.y0)} == {0, 1}
    planes = ycc(pixels)
    for index, tile in tiles[:: max(1, len(tiles) // 6)]:
        assert isinstance(tile, Planes)
        here = errors(tile, exact_tile(planes, plan, index))
        assert max(here) < 2.5
        for move in MOVES if plan.x0[index] and plan.y0[index] else ():
            moved = errors(tile, exact_tile(planes, plan, index, *move))
            assert all(a < b for a, b in zip(here, moved, strict=True))


def decibels(a, b):
    return 10 * np.log10(255**2 / ((a - b) ** 2).mean())


@pytest.fixture(scope="module")
def tissue(he_slide):
    """Tissue of the drawn slide, (SIDE, SIDE, 3)."""
    return open_slide(str(he_slide), "tiff").read(0, 600, 600, SIDE, SIDE)


def jpeg_of(out, tile):
    return (out / tile["shard"]).read_bytes()[tile["offset"] : tile["offset"] + tile["nbytes"]]


def nearness(slide, out, **settings):
    """By magnification, dB of brightness of stored tiles, against exact means of level 0; and their qualities."""
    few = PlanSettings(("40x", "20x"), max_tiles=(("40x", 5), ("20x", 3)))
    row, tiles = prepared(slide, out, PrepareSettings(plan=few, **settings))
    assert row["status"] == "ok", row["error"]
    level0 = open_slide(str(slide), "tiff").read(0, 0, 0, SIDE, SIDE)
    brightness = ycc(level0)[0]
    found, qualities = {}, set()
    for tile in tiles:
        span = tile["span0"]
        exact = area_means(brightness, tile["x0"], tile["y0"], span, span, TILE_PX)
        jpeg = jpeg_of(out, tile)
        found.setdefault(tile["magnification"], []).append(decibels(ycc(decode_tile(jpeg))[0], exact))
        qualities.add(ijg_quality(jpeg))
    return {name: np.mean(values) for name, values in found.items()}, qualities


@pytest.mark.parametrize(("sampling", "quality"), [("420", 40), ("420", 95), ("422", 75), ("444", 85)])
def test_tiles_are_as_near_as_those_made_by_rgb(tmp_path, tissue, sampling, quality):
    slide = write(tmp_path / "s.svs", tissue, sampling, quality, mpp=0.2281)
    by_planes, qualities = nearness(slide, tmp_path / "planes")
    assert qualities == {91}  # never the slide's own
    by_rgb, qualities = nearness(slide, tmp_path / "rgb", own_quality=False)
    assert qualities == {90}
    assert by_planes.keys() == {"40x", "20x"}
    for name, near in by_planes.items():
        assert near > by_rgb[name] - 0.2


@pytest.mark.parametrize(("mpp", "expected"), [(0.2281, 91), (0.25, 90)])
def test_tables_of_no_quality_are_planes_where_these_are_resampled(tmp_path, tissue, mpp, expected):
    slide = write(tmp_path / "s.svs", tissue, mpp=mpp, change=with_other_tables)
    reader = open_slide(str(slide), "tiff")
    assert (reader.planar_quality(0), reader.most_shrink) == (0, 1)
    by_planes, qualities = nearness(slide, tmp_path / "planes")
    by_rgb, _ = nearness(slide, tmp_path / "rgb", own_quality=False)
    assert qualities == {expected}
    assert by_planes["40x"] > by_rgb["40x"] - 0.2


def test_a_cell_without_finest_tiles_may_be_cut_from_a_level_that_does_not_fit(tmp_path):
    """40x fits level 0; 10x, where no tile of 40x or 20x is kept, is cut from the level of a third."""
    pixels = picture(1600, 4750)
    reader = open_slide(str(write(tmp_path / "s.svs", pixels, quality=98, factors=(3,))), "tiff")
    assert len(reader.info.levels) == 2
    grid = Grid.of_slide(4750, 1600, 0.25, 0.25)
    plan = plan_tiles(grid, np.ones((16, 47), bool), 4750 / 47, 100.0, PlanSettings(), "s")
    plan = plan.only((plan.col == 0) & (plan.mag == 0) | (plan.col == 2) & (plan.mag == 2))
    planes, found = ycc(pixels), set()
    for group in read_groups(reader, plan, planar=True):
        for number, index in enumerate(group.tiles):
            tile = group.tile(number)
            assert isinstance(tile, Planes)
            for held, exact in zip((tile.luma, tile.blue, tile.red), exact_tile(planes, plan, index), strict=True):
                assert np.abs(held - exact).mean() < 1
            found.add((int(plan.mag[index]), int(plan.col[index])))
    assert found == {(0, 0), (2, 2)}
