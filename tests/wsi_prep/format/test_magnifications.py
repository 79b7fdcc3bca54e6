import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_prep.errors import BadOption, TooCoarse
from wsi_prep.format.magnifications import MAGNIFICATIONS, TILE_PX, magnification, parse_magnifications, to_level0
from wsi_prep.tiles.grid import Grid

mpps = st.floats(0.06, 2.1)
sizes = st.integers(1, 300_000)
M40, M20, M10, M5 = MAGNIFICATIONS


def names(grid: Grid) -> list[str]:
    return [m.name for m in grid.magnifications]


@pytest.mark.parametrize(
    ("mpp", "expected"),
    [
        (0.25, "40x 20x 10x 5x"),
        (0.2625, "40x 20x 10x 5x"),  # 5 % off is still 40x
        (0.2627, "20x 10x 5x"),
        (0.499, "20x 10x 5x"),
        (1.0, "10x 5x"),
        (2.1, "5x"),
    ],
)
def test_a_magnification_exists_where_nothing_is_upsampled(mpp, expected):
    assert names(Grid.of_slide(10_000, 9_000, mpp, mpp)) == expected.split()


def test_coarser_than_5x_is_refused():
    with pytest.raises(TooCoarse, match="never upsampled"):
        Grid.of_slide(5_000, 5_000, 2.2, 2.2)


def test_native_pixels_stand_within_tolerance():
    grid = Grid.of_slide(6272, 7500, 0.2527, 0.2527)
    assert (grid.step_x0, grid.step_y0) == (1.0, 1.0)
    assert [round(grid.mpp(m), 4) for m in MAGNIFICATIONS] == [0.2527, 0.5054, 1.0108, 2.0216]


def test_off_scale_pixels_are_resampled_to_exactly_the_target():
    grid = Grid.of_slide(7000, 6272, 0.2281, 0.2281)
    assert [grid.mpp(m) for m in MAGNIFICATIONS] == [0.25, 0.5, 1.0, 2.0]
    assert grid.span_x0(M40) == pytest.approx(392 * 0.25 / 0.2281)


def test_pixels_that_are_not_square_are_resampled_on_each_axis():
    grid = Grid.of_slide(7000, 7000, 0.20, 0.25)
    assert (grid.step_x0, grid.step_y0) == (1.25, 1.0)
    assert grid.mpp(M40) == 0.25


@given(sizes, sizes, mpps, mpps)
def test_children_tile_their_parent_exactly(width0, height0, mpp_x, mpp_y):
    grid = Grid.of_slide(width0, height0, mpp_x, mpp_y)
    for child, parent in zip(grid.magnifications, grid.magnifications[1:], strict=False):
        _, cols = grid.shape(parent)
        for col in {0, cols // 2, cols}:
            assert to_level0(2 * col, grid.span_x0(child)) == to_level0(col, grid.span_x0(parent))
        rows_child, cols_child = grid.shape(child)
        rows_parent, cols_parent = grid.shape(parent)
        assert rows_child >= 2 * rows_parent
        assert cols_child >= 2 * cols_parent


@given(sizes, sizes, mpps, mpps)
def test_tiles_lie_inside_the_slide_and_one_more_would_not(width0, height0, mpp_x, mpp_y):
    grid = Grid.of_slide(width0, height0, mpp_x, mpp_y)
    for mag in grid.magnifications:
        rows, cols = grid.shape(mag)
        assert cols * grid.span_x0(mag) <= width0 + 1e-3
        assert rows * grid.span_y0(mag) <= height0 + 1e-3
        assert (cols + 1) * grid.span_x0(mag) > width0
        assert (rows + 1) * grid.span_y0(mag) > height0


@given(mpps, st.integers(0, 5000))
def test_positions_never_drift(mpp, index):
    grid = Grid.of_slide(10**7, 10**7, mpp, mpp)
    exact = index * TILE_PX * grid.base_mpp / mpp if grid.step_x0 != 1 else index * TILE_PX
    assert abs(int(to_level0(index, grid.span_x0(grid.base))) - exact) <= 0.5 + 1e-6


def test_names_are_checked():
    assert [m.name for m in parse_magnifications("5x, 40x")] == ["40x", "5x"]
    assert magnification("20x").mpp == 0.5
    with pytest.raises(BadOption, match="'80x' is not known; choose from 40x 20x 10x 5x"):
        parse_magnifications("80x")
    with pytest.raises(BadOption, match="no magnification named"):
        parse_magnifications(" ")
