"""Which stain a slide has: mixtures of known dyes, real pictures, other light, and what its row says of it."""

import csv
import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open
from skimage.data import immunohistochemistry

from pipelines.shards import main
from sample_slides.layout import make_layout
from sample_slides.scene import make_scene
from sample_slides.texture import he_stain, ihc_stain
from wsi_prep.errors import BadStainModel, NotBrightField
from wsi_prep.slides.pyramid.thumbnail import read_thumbnail
from wsi_prep.slides.readers.select import open_slide
from wsi_prep.slides.scale import resolve_scale
from wsi_prep.stain.classify import (
    DISAGREES,
    SURE,
    StainCall,
    classify_glow,
    classify_stain,
    colour_warning,
    stain_columns,
)
from wsi_prep.stain.features import COUNT, FEATURE_VERSION, stain_features
from wsi_prep.stain.model import MODEL_FILE, MOST_UNUSUAL, StainModel, packaged_model, read_stain_model
from wsi_prep.tissue.background_model import BackgroundModel
from wsi_prep.tissue.detect import MASK_MPP, check_bright_field, detect_tissue

# Ruifrok and Johnston's vectors, and two more
HAEMATOXYLIN, EOSIN, DAB = (0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78)
COUNTERSTAIN, SCHIFF, AZURE = (0.72, 0.63, 0.25), (0.45, 0.80, 0.33), (0.90, 0.55, 0.15)  # as scanners see them
SIDE, GLASS_COLS = 96, 24
NOT_TOLD = pytest.mark.xfail(reason="among what docs/stain.md calls weak", strict=True)


def fields(count):
    """(count, SIDE, SIDE): smooth random structures, 0 to 1."""
    rng = np.random.default_rng(5)
    blurred = [cv2.GaussianBlur(rng.standard_normal((SIDE, SIDE)), (0, 0), 2.0) for _ in range(count)]
    return np.array([np.argsort(np.argsort(f, axis=None)).reshape(f.shape) / f.size for f in blurred])


def slide(*dyes, glass=(245, 245, 245)):
    """(picture, tissue): (vector, least, most, share of the tissue) a dye, on a slide with glass at its left."""
    density = np.zeros((SIDE, SIDE, 3))
    for (vector, least, most, share), field in zip(dyes, fields(len(dyes)), strict=True):
        above = np.clip((field - (1 - share)) / share, 0, 1)
        density += (np.where(above > 0, least + (most - least) * above, 0))[..., None] * np.array(vector)
    density[:, :GLASS_COLS] = 0
    tissue = np.zeros((SIDE, SIDE), bool)
    tissue[:, GLASS_COLS:] = True
    return np.rint(np.array(glass) * 10**-density).astype(np.uint8), tissue


SLIDES = {
    "HE": [(EOSIN, 0.1, 0.3, 1.0), (HAEMATOXYLIN, 0.1, 0.8, 0.4)],
    "IHC": [(HAEMATOXYLIN, 0.1, 0.4, 1.0), (DAB, 0.3, 1.0, 0.1)],
    "SPECIAL": [(AZURE, 0.1, 0.8, 1.0)],
}


@pytest.mark.parametrize("glass", [(245, 245, 245), (205, 205, 205), (240, 236, 226)])
@pytest.mark.parametrize("stain", SLIDES)
def test_dyes_are_told_apart_on_any_glass(stain, glass):
    found, confidence = classify_stain(*slide(*SLIDES[stain], glass=glass))
    assert found == stain
    assert SURE <= confidence <= 1


def test_purple_of_one_hue_is_special():
    assert classify_stain(*slide((SCHIFF, 0.1, 0.9, 1.0), (HAEMATOXYLIN, 0.1, 0.5, 0.2)))[0] == "SPECIAL"


@NOT_TOLD
def test_counterstain_alone_is_ihc_or_doubtful_but_no_he():
    """One blue dye is also how a methylene blue slide looks, so doubt is allowed."""
    ground, nuclei = (HAEMATOXYLIN, 0.05, 0.2, 1.0), (HAEMATOXYLIN, 0.1, 0.8, 0.35)
    assert classify_stain(*slide(ground, nuclei))[0] in ("IHC", "UNKNOWN")


