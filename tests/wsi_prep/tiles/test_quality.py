import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import hed_from_rgb, rgb2hed, rgb2hsv
from skimage.data import immunohistochemistry

from sample_slides.texture import he_stain, ihc_stain
from tests.support.real_tiles import tiles_of
from wsi_prep.stain.classify import classify_stain
from wsi_prep.stain.densities import stain_densities
from wsi_prep.tiles.quality import MEASURES, Measurer, colours, measure_tile

PENS = {
    "green": [(36, 115, 63), (20, 90, 50), (80, 170, 110)],
    "blue": [(30, 50, 160), (50, 80, 170), (20, 30, 110)],
    "red": [(220, 20, 30), (200, 30, 50), (170, 20, 40)],
    "black": [(20, 20, 20), (25, 25, 30), (50, 48, 50)],
}
REAL = (
    *("CMU-1-Small-Region.svs", "celiac-duodenum_HE_40x.svs", "crohn-colon_HE_40x.tiff", "OS-1-detail_HE.ome.tif"),
    *("net-duodenum_SYN-IHC_40x.svs", "OS-2-ndpi_Ki67.ome.tif"),
)


def measures(tile):
    return dict(zip(MEASURES, measure_tile(np.ascontiguousarray(tile)), strict=True))


def real_tile():
    return np.ascontiguousarray(immunohistochemistry()[60:452, 60:452])


def slow_colours(picture):
    """The shares and means of an (n, n, 3) picture, pixel by pixel."""
    rows = picture.tolist()
    eosin = np.log10(np.maximum(picture / 255, 1e-6)) @ -hed_from_rgb[:, 1]
    pen = dark = white = 0
    wide = np.zeros((len(rows), len(rows)), bool)
    for i, row in enumerate(rows):
        for j, (r, g, b) in enumerate(row):
            green = g > r + 20 and g > b + 10
            pen += green
            blue = b > r + 50 and b > g + 40 and 20 * r <= 21 * g + 20
            red = r > max(g, b) + 70 and max(g, b) < 64
            black = max(r, g, b) < 75 and 5 * min(r, g, b) + 20 > 3 * max(r, g, b) and r < max(g, b) + 12
            wide[i, j] = (blue or red or black or eosin[i, j] < -0.2) and not green
            dark += max(r, g, b) < 60
            white += min(r, g, b) > 215
    for top in range(0, len(rows), 14):
        for left in range(0, len(rows), 14):
            filled = wide[top : top + 14, left : left + 14].sum()
            pen += filled if filled >= 147 else 0
    shares = np.array([pen, dark, white]) / wide.size
    return [*shares, rgb2hsv(picture)[..., 1].mean(), *stain_densities(picture).mean((0, 1))]


def drawn(stain):
    """A (392, 392, 3) tile of a drawn slide's stain at 0.5 um/px."""
    density = stain.density(np.arange(392), np.arange(392), np.full((392, 392), 0.3, np.float32))
    return np.clip(np.rint(244 * np.exp(-density)), 0, 255).astype(np.uint8)


@pytest.fixture(
    scope="module",
    params=["real picture", "drawn HE", "drawn IHC", *(pytest.param(name, marks=pytest.mark.slow) for name in REAL)],
)
def clean(request, tmp_path_factory):
    """Tiles without a mark."""
    if request.param == "real picture":
        return [real_tile()]
    if request.param == "drawn HE":
        return [drawn(he_stain(0.5, seed=2))]
    if request.param == "drawn IHC":
        return [drawn(ihc_stain())]
    slide = request.getfixturevalue("real_slides") / request.param
    by_magnification = tiles_of(slide, tmp_path_factory.mktemp("tiles"), most=8)
    return [tile for tiles in by_magnification.values() for tile in tiles]


def test_clean_tissue_has_no_pen(clean):
    assert max(measures(tile)["pen"] for tile in clean) < 0.005


@pytest.mark.parametrize(("pen", "ink"), [(pen, ink) for pen, inks in PENS.items() for ink in inks])
def test_pen_on_tissue_is_found(clean, pen, ink):
    """A stroke as wide as half the tile, which lets through what ink and tissue both do."""
    found = []
    for tile in clean[:8]:
        marked = tile.copy()
        marked[:, 56:252] = (marked[:, 56:252] * (np.array(ink) / 255)).astype(np.uint8)
        found.append(measures(marked)["pen"])
    # through thin blue or red, dense purple tissue looks like itself, only denser
    sure = pen in ("green", "black") or ink == PENS[pen][0]
    assert np.mean(np.array(found) > 0.02) >= (0.9 if sure else 0.45), found
    assert max(found) < 0.51


def test_what_is_red_or_blue_or_black_by_nature_is_not_pen():
    """Dyes at any strength, and a nucleus as black as ink."""
    dyes = {"haematoxylin": (0.65, 0.70, 0.29), "eosin": (0.07, 0.99, 0.11), "dab": (0.27, 0.57, 0.78)}
    dyes["congo red"] = (0.13, 0.72, 0.68)
    for name, vector in dyes.items():
        for strength in np.linspace(0.1, 2.5 if name != "congo red" else 0.8, 20):
            level = np.rint(245 * 10 ** (-strength * np.array(vector)))
            tile = np.broadcast_to(level, (98, 98, 3)).astype(np.uint8)
            assert colours(tile)[0] == 0, (name, strength, level)
    clot = np.random.default_rng(0).normal((69, 52, 51), 3, (98, 98, 3))  # DAB of a real slide
    assert colours(clot.round().astype(np.uint8))[0] < 0.005
    tile = real_tile()
    cv2.circle(tile, (200, 200), 16, (22, 18, 20), -1)
    assert measures(tile)["pen"] < 0.005


def test_shares_are_of_what_is_painted():
    tile = real_tile()
    before = measures(tile)
    tile[:112] = (30, 150, 60)
    tile[112:224] = (10, 10, 10)
    tile[224:336] = (250, 250, 250)
    after = measures(tile)
    assert before["dark"] < 0.01
    assert after["pen"] == pytest.approx(2 * 112 / 392, abs=0.01)
    assert after["dark"] == pytest.approx(112 / 392, abs=0.01)
    assert 112 / 392 - 0.01 < after["white"] < 0.4


def test_a_fold_is_darker():
    """Tissue over itself lets through the square."""
    tile = real_tile()
    folded = (255 * (tile / 255.0) ** 3).astype(np.uint8)
    assert measures(folded)["dark"] > measures(tile)["dark"] + 0.2


@given(st.integers(0, 2**32 - 1), st.sampled_from([14, 28, 42]), st.floats(0, 90))
def test_colours_are_those_of_the_slow_way(seed, side, spread):
    """Patches of colours from everywhere, among them those of inks."""
    rng = np.random.default_rng(seed)
    inks = np.array([ink for inks in PENS.values() for ink in inks])
    patches = np.where(rng.random((side // 7, side // 7, 1)) < 0.5, rng.integers(0, 256, 3), 0)
    patches = np.where(patches, patches, inks[rng.integers(0, len(inks), patches.shape[:2])])
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
