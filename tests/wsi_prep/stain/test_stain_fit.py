"""How the stain classifier is fitted: tissue taken apart and dyed again, cases held out, calibration."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from imagecodecs import jpeg8_encode
from sklearn.metrics import balanced_accuracy_score, confusion_matrix

from pipelines.fit_stain import main
from wsi_prep.stain.features import COUNT
from wsi_prep.stain.fit.cohort import read_tiles
from wsi_prep.stain.fit.dyes import DYES, RECIPES
from wsi_prep.stain.fit.examples import CLASSES, REAL, Example, Tissue, changed, mosaic, recoloured
from wsi_prep.stain.fit.fit import HeldOut, calibrated, even_weights, fit, fit_temperature, hold_out_cases
from wsi_prep.stain.fit.recolour import Structures, compress, dye, stain_vectors, tissue_maps
from wsi_prep.stain.fit.report import balanced_accuracy, calibration_error, confusion
from wsi_prep.stain.network import read_stain_model, softmax

HAEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.09, 0.95, 0.28])


def he_tissue(count=6, side=32, seed=0):
    """(count, side, side, 3) densities of blobs of haematoxylin in eosin, and the two amounts (..., 2)."""
    rng = np.random.default_rng(seed)
    nuclei = np.where(rng.random((count, side, side)) < 0.3, rng.uniform(0.3, 1.0, (count, side, side)), 0)
    eosin = np.where(nuclei > 0, 0, rng.uniform(0.1, 0.6, (count, side, side)))
    amounts = np.stack([nuclei, eosin], axis=-1).astype(np.float32)
    return (amounts @ np.array([HAEMATOXYLIN, EOSIN])).astype(np.float32), amounts


def tissue(case, stain="HE", seed=0):
    density, amounts = he_tissue(seed=seed)
    maps = np.minimum(amounts / 0.8, 1.5) if stain == "HE" else None
    return Tissue(case, stain, 2.0, density if stain == "HE" else density[..., ::-1].copy(), maps)


def test_dyes_are_found_again_in_what_they_stained():
    density, amounts = he_tissue()
    vectors = stain_vectors(density.reshape(-1, 3))
    for found, true in zip(vectors, (HAEMATOXYLIN, EOSIN), strict=True):
        assert np.degrees(np.arccos(found @ true / np.linalg.norm(true))) < 2
    nuclei, rest = tissue_maps(density, vectors)
    assert np.corrcoef(nuclei.ravel(), amounts[..., 0].ravel())[0, 1] > 0.99
    assert np.corrcoef(rest.ravel(), amounts[..., 1].ravel())[0, 1] > 0.99
    assert stain_vectors(np.zeros((500, 3), np.float32)) is None


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: f"{r.stain} {r.name}")
def test_every_recipe_dyes_with_its_dyes_alone(recipe):
    """Whatever is drawn, a pixel's density is a mixture of the recipe's dyes: non-negative, and 0 without tissue."""
    maps = he_tissue(count=4)[1] / 0.8
    maps[:, :4] = 0
    rng = np.random.default_rng(1)
    density = dye(Structures.of(mosaic(maps), rng), recipe, rng)
    assert {layer.dye for layer in recipe.layers} <= set(DYES)
    assert density.min() >= 0
    assert np.isfinite(density).all()
    assert density[mosaic(maps).sum(axis=-1) == 0].max() == 0
    assert density.max() > 0.03
    rank = np.linalg.matrix_rank(density.reshape(-1, 3).astype(np.float64), tol=1e-3)
    assert rank <= min(3, len({layer.dye for layer in recipe.layers}))


@given(st.floats(0.02, 0.9), st.sampled_from(["patches", "cells", "fibres"]), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_a_structure_covers_the_share_that_was_asked_for(share, where, seed):
    rng = np.random.default_rng(seed)
    found = Structures.of(np.ones((96, 96, 2), np.float32), rng).find(where, share, rng)
    assert (found > 0.6).mean() == pytest.approx(share, abs=0.03)


@given(st.floats(0.05, 0.95), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_collagen_and_muscle_share_the_tissue(share, seed):
    rng = np.random.default_rng(seed)
    structures = Structures.of(np.ones((64, 64, 2), np.float32), rng)
    collagen, muscle = (structures.find(where, share, rng) for where in ("collagen", "muscle"))
    assert collagen + muscle == pytest.approx(np.ones((64, 64)), abs=1e-6)
    assert collagen.mean() == pytest.approx(share, abs=0.06)


def test_a_mosaic_shows_every_piece_once():
    pieces = np.arange(12)[:, None, None, None] * np.ones((12, 4, 4, 1))
    shown = mosaic(pieces)
    assert shown.shape == (16, 12, 1)
    assert sorted(shown[::4, ::4, 0].ravel()) == list(range(12))


def test_jpeg_of_a_picture_is_near_it():
    picture = np.tile(np.linspace(60, 240, 64).astype(np.uint8)[None, :, None], (64, 1, 3))
    assert np.abs(compress(picture, 90).astype(int) - picture).mean() < 3


def test_pictures_are_of_every_class_and_made_the_same_each_time():
    tissues = [tissue("a"), tissue("b", seed=1), tissue("c", "IHC"), tissue("d", "SPECIAL")]
    for make, cases in ((recoloured, {"a", "b"}), (changed, {"a", "b", "c", "d"})):
        found, again = make(tissues, 24, 3), make(tissues, 24, 3)
        assert {example.stain for example in found} == set(CLASSES)
        assert {example.case for example in found} <= cases
        assert all(example.features.shape == (COUNT,) and np.isfinite(example.features).all() for example in found)
        assert all(np.array_equal(one.features, two.features) for one, two in zip(found, again, strict=True))


def examples(case, shift, count=300):
    """Classes that one feature tells apart; `shift` moves their labels on, as in a case that is unlike all others."""
    rng = np.random.default_rng(len(case))
    found = []
    for number in range(count):
        features = rng.normal(0, 0.1, COUNT).astype(np.float32)
        features[number % 3 :: 3] += 1
        found.append(Example(features, CLASSES[(number % 3 + shift) % 3], case, f"{case}{number}"))
    return found


def test_a_case_is_judged_by_classifiers_that_have_not_seen_it():
    """The odd case's labels can only be known from itself: held out, all of it is called wrongly."""
    usual, odd, new = examples("usual", 0), examples("odd one", 1), examples("new", 0, 12)
    judged = hold_out_cases([*usual, *examples("usual too", 0), *odd], [*odd, *new])
    wrong = judged.logits.argmax(axis=1) != judged.truth
    assert wrong[judged.cases == "odd one"].all()
    assert judged.names.tolist() == [example.name for example in [*odd, *new]]
    seen = fit([*usual, *usual, *examples("usual too", 0)]).logits(np.array([example.features for example in new]))
    assert (seen.argmax(axis=1) == judged.truth[judged.cases == "new"]).all()


