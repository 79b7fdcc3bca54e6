"""Shards, a run and its checkpoint, left by the commit before the folders were ordered anew: read and gone on with."""

import json
import shutil
import tarfile

import pytest

from pipelines.query import main as query
from pipelines.train import main as train
from pipelines.verify import main as verify
from pretrain.train.runs import load_network, load_run
from tests.support.paths import ROOT

ARCHIVE = ROOT / "tests" / "data" / "before.tar.xz"


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """`out`: 8 tiles of one slide; `run`: 3 of 6 steps of a tiny ViT; `metrics.jsonl`: all 6, by the same commit."""
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def losses(file):
    return [json.loads(line)["loss"] for line in file.read_text().splitlines()]


@pytest.mark.slow
def test_shards_are_sound_and_can_be_asked(before, capsys):
    assert verify(["--shards", str(before / "out")]) == 0
    sql = "SELECT count(*), min(stain) FROM tiles JOIN slides USING (slide_id)"
    assert query(["--shards", str(before / "out"), "--sql", sql]) == 0
    assert {"8", "HE"} <= set(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_run_goes_on_as_it_would_have_then(before, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(before / "run", run)
    shards, index = str(before / "out"), str(tmp_path / "index")
    assert train(["--shards", shards, "--folder", str(run), "--index", index]) == 0
    assert losses(run / "metrics.jsonl") == pytest.approx(losses(before / "metrics.jsonl"), rel=1e-4)


def test_its_models_are_read(before):
    backbone, step = load_run(before / "run")
    assert (backbone.settings.width, step) == (16, 3)
    assert load_network(before / "run")[0].cls_head.prototypes.shape[0] == 32
