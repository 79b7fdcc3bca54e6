"""A RUN, a folder of features and a folder of tiles that somebody else has filled: links, pipes, other files."""

import os

import h5py
import numpy as np
import pytest
from PIL import Image

from pipelines.embed import main as embed
from pipelines.evaluate import main as evaluate
from pretrain.train.metrics import MetricsLog
from tests.support.training import make_shards, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards") / "out")


@pytest.fixture(scope="module")
def model(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "run"
    assert run(shards, folder, "schedule.steps=1") == 0
    return folder


@pytest.fixture
def victim(tmp_path):
    """A folder outside, with what a run deletes where it is its own."""
    (tmp_path / "victim/.partial-mine").mkdir(parents=True)
    (tmp_path / "victim/.partial-mine/thesis.txt").write_text("three years")
    (tmp_path / "victim/mine.parquet").write_bytes(b"data")
    return tmp_path / "victim"


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def embedded(shards, model, to, *more):
    where = "slide_id = 'slide1-00000001'"
    call = ["--shards", str(shards), "--model", str(model), "--to", str(to), "--threads", "1", "--where", where]
    return embed([*call, *more])


@pytest.mark.parametrize("name", ["checkpoints", "pictures", "tensorboard"])
def test_a_run_deletes_and_writes_nothing_through_a_link(shards, victim, tmp_path, capsys, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(victim)
    before = content(victim)
    assert run(shards, tmp_path / "run", "schedule.steps=1") == 2
    assert f"run/{name} is a link" in capsys.readouterr().err
    assert content(victim) == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "run.json", "recipe.json"])
@pytest.mark.parametrize("kind", ["link", "link to nothing", "pipe"])
def test_a_file_of_a_run_is_no_link_and_not_waited_for(shards, victim, tmp_path, capsys, name, kind):
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / name
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(victim / ("mine.parquet" if kind == "link" else "new"))
    before = content(victim)
    assert run(shards, tmp_path / "run", "schedule.steps=1") == 2
    said = capsys.readouterr().err
    assert f"run/{name} " in said
    assert said.count("\n") == 1
    assert content(victim) == before


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, "\udcff"])
def test_a_run_whose_facts_are_nonsense_is_one_line(shards, tmp_path, capsys, text):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/run.json").write_text(text, errors="surrogateescape")
    assert run(shards, tmp_path / "run", "schedule.steps=1") == 2
    said = capsys.readouterr().err
    assert "run/run.json " in said
    assert "remove it to continue" in said


def test_lines_of_metrics_that_are_none_are_dropped(tmp_path):
    lines = [b'{"step": 1, "loss": 2.0}', b"[" * 100_000, b"\xff", b'{"step": 9}']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    MetricsLog(tmp_path, 5).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines[0] + b"\n"


@pytest.mark.parametrize("name", ["parquet", "h5", "h5/20x"])
@pytest.mark.parametrize("more", [[], ["--redo"]])
def test_features_are_written_and_deleted_through_no_link(shards, model, victim, tmp_path, capsys, name, more):
    link = tmp_path / "to" / name
    link.parent.mkdir(parents=True)
    (tmp_path / "to/features.json").write_text("{}")
    link.symlink_to(victim)
    before = content(victim)
    assert embedded(shards, model, tmp_path / "to", *more) == 2
    assert "is a link" in capsys.readouterr().err
    assert content(victim) == before


def test_redo_asks_of_each_file_whether_it_holds_features(shards, model, tmp_path, capsys):
    (tmp_path / "to/parquet").mkdir(parents=True)
    (tmp_path / "to/features.json").write_text("{}")
    (tmp_path / "to/parquet/mine.parquet").write_bytes(b"data")
    assert embedded(shards, model, tmp_path / "to", "--redo") == 2
    assert "mine.parquet holds no features" in capsys.readouterr().err
    assert (tmp_path / "to/parquet/mine.parquet").read_bytes() == b"data"


@pytest.mark.parametrize("put", ["pipe", "scalar"])
def test_what_is_no_file_of_features_is_made_anew(shards, model, tmp_path, put):
    to = tmp_path / "to"
    assert embedded(shards, model, to) == 0
    (parquet,), (h5, *_) = to.glob("parquet/*.parquet"), sorted(to.glob("h5/*/*.h5"))
    if put == "pipe":
        parquet.unlink()
        os.mkfifo(parquet)
    else:
        with h5py.File(h5, "w") as opened:
            opened["features"] = opened["coords"] = 1.0
    assert embedded(shards, model, to) == 0
    assert parquet.is_file()
    with h5py.File(h5) as opened:
        assert opened["features"].ndim == 2


def test_a_pipe_among_tiles_is_named(model, tmp_path, capsys):
    for name, level in (("a", 50), ("b", 200)):
        (tmp_path / "tiles" / name).mkdir(parents=True)
        for number in range(4):
            picture = np.full((28, 28, 3), level, np.uint8)
            Image.fromarray(picture).save(tmp_path / "tiles" / name / f"{number}.png")
    os.mkfifo(tmp_path / "tiles/a/x.png")
    call = ["--models", str(model), "--tasks", str(tmp_path / "tiles"), "--cache", str(tmp_path / "cache")]
    assert evaluate(call) == 2
    assert "x.png: it is no plain file" in capsys.readouterr().err
