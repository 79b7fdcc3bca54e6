"""The tissue detector against known masks, under what labs do to slides."""

import cv2
import numpy as np
import pytest

from sample_slides.make import mask_path
from tests.support.paths import SHARED
from wsi_prep.errors import BadOption, NotBrightField
from wsi_prep.slides.pyramid.thumbnail import read_thumbnail
from wsi_prep.slides.readers.select import open_slide
from wsi_prep.tissue.background_model import BackgroundModel
from wsi_prep.tissue.detect import MASK_MPP, TissueSettings, check_bright_field, detect_tissue

REFERENCES = SHARED / "masks"


def iou(found, known):
    """Overlap, a band of two pixels along the known edge left out."""
    edge = cv2.morphologyEx(known.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    counted = cv2.dilate(edge, np.ones((3, 3), np.uint8)) == 0
    return (found & known & counted).sum() / ((found | known) & counted).sum()


@pytest.fixture(scope="module")
def he(he_slide):
    """(thumbnail, known mask) of the synthetic H&E slide, which has pen and dust beside its tissue."""
    pixels = read_thumbnail(open_slide(str(he_slide)), 0.25, 0.25, MASK_MPP).pixels
    known = cv2.imread(str(mask_path(he_slide)), cv2.IMREAD_GRAYSCALE) > 127
    return pixels, known[: pixels.shape[0], : pixels.shape[1]]


def with_margin(pixels, known, margin=80):
    """The slide on a wider sheet of glass, for things to be drawn on."""
    glass = np.median(pixels[~known], axis=0)
    wide = cv2.copyMakeBorder(pixels, margin, margin, margin, margin, cv2.BORDER_CONSTANT, value=glass.tolist())
    noise = np.random.default_rng(0).normal(0, 1, wide.shape)
    return np.clip(wide + noise, 0, 255).astype(np.uint8), cv2.copyMakeBorder(
        known.astype(np.uint8), margin, margin, margin, margin, cv2.BORDER_CONSTANT
    ) > 0


def pen(colour, width=60):
    def draw(pixels, known):
        pixels, known = with_margin(pixels, known)
        _height, across = known.shape
        cv2.line(pixels, (10, 35), (across - 30, 25), colour, width // 2, cv2.LINE_AA)
        return pixels, known

    return draw


def grey(pixels, known):
    return (pixels * (200 / 245)).astype(np.uint8), known


def shaded(pixels, known):
    pixels, known = with_margin(pixels, known)
    ramp = np.linspace(0.87, 1.0, pixels.shape[1])[None, :, None]
    return (pixels * ramp).astype(np.uint8), known


def noisy(pixels, known):
    return np.clip(pixels + np.random.default_rng(1).normal(0, 3, pixels.shape), 0, 255).astype(np.uint8), known


def bordered(pixels, known):
    pixels, known = with_margin(pixels, known)
    pixels[:, :40] = 8
    pixels[-30:] = 12
    return pixels, known


def pale(pixels, known):
    """A fifth of the dye."""
    return np.clip(245 * (pixels / 245.0) ** 0.2, 0, 255).astype(np.uint8), known


def dusty(pixels, known):
    pixels, known = with_margin(pixels, known)
    for x, y in ((20, 20), (60, 40), (200, 30), (30, 200)):
        cv2.circle(pixels, (x, y), 3, (60, 60, 60), -1, cv2.LINE_AA)
    return pixels, known


def filled(pixels, known):
    """Grey glass, and beside it what the scanner left out, filled with pure white."""
    pixels, known = with_margin((pixels * (225 / 245)).astype(np.uint8), known)
    width = pixels.shape[1]
    white = cv2.copyMakeBorder(pixels, 0, 0, 0, width, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    return white, np.pad(known, ((0, 0), (0, width)))


TROUBLES = {
    "as it is": lambda pixels, known: (pixels, known),
    "grey glass": grey,
    "shaded glass": shaded,
    "noise": noisy,
    "white filling": filled,
    "black border": bordered,
    "pale stain": pale,
    "dust": dusty,
    "green pen": pen((30, 140, 70)),
    "blue pen": pen((30, 60, 170)),
    "red pen": pen((200, 30, 40)),
    "black pen": pen((25, 25, 28)),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_tissue_is_found_and_nothing_else(he, trouble):
    pixels, known = TROUBLES[trouble](*he)
    assert iou(detect_tissue(pixels, MASK_MPP), known) > 0.93


GLASSES = {
    "bright": (250, 250, 250),
    "yellow": (240, 228, 205),
    "old yellow": (235, 215, 170),
    "blue": (205, 215, 240),
    "pink": (245, 225, 235),
    "grey": (160, 160, 160),
    "dim": (110, 110, 110),
    "dim yellow": (150, 140, 115),
}


def on_glass(pixels, colour):
    return np.clip(pixels * (np.array(colour) / (243.5, 243.0, 244.0)), 0, 255).astype(np.uint8)


def as_jpeg(pixels, quality):
    full = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]  # colour as fine as brightness
    return cv2.imdecode(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality, *full])[1], cv2.IMREAD_COLOR)


def middle_of_tissue(pixels, known):
    inside = cv2.distanceTransform(known.astype(np.uint8), cv2.DIST_L2, 3)
    y, x = np.unravel_index(inside.argmax(), inside.shape)
    half = int(inside.max() * 0.7)
    return np.ascontiguousarray(pixels[y - half : y + half, x - half : x + half])


@pytest.mark.parametrize("glass", GLASSES)
@pytest.mark.parametrize("trouble", ["as it is", "shaded glass", "pale stain", "strong JPEG"])
def test_glass_of_any_colour_is_no_tissue(he, glass, trouble):
    pixels, known = TROUBLES[trouble](*he) if trouble in TROUBLES else he
    pixels = on_glass(pixels, GLASSES[glass])
    pixels = as_jpeg(pixels, 60) if trouble == "strong JPEG" else pixels
    check_bright_field(pixels)
    found = BackgroundModel.of(pixels)
    assert not found.assumed
    if trouble != "shaded glass":
        assert found.colour == pytest.approx(np.median(pixels[~known], axis=0), abs=6)
    assert iou(detect_tissue(pixels, MASK_MPP), known) > 0.93


@pytest.mark.parametrize("colour", [(255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 200, 200), (90, 120, 160)])
@pytest.mark.parametrize("glass", ["bright", "yellow", "dim yellow"])
def test_what_was_not_scanned_is_no_tissue_and_not_the_glass(he, colour, glass):
    pixels, known = with_margin(*he)
    pixels = on_glass(pixels, GLASSES[glass])
    wide = {"top": 50, "bottom": 200, "left": 300, "right": 150}
    filled = cv2.copyMakeBorder(pixels, *wide.values(), cv2.BORDER_CONSTANT, value=colour)
    known = cv2.copyMakeBorder(known.astype(np.uint8), *wide.values(), cv2.BORDER_CONSTANT) > 0
    for picture, least in ((filled, 0.93), (as_jpeg(filled, 80), 0.8)):  # JPEG's blocks bleed over 100 um here
        assert BackgroundModel.of(picture).colour == pytest.approx(GLASSES[glass], abs=4)
        assert iou(detect_tissue(picture, MASK_MPP), known) > least


@pytest.mark.parametrize(
    ("inner", "outer"), [((128, 128, 128), (255, 255, 255)), ((0, 0, 0), (200, 200, 200)), ((90, 120, 160), (0, 0, 0))]
)
def test_filling_within_filling_is_no_tissue(he, inner, outer):
    """A scan on a grey ground, in a file padded with white; the ground is a strip of 4 px on one side."""
    pixels, known = with_margin(*he)
    for sides, colour in (((4, 120, 60, 60), inner), ((40, 90, 40, 90), outer)):
        pixels = cv2.copyMakeBorder(pixels, *sides, cv2.BORDER_CONSTANT, value=colour)
        known = cv2.copyMakeBorder(known.astype(np.uint8), *sides, cv2.BORDER_CONSTANT) > 0
    # what lies between pixels of two colours is of neither
    pixels = cv2.resize(pixels, None, fx=0.97, fy=0.97, interpolation=cv2.INTER_AREA)
    known = cv2.resize(known.astype(np.uint8), pixels.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
    assert iou(detect_tissue(pixels, MASK_MPP), known) > 0.93


def test_a_strip_of_filling_that_ends_at_the_edge_in_mixed_pixels_is_no_tissue(he):
    """Black beyond it, of which the last pixels of the picture have a share."""
    pixels, known = with_margin(*he)
    row = int(np.flatnonzero(known.mean(1) > 0.2)[-1]) - 40  # through the tissue
    pixels, known = pixels[:row], known[:row]
    filled = cv2.copyMakeBorder(pixels, 90, 4, 90, 90, cv2.BORDER_CONSTANT, value=(200, 200, 200))
    mixed = [np.full((1, filled.shape[1], 3), level, np.uint8) for level in (185, 38)]
    found = detect_tissue(np.vstack([filled, *mixed]), MASK_MPP)
    assert found[-6:].mean() < 0.02
    assert iou(found[90:-6, 90:-90], known) > 0.93


@pytest.mark.parametrize("colour", [(0, 0, 0), (128, 128, 128)])
def test_tissue_at_the_edge_of_filling_loses_at_most_24_um(he, colour):
    pixels, known = he
    row = int(np.flatnonzero(known.mean(1) > 0.2)[0]) + 40  # through the tissue
    pixels, known = pixels[row:], known[row:]
    filled = cv2.copyMakeBorder(pixels, 120, 0, 0, 120, cv2.BORDER_CONSTANT, value=colour)
    found = detect_tissue(filled, MASK_MPP)[120:, :-120]
    assert found[3:8][known[3:8]].mean() > 0.97


def test_filling_is_not_the_glass_of_a_slide_that_is_all_tissue(he):
    crop = middle_of_tissue(*he)
    filled = cv2.copyMakeBorder(crop, 0, 100, 100, 0, cv2.BORDER_CONSTANT, value=(128, 128, 128))
    assert BackgroundModel.of(filled).assumed
    found = detect_tissue(filled, MASK_MPP)
    assert found[: len(crop) - 8, 108:].mean() > 0.97  # without the rim
    assert found[len(crop) :].mean() < 0.03


def test_a_slide_that_is_all_tissue_stays_so_and_says_that_its_glass_is_assumed(he):
    crop = middle_of_tissue(*he)
    assert detect_tissue(crop, MASK_MPP).mean() > 0.97
    assert "no bare glass was found" in BackgroundModel.of(crop).warning
    assert BackgroundModel.of(he[0]).warning is None


def test_bare_glass_has_no_tissue():
    glass = np.random.default_rng(0).normal(240, 2, (200, 300, 3)).clip(0, 255).astype(np.uint8)
    assert not detect_tissue(glass, MASK_MPP).any()


def test_glass_of_no_single_colour_is_no_tissue():
    """Each pixel is off the middle in another channel, so none is of the glass's colour."""
    colours = np.array([(240, 240, 230), (240, 230, 240), (230, 240, 240)], np.uint8)
    bare = colours[np.random.default_rng(0).integers(0, 3, (60, 60))]
    assert BackgroundModel.of(bare).colour.tolist() == [240, 240, 240]
    assert not detect_tissue(bare, MASK_MPP).any()


def test_lengths_are_physical(he):
    """The same slide at half the resolution gives the same tissue."""
    pixels, known = he
    half = cv2.resize(pixels, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    found = cv2.resize(detect_tissue(half, 2 * MASK_MPP).astype(np.uint8), known.shape[::-1], interpolation=0) > 0
    assert iou(found, known) > 0.93


def test_fluorescence_is_refused_and_bright_field_is_not(he):
    pixels, known = he
    check_bright_field(pixels)
    check_bright_field(bordered(pixels, known)[0])
    for haze in (0, 30):
        with pytest.raises(NotBrightField, match="fluorescence or dark field"):
            check_bright_field(haze + (255 - pixels) // 2)


@pytest.mark.parametrize("bad", [{"seed_density": 0.01}, {"edge_density": 0.0}, {"gap_um": -1.0}])
def test_bad_settings_are_refused(bad):
    with pytest.raises(BadOption):
        TissueSettings(**bad)


def test_real_slides_match_masks_drawn_by_eye(real_slides):
    if not REFERENCES.is_dir():
        pytest.skip("needs ../shared/masks")
    manifest = (real_slides / "manifest.csv").read_text().splitlines()[1:]
    stated = {line.split(",")[0]: line.split(",")[1] for line in manifest}
    scores = {}
    for path in sorted(REFERENCES.glob("*.png")):
        name = path.name.removesuffix(".png")
        reader = open_slide(str(real_slides / name))
        mpp = float(stated[name] or reader.info.mpp_x)
        found = detect_tissue(read_thumbnail(reader, mpp, mpp, MASK_MPP).pixels, MASK_MPP)
        known = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) > 127
        found = cv2.resize(found.astype(np.uint8), known.shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
        scores[name] = iou(found, known)
    assert np.mean(list(scores.values())) >= 0.93
    assert min(scores.values()) >= 0.80


@pytest.mark.parametrize("glass", ["yellow", "old yellow", "blue", "pink"])
def test_tinted_glass_in_the_corners_of_a_small_slide_is_told_from_white_filling(he, glass):
    pixels, known = he[0][:, :120], he[1][:, :120]
    tinted = on_glass(pixels, GLASSES[glass])
    filled = cv2.copyMakeBorder(tinted, 0, 32, 0, 48, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    beside = cv2.copyMakeBorder(known.astype(np.uint8), 0, 32, 0, 48, cv2.BORDER_CONSTANT) > 0
    assert iou(detect_tissue(filled, MASK_MPP), beside) > 0.9


@pytest.mark.parametrize("colour", [(190, 110, 170), (225, 180, 215), (215, 190, 205)])
def test_tissue_of_one_colour_on_glass_of_one_colour_is_no_filling(colour):
    """A painted slide, whose pixels are as even after averaging as what a scanner fills with."""
    picture = np.full((581, 868, 3), (243, 243, 244), np.uint8)
    known = np.zeros(picture.shape[:2], bool)
    for x0, y0, x1, y1 in ((62, 62, 187, 187), (312, 312, 500, 500), (656, 250, 812, 531)):
        known[y0:y1, x0:x1] = True
    picture[known] = colour
    assert iou(detect_tissue(picture, MASK_MPP), known) > 0.95