AMOUNTS = [(share, strength) for share in (0.01, 0.03, 0.1, 0.3, 0.6) for strength in (0.4, 0.8, 1.4)]
FAINT = [(0.3, 0.4)]


@pytest.mark.parametrize(
    ("share", "strength"), [pytest.param(*a, marks=[NOT_TOLD] if a in FAINT else []) for a in AMOUNTS]
)
def test_adding_dab_to_blue_tissue_keeps_it_ihc(share, strength):
    blue = (COUNTERSTAIN, 0.05, 0.4, 1.0)
    assert classify_stain(*slide(blue, (DAB, 0.3 * strength, strength, share)))[0] == "IHC"


@pytest.mark.parametrize(("lead", "said"), [(1.0, "HE"), (0.72, "HE"), (0.66, "UNKNOWN"), (0.1, "UNKNOWN")])
def test_a_guess_that_is_likelier_right_than_wrong_is_said_with_its_confidence(monkeypatch, lead, said):
    """A model of no slope, whose probabilities are known: exp(lead) to 1 to 1."""
    model = packaged_model()
    outputs = np.array([lead, 0, 0], np.float32)
    flat = replace(model, slope=np.zeros_like(model.slope), bias=outputs, temperature=1.0)
    monkeypatch.setattr("wsi_prep.stain.classify.packaged_model", lambda: flat)
    call = classify_stain(*slide(*SLIDES["HE"]))
    assert call.confidence == pytest.approx(np.exp(lead) / (np.exp(lead) + 2), abs=1e-6)
    assert call.stain == said


def test_no_tissue_is_unknown():
    picture, tissue = slide(*SLIDES["HE"])
    assert classify_stain(picture, np.zeros_like(tissue)) == ("UNKNOWN", 0.0)


def test_tissue_that_is_white_is_unknown():
    assert classify_stain(np.full((90, 90, 3), 244, np.uint8), np.ones((90, 90), bool))[0] == "UNKNOWN"


NO_STAIN = {
    "green ink": slide(((0.65, 0.1, 0.75), 0.1, 1.2, 1.0)),
    "a green wall": slide(((1.0, 0.1, 1.0), 0.3, 0.5, 1.0)),
    "red, green and blue": slide(
        ((1.5, 0, 0), 0.3, 1.0, 0.4), ((0, 1.5, 0), 0.3, 1.0, 0.4), ((0, 0, 1.5), 0.3, 1.0, 1.0)
    ),
}


@pytest.mark.parametrize("name", NO_STAIN)
def test_what_is_like_no_stain_is_unknown(name):
    assert classify_stain(*NO_STAIN[name]) == ("UNKNOWN", 0.0)


def painted(texture):
    """A sample slide's scene at 8 um/px, and its mask."""
    layout = make_layout(2000, 2000, 0.5, seed=4, marks=False)
    pixels = make_scene(layout, texture, seed=6).paint(0, 0, 1984, 1984)
    return cv2.resize(pixels, (124, 124), interpolation=cv2.INTER_AREA), layout.mask[:124, :124]


@pytest.fixture(scope="module")
def pictures():
    """(picture, tissue) by stain: the sample slides' textures, and dyes."""
    whole = immunohistochemistry()
    return {
        "HE": painted(he_stain(0.5, seed=2)),
        "IHC": (whole, np.ones(whole.shape[:2], bool)),
        "SPECIAL": slide(*SLIDES["SPECIAL"]),
    }


@pytest.mark.slow
def test_sample_slides_are_what_they_are(pictures):
    for stain, (picture, tissue) in pictures.items():
        assert classify_stain(picture, tissue)[0] == stain
    assert classify_stain(*painted(ihc_stain()))[0] == "IHC"


