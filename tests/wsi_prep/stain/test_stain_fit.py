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
from wsi_prep.errors import UsageError
from wsi_prep.stain.features import COUNT, HUE_PLACES
from wsi_prep.stain.fit.cohort import read_slides, read_tiles
from wsi_prep.stain.fit.dyes import DYES, RECIPES
from wsi_prep.stain.fit.examples import Base, Example, Picture, changed, dyed, laboratory_of, mosaic
from wsi_prep.stain.fit.fit import HeldOut, calibrated, even_weights, fit, fit_temperature, hold_out
from wsi_prep.stain.fit.recolour import Structures, compress, dye, stain_vectors, tissue_maps, varied
from wsi_prep.stain.fit.report import (
    balanced_accuracy,
    calibration_error,
    called,
    confusion,
    he_or_not,
    interval,
    right_from,
    three_classes,
)
from wsi_prep.stain.model import CLASSES, read_stain_model, softmax

HAEMATOXYLIN, EOSIN = np.array([0.65, 0.70, 0.29]), np.array([0.09, 0.95, 0.28])


def he_tissue(count=6, side=32, seed=0):
    """(count, side, side, 3) densities of blobs of haematoxylin in eosin, and the two amounts (..., 2)."""
    rng = np.random.default_rng(seed)
    nuclei = np.where(rng.random((count, side, side)) < 0.3, rng.uniform(0.3, 1.0, (count, side, side)), 0)
    eosin = np.where(nuclei > 0, 0, rng.uniform(0.1, 0.6, (count, side, side)))
    amounts = np.stack([nuclei, eosin], axis=-1).astype(np.float32)
    return (amounts @ np.array([HAEMATOXYLIN, EOSIN])).astype(np.float32), amounts


def picture(case, stain="HE", seed=0, laboratory="one"):
    density = he_tissue(seed=seed)[0].reshape(-1, 3)
    swap = {"HE": (0, 1, 2), "IHC": (2, 1, 0), "SPECIAL": (1, 0, 2)}[stain]
    return Picture(f"{case}.svs", case, laboratory, stain, density[:, swap])


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_pictures_are_of_every_class_and_made_the_same_each_time():
    bases = [Base(case, "one", he_tissue(seed=number)[1] / 0.8) for number, case in enumerate("ab")]
    pictures = [picture("a"), picture("b", seed=1), picture("c", "IHC"), picture("d", "SPECIAL")]
    twice = [(dyed(bases, 24, 3), changed(pictures, 24, 3)) for _ in range(2)]
    for found, again, cases in zip(*twice, ({"a", "b"}, {"a", "b", "c", "d"}), strict=True):
        assert {example.stain for example in found} == set(CLASSES)
        assert {example.case for example in found} <= cases
        assert all(example.features.shape == (COUNT,) and np.isfinite(example.features).all() for example in found)
        assert all(np.array_equal(one.features, two.features) for one, two in zip(found, again, strict=True))


@pytest.mark.slow
def test_special_stains_are_dyed_most_and_ihc_least():
    """Four to two to one, as SPECIAL is of many stains; of what hardly takes a dye there is no picture."""
    found = dyed([Base("a", "one", he_tissue(count=9, side=64)[1] / 0.8)], 56, 0)
    shares = [np.mean([example.stain == stain for example in found]) for stain in CLASSES]
    assert shares == pytest.approx([2 / 7, 1 / 7, 4 / 7], abs=0.09)


@pytest.mark.slow
def test_a_large_laboratory_does_not_outweigh_the_others():
    """Nine cases of one laboratory and one of another: three pictures to one, whatever the slides of a case."""
    large = [picture(f"a{number}", laboratory="large") for number in range(9)]
    small = [picture("b", laboratory="small")] * 20
    found = changed([*large, *small], 1200, 0)
    assert np.mean([example.laboratory == "large" for example in found]) == pytest.approx(0.75, abs=0.06)


def test_a_series_of_cases_is_a_laboratory():
    assert {laboratory_of(case) for case in ("eas12", "eas3", "eas")} == {"eas"}
    assert laboratory_of("hodgkin") == "hodgkin"
    assert laboratory_of("137") == "137"


