"""A run is judged by the weights that it saved, beside itself untrained and the colours alone, on held-out groups."""

import io
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipelines.evaluate import main
from pretrain.errors import BadRun
from pretrain.evaluation.judge import folds, judge, remarks
from pretrain.evaluation.report import summary_lines, write_page
from pretrain.evaluation.tasks import load_tasks
from pretrain.train.metrics import read_metrics
from pretrain.train.runs import load_run, untrained
from tests.support.training import make_shards, run

pytestmark = pytest.mark.slow


def tile(label: int, number: int) -> bytes:
    """Noise that is red or blue, in a file as a task holds it."""
    pixels = np.random.default_rng(number).integers(0, 80, (56, 56, 3), np.uint8)
    pixels[..., 2 * label] += 100
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """Six slides of eight tiles; a slide is red or blue."""
    file = tmp_path_factory.mktemp("tiles") / "colour.parquet"
    group = np.repeat(np.arange(6), 8)
    images = [tile(int(g % 2), n) for n, g in enumerate(group)]
    columns = {
        "image": images,
        "label": [("red", "blue")[g % 2] for g in group],
        "group": [f"slide {g}" for g in group],
    }
    pq.write_table(pa.table(columns), file)
    return file


@pytest.fixture(scope="module")
def finished(tiles, tmp_path_factory):
    """A run of four steps that looked and probed at every second."""
    folder = tmp_path_factory.mktemp("runs")
    shards = make_shards(folder / "out")
    changes = ("schedule.steps=4", "looking.picture=2", "looking.probe=2")
    assert run(shards, folder / "run", *changes, probe=[tiles], curves=True) == 0
    return folder / "run"


def test_a_run_draws_and_probes_when_it_is_time(finished):
    assert sorted(p.name for p in (finished / "pictures").iterdir()) == [f"step-{n:08d}.png" for n in (0, 2, 4)]
    probed = {row["step"]: row for row in read_metrics(finished) if "probe_colour_linear_balanced_accuracy" in row}
    assert list(probed) == [0, 2, 4]
    assert all(0 <= row["probe_colour_knn_balanced_accuracy"] <= 1 for row in probed.values())


def test_what_is_loaded_is_the_teacher_that_was_saved(finished, tiles):
    trained, step = load_run(finished)
    assert step == 4
    crops = torch.randn(2, 3, 56, 56)
    assert not torch.equal(trained([crops])[0].cls, untrained(finished)([crops])[0].cls)


def test_untrained_is_what_the_run_began_with(finished, tmp_path):
    from pretrain.learning.self_distillation import SelfDistillation
    from pretrain.train.recipe import recipe as recipes

    recipe = recipes.load(finished / "recipe.json")
    began = SelfDistillation(recipe.objective, recipe.backbone, recipe.sampling.seed).ema.backbone.state_dict()
    for name, value in untrained(finished).state_dict().items():
        assert torch.equal(value, began[name]), name


def test_every_choice_of_groups_is_a_fold_and_never_divides_one(tiles):
    (task,) = load_tasks(str(tiles))
    divided = folds(task)
    assert len(divided) == 9
    for fold in divided:
        assert len(np.unique(fold.groups[~fold.train])) == 2
        assert not np.intersect1d(fold.groups[fold.train], fold.groups[~fold.train]).size
        assert len(np.unique(fold.labels[~fold.train])) == 2
    assert len({fold.train.tobytes() for fold in divided}) == 9


def test_labels_may_be_an_expression(tiles):
    (task,) = load_tasks(f"{tiles}:if(\"group\" = 'slide 0', null, label = 'red') as is_red")
    assert task.name == "colour:is_red"
    assert len(task.labels) == 40
    assert task.classes == ("False", "True")


def evaluated(models, tasks, to, *more):
    """The rows that the command writes, by features and judge, of balanced accuracy."""
    command = ["--models", *map(str, models), "--tasks", *map(str, tasks), "--to", str(to), "--cache", str(to)]
    assert main([*command, *more]) == 0
    rows = pq.read_table(to / "figures.parquet").to_pylist()
    return {(row["features"], row["judge"]): row for row in rows if row["metric"] == "balanced accuracy"}


def test_the_table_of_figures(finished, tiles, tmp_path, capsys):
    rows = evaluated([finished], [tiles], tmp_path)
    assert {features for features, _ in rows} == {"colours alone", "run, untrained", "run, step 4"}
    assert {judge for _, judge in rows} == {"linear", "kNN", "10-shot"}
    assert all(rows["colours alone", judge]["value"] == 1.0 for judge in ("linear", "kNN", "10-shot"))
    assert "run, step 4" in capsys.readouterr().out
    page = (tmp_path / "figures.html").read_text()
    assert page.count("<svg") == 3 * 3 * 2
    assert "run, step 4" in page


def test_exported_weights_are_judged_as_their_run(finished, tiles, tmp_path):
    from pipelines.export import main as export

    assert export(["--folder", str(finished), "--to", str(tmp_path / "model")]) == 0
    rows = evaluated([finished, tmp_path / "model", f"local-dir:{tmp_path / 'model'}"], [tiles], tmp_path)
    for by in ("linear", "kNN", "10-shot"):
        figures = [rows[who, by]["value"] for who in ("run, step 4", "model", "local-dir:model")]
        assert len(set(figures)) == 1