@pytest.mark.parametrize("glass", [(240, 228, 205), (205, 215, 240), (235, 215, 170), (110, 110, 110)])
def test_tinted_glass_does_not_change_the_stain(pictures, glass):
    picture, tissue = pictures["HE"]
    tinted = np.clip(picture * (np.array(glass) / 243.5), 0, 255).astype(np.uint8)
    assert classify_stain(tinted, tissue)[0] == "HE"


def without_colour(picture):
    return cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


@pytest.mark.parametrize("quality", [None, 70])
def test_a_picture_without_colour_has_no_stain_and_says_so(pictures, quality):
    for picture, tissue in pictures.values():
        grey = without_colour(picture)
        if quality:
            grey = cv2.imdecode(cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)
        assert classify_stain(grey, tissue) == ("UNKNOWN", 0.0)
        assert colour_warning(grey, tissue, BackgroundModel.of(grey)).startswith("the picture has no colour")
        grey[:5][tissue[:5]] = (30, 140, 70)  # a pen's mark has one
        assert colour_warning(grey, tissue, BackgroundModel.of(grey))
        assert colour_warning(picture, tissue, BackgroundModel.of(picture)) is None


def test_pale_blue_tissue_has_a_colour(pictures):
    """One dye alone, a third of the usual."""
    picture, tissue = pictures["HE"]
    density = -np.log10(np.maximum(picture, 1) / 244.0).max(axis=2, keepdims=True)
    blue = np.rint(244 * 10 ** (-0.3 * density * (0.65, 0.7, 0.29) / 0.7)).clip(0, 255).astype(np.uint8)
    assert colour_warning(blue, tissue, BackgroundModel.of(blue)) is None


@pytest.mark.parametrize("balance", [(1.0, 0.97, 0.94), (0.94, 1.0, 0.98), (0.85, 0.85, 0.85)])
def test_white_balance_changes_nothing(pictures, balance):
    for stain in ("HE", "SPECIAL"):  # both show glass, by which the light is known
        picture, tissue = pictures[stain]
        seen = np.rint(picture * np.array(balance)).astype(np.uint8)
        assert classify_stain(seen, tissue)[0] == stain


@pytest.mark.parametrize("quality", [95, 75, 50])
def test_jpeg_changes_nothing(pictures, quality):
    for stain, (picture, tissue) in pictures.items():
        data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        seen = np.ascontiguousarray(cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1])
        assert classify_stain(seen, tissue)[0] == stain


REAL = {
    "CMU-1-Small-Region.svs": "HE",
    "OS-1-detail_HE.ome.tif": "HE",
    "camelyon-overview_HE.dcm": "HE",
    "celiac-duodenum_HE_40x.svs": "HE",
    "crohn-colon_HE_40x.tiff": "HE",
    "glycogenosis-liver_HE_20x_nompp.tif": "HE",
    "liver-biopsy_HE_2.5x_nompp.tif": "HE",
    "OS-2-ndpi_Ki67.ome.tif": "IHC",
    "net-duodenum_SYN-IHC_40x.svs": "IHC",
    "glycogenosis-liver_PASD_10x_nompp.tif": "SPECIAL",
    "melanosis-colon_PAS_nompp.tiff": "SPECIAL",
    "marrow_special-stain_jpeg2000.dcm": "SPECIAL",
    "fluorescence_TRITC.ndpi": "FLUORESCENCE",
}


CALLED_WRONGLY = ("OS-1-detail_HE.ome.tif",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[NOT_TOLD] if name in CALLED_WRONGLY else []) for name in REAL]
)
def test_real_slides(name, real_slides):
    with (real_slides / "manifest.csv").open() as file:
        mpp = next(row["mpp"] for row in csv.DictReader(file) if row["slide"] == name)
    reader = open_slide(str(real_slides / name), "auto")
    scale = resolve_scale(reader.info, float(mpp) if mpp else None, None)
    thumbnail = read_thumbnail(reader, scale.mpp_x, scale.mpp_y, MASK_MPP)
    reader.close()
    try:
        check_bright_field(thumbnail.pixels)
    except NotBrightField:
        assert classify_glow(thumbnail.pixels)[0] == REAL[name]
        return
    glass = BackgroundModel.of(thumbnail.pixels)
    assert (
        classify_stain(thumbnail.pixels, detect_tissue(thumbnail.pixels, thumbnail.mpp, glass=glass), glass)[0]
        == REAL[name]
    )


