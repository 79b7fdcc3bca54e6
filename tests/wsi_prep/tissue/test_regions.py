"""Regions of a mask, and the light at single pixels, against OpenCV's own slower statistics and the whole picture."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from wsi_prep.tissue.background_model import BackgroundModel
from wsi_prep.tissue.evidence.regions import Regions, hysteresis

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=24))


@given(masks)
def test_regions_have_the_area_and_box_that_opencv_counts(mask):
    regions = Regions.of(mask)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    assert np.array_equal(regions.labels, labels)
    assert np.array_equal(regions.area[1:], stats[1:, cv2.CC_STAT_AREA])
    assert np.array_equal(regions.box[1:, :2], stats[1:, [cv2.CC_STAT_TOP, cv2.CC_STAT_LEFT]])
    sizes = stats[1:, [cv2.CC_STAT_HEIGHT, cv2.CC_STAT_WIDTH]]
    assert np.array_equal(regions.box[1:, 2:] - regions.box[1:, :2] + 1, sizes)
    part = mask & (np.indices(mask.shape).sum(0) % 3 > 0)
    assert regions.count_of(part).tolist() == [np.count_nonzero(part & (labels == n) & mask) for n in range(count)]
    chosen = np.arange(count) % 2 == 1
    assert np.array_equal(regions.those(chosen), chosen[labels])


@given(masks, st.integers(0, 2**32 - 1))
def test_hysteresis_keeps_the_regions_that_hold_a_seed(reach, seed):
    seeds = reach & (np.random.default_rng(seed).random(reach.shape) < 0.05)
    _, labels = cv2.connectedComponents(reach.astype(np.uint8), connectivity=8)
    assert np.array_equal(hysteresis(seeds, reach), reach & np.isin(labels, labels[seeds]))


def test_density_at_pixels_is_that_of_the_whole_picture():
    rng = np.random.default_rng(0)
    height, width = 300, 270
    lamp = 1 - 0.1 * np.linspace(-1, 1, height)[:, None] ** 2 - 0.06 * np.linspace(-1, 1, width)
    picture = np.rint(lamp[..., None] * [225, 222, 228] + rng.normal(0, 0.5, (height, width, 3))).astype(np.uint8)
    picture[100:180, 90:200] = rng.integers(60, 200, (80, 110, 3))
    glass = BackgroundModel.of(picture)
    assert glass.surface.any()
    at = np.nonzero(rng.random((height, width)) < 0.1)
    assert glass.density_at(picture, at) == pytest.approx(glass.density(picture)[at], abs=1e-6)
