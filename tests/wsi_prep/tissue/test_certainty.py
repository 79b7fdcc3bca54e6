"""How far an outline can be relied on: less the less the picture shows of it, and not at all by how the slide lies."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsi_prep.tissue.detect import MASK_MPP, detect_tissue, outline_tissue

SHAPE, GLASS = (300, 400), 240.0
EOSIN = np.array((0.25, 1.0, 0.5))


def section(strength, softness=0.6, noise=0.7, seed=0):
    """A slide with one section of so much density in green, whose edge is so many px wide; and its mask."""
    rng = np.random.default_rng(seed)
    known = cv2.ellipse(np.zeros(SHAPE, np.uint8), (200, 150), (130, 90), 20, 0, 360, 1, -1) > 0
    cells = np.abs(cv2.GaussianBlur(rng.normal(0, 1, SHAPE), (0, 0), 0.7))
    cover = cv2.GaussianBlur(known.astype(np.float64), (0, 0), softness)
    density = (cover * (0.4 + 0.6 * cells / cells.mean()) * strength)[..., None] * EOSIN
    light = GLASS * 10**-density + rng.normal(0, noise, (*SHAPE, 3))
    return np.clip(np.rint(light), 0, 255).astype(np.uint8), known


def test_a_plain_section_is_certain():
    outline = outline_tissue(section(0.4)[0], MASK_MPP)
    assert outline.certain > 0.95
    assert np.array_equal(outline.tissue, detect_tissue(section(0.4)[0], MASK_MPP))


@pytest.mark.slow
@pytest.mark.parametrize("softness", [0.6, 8])
def test_it_falls_as_tissue_gets_paler_and_is_low_before_the_outline_is_lost(softness):
    sure = [
        outline_tissue(section(strength, softness)[0], MASK_MPP).certain
        for strength in (0.4, 0.1, 0.04, 0.03, 0.022, 0.018, 0.01)
    ]
    assert sure[-1] is None  # nothing is found any more
    assert sure[:-1] == sorted(sure[:-1], reverse=True)
    assert sure[0] > 0.95
    assert sure[-2] < 0.6


def test_an_edge_that_fades_away_is_less_certain_than_a_sharp_one():
    sharp, faded = (outline_tissue(section(0.12, softness)[0], MASK_MPP).certain for softness in (0.6, 20))
    assert faded < sharp - 0.1


def test_glass_alone_has_no_outline_to_rely_on():
    glass = outline_tissue(section(0.0)[0], MASK_MPP)
    assert (glass.tissue.any(), glass.certain) == (False, None)


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(st.sampled_from([0.02, 0.04, 0.1, 0.5]), st.integers(0, 3), st.booleans())
def test_it_is_a_share_whichever_way_the_slide_lies(strength, turns, flipped):
    picture, _ = section(strength, 2)
    turned = np.ascontiguousarray(np.rot90(picture[:, ::-1] if flipped else picture, turns))
    sure, again = (outline_tissue(each, MASK_MPP).certain for each in (picture, turned))
    assert (sure is None) == (again is None)
    if sure is not None:
        assert 0 <= sure <= 1
        assert again == pytest.approx(sure, abs=0.02)
