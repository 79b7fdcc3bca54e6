"""Ink is told from stain: strokes drawn over glass and tissue, and slides of one dye all over."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.paths import SHARED
from wsi_prep.tissue.background_model import BackgroundModel
from wsi_prep.tissue.detect import MASK_MPP, detect_tissue
from wsi_prep.tissue.ink import ink

OVERVIEWS = SHARED / "overviews"
PENS = {
    "green": (36, 115, 63),
    "teal": (20, 140, 120),
    "blue": (30, 50, 160),
    "red": (210, 20, 25),
    "purple": (80, 40, 130),
    "purple-black": (38, 25, 52),
    "black": (25, 25, 28),
}
DYES = {
    "H&E": ((0.65, 0.70, 0.29), (0.07, 0.99, 0.25)),
    "haematoxylin and DAB": ((0.65, 0.70, 0.29), (0.27, 0.57, 0.78)),
    "Giemsa": ((1.0, 0.90, 0.40), (0.90, 0.85, 0.35)),
    "light green": ((0.9, 0.55, 0.55), (1.0, 0.5, 0.52)),
    "Alcian blue": ((1.0, 0.60, 0.35), (1.0, 0.5, 0.25)),
    "silver": ((1.0, 0.97, 0.92), (0.9, 0.95, 0.9)),
    "Sirius red": ((0.12, 1.0, 0.85), (0.1, 1.0, 0.9)),
}


def found_in(picture, mpp=MASK_MPP):
    return ink(picture, mpp, BackgroundModel.of(picture))


def stained(dyes, seed=0, size=(300, 420), density=0.7):
    """(picture, tissue): pieces of tissue whose two dyes vary from cell to cell and from place to place."""
    rng = np.random.default_rng(seed)

    def noise(sigma):
        field = cv2.GaussianBlur(rng.normal(size=size), (0, 0), sigma)
        return field / field.std()

    y, x = np.mgrid[: size[0], : size[1]]
    edge = 12 * noise(15)
    tissue = (np.hypot((x - 140) / 1.1, y - 150) + edge < 100) | (np.hypot(x - 340, (y - 150) / 1.5) + edge < 50)
    amounts = [np.clip(0.5 + 0.25 * noise(1) + 0.15 * noise(12), 0.05, 1.2) for _ in dyes]
    taken = sum(amount[..., None] * np.array(dye) for amount, dye in zip(amounts, dyes, strict=True)) / 2
    taken = cv2.GaussianBlur(taken * density * tissue[..., None], (0, 0), 0.7)
    picture = 243 * 10**-taken + rng.normal(0, 1, (*size, 3))
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8), tissue


def marked(picture, colour, width_um, points, mpp=MASK_MPP):
    """(picture, cover): a line through the points, and how much each pixel is covered by it; saved as JPEG."""
    cover = np.zeros(picture.shape[:2], np.uint8)
    cv2.polylines(cover, [np.array(points, np.int32)], False, 255, max(1, round(width_um / mpp)), cv2.LINE_AA)
    cover = cover / 255.0
    shown = picture * (1 - cover[..., None] * (1 - np.array(colour) / 255))
    jpeg = cv2.imencode(".jpg", np.rint(shown).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return cv2.imdecode(jpeg, cv2.IMREAD_COLOR), cover


STRAIGHT, CURVED = [(20, 40), (400, 260)], [(60, 280), (110, 180), (200, 120), (330, 90), (410, 30)]


@pytest.mark.parametrize("pen", PENS)
@pytest.mark.parametrize(("points", "width_um"), [(STRAIGHT, 300), (CURVED, 700)], ids=["straight", "curved"])
def test_a_stroke_is_found_over_glass_and_over_tissue(pen, points, width_um):
    picture, tissue = stained(DYES["H&E"])
    picture, cover = marked(picture, PENS[pen], width_um, points)
    found = found_in(picture)
    inside, away = cover > 0.9, cv2.dilate(cover, np.ones((17, 17))) == 0
    # where purple ink is thin, dense purple tissue below it looks like tissue
    assert found[inside & tissue].mean() > (0.6 if pen == "purple" else 0.85)
    assert found[inside & ~tissue].mean() > 0.9
    assert found[away].mean() < 0.005
    assert detect_tissue(picture, MASK_MPP)[inside & found].mean() < 0.01


@pytest.mark.parametrize("stain", DYES)
@pytest.mark.parametrize("density", [0.4, 0.8])
def test_a_stain_is_no_ink(stain, density):
    picture, _ = stained(DYES[stain], 1, density=density)
    assert not found_in(picture).any()


@pytest.mark.parametrize("seed", [1, 2])
def test_broad_fields_of_blue_collagen_are_no_ink(seed):
    """As in a trichrome: collagen blue, muscle red, over more than a millimetre, both of the tissue's own texture."""
    rng, size = np.random.default_rng(seed), (420, 560)

    def noise(sigma):
        field = cv2.GaussianBlur(rng.normal(size=size), (0, 0), sigma)
        return field / field.std()

    y, x = np.mgrid[: size[0], : size[1]]
    tissue = np.hypot((x - 280) / 1.4, y - 210) + 8 * noise(15) < 170
    collagen = np.clip(4 * noise(35) - 1.5, 0, 1)[..., None]
    amount = np.clip(0.6 + 0.1 * noise(2) + 0.1 * noise(12), 0.05, 1.5) * tissue
    dyes = collagen * (0.9, 0.55, 0.2) + (1 - collagen) * (0.1, 0.5, 0.35)
    picture = 243 * 10 ** (-0.9 * amount[..., None] * dyes) + rng.normal(0, 1, (*size, 3))
    assert not found_in(np.clip(np.rint(picture), 0, 255).astype(np.uint8)).any()


