import cv2
import numpy as np
import pytest
from skimage.color import rgb2hed
from skimage.data import immunohistochemistry

from wsi_prep.quality import MEASURES, Measurer, focus, measure_tile
from wsi_prep.stain import classify_stain, stain_densities


def measures(tile):
    return dict(zip(MEASURES, measure_tile(tile), strict=True))


def real_tile():
    return np.ascontiguousarray(immunohistochemistry()[60:452, 60:452])


@pytest.mark.parametrize("reduction", [1, 2, 4])
def test_a_blurred_copy_is_less_sharp_at_every_scale(reduction):
    small = cv2.resize(real_tile(), None, fx=1 / reduction, fy=1 / reduction, interpolation=cv2.INTER_AREA)
    tile = np.ascontiguousarray(np.tile(small, (reduction, reduction, 1))[:392, :392])
    sharpness = [focus(tile)] + [focus(cv2.GaussianBlur(tile, (0, 0), sigma)) for sigma in (0.7, 1.5, 3, 6)]
    assert sharpness == sorted(sharpness, reverse=True)
    assert sharpness[0] > 1.2 * sharpness[1]


def test_a_pale_stain_is_not_out_of_focus():
    tile = real_tile()
    pale = (255 * (tile / 255.0) ** 0.4).astype(np.uint8)
    assert focus(pale) > 0.7 * focus(tile)
    assert focus(pale) > focus(cv2.GaussianBlur(tile, (0, 0), 1.5))


def test_shares_are_of_what_is_painted():
    tile = real_tile()
    before = measures(tile)
    tile[:98] = (30, 150, 60)
    tile[98:196] = (10, 10, 10)
    tile[196:294] = (250, 250, 250)
    after = measures(tile)
    assert before["pen"] < 0.01
    assert before["dark"] < 0.01
    assert after["pen"] == pytest.approx(0.25, abs=0.02)
    assert after["dark"] == pytest.approx(0.25, abs=0.02)
    assert 0.24 < after["white"] < 0.4


def test_densities_are_those_of_colour_deconvolution():
    tile = real_tile()
    theirs = 6 * np.maximum(rgb2hed(tile), 0)  # scikit-image's logarithm has the base 1e6
    assert np.abs(stain_densities(tile) - theirs).max() < 1e-4
    found = measures(tile)
    small = cv2.resize(tile, (98, 98), interpolation=cv2.INTER_AREA)
    expected = 6 * np.maximum(rgb2hed(small), 0).mean((0, 1))
    # reduced in two steps, each rounded to whole levels
    assert [found["od_haematoxylin"], found["od_eosin"], found["od_dab"]] == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_flat_tile_has_finite_measures(value):
    assert np.isfinite(measure_tile(np.full((392, 392, 3), value, np.uint8))).all()


def test_brown_is_ihc_and_pink_is_he():
    ihc = immunohistochemistry()
    assert classify_stain(ihc, np.ones(ihc.shape[:2], bool))[0] == "IHC"
    rng = np.random.default_rng(0)
    amounts = rng.uniform(0.1, 0.9, (64, 64, 2))
    density = amounts @ np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    he = (245 * 10**-density).astype(np.uint8)
    stain, confidence = classify_stain(he, np.ones((64, 64), bool))
    assert stain == "HE"
    assert 0.5 < confidence <= 1
    assert classify_stain(he, np.zeros((64, 64), bool)) == ("UNKNOWN", 0.0)


@pytest.mark.parametrize("tiles", [16, 3, 1])
def test_measures_are_the_same_whether_tiles_are_looked_at_together_or_alone(tiles):
    """Together by one small picture of all; alone where it covers few of them, or their corners do not fit it."""
    rng = np.random.default_rng(0)
    image = np.tile(immunohistochemistry()[:392, :392], (4, 4, 1))
    image = np.clip(image + rng.normal(0, 20, image.shape), 0, 255).astype(np.uint8)
    image[100:300, 100:700] = (20, 140, 50)
    halved = cv2.resize(image, (784, 784), interpolation=cv2.INTER_AREA)
    quarter = cv2.resize(halved, (392, 392), interpolation=cv2.INTER_AREA)
    places = np.array([(x, y) for y in range(4) for x in range(4)])[rng.permutation(16)[:tiles]]
    for corner in (392 * places, np.minimum(392 * places + 98, 1176), np.minimum(392 * places + 2, 1174)):
        together = Measurer(corner, quarter)
        for number, (x, y) in enumerate(corner.tolist()):
            tile = np.ascontiguousarray(image[y : y + 392, x : x + 392])
            assert together.measure(number, tile) == pytest.approx(measure_tile(tile), rel=1e-6, abs=1e-9)