def overconfident(temperature, count=6000):
    """Outputs whose probabilities would be right after division by `temperature`."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (count, 3))
    truth = np.array([rng.choice(3, p=p) for p in softmax(logits)])
    return HeldOut(truth, temperature * logits, rng.choice(["a", "b", "c"], count), np.full(count, "x"))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_found_and_calibrates(temperature):
    judged = overconfident(temperature)
    assert fit_temperature(judged) == pytest.approx(temperature, rel=0.1)
    assert calibration_error(calibrated(judged), judged.truth) < 0.03
    if temperature != 1.0:
        assert calibration_error(softmax(judged.logits), judged.truth) > 0.05


def test_a_case_does_not_set_its_own_temperature():
    judged = overconfident(2.0, 300)
    own = judged.cases == "a"
    spoilt = HeldOut(np.where(own, (judged.truth + 1) % 3, judged.truth), judged.logits, judged.cases, judged.names)
    assert calibrated(spoilt)[own] == pytest.approx(calibrated(judged)[own])


def test_classes_weigh_the_same_and_cases_within_them():
    truth, cases = np.array([0] * 90 + [0] * 10 + [1] * 5), np.array(["a"] * 90 + ["b"] * 10 + ["a"] * 5)
    weight = even_weights(HeldOut(truth, np.zeros((105, 3)), cases, cases))
    assert weight[truth == 0].sum() == pytest.approx(0.5)
    assert weight[(truth == 0) & (cases == "a")].sum() == pytest.approx(0.25)
    assert weight.sum() == pytest.approx(1)


@given(arrays.arrays(np.int64, (40, 2), elements=st.integers(0, 2)))
def test_tables_are_those_of_scikit_learn(pairs):
    truth, guess = pairs.T
    assert np.array_equal(confusion(truth, guess), confusion_matrix(truth, guess, labels=[0, 1, 2]))
    if len(set(truth)) > 1 and set(guess) <= set(truth):  # else it warns
        assert balanced_accuracy(truth, guess) == pytest.approx(balanced_accuracy_score(truth, guess))


def test_the_calibration_error_is_its_formula():
    probabilities = softmax(np.random.default_rng(0).normal(0, 2, (500, 3)))
    truth = np.random.default_rng(1).integers(0, 3, 500)
    error = 0.0
    for low in np.arange(0, 1, 0.1):
        rows = [i for i in range(500) if low <= probabilities[i].max() < low + 0.1]
        if rows:
            confidence = np.mean([probabilities[i].max() for i in rows])
            right = np.mean([probabilities[i].argmax() == truth[i] for i in rows])
            error += len(rows) / 500 * abs(confidence - right)
    assert calibration_error(probabilities, truth) == pytest.approx(error, abs=1e-9)


def tile_table(path):
    """Tiles of three stains of two cases each, flat mixtures of dyes, as the command takes them."""
    rows = []
    for stain, swap in (("HE", (0, 1, 2)), ("IHC chromogranin", (2, 1, 0)), ("PAS", (1, 0, 2))):
        for case in "ab":
            density, _ = he_tissue(count=6, side=64, seed=ord(case))
            for picture in np.rint(245 * 10 ** -density[..., swap]).astype(np.uint8):
                image = jpeg8_encode(np.ascontiguousarray(picture), level=90)
                rows.append({"image": image, "group": f"{stain} {case}", "stain": stain, "slide": "1", "mpp": 1.0})
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_rows_of_the_test_split_are_judged_by_and_never_fitted_to(tmp_path):
    tile_table(tmp_path / "tiles.parquet")
    table = pq.read_table(tmp_path / "tiles.parquet")
    split = ["test" if group.endswith("b") else "train" for group in table["group"].to_pylist()]
    pq.write_table(table.append_column("split", [split]), tmp_path / "split.parquet")
    cohort = read_tiles(tmp_path / "split.parquet")
    assert {tissue.case[-1] for tissue in cohort.tissues} == {"a"}
    assert {example.case[-1] for example in (*cohort.tiles, *cohort.slides)} == {"b"}
    assert cohort.as_they_are() == []
    whole = read_tiles(tmp_path / "tiles.parquet")
    assert {example.case for example in whole.as_they_are()} == {tissue.case for tissue in whole.tissues}
    assert {example.name for example in whole.as_they_are()} == {REAL}


def test_the_command_writes_weights_and_says_how_good_they_are(tmp_path, capsys):
    tile_table(tmp_path / "tiles.parquet")
    call = ["--tiles", str(tmp_path / "tiles.parquet"), "--to", str(tmp_path / "w.safetensors"), "--examples", "60"]
    assert main([*call, "--unseen", "PAS"]) == 0
    printed = capsys.readouterr().out
    assert "### Slides: 6 of 6 cases" in printed
    assert "### Tiles: 36 of 6 cases" in printed
    assert "Calibration error" in printed
    assert "| PAS | SPECIAL |" in printed.split("not fitted to")[1]
    assert read_stain_model(tmp_path / "w.safetensors").temperature > 0


def test_a_table_that_is_none_of_tiles_is_refused_in_one_line(tmp_path, capsys):
    pq.write_table(pa.table({"image": [b""], "label": [1]}), tmp_path / "other.parquet")
    assert main(["--tiles", str(tmp_path / "other.parquet"), "--to", str(tmp_path / "w")]) == 2
    assert "lacks the columns group, mpp" in capsys.readouterr().err
    assert main(["--tiles", str(tmp_path / "none.parquet"), "--to", str(tmp_path / "w")]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