@given(st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_another_laboratory_keeps_what_is_stained_most(seed):
    """Densities stay finite and >= 0, and where there was more dye there is more (ink and noise apart)."""
    amounts = np.linspace(0.1, 1.0, 4000, dtype=np.float32)
    density = amounts[:, None] * HAEMATOXYLIN.astype(np.float32)
    found = varied(density, np.random.default_rng(seed))
    assert found.shape[1] == 3
    assert 800 <= len(found) <= 3000
    assert np.isfinite(found).all()
    assert found.min() >= 0
    assert found.mean() > 0.02


def examples(case, shift, count=300, laboratory=""):
    """Classes that one feature tells apart; `shift` moves their labels on, as in a case that is unlike all others."""
    rng = np.random.default_rng(len(case))
    found = []
    for number in range(count):
        features = rng.normal(0, 0.1, COUNT).astype(np.float32)
        features[number % 3 :: 3] += 1
        stain = CLASSES[(number % 3 + shift) % 3]
        found.append(Example(features, stain, case, laboratory or case, f"{case}{number}"))
    return found


@pytest.mark.parametrize("hues", HUE_PLACES, ids=str)
def test_what_is_learned_of_a_hue_holds_for_the_hues_beside_it(hues):
    """One hue tells the classes apart, the first of its circle: the next and the last lean the same way, others not."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(1200):
        features = rng.normal(0, 1, COUNT).astype(np.float32)
        features[hues.start] += 2 * (number % 3)
        found.append(Example(features, CLASSES[number % 3], "a", "a", str(number)))
    slope = fit(found).slope[hues]
    lean = (slope[:, 2] - slope[:, 0]) / (slope[0, 2] - slope[0, 0])
    assert min(lean[1], lean[-1]) > 0.15
    assert np.abs(lean[6:-6]).max() < 0.12


@pytest.mark.parametrize("by_laboratory", [False, True])
def test_a_case_is_judged_by_classifiers_that_have_not_seen_it(by_laboratory):
    """The odd case's labels can only be known from itself: held out, all of it is called wrongly."""
    usual, odd, new = examples("usual", 0), examples("odd one", 1), examples("new", 0, 12)
    judged = hold_out([*usual, *examples("usual too", 0), *odd], [*odd, *new], by_laboratory=by_laboratory)
    wrong = judged.logits.argmax(axis=1) != judged.truth
    assert wrong[judged.cases == "odd one"].all()
    assert judged.names.tolist() == [example.name for example in [*odd, *new]]
    seen = fit([*usual, *usual, *examples("usual too", 0)]).logits(np.array([example.features for example in new]))
    assert (seen.argmax(axis=1) == judged.truth[judged.cases == "new"]).all()


def test_a_laboratory_is_held_out_with_all_its_cases():
    """Two cases of one odd laboratory: each is known from the other, but not where both are held out."""
    usual = [*examples("usual", 0, 60), *examples("usual too", 0, 60)]
    odd = [*examples("odd one", 1, 240, "odd"), *examples("odd two", 1, 240, "odd")]
    wrong = [
        (judged.logits.argmax(axis=1) != judged.truth).mean()
        for judged in (hold_out([*usual, *odd], odd, by_laboratory=alone) for alone in (False, True))
    ]
    assert wrong[0] < 0.2
    assert wrong[1] == 1.0


def held_out(truth, logits, cases):
    return HeldOut(truth, logits, np.zeros(len(truth)), cases, cases, cases)


def overconfident(temperature, count=6000):
    """Outputs whose probabilities would be right after division by `temperature`."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (count, 3))
    truth = np.array([rng.choice(3, p=p) for p in softmax(logits)])
    return held_out(truth, temperature * logits, rng.choice(["a", "b", "c"], count))


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
    spoilt = held_out(np.where(own, (judged.truth + 1) % 3, judged.truth), judged.logits, judged.cases)
    assert calibrated(spoilt)[own] == pytest.approx(calibrated(judged)[own])


def test_classes_weigh_the_same_and_cases_within_them():
    truth, cases = np.array([0] * 90 + [0] * 10 + [1] * 5), np.array(["a"] * 90 + ["b"] * 10 + ["a"] * 5)
    weight = even_weights(held_out(truth, np.zeros((105, 3)), cases))
    assert weight[truth == 0].sum() == pytest.approx(0.5)
    assert weight[(truth == 0) & (cases == "a")].sum() == pytest.approx(0.25)
    assert weight.sum() == pytest.approx(1)


@given(arrays.arrays(np.int64, (40, 2), elements=st.integers(0, 2)))
def test_tables_are_those_of_scikit_learn(pairs):
    truth, guess = pairs.T
    assert np.array_equal(confusion(truth, guess)[:, :3], confusion_matrix(truth, guess, labels=[0, 1, 2]))
    if len(set(truth)) > 1 and set(guess) <= set(truth):  # else it warns
        assert balanced_accuracy(truth, truth == guess) == pytest.approx(balanced_accuracy_score(truth, guess))


def test_figures_by_case_count_unknown_as_wrong():
    """Four cases: H&E right twice and UNKNOWN once, in one case and another; IHC called SPECIAL; SPECIAL right."""
    probabilities = np.array([[0.9, 0.1, 0], [0.8, 0.1, 0.1], [0.4, 0.3, 0.3], [0.0, 0.3, 0.7], [0.0, 0.05, 0.95]])
    truth, cases = np.array([0, 0, 0, 1, 2]), np.array(["a", "a", "b", "c", "d"])
    judged = held_out(truth, np.log(probabilities + 1e-9), cases)
    weight = even_weights(judged)
    assert called(probabilities).tolist() == [0, 0, -1, 2, 2]
    assert confusion(truth, called(probabilities)).tolist() == [[2, 0, 0, 1], [0, 0, 1, 0], [0, 0, 1, 0]]
    assert he_or_not(truth, probabilities, weight) == pytest.approx((0.5 + 1) / 2)
    assert three_classes(truth, probabilities, weight) == pytest.approx((0.5 + 0 + 1) / 3)
    assert right_from(0.9)(truth, probabilities, weight) == 1.0
    assert right_from(0.6)(truth, probabilities, weight) == pytest.approx(3 / 4)
    found, low, high = interval(three_classes, judged, probabilities)
    assert found == pytest.approx(0.5)
    assert (low, high) == pytest.approx((1 / 3, 2 / 3))  # H&E: both cases right, or neither


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


def test_rows_without_a_group_are_one_case_and_every_ten_a_picture(tmp_path):
    tile_table(tmp_path / "tiles.parquet")
    table = pq.read_table(tmp_path / "tiles.parquet").drop(["stain", "slide"])
    table = table.set_column(table.column_names.index("group"), "group", pa.nulls(len(table), pa.string()))
    pq.write_table(table.append_column("source", [["Lab"] * len(table)]), tmp_path / "crops.parquet")
    cohort = read_tiles(tmp_path / "crops.parquet")
    assert len(cohort.pictures) == 4  # of 36 rows; six are enough for a picture
    assert {(one.case, one.laboratory, one.stain, one.whole) for one in cohort.pictures} == {
        ("crops", "lab", "HE", False)
    }
    assert cohort.tiles == ()


def test_a_folder_of_pictures_is_read_as_the_slide_stage_sees_them(tmp_path):
    """The finer picture is reduced to 8 um/px; what has no stain is passed by; a class that there is not is refused."""
    side = 160
    density, _ = he_tissue(count=1, side=side)
    pixels = np.full((2 * side, 2 * side, 3), 245, np.uint8)
    pixels[40 : 40 + side, 40 : 40 + side] = np.rint(245 * 10 ** -density[0])
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(jpeg8_encode(pixels, level=95))
    rows = ["file,case,stain,class,um_per_px", "a.jpg,EAS12,HE1,HE,8", "b.jpg,eas3,PAS,SPECIAL,4", "c.jpg,c,,,8"]
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    one, two = read_slides(tmp_path).pictures
    assert (one.name, one.case, one.laboratory, one.stain) == ("a.jpg", "eas12", "eas", "HE")
    assert (two.name, two.case, two.laboratory, two.stain) == ("b.jpg", "eas3", "eas", "SPECIAL")
    assert len(one.densities) == pytest.approx(side * side / 4, rel=0.1)  # 25,600 px: every second row and column
    assert len(two.densities) == pytest.approx(side * side / 4, rel=0.15)  # half the side, all of it
    (tmp_path / "manifest.csv").write_text("\n".join(["file,case,class,mpp", "a.jpg,a,PAS,8"]))
    with pytest.raises(UsageError, match=r"a\.jpg is PAS, where HE, IHC, SPECIAL are understood"):
        read_slides(tmp_path)
    (tmp_path / "manifest.csv").write_text("\n".join(["file,class", "a.jpg,HE"]))
    with pytest.raises(UsageError, match="lacks the columns mpp or um_per_px, case or patient"):
        read_slides(tmp_path)


@pytest.mark.slow
def test_the_command_writes_weights_and_says_how_good_they_are(tmp_path, capsys):
    tile_table(tmp_path / "tiles.parquet")
    call = ["--tiles", str(tmp_path / "tiles.parquet"), "--to", str(tmp_path / "w.safetensors"), "--examples", "60"]
    assert main([*call, "--unseen", "PAS", "--evaluate"]) == 0
    printed = capsys.readouterr().out
    assert not (tmp_path / "w.safetensors").exists()
    assert "### Crops of a slide together: 6 of 6 cases" in printed
    assert "### Single tiles: 36 of 6 cases" in printed
    assert "| H&E against not, UNKNOWN is wrong |" in printed
    assert "| PAS | SPECIAL |" in printed.split("not fitted to")[1]
    assert main(call) == 0
    model = read_stain_model(tmp_path / "w.safetensors")
    assert model.temperature > 0
    assert 0 < model.farthest < np.inf


def test_a_table_that_is_none_of_tiles_is_refused_in_one_line(tmp_path, capsys):
    pq.write_table(pa.table({"image": [b""], "label": [1]}), tmp_path / "other.parquet")
    assert main(["--tiles", str(tmp_path / "other.parquet"), "--to", str(tmp_path / "w")]) == 2
    assert "lacks the columns group, mpp" in capsys.readouterr().err
    assert main(["--tiles", str(tmp_path / "none.parquet"), "--to", str(tmp_path / "w")]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
