import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import rgb2hed, rgb2hsv
from skimage.data import immunohistochemistry

from wsi_prep.slides.images import Rgb
from wsi_prep.stain.classify import classify_stain
from wsi_prep.stain.densities import stain_densities
from wsi_prep.tiles.quality import MEASURES, Measurer, colours, measure_tile


def measures(tile):
    return dict(zip(MEASURES, measure_tile(np.ascontiguousarray(tile)), strict=True))


def real_tile():
    return np.ascontiguousarray(immunohistochemistry()[60:452, 60:452])


def slow_colours(picture):
    """The shares and means of an (n, n, 3) picture."""
    dark, white = (picture.max(2) < 60).mean(), (picture.min(2) > 215).mean()
    return [dark, white, rgb2hsv(picture)[..., 1].mean(), *stain_densities(picture).mean((0, 1))]


def test_shares_are_of_what_is_painted():
    tile = real_tile()
    before = measures(tile)
    tile[112:224] = (10, 10, 10)
    tile[224:336] = (250, 250, 250)
    after = measures(tile)
    assert before["dark"] < 0.01
    assert after["dark"] == pytest.approx(112 / 392, abs=0.01)
    assert 112 / 392 - 0.01 < after["white"] < 0.4


def test_a_fold_is_darker():
    """Tissue over itself lets through the square."""
    tile = real_tile()
    folded = (255 * (tile / 255.0) ** 3).astype(np.uint8)
    assert measures(folded)["dark"] > measures(tile)["dark"] + 0.2


@given(st.integers(0, 2**32 - 1), st.sampled_from([14, 28, 42]), st.floats(0, 90))
def test_colours_are_those_of_the_slow_way(seed, side, spread):
    """Patches of colours from everywhere, dark and white among them."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (side // 7, side // 7, 3)) * rng.choice([0.2, 1, 4], (side // 7, side // 7, 1))
    picture = np.kron(patches, np.ones((7, 7, 1))) + rng.normal(0, spread, (side, side, 3))
    picture = np.clip(np.rint(picture), 0, 255).astype(np.uint8)
    assert colours(picture) == pytest.approx(slow_colours(picture), rel=1e-4, abs=1e-5)


def test_every_level_has_its_density():
    """A picture that holds each grey and each level of one channel alone."""
    picture = np.full((56, 56, 3), 200, np.uint8)
    levels = np.arange(256)
    picture.reshape(-1, 3)[:256] = levels[:, None]
    for channel in range(3):
        picture.reshape(-1, 3)[256 * (channel + 1) : 256 * (channel + 2), channel] = levels
    assert colours(picture) == pytest.approx(slow_colours(picture), rel=1e-4, abs=1e-5)


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
    assert np.isfinite(measure_tile(np.full((392, 392, 3), value, np.uint8))[:-1]).all()


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
        pen = rng.random(tiles, np.float32)
        fat = rng.random(tiles, np.float32)
        together = Measurer(corner, quarter, pen, fat)
        for number, (x, y) in enumerate(corner.tolist()):
            tile = np.ascontiguousarray(image[y : y + 392, x : x + 392])
            sharp, _, *others, _ = measure_tile(tile)
            expected = [sharp, pen[number], *others, fat[number]]
            assert together.measure(number, Rgb(tile)) == pytest.approx(expected, rel=1e-6, abs=1e-9)
