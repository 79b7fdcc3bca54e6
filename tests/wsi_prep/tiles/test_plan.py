import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_prep.errors import BadOption
from wsi_prep.format.magnifications import MAGNIFICATIONS, to_level0
from wsi_prep.run.row import verdict
from wsi_prep.tiles.grid import Grid
from wsi_prep.tiles.plan import PlanSettings, plan_tiles

M40, M20, M10, M5 = MAGNIFICATIONS


def everywhere(grid, **settings_):
    mask = np.ones((50, 60), bool)
    return plan_tiles(grid, mask, grid.width0 / 60, grid.height0 / 50, PlanSettings(**settings_), "slide")


def test_a_slide_full_of_tissue_gives_its_whole_grid():
    grid = Grid.of_slide(9408, 6300, 0.25, 0.25)
    plan = everywhere(grid)
    assert [plan.count(m) for m in (M5, M10, M20, M40)] == [6, 6 * 4, 8 * 12, 16 * 24]


@settings(deadline=None, max_examples=40)
@given(st.integers(400, 40_000), st.integers(400, 40_000), st.floats(0.15, 2.0))
def test_every_tile_is_inside_and_where_its_row_and_col_say(width0, height0, mpp):
    grid = Grid.of_slide(width0, height0, mpp, mpp)
    plan = everywhere(grid)
    for number, mag in enumerate(MAGNIFICATIONS):
        of_mag = plan.mag == number
        if not of_mag.any():
            continue
        assert np.array_equal(plan.x0[of_mag], to_level0(plan.col[of_mag], grid.span_x0(mag)))
        assert np.array_equal(plan.y0[of_mag], to_level0(plan.row[of_mag], grid.span_y0(mag)))
        assert (plan.x0[of_mag] + grid.span_x0(mag)).max() <= width0 + 0.5
        assert (plan.y0[of_mag] + grid.span_y0(mag)).max() <= height0 + 0.5


def test_tissue_fraction_pen_and_fat_are_the_areas_covered():
    """Against counting on a mask as fine as the slide."""
    grid = Grid.of_slide(1600, 1200, 0.5, 0.5)
    mask = np.random.default_rng(0).random((75, 100)) < 0.7  # one mask px is 16 level-0 px
    plan = plan_tiles(grid, mask, 16.0, 16.0, PlanSettings(tissue_threshold=0.0), "slide")
    ink = ~mask & (np.random.default_rng(1).random(mask.shape) < 0.5)
    fat = mask & (np.random.default_rng(2).random(mask.shape) < 0.3)
    assert not plan.pen.any()
    assert np.isnan(plan.fat).all()  # nobody has judged it yet
    plan = plan.with_ink(ink, 16.0, 16.0).with_fat(fat, 16.0, 16.0).only(plan.mag > 0)
    assert len(plan) == 3 * 4 + 1 * 2
    for number, (mag, x0, y0) in enumerate(zip(plan.mag, plan.x0, plan.y0, strict=True)):
        span = round(grid.span_x0(MAGNIFICATIONS[mag]))
        for covered, shares in ((mask, plan.tissue_fraction), (ink, plan.pen), (fat, plan.fat)):
            fraction = shares[number]
            fine = np.kron(covered, np.ones((16, 16)))
            assert fraction == pytest.approx(fine[y0 : y0 + span, x0 : x0 + span].mean(), abs=1e-5)


def test_threshold_keeps_what_reaches_it():
    grid = Grid.of_slide(784, 392, 0.5, 0.5)
    mask = np.zeros((1, 784), bool)
    mask[0, :255] = True  # 65.05 % of the first tile
    assert len(plan_tiles(grid, mask, 1.0, 392.0, PlanSettings(), "slide")) == 1
    mask[0, 250:] = False
    assert len(plan_tiles(grid, mask, 1.0, 392.0, PlanSettings(), "slide")) == 0


def test_tiles_come_cell_by_cell_in_reading_order():
    plan = everywhere(Grid.of_slide(9408, 6300, 0.25, 0.25))
    cells = list(plan.cells())
    assert sum(s.stop - s.start for s in cells) == len(plan)
    firsts = [tuple(plan.cell()[s.start]) for s in cells]
    assert firsts == sorted(set(firsts))
    for tiles in cells:
        assert len({tuple(c) for c in plan.cell()[tiles]}) == 1


def test_a_limit_draws_the_same_tiles_every_time_and_others_for_another_slide():
    grid = Grid.of_slide(9408, 9408, 0.25, 0.25)
    mask = np.ones((10, 10), bool)
    limited = PlanSettings(max_tiles=(("40x", 50),))
    first, again, other = (plan_tiles(grid, mask, 940.8, 940.8, limited, seed) for seed in ("a", "a", "b"))
    assert first.count(M40) == 50
    assert first.count(M20) == 144
    assert np.array_equal(first.x0, again.x0)
    assert not np.array_equal(first.x0, other.x0)


def test_the_grid_does_not_depend_on_what_is_asked_for():
    grid = Grid.of_slide(9408, 9408, 0.2281, 0.2281)
    every, some = everywhere(grid), everywhere(grid, magnifications=("20x",))
    of_mag = every.mag == 1
    assert np.array_equal(every.x0[of_mag], some.x0)
    assert np.array_equal(every.y0[of_mag], some.y0)


def test_an_empty_mask_gives_an_empty_plan():
    grid = Grid.of_slide(9408, 9408, 0.25, 0.25)
    plan = plan_tiles(grid, np.zeros((10, 10), bool), 940.8, 940.8, PlanSettings(), "slide")
    assert len(plan) == 0
    assert list(plan.cells()) == []


@pytest.mark.parametrize("bad", [{"tissue_threshold": 1.5}, {"max_tiles": (("40x", 0),)}, {"max_tiles": (("2x", 5),)}])
def test_bad_settings_are_refused_where_they_are_made(bad):
    with pytest.raises(BadOption):
        PlanSettings(**bad)


@pytest.mark.parametrize(
    ("sides", "mags", "tissue_mm2", "error"),
    [
        ((3000, 3136), ("5x",), 0.5, "the scan, 750 x 784 um, is smaller than one 5x tile, 784 um"),
        ((3000, 9000), ("10x", "5x"), 0.0, "no tissue was found"),
        ((1500, 9000), ("5x", "10x"), 0.5, "the scan, 375 x 2,250 um, is smaller than one 10x tile, 392 um"),
        ((3136, 3136), ("5x",), 0.5, "no tile inside the slide has 65% tissue"),
    ],
)
def test_a_scan_that_is_smaller_than_a_tile_is_told_so(sides, mags, tissue_mm2, error):
    grid, settings = Grid.of_slide(*sides, 0.25, 0.25), PlanSettings(magnifications=mags)
    plan = plan_tiles(grid, np.zeros((8, 8), bool), sides[0] / 8, sides[1] / 8, settings, "a")
    row = {"tissue_mm2": tissue_mm2, "tiles_filtered": 0, "warning": None}
    assert verdict(row, plan, settings, "", "no tissue was found") == {"status": "empty", "error": error}
