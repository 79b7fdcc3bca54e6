"""While a run trains, the robustness of its teacher on a table with hospitals is a curve of its own."""

import pytest

from pretrain.compute.devices import best_device
from pretrain.evaluation.probe import embed
from pretrain.evaluation.robustness.figures import indices
from pretrain.evaluation.tasks import load_tasks
from pretrain.features.embedder import Inference
from pretrain.train.metrics import read_metrics
from pretrain.train.runs import load_run
from tests.support.tinted_cohort import write_tinted
from tests.support.training import make_shards, run

pytestmark = pytest.mark.slow


def test_the_index_of_the_teacher_is_written_where_it_is_probed(tmp_path, capsys):
    write_tinted(tmp_path / "tinted.parquet", 56, classes=2, sites=2, slides=4, tiles=3)
    changes = ("schedule.steps=2", "looking.probe=2", "compute.precision=fp32")
    assert run(make_shards(tmp_path / "out"), tmp_path / "run", *changes, probe=[tmp_path / "tinted.parquet"]) == 0
    name = "probe_tinted_institution_robustness_index"
    curve = {row["step"]: row[name] for row in read_metrics(tmp_path / "run") if name in row}
    assert list(curve) == [0, 2]
    (task,) = load_tasks(str(tmp_path / "tinted.parquet"))
    teacher, _ = load_run(tmp_path / "run")
    found = indices(task, embed(teacher, task, Inference(best_device())))
    assert curve[2] == pytest.approx(found["institution"], abs=0.02)
    assert f"robust to institution {curve[2]:.3f}" in capsys.readouterr().out
