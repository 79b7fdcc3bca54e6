"""The command on slides: from shards by features of three models to a table, and one line for what is wrong."""

import csv

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipelines.embed import main as embed
from pipelines.evaluate_slides import main
from pipelines.train import main as train
from pretrain.data.labelled import EncodedTiles
from pretrain.errors import BadTask
from pretrain.evaluation.probe import colour_statistics
from pretrain.evaluation.slides.attention import AttentionSettings
from pretrain.evaluation.slides.bags import read_bags, read_labels
from pretrain.evaluation.slides.judge import judge_slides, judged_slides
from pretrain.features.colours import colours_of
from tests.support.labelled_tiles import noise
from tests.support.shard_folders import add_slide
from tests.support.training import TINY

IDS = [f"slide{number}-{number:08x}" for number in range(1, 13)]


def labels_file(path, rows, columns=("slide", "label", "patient")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def features_folder(folder, slides, width=4, tiles=9, apart=3.0, at=""):
    """Features of slides of two classes in turn, whose tiles lie `apart`."""
    place = folder / at
    place.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(width)
    for number, slide in enumerate(slides):
        with h5py.File(place / f"{slide}.h5", "w") as opened:
            opened["features"] = (rng.normal(size=(tiles, width)) + apart * (number % 2)).astype(np.float32)
    return folder


@pytest.fixture
def labels(tmp_path):
    """Twelve slides of six patients, two classes."""
    rows = [(slide, "ab"[n % 2], f"p{n // 4}{n % 2}") for n, slide in enumerate(IDS)]
    return labels_file(tmp_path / "labels.csv", rows)


def test_colours_are_those_of_labelled_tiles():
    tiles = EncodedTiles([noise(n, 56, 42) for n in range(3)])
    pixels = torch.from_numpy(np.stack([tiles.read(n) for n in range(3)])).permute(0, 3, 1, 2).float() / 255
    assert torch.allclose(colours_of(pixels), colour_statistics(tiles), atol=1e-6)


@pytest.mark.long
def test_from_shards_to_a_table(tmp_path, capsys):
    out = tmp_path / "out"

    def drawn(slide, _magnification, index):
        pixels = np.random.default_rng(100 * slide + index).integers(0, 60, (392, 392, 3), np.uint8)
        pixels[..., 2 * (slide % 2)] += 120
        return pixels

    for number in range(1, 9):
        add_slide(out, number, {"20x": 2}, picture=drawn, file=f"s{number}.svs")
    words = ["--run", str(tmp_path / "run"), "--index", str(tmp_path / "index"), "--stop-at", "1"]
    assert train([*words, "--shards", str(out), "--set", *TINY, "sampling.mix.10x=0"]) == 0
    models = {"colours": "colours", "untrained": f"untrained:{tmp_path / 'run'}", "trained": str(tmp_path / "run")}
    for folder, model in models.items():
        assert embed(["--model", model, "--shards", str(out), "--to", str(tmp_path / folder), "--px", "56"]) == 0
    names = ["slide1.svs", "slide2", *IDS[2:8]]  # by file, and by id
    rows = [(name, "red" if (n + 1) % 2 == 0 else "blue", f"p{n}") for n, name in enumerate(names)]
    file = labels_file(tmp_path / "labels.csv", rows)
    capsys.readouterr()
    folders = [str(tmp_path / folder) for folder in models]
    assert main(["--labels", str(file), "--features", *folders, "--to", str(tmp_path / "figures")]) == 0
    said = capsys.readouterr().out
    assert "8 slides of 8 patients, 4 folds: blue 4, red 4" in said
    assert "note: 4 folds in place of 5, for want of patients: blue 4, red 4" in said
    assert "no features of" not in said
    table = pq.read_table(tmp_path / "figures/slides.parquet").to_pylist()
    by = {(row["features"], row["judge"], row["metric"]): row for row in table}
    assert len(by) == 3 * 2 * 2
    assert by["colours", "mean of tiles", "AUC"]["value"] == 1.0
    assert all(row["low"] <= row["value"] <= row["high"] for row in table)
    assert main(["--labels", str(file), "--features", folders[0]]) == 0
    assert "note: no features of an untrained network: make them by" in capsys.readouterr().out


def test_good_features_tell_the_classes_and_noise_does_not(labels, tmp_path):
    told = read_labels(labels)
    good = read_bags(features_folder(tmp_path / "good", IDS), told.slides, "", 0)
    bad = read_bags(features_folder(tmp_path / "bad", IDS, width=5, apart=0.0), told.slides, "", 0)
    slides, fold = judged_slides(told, [good, bad], 3)
    assert len(np.unique(fold)) == 3
    assert "fewer than 10 patients of a class (a 3, b 3): intervals are too narrow" in slides.notes
    few = AttentionSettings(steps=200)
    rows = {(r.features, r.judge, r.metric): r for bags in (good, bad) for r in judge_slides(slides, fold, bags, few)}
    for judge in ("attention", "mean of tiles"):
        assert rows["good", judge, "AUC"].value == 1.0
        assert rows["bad", judge, "AUC"].value < 0.9
        assert (rows["good", judge, "AUC"].groups, rows["good", judge, "AUC"].folds) == (6, 3)


def test_tiles_beyond_the_limit_are_drawn_and_always_the_same(tmp_path):
    folder = features_folder(tmp_path / "f", IDS[:2], tiles=50)
    few = read_bags(folder, IDS[:3], "", 10)
    assert [bag.shape for bag in few.features] == [(10, 4), (10, 4)]
    assert few.notes == ("f: 1 slide without features skipped", "f: of 2 slides, 10 tiles are drawn")
    assert (few.features[0] == read_bags(folder, IDS[:3], "", 10).features[0]).all()
    every = read_bags(folder, IDS[:2], "", 0).features[0]
    assert all((every == row).all(1).any() for row in few.features[0])


def test_features_are_found_by_magnification_and_in_others_layouts(tmp_path):
    folder = features_folder(tmp_path / "f", IDS[:2], at="h5/20x")
    assert read_bags(folder, IDS[:2], "", 0).slides == tuple(IDS[:2])
    features_folder(folder, IDS[:2], width=6, at="h5/10x")
    assert read_bags(folder, IDS[:2], "10x", 0).features[0].shape == (9, 6)
    for magnification, said in (("", "has features at 20x, 10x; name one"), ("40x", "has no features at 40x")):
        with pytest.raises(BadTask, match=said):
            read_bags(folder, IDS[:2], magnification, 0)
    with h5py.File(tmp_path / "TCGA-1.h5", "w") as opened:
        opened["features"] = np.ones((1, 5, 3), np.float16)
    assert read_bags(tmp_path, ["TCGA-1.svs"], "", 0).features[0].shape == (5, 3)


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (np.ones((3, 4), np.int64), "features are int64"),
        (np.ones(3, np.float32), "not floats"),
        (np.ones((0, 4), np.float32), "not floats"),
        (np.full((2, 4), np.nan, np.float32), "not finite"),
    ],
)
def test_features_that_are_none_are_refused(tmp_path, features, said):
    with h5py.File(tmp_path / "a.h5", "w") as opened:
        opened["features"] = features
    with pytest.raises(BadTask, match=said):
        read_bags(tmp_path, ["a"], "", 0)