def test_a_model_is_compared_with_another(finished, tiles, tmp_path, capsys):
    command = ["--models", str(finished), "--tasks", str(tiles), "--to", str(tmp_path), "--cache", str(tmp_path)]
    assert main([*command, "--like", str(finished)]) == 0
    assert "shared with run, step 4" in " ".join(capsys.readouterr().out.split())
    (row,) = [row for row in pq.read_table(tmp_path / "figures.parquet").to_pylist() if row["judge"] == "alike"]
    assert (row["features"], row["metric"]) == ("run, untrained", "neighbours shared with run, step 4")
    assert 10 / 47 < row["value"] < 1


def coloured_folder(folder):
    """Two classes in six slides, each of a colour of its own, which tells the slide and not the class."""
    rng = np.random.default_rng(0)
    colours = [(1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1)]
    for slide, colour in enumerate(colours):
        for n in range(6):
            kind = folder / "ab"[slide // 3]
            kind.mkdir(parents=True, exist_ok=True)
            pixels = np.clip(50 + 150 * np.array(colour) + rng.integers(-3, 4, (56, 56, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(kind / f"slide{slide}_{n}.png")
    return folder


def test_tiles_of_unknown_slides_have_no_interval_and_this_is_said(finished, tmp_path, capsys):
    folder = coloured_folder(tmp_path / "mine")
    rows = evaluated([finished], [folder], tmp_path / "flat")
    said, page = capsys.readouterr().out, (tmp_path / "flat/figures.html").read_text()
    assert rows["colours alone", "kNN"]["value"] == 1  # it knows the slides
    assert all(row["groups"] == 0 and np.isnan([row["low"], row["high"]]).all() for row in rows.values())
    for text in (said, page):
        assert "no slides or cases known" in text
        assert "which slide or case a tile is of is not known" in text
        assert "intervals over" not in text

    pattern = ("--group-pattern", r"(?P<group>slide\d+)_")
    rows = evaluated([finished], [folder], tmp_path / "grouped", *pattern)
    said, page = capsys.readouterr().out, (tmp_path / "grouped/figures.html").read_text()
    assert rows["colours alone", "kNN"]["value"] < 0.9
    assert all(row["groups"] == 6 and row["low"] <= row["value"] <= row["high"] for row in rows.values())
    assert "intervals over 6 slides, cases or patients" in page
    assert "note: mine: slides are what the group pattern finds: 6, as slide0 in a/slide0_0.png" in said


def test_a_pattern_for_no_folder_and_two_tasks_of_one_name_are_refused(finished, tiles, tmp_path, capsys):
    command = ["--models", str(finished), "--cache", str(tmp_path), "--tasks", str(tiles)]
    assert main([*command, "--group-pattern", "(?P<group>x)"]) == 2
    assert "none of TASKS is one" in capsys.readouterr().err
    assert main([*command, str(tiles)]) == 2
    assert "two tasks are named 'colour'" in capsys.readouterr().err


def test_features_that_are_not_finite_are_said(tiles, tmp_path):
    (task,) = load_tasks(str(tiles))
    rows = judge(task, "made", torch.full((48, 3), torch.nan))
    ((_, _, linear, f1, *_),) = summary_lines(rows)
    assert linear == "not finite"
    assert f1 == ""
    write_page(rows, tmp_path / "page.html", {"colour": ["1 < 2"]})
    page = (tmp_path / "page.html").read_text()
    assert page.count("not finite") == len(rows)
    assert "1 &lt; 2" in page


def test_fewer_shots_than_ten_are_said(tiles):
    (task,) = load_tasks(str(tiles), limit=8)
    assert remarks(task) == [*task.notes, "10-shot takes fewer, for want of tiles to learn from: blue (4), red (4)"]


def test_another_model_of_the_same_name_is_not_taken_for_it(finished, tiles, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / finished.name)
    command = ["--models", str(finished), "--tasks", str(tiles), "--cache", str(tmp_path)]
    assert main([*command, "--like", str(tmp_path / finished.name)]) == 2
    assert "two models are named" in capsys.readouterr().err


def test_a_folder_without_a_run_is_one_clear_line(tmp_path, tiles, capsys):
    assert main(["--models", str(tmp_path), "--tasks", str(tiles)]) == 2
    assert str(tmp_path) in capsys.readouterr().err


def test_a_step_that_was_not_saved_is_refused(finished):
    with pytest.raises(BadRun, match="step 2"):
        load_run(finished, 2)


def test_curves_are_drawn_of_one_run_and_of_several(finished, tmp_path):
    from pipelines.curves import main as curves

    assert Image.open(finished / "curves.png").format == "PNG"
    assert curves(["--runs", str(finished), str(finished), "--out", str(tmp_path / "both.png")]) == 0
    picture = np.asarray(Image.open(tmp_path / "both.png").convert("RGB"))
    blue = (np.abs(picture.astype(int) - (31, 119, 180)).sum(2) < 30).sum()  # the first line's colour
    assert blue > 100


def test_runs_of_one_name_are_lines_of_their_own(finished, tmp_path, monkeypatch):
    from pretrain.train import curves

    shutil.copytree(finished, tmp_path / finished.name)
    drawn, save = [], curves.Figure.savefig
    monkeypatch.setattr(curves.Figure, "savefig", lambda self, *to, **how: (drawn.append(self), save(self, *to, **how)))
    curves.draw_curves([finished, tmp_path / finished.name], tmp_path / "both.png")
    labels = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert labels == [str(finished), str(tmp_path / finished.name)]


def test_curves_of_nothing_are_one_clear_line(tmp_path, capsys):
    from pipelines.curves import main as curves

    assert curves(["--runs", str(tmp_path), "--out", str(tmp_path / "none.png")]) == 2
    assert "no metrics.jsonl" in capsys.readouterr().err
