"""Tiles that were left out around the tissue, so that its glass is but a rim as wide as what is left of a tile."""

import cv2
import numpy as np
import pytest

from sample_slides.make import mask_path
from wsi_prep.errors import NotBrightField
from wsi_prep.slides.pyramid.thumbnail import read_thumbnail
from wsi_prep.slides.readers.select import open_slide
from wsi_prep.tissue.background import Flat, ends_with_tiles
from wsi_prep.tissue.background_model import BackgroundModel
from wsi_prep.tissue.detect import MASK_MPP, check_bright_field, detect_tissue

AT_4_UM = 2
GLASSES = {"dim": (130, 130, 130), "yellow": (240, 228, 205), "grey": (210, 210, 210), "white": (250, 250, 250)}
FILLINGS = {"left out": 255, "white": 255, "grey": 200, "dark grey": 128, "black": 0}


@pytest.fixture(scope="module")
def he(he_slide):
    """(picture, known mask) of the H&E slide at 4 um/px, without the pen and the dust that lie on its glass."""
    pixels = read_thumbnail(open_slide(str(he_slide)), 0.25, 0.25, MASK_MPP / AT_4_UM).pixels
    small = cv2.imread(str(mask_path(he_slide)), cv2.IMREAD_GRAYSCALE) > 127
    known = cv2.resize(small.astype(np.uint8), pixels.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
    away = cv2.dilate(known.astype(np.uint8), np.ones((9, 9), np.uint8)) == 0
    pixels[away] = np.median(pixels[away], axis=0)
    sides = (80, 80, 80, 80)
    wide = cv2.copyMakeBorder(pixels, *sides, cv2.BORDER_CONSTANT, value=np.median(pixels[away], axis=0).tolist())
    wide = np.clip(wide + np.random.default_rng(0).normal(0, 1, wide.shape), 0, 255).astype(np.uint8)
    return wide, cv2.copyMakeBorder(known.astype(np.uint8), *sides, cv2.BORDER_CONSTANT) > 0


def kept_tiles(known, tile):
    """Where a picture has tiles of so many pixels that show some tissue."""
    rows, cols = (-(-side // tile) for side in known.shape)
    padded = np.pad(known, [(0, count * tile - side) for count, side in zip((rows, cols), known.shape, strict=True)])
    shown = padded.reshape(rows, tile, cols, tile).any(axis=(1, 3))
    return np.kron(shown, np.ones((tile, tile), bool))[: known.shape[0], : known.shape[1]]


def without_bare_tiles(he, glass, filling, tile, jpeg=False):
    """The slide on such glass at MASK_MPP, and what is known of it; its tiles of `tile` px at 4 um/px lie apart."""
    pixels, known = he
    pixels = np.clip(pixels * (np.array(glass) / np.median(pixels[~known], axis=0)), 0, 255).astype(np.uint8)
    pixels[~kept_tiles(known, tile)] = filling
    if jpeg:
        pixels = cv2.imdecode(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])[1], cv2.IMREAD_COLOR)
    size = known.shape[1] // AT_4_UM, known.shape[0] // AT_4_UM
    reduced = cv2.resize(known.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), reduced


def model(picture, filling, tile):
    known = (255, 255, 255) if filling == "left out" else None
    return BackgroundModel.of(picture, filling=known, tile=(tile / AT_4_UM,) * 2)


def overlap(found, known):
    """Intersection over union, a band of two pixels along the known edge left out."""
    edge = cv2.morphologyEx(known.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    counted = cv2.dilate(edge, np.ones((3, 3), np.uint8)) == 0
    return (found & known & counted).sum() / ((found | known) & counted).sum()


@pytest.mark.parametrize("filling", FILLINGS)
@pytest.mark.parametrize("glass", GLASSES)
@pytest.mark.parametrize(("tile", "jpeg"), [(16, False), (15, True)])
def test_a_rim_of_glass_inside_filling_is_no_tissue(he, glass, filling, tile, jpeg):
    picture, known = without_bare_tiles(he, GLASSES[glass], FILLINGS[filling], tile, jpeg)
    found = model(picture, filling, tile)
    check_bright_field(picture, found)
    assert not found.assumed
    assert found.colour == pytest.approx(GLASSES[glass], abs=10 if jpeg else 4)  # mixed with filling
    assert overlap(detect_tissue(picture, MASK_MPP, glass=found), known) > 0.93


def test_filling_of_the_glass_s_own_colour_does_not_make_pale_tissue_the_glass(he):
    picture, known = without_bare_tiles(he, (200, 200, 200), 200, 16)
    found = model(picture, "grey", 16)
    assert found.colour == pytest.approx((200, 200, 200), abs=4)
    assert overlap(detect_tissue(picture, MASK_MPP, glass=found), known) > 0.93


def test_filling_that_cuts_tissue_off_on_all_sides_is_not_its_glass(he):
    """Whole tiles of white around a scan that is all tissue: nothing shows how bright its glass is."""
    pixels, known = he
    inside = cv2.distanceTransform(known.astype(np.uint8), cv2.DIST_L2, 3)
    y, x = np.unravel_index(inside.argmax(), inside.shape)
    half = int(inside.max() * 0.7) // 16 * 16
    crop = cv2.copyMakeBorder(
        pixels[y - half : y + half, x - half : x + half] // 2, *(32,) * 4, cv2.BORDER_CONSTANT, value=(255,) * 3
    )
    picture = cv2.resize(crop, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    assert model(picture, "white", 16).assumed


def test_fat_and_pale_tissue_inside_filling_stay_tissue(he):
    """What is nearly as bright as glass, and fills much of the scan, is not taken for the glass."""
    pixels, known = he
    pale = np.where(known[..., None], np.clip(245 * (pixels / 245.0) ** 0.12, 0, 255), pixels).astype(np.uint8)
    picture, reduced = without_bare_tiles((pale, known), (245, 245, 245), 255, 16)
    assert overlap(detect_tissue(picture, MASK_MPP, glass=model(picture, "left out", 16)), reduced) > 0.85


@pytest.mark.parametrize("haze", [0, 15])
def test_what_glows_on_a_haze_inside_black_filling_is_no_bright_field(he, haze):
    """As dim as a lamp set low, but brighter than what lies beside the filling."""
    pixels, known = he
    glow = np.clip(haze + (255 - pixels).max(axis=2, keepdims=True) * [0.4, 0.7, 0.9], 0, 255).astype(np.uint8)
    glow[~kept_tiles(known, 16)] = 0
    picture = cv2.resize(glow, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    with pytest.raises(NotBrightField):
        check_bright_field(picture, model(picture, "black", 16))


def test_dim_glass_inside_filling_that_is_brighter_is_bright_field(he):
    picture, _ = without_bare_tiles(he, (100, 100, 100), 128, 16)
    check_bright_field(picture, model(picture, "dark grey", 16))


@pytest.mark.parametrize("width", [203, 207, 210])
def test_where_the_picture_ends_is_no_edge_of_filling(width):
    """The last tiles are cut off where the slide ends, which is not on their grid."""
    picture = np.full((157, width, 3), 180, np.uint8)
    picture[:, 195:] = 255
    white = Flat((255, 255, 255), outer=True)
    assert ends_with_tiles(white, picture, (15.0, 15.0))
    assert not ends_with_tiles(white, np.roll(picture, -7, axis=1), (15.0, 15.0))


@pytest.mark.parametrize("glass", ["yellow", "grey"])
def test_filling_beside_filling_is_not_the_glass_between(he, glass):
    """A scan padded with white, and beyond it tiles that are missing, which read as black."""
    pixels, known = he
    noise = np.random.default_rng(0).normal(0, 4, pixels.shape)
    tinted = pixels * (np.array(GLASSES[glass]) / np.median(pixels[~known], axis=0)) + noise
    tinted = np.clip(tinted, 0, 255).astype(np.uint8)
    pads = [((12, 100 - len(tinted) % 16, 12, 100 - tinted.shape[1] % 16), 255), ((48, 48, 48, 48), 0)]
    for sides, value in pads:
        tinted = cv2.copyMakeBorder(tinted, *sides, cv2.BORDER_CONSTANT, value=(value,) * 3)
        known = cv2.copyMakeBorder(known.astype(np.uint8), *sides, cv2.BORDER_CONSTANT) > 0
    size = known.shape[1] // AT_4_UM, known.shape[0] // AT_4_UM
    picture = cv2.resize(tinted, size, interpolation=cv2.INTER_AREA)
    reduced = cv2.resize(known.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    found = model(picture, "black", 16)
    assert found.colour == pytest.approx(GLASSES[glass], abs=4)
    assert overlap(detect_tissue(picture, MASK_MPP, glass=found), reduced) > 0.93


def test_a_colour_that_lacks_a_channel_is_no_glass_and_no_division_by_nothing():
    heat = np.zeros((150, 150, 3), np.uint8)
    heat[40:80, 40:80] = (255, 0, 0)
    assert BackgroundModel.of(heat).assumed
