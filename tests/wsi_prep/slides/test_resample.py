import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsi_prep.slides.images import reduce_by
from wsi_prep.slides.pyramid.resample import area_resample, resample_planes


def slow_area_mean(source, start_x, start_y, step_x, step_y):
    """Each output pixel by itself: the mean of the source pixels it covers, weighted by the covered area."""
    out = np.empty((len(start_y), len(start_x), 3))
    for i, y0 in enumerate(start_y):
        for j, x0 in enumerate(start_x):
            total, area = np.zeros(3), 0.0
            for y in range(int(y0), min(int(np.ceil(y0 + step_y)), source.shape[0])):
                for x in range(int(x0), min(int(np.ceil(x0 + step_x)), source.shape[1])):
                    high = min(y + 1, y0 + step_y) - max(y, y0)
                    wide = min(x + 1, x0 + step_x) - max(x, x0)
                    total += source[y, x] * max(high, 0) * max(wide, 0)
                    area += max(high, 0) * max(wide, 0)
            out[i, j] = total / area
    return out


@settings(deadline=None, max_examples=30)
@given(st.floats(1.0, 3.7), st.floats(1.0, 3.7), st.floats(0, 2), st.floats(0, 2), st.integers(0, 2**32))
def test_area_resample_is_the_area_mean(step_x, step_y, offset_x, offset_y, seed):
    source = np.random.default_rng(seed).integers(0, 256, (40, 31, 3), dtype=np.uint8)
    start_x, start_y = offset_x + step_x * np.arange(7), offset_y + step_y * np.arange(9)
    result = area_resample(source, start_x, start_y, step_x, step_y)
    assert result.shape == (9, 7, 3)
    assert np.abs(result - slow_area_mean(source, start_x, start_y, step_x, step_y)).max() <= 0.5 + 1e-3


@settings(deadline=None, max_examples=30)
@example(1.21, 22, 0.0, 0)  # neighbours lie as far apart as they may to be made together
@example(1.26, 24, 0.0, 0)
@given(st.floats(1.0, 1.3), st.integers(5, 40), st.floats(0, 2), st.integers(0, 2**32))
def test_so_it_is_over_many_columns_whose_tiles_begin_at_whole_pixels(step, tile, offset, seed):
    source = np.random.default_rng(seed).integers(0, 256, (4, 100, 3), dtype=np.uint8)
    column = np.arange(70)
    start_x = np.round(offset + column // tile * tile * step) + column % tile * step
    result = area_resample(source, start_x, np.arange(2.0), step, 1.5)
    assert np.abs(result - slow_area_mean(source, start_x, np.arange(2.0), step, 1.5)).max() <= 0.5 + 1e-3


@settings(deadline=None, max_examples=30)
@example(1.0, 8.77, 0.0, 0.0, 0)
@given(st.floats(1.0, 9.0), st.floats(1.0, 9.0), st.floats(0, 2), st.floats(0, 2), st.integers(0, 2**32))
def test_a_plane_is_resampled_by_the_area_mean(step_x, step_y, offset_x, offset_y, seed):
    source = np.random.default_rng(seed).integers(0, 256, (64, 70), dtype=np.uint8)
    start_x, start_y = offset_x + step_x * np.arange(7), offset_y + step_y * np.arange(6)
    (result,) = resample_planes([source], start_x, start_y, step_x, step_y)
    exact = slow_area_mean(np.repeat(source[..., None], 3, 2), start_x, start_y, step_x, step_y)[..., 0]
    assert result.shape == (6, 7)
    assert np.abs(result - exact).max() <= 0.5 + 1 / 256


@pytest.mark.parametrize("step", [1.0, 1.0960105217, 2.192, 8.77])
def test_a_large_plane_is_resampled_as_its_parts_are(step):
    """In bands, at the positions of neighbouring tiles; black and white stay what they are."""
    rng = np.random.default_rng(0)
    start = np.repeat(np.round(20 * step * np.arange(25)), 20) + np.tile(step * np.arange(20), 25)
    source = rng.choice(np.array([0, 255], np.uint8), (int(start[-1] + step) + 2, 300))
    across = np.array([3.0, 11.0])
    flat = np.full_like(source, 255)
    result, white, black = resample_planes([source, flat, 0 * flat], across, start, 1.5, step)
    colour = area_resample(np.repeat(source[..., None], 3, 2), across, start, 1.5, step)
    assert np.abs(result.astype(int) - colour[..., 0]).max() <= 1
    assert (result != colour[..., 0]).mean() < 0.02
    assert (white == 255).all()
    assert (black == 0).all()


def test_strips_join_without_a_seam():
    source = np.random.default_rng(0).integers(0, 256, (700, 20, 3), dtype=np.uint8)
    starts = 1.25 * np.arange(500)
    whole = area_resample(source, np.arange(10.0), starts, 1.5, 1.25)
    part = area_resample(source, np.arange(10.0), starts[190:210], 1.5, 1.25)
    assert np.array_equal(whole[190:210], part)


def test_halving_is_the_rounded_mean_of_four():
    image = np.random.default_rng(1).integers(0, 256, (392, 784, 3), dtype=np.uint8)
    mean = image.reshape(196, 2, 392, 2, 3).mean((1, 3))
    assert np.abs(reduce_by(image, 2) - mean).max() <= 0.5
    assert reduce_by(image, 1) is image


def test_sides_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="no multiple of 2"):
        reduce_by(np.zeros((3, 4, 3), np.uint8), 2)


def test_a_grid_that_leaves_the_source_is_refused():
    source = np.zeros((40, 30, 3), np.uint8)
    for start in (np.arange(31.0), np.arange(-1.0, 20.0)):
        with pytest.raises(ValueError, match="source's 30"):
            area_resample(source, start, np.arange(10.0), 1.0, 1.0)
        with pytest.raises(ValueError, match="source's 30"):
            resample_planes([source[..., 0]], start, np.arange(10.0), 1.0, 1.0)
