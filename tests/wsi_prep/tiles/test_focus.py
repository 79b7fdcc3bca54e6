from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import convolve
from skimage.data import immunohistochemistry

from sample_slides.make import ihc_svs, make_synthetic
from tests.support.real_tiles import tiles_of
from wsi_prep.format.jpeg import JpegSettings, decode_tile, encode_tile
from wsi_prep.slides.images import Rgb
from wsi_prep.tiles.focus import ROW_STEP
from wsi_prep.tiles.focus import focus as focus_of_brightness

REAL = ("celiac-duodenum_HE_40x.svs", "net-duodenum_SYN-IHC_40x.svs", "crohn-colon_HE_40x.tiff")
ENLARGED_BY = {"linear": cv2.INTER_LINEAR, "cubic": cv2.INTER_CUBIC, "lanczos": cv2.INTER_LANCZOS4}


def focus(tile):
    return focus_of_brightness(Rgb(tile).brightness())


def slow_focus(tile):
    """By whole convolutions, in float64."""
    tile = Rgb(tile).brightness().astype(float)
    energy = np.zeros(3)
    noise = np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])
    rows = slice(4, tile.shape[0] - 4, ROW_STEP), slice(4, -4)
    for at, distance in enumerate((2, 4)):
        mask = np.zeros(2 * distance + 1)
        mask[[0, distance, -1]] = -1, 2, -1
        for both in (mask[None], mask[:, None]):
            energy[at] += (convolve(tile, both)[rows] ** 2).sum()
    energy[2] += (convolve(tile, noise)[rows] ** 2).sum()
    fine = max(energy[0] - energy[2] / 3, 0)
    return fine / (max(energy[1] - energy[2] / 3, fine) + tile[rows].size)


def blurred(tile, sigma):
    return cv2.GaussianBlur(tile, (0, 0), sigma)


def enlarged(tile, by):
    half = cv2.resize(tile, (196, 196), interpolation=cv2.INTER_AREA)
    return cv2.resize(half, (392, 392), interpolation=ENLARGED_BY[by])


@pytest.fixture(scope="module")
def ihc_slide(tmp_path_factory):
    slide = tmp_path_factory.mktemp("ihc") / "ihc.svs"
    make_synthetic(slide, lambda path: ihc_svs(path, width=3400, height=3400))
    return slide


@pytest.fixture(scope="module", params=["he", "ihc", *REAL])
def tiles(request, tmp_path_factory, he_slide):
    """Tiles at each magnification, of drawn slides and of those real ones that are there."""
    if request.param in ("he", "ihc"):
        slide = he_slide if request.param == "he" else request.getfixturevalue("ihc_slide")
    else:
        slide = request.getfixturevalue("real_slides") / request.param
    found = tiles_of(slide, tmp_path_factory.mktemp("tiles"), most=6)
    assert set(found) == {"40x", "20x", "10x", "5x"}
    return found


@pytest.mark.parametrize("magnification", ["40x", "20x", "10x", "5x"])
def test_each_blur_is_less_sharp_at_every_magnification(tiles, magnification):
    for tile in tiles[magnification]:
        sharpness = [focus(tile)] + [focus(blurred(tile, sigma)) for sigma in (0.5, 1, 2, 4)]
        assert all(a > b for a, b in pairwise(sharpness)), sharpness


@pytest.mark.parametrize("by", ENLARGED_BY)
@pytest.mark.parametrize("magnification", ["40x", "20x", "10x", "5x"])
def test_a_scan_enlarged_twice_is_less_sharp(tiles, magnification, by):
    for tile in tiles[magnification]:
        fake = enlarged(tile, by)
        assert focus(fake) < focus(tile)
        assert focus(decode_tile(encode_tile(fake, JpegSettings(80)))) < focus(tile)


@pytest.mark.parametrize("magnification", ["40x", "20x", "10x", "5x"])
def test_noise_and_compression_do_not_pass_for_sharpness(tiles, magnification):
    rng = np.random.default_rng(0)
    for tile in tiles[magnification]:
        noisy = np.clip(np.rint(tile + rng.normal(0, 3, tile.shape)), 0, 255).astype(np.uint8)
        assert focus(noisy) == pytest.approx(focus(tile), rel=0.05)
        camera = blurred(tile, 1.5) + rng.normal(0, 2, tile.shape)
        stored = decode_tile(encode_tile(np.clip(np.rint(camera), 0, 255).astype(np.uint8), JpegSettings(80)))
        assert focus(stored) < focus(tile)


def test_a_pale_stain_is_not_out_of_focus(tiles):
    for tile in tiles["20x"]:
        pale = (255 * (tile / 255.0) ** 0.4).astype(np.uint8)
        assert focus(pale) == pytest.approx(focus(tile), rel=0.15)
        assert focus(pale) > focus(blurred(tile, 0.7))


@given(st.integers(0, 2**32 - 1), st.floats(0, 5), st.integers(0, 255))
def test_it_is_the_slow_ratio(seed, sigma, level):
    rng = np.random.default_rng(seed)
    tile = np.clip(rng.normal(level, 60, (60, 44, 3)), 0, 255)
    tile = np.ascontiguousarray(cv2.GaussianBlur(tile, (0, 0), sigma) if sigma > 0.1 else tile).astype(np.uint8)
    assert focus(tile) == pytest.approx(slow_focus(tile), rel=1e-3, abs=1e-6)
    assert 0 <= focus(tile) <= 1


def test_it_is_the_slow_ratio_of_a_real_tile():
    tile = np.ascontiguousarray(immunohistochemistry()[60:452, 60:452])
    assert focus(tile) == pytest.approx(slow_focus(tile), rel=1e-4)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_flat_tile_has_no_sharpness(value):
    assert focus(np.full((392, 392, 3), value, np.uint8)) == 0