def test_light_without_colour_is_not_fluorescence():
    rng = np.random.default_rng(0)
    glow = np.zeros((64, 64, 3), np.uint8)
    glow[..., 1] = rng.integers(10, 90, (64, 64))
    assert classify_glow(glow)[0] == "FLUORESCENCE"
    assert classify_glow(np.repeat(glow[..., 1:2], 3, axis=2))[0] == "UNKNOWN"
    assert classify_glow(np.zeros((64, 64, 3), np.uint8)) == ("UNKNOWN", 0.0)


def test_hue_does_not_depend_on_thickness():
    """Beer-Lambert: twice the section is twice the density, so all but the two numbers on density stay."""
    rng = np.random.default_rng(0)
    density = (rng.uniform(0.2, 0.6, (5000, 2)) @ np.array([HAEMATOXYLIN, EOSIN])).astype(np.float32)
    thin, thick = stain_features(density), stain_features(2 * density)
    assert thin.shape == (COUNT,)
    changed = np.flatnonzero(np.abs(thin - thick) > 1e-3)
    assert len(changed) == 1  # the median density
    assert np.abs(thin[changed] - thick[changed]) == pytest.approx(np.log(2), abs=1e-3)


def test_order_of_pixels_and_white_pixels_do_not_count():
    rng = np.random.default_rng(0)
    density = (rng.uniform(0.2, 0.6, (5000, 2)) @ np.array([HAEMATOXYLIN, DAB])).astype(np.float32)
    more = np.concatenate([density, np.full((3000, 3), 0.01, np.float32)])
    assert stain_features(rng.permutation(more)) == pytest.approx(stain_features(density), abs=1e-3)
    assert stain_features(density[:49]) is None
    assert stain_features(density[:0]) is None


def test_the_weights_are_for_these_features():
    with safe_open(MODEL_FILE, framework="numpy") as weights:
        assert weights.metadata() == {"made_for": f"version {FEATURE_VERSION} of the features and HE IHC SPECIAL"}
    # numbers that were so when version 1 was fitted to; where they change, the version must, and the weights
    hues = np.linspace(0, 1, 2000, dtype=np.float32)[:, None]
    density = 0.1 + 0.5 * hues * np.array(EOSIN, np.float32) + 0.4 * (1 - hues) * np.array(HAEMATOXYLIN, np.float32)
    found = stain_features(density)
    assert found is not None
    assert FEATURE_VERSION == 1
    assert [found.sum(), np.abs(found).sum(), found[-1]] == pytest.approx([-490.915, 541.075, 18.102], rel=1e-3)


def test_the_classifier_is_what_its_formula_says():
    model = packaged_model()
    features = np.random.default_rng(0).normal(model.mean, 3 * model.scale).astype(np.float32)
    outputs = model.bias.astype(float).copy()
    for i in range(COUNT):
        unusual = float((features[i] - model.mean[i]) / model.scale[i])
        outputs += min(max(unusual, -MOST_UNUSUAL), MOST_UNUSUAL) * model.slope[i]
    raised = np.exp(outputs / model.temperature)
    assert model.probabilities(features) == pytest.approx(raised / raised.sum(), abs=1e-4)


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path, monkeypatch):
    model = packaged_model()
    model.save(tmp_path / "same.safetensors")
    again = read_stain_model(tmp_path / "same.safetensors")
    assert isinstance(again, StainModel)
    assert np.array_equal(again.slope, model.slope)
    assert again.temperature == pytest.approx(model.temperature, rel=1e-6)
    monkeypatch.setattr("wsi_prep.stain.model.FEATURE_VERSION", FEATURE_VERSION + 1)
    with pytest.raises(BadStainModel, match="is for version 1 of the features") as wrong:
        read_stain_model(tmp_path / "same.safetensors")
    assert "\n" not in str(wrong.value)
    (tmp_path / "text").write_text("weights")
    for name in ("text", "none"):
        with pytest.raises(BadStainModel, match="make fit-stain writes them"):
            read_stain_model(tmp_path / name)