def test_what_could_not_be_held_is_not_begun_to_be_read(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as opened:
        opened.create_dataset("features", (1 << 30, 1024), np.float32, chunks=(1, 1024))
    with pytest.raises(BadTask, match="larger than 4 GiB"):
        read_bags(tmp_path, ["a"], "", 10)
    with h5py.File(tmp_path / "a.h5", "w") as opened:
        opened["features"] = h5py.ExternalLink("/etc/hostname", "x")
    with pytest.raises(BadTask, match="is a link, or lies in another file"):
        read_bags(tmp_path, ["a"], "", 10)


@pytest.mark.parametrize(
    ("columns", "rows", "said"),
    [
        (("slide", "y", "patient"), [("a", "1", "p")], "has no column label"),
        (("file", "label", "patient"), [("a", "1", "p")], "has no column slide_id or slide"),
        (("slide", "label", "patient"), [("a", "1", "p"), ("a", "2", "q")], "a has several rows"),
        (("slide", "label", "patient"), [("a", " ", "p")], "no row has a slide and a label"),
        (
            ("slide", "label", "patient"),
            [(IDS[0], "a", "p"), (IDS[1], "b", "q"), (IDS[2], "b", "r")],
            "there are: a 1, b 2",
        ),
        (("slide", "label", "patient"), [("x", "a", "p"), ("y", "b", "q")], "has features of none of 2 slides"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, capsys, columns, rows, said):
    file = labels_file(tmp_path / "labels.csv", rows, columns)
    folder = features_folder(tmp_path / "f", IDS)
    assert main(["--labels", str(file), "--features", str(folder)]) == 2
    found = capsys.readouterr()
    assert said in found.err
    assert found.err.count("\n") == 1


def test_wrong_calls_are_refused(labels, tmp_path, capsys):
    folder = str(features_folder(tmp_path / "f", IDS))
    for words, said in (
        (["--features", folder, "--folds", "1"], "--folds must be at least 2"),
        (["--features", folder, folder], "two folders hold features of 'f'"),
        (["--features", str(tmp_path / "none")], "there is no such folder of features"),
    ):
        assert main(["--labels", str(labels), *words]) == 2
        assert said in capsys.readouterr().err
    assert main(["--labels", str(tmp_path / "none.csv"), "--features", folder]) == 2
    assert "none.csv: cannot be read" in capsys.readouterr().err


def test_a_slide_without_a_patient_stands_for_itself_and_is_said(tmp_path):
    told = read_labels(labels_file(tmp_path / "l.csv", [("a", "x"), ("b", "y")], ("slide", "label")))
    assert len(np.unique(told.patients)) == 2
    assert "each slide counts as a patient" in told.notes[0]
    told = read_labels(
        labels_file(tmp_path / "l.csv", [("a", "x", ""), ("b", "y", "p"), ("c", "y", "p"), ("d", "", "")])
    )
    assert [len(np.unique(told.patients)), *told.notes] == [2, "1 row without slide or label skipped"]