@pytest.mark.parametrize(("stain", "pen"), [("Giemsa", "teal"), ("light green", "red"), ("silver", "blue")])
def test_a_stroke_of_another_colour_is_found_on_a_special_stain(stain, pen):
    picture, cover = marked(stained(DYES[stain], 3)[0], PENS[pen], 500, CURVED)
    found = found_in(picture)
    assert found[cover > 0.9].mean() > 0.9
    assert found[cv2.dilate(cover, np.ones((17, 17))) == 0].mean() < 0.02


@pytest.mark.slow
@settings(deadline=None, max_examples=8)
@given(
    st.sampled_from(sorted(set(PENS) - {"purple"})), st.integers(0, 3), st.booleans(), st.sampled_from([4.0, 8.0, 16.0])
)
def test_it_does_not_matter_how_the_slide_lies_nor_at_which_scale_it_is_seen(pen, turns, flipped, mpp):
    picture, cover = marked(stained(DYES["H&E"], 4)[0], PENS[pen], 600, STRAIGHT)
    size = tuple(round(side * MASK_MPP / mpp) for side in picture.shape[1::-1])
    picture, cover = (cv2.resize(a, size, interpolation=cv2.INTER_AREA) for a in (picture, cover))
    picture, cover = np.rot90(picture, turns), np.rot90(cover, turns)
    picture = np.ascontiguousarray(picture[:, ::-1] if flipped else picture)
    cover = cover[:, ::-1] if flipped else cover
    found = found_in(picture, mpp)
    assert found.shape == cover.shape
    assert found[cover > 0.9].mean() > 0.9
    assert found[cover == 0].mean() < 0.12  # the rim


@settings(deadline=None, max_examples=6)
@given(st.sampled_from(sorted(PENS)), st.sampled_from([135, 220, 400]), st.integers(0, 3), st.integers(0, 3))
def test_the_first_look_at_every_other_pixel_loses_no_stroke(pen, width_um, right, down):
    """Wherever a stroke lies, and as narrow as may be: what is found is what is found without a first look."""
    picture, _ = marked(stained(DYES["H&E"], 5)[0], PENS[pen], width_um, [(40 + right, 30 + down), (250, 280)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wsi_prep.tissue.ink._FINE_UM", 0.0)
        whole = found_in(picture)
    assert np.array_equal(found_in(picture), whole)


def test_bare_glass_has_no_ink():
    glass = np.random.default_rng(0).normal(240, 2, (200, 300, 3)).clip(0, 255).astype(np.uint8)
    assert not found_in(glass).any()


@pytest.mark.parametrize("file", ["tcga-green-pen_he", "tcga-red-pen_he"])
def test_real_ink_is_found(file):
    picture, known = overview(file)
    factor = 8.0 / 2.0
    size = tuple(round(side / factor) for side in known.shape[::-1])
    picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    known = cv2.resize(known, size, interpolation=cv2.INTER_NEAREST)
    found = found_in(picture)
    assert found[known == 0].mean() > 0.85
    assert found[known == 255].mean() < 0.03


@pytest.mark.parametrize(
    "file",
    [
        *("eas28_gms-1", "eas28_gms-2", "eas3_pams1", "eas12_ezn-arb", "helicobacterpylori_giemsa", "pasab_pasab"),
        *("helicobacterpylori_warthinstarry", "mucin_mucicarmine", "trypsin_trypsin"),
    ],
)
def test_a_real_special_stain_is_no_ink(file):
    assert found_in(overview(file)[0]).mean() < 0.0005


def overview(name):
    path = OVERVIEWS / f"{name}.jpg"
    if not path.is_file():
        pytest.skip("needs ../shared/overviews")
    mask = cv2.imread(str(OVERVIEWS / "masks" / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
    return np.ascontiguousarray(cv2.imread(str(path))[..., ::-1]), mask