@pytest.mark.parametrize("name", ["mean", "scale", "slope", "bias", "whitening"])
@pytest.mark.parametrize("spoil", [lambda tensor: tensor[:-1], lambda tensor: tensor * np.nan])
def test_weights_of_another_shape_or_without_a_number_are_refused(tmp_path, name, spoil):
    model = packaged_model()
    replace(model, **{name: spoil(getattr(model, name))}).save(tmp_path / "w.safetensors")
    with pytest.raises(BadStainModel, match=f"has no {name} of .* make fit-stain writes it again"):
        read_stain_model(tmp_path / "w.safetensors")


def test_the_distance_is_that_of_mahalanobis():
    """With the identity for whitening it is the root mean square of the features in standard deviations."""
    model = replace(packaged_model(), whitening=np.eye(COUNT, dtype=np.float32))
    features = model.mean + np.float32(2) * model.scale
    assert model.distance(features) == pytest.approx(2.0, rel=1e-4)
    assert packaged_model().distance(packaged_model().mean) < 0.01


def test_the_manifest_wins_and_confident_pixels_that_disagree_are_flagged():
    sure, doubtful = StainCall("IHC", DISAGREES), StainCall("IHC", DISAGREES - 0.01)
    row = stain_columns("HE", sure, None)
    assert (row["stain"], row["stain_confidence"], row["stain_source"]) == ("HE", 1.0, "manifest")
    assert (row["stain_pixels"], row["stain_pixels_confidence"]) == sure
    assert row["warning"] == f"the pixels look like IHC ({DISAGREES:.2f}) where the manifest says HE"
    assert stain_columns("HE", doubtful, None)["warning"] is None
    assert stain_columns("IHC", sure, None)["warning"] is None
    assert stain_columns("UNKNOWN", sure, None)["warning"] is None
    assert stain_columns("HE", StainCall("UNKNOWN", 0.5), None)["warning"] is None
    assert stain_columns(None, sure, "mpp is odd") == {
        **dict.fromkeys(("stain", "stain_pixels"), "IHC"),
        **dict.fromkeys(("stain_confidence", "stain_pixels_confidence"), DISAGREES),
        "stain_source": "pixels",
        "warning": "mpp is odd",
    }
    both = stain_columns("HE", sure, "mpp is odd")["warning"]
    assert both.startswith("mpp is odd; the pixels look like IHC")
    assert stain_columns("IHC", sure, both)["warning"] == "mpp is odd"


@pytest.mark.usefixtures("shared_dask")
def test_a_corrected_manifest_takes_the_warning_back_and_redoes_nothing(tmp_path, nompp_slide):
    slides, out, manifest = tmp_path / "slides", tmp_path / "out", tmp_path / "m.csv"
    slides.mkdir()
    shutil.copy(nompp_slide, slides / "a.tiff")

    def row_with(stain):
        manifest.write_text(f"slide,mpp,stain\na.tiff,0.5,{stain}\n")
        call = ["--slides", slides, "--out", out, "--manifest", manifest, "--workers", "1"]
        assert main([str(argument) for argument in call]) == 0
        return pq.read_table(out / "catalog" / "slides").to_pylist()[0]

    wrong = row_with("IHC")
    assert (wrong["stain"], wrong["stain_source"], wrong["stain_pixels"]) == ("IHC", "manifest", "HE")
    assert "the pixels look like HE" in wrong["warning"]
    assert json.loads((out / "run.json").read_text())["slides"] == {"ok": 1}
    right = row_with("HE")
    assert (right["stain"], right["warning"], right["seconds"]) == ("HE", None, wrong["seconds"])
    unsaid = row_with("")
    assert (unsaid["stain"], unsaid["stain_source"], unsaid["seconds"]) == ("HE", "pixels", wrong["seconds"])
    assert unsaid["stain_confidence"] == wrong["stain_pixels_confidence"]
