"""Stages: the same numbers as of a run that was stopped there and gone on with under other settings."""

import json
import os
import signal
from unittest.mock import patch

import pytest

from pipelines.command import EXIT_WRONG_CALL
from pipelines.export import main as export
from pipelines.train import EXIT_SAVED, main
from pretrain.train.metrics import read_metrics
from pretrain.train.watch.watcher import RunWatcher
from tests.support.training import close_to, losses, make_shards, run, train_together

pytestmark = pytest.mark.slow

AT = 4
LATE = (
    *("views.crops.global_px=84", "views.crops.local_crops=1", "sampling.batch=12", "schedule.rate=0.001"),
    *("objective.gram_weight=2", "objective.gram_every=6", "objective.spread=koleo", "compute.accumulate=2"),
)
STAGE = tuple(f"stages.{AT}.{change}" for change in LATE)
NOT_OF_TIME = ("loss", "gradient_norm", "feature_spread", "target_", "learning_rate", "weight_decay", "tiles_seen")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards") / "out")


@pytest.fixture(scope="module")
def staged(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "staged"
    assert run(shards, folder, *STAGE, "saving.keep=9") == 0
    return folder


@pytest.fixture(scope="module")
def early(shards, tmp_path_factory):
    """The same run without stages, stopped where one would begin."""
    folder = tmp_path_factory.mktemp("runs") / "early"
    assert run(shards, folder, stop_at=AT) == 0
    return folder


def figures(folder, start=0):
    rows = [row for row in read_metrics(folder) if row["step"] >= start]
    return [{name: value for name, value in row.items() if name.startswith(NOT_OF_TIME)} for row in rows]


def test_a_stage_is_what_a_run_does_that_was_stopped_there_and_branched(shards, staged, early, tmp_path):
    go_on = ("continue_with=steps", *LATE)
    assert run(shards, tmp_path / "branch", *go_on, begin_with=f"{early}@{AT}") == 0
    found, expected = figures(tmp_path / "branch"), figures(staged, AT)
    assert len(found) == 8 - AT
    assert {"loss_gram", "loss_koleo"} < found[0].keys()
    drawn = AT * 8 - AT * 12  # which the branch, a run of batches of 12, does not know of
    assert found == [row | {"tiles_seen": row["tiles_seen"] - drawn} for row in expected]
    assert losses(staged)[:AT] == losses(early)
    assert (tmp_path / "branch/drawn.json").read_text() == (staged / "drawn.json").read_text()
    told = json.loads((tmp_path / "branch/run.json").read_text())["continued"]
    assert (told["step"], told["with"]) == (AT, "steps")


def test_a_run_that_has_not_come_so_far_takes_a_stage(shards, staged, early, tmp_path, capsys):
    assert run(shards, tmp_path / "run", stop_at=AT) == 0
    assert run(shards, tmp_path / "run", *STAGE, stop_at=6) == 0  # in the midst of it
    said = " ".join(capsys.readouterr().out.split())
    assert "the run continues with changes: stages.4.compute" not in said  # which may change at any time
    assert "the run continues with changes: stages.4.objective.gram_every: None -> 6, " in said
    assert run(shards, tmp_path / "run") == 0
    assert figures(tmp_path / "run") == figures(staged)
    assert run(shards, tmp_path / "run", f"stages.{AT + 1}.schedule.rate=0.1") == EXIT_WRONG_CALL
    assert f"stages.{AT + 1}.schedule.rate: None -> 0.1" in capsys.readouterr().err


def test_what_changes_is_said_and_what_was_drawn_is_counted(shards, tmp_path, capsys):
    assert run(shards, tmp_path / "run", *STAGE, "schedule.steps=6", "saving.every=99") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "from step 4 on: sampling.batch: 8 -> 12, schedule.rate: 0.004 -> 0.001, " in said
    assert "compute.accumulate: 1 -> 2" in said
    assert f"{4 * 8 + 2 * 12} tiles drawn" in said
    assert sum(row["drawn"] for row in json.loads((tmp_path / "run/drawn.json").read_text())) == 56
    assert [row["tiles_seen"] for row in read_metrics(tmp_path / "run")] == [8, 16, 24, 32, 44, 56]


def test_a_signal_in_the_last_step_before_a_stage_ends_the_run_there(shards, staged, tmp_path):
    stepped = RunWatcher.stepped

    def interrupted(watcher, step):
        stepped(watcher, step)
        if step == AT:
            os.kill(os.getpid(), signal.SIGTERM)

    with patch.object(RunWatcher, "stepped", interrupted):
        assert run(shards, tmp_path / "run", *STAGE) == EXIT_SAVED
    assert [step for step, *_ in losses(tmp_path / "run")] == list(range(AT))
    assert run(shards, tmp_path / "run") == 0
    assert figures(tmp_path / "run") == figures(staged)


def begun(folder, origin, *changes):
    words = ["--run", str(folder), "--index", str(folder.parent / "index"), "--continue-run", origin]
    return main([*words, "--set", *changes])


def test_a_run_that_continues_another_in_a_stage_begins_with_its_values(staged, tmp_path):
    assert begun(tmp_path / "new", f"{staged}@6", "schedule.steps=1", "sampling.seed=3") == 0
    recipe = json.loads((tmp_path / "new/recipe.json").read_text())
    assert (recipe["sampling"]["batch"], recipe["views"]["crops"]["global_px"], recipe["stages"]) == (12, 84, [])
    changes = json.loads((tmp_path / "new/run.json").read_text())["continued"]["changes"]
    assert sorted(changes) == ["sampling.seed: 0 -> 3", "schedule.steps: 8 -> 1"]
    assert begun(tmp_path / "before", f"{staged}@3", "schedule.steps=1") == 0
    assert json.loads((tmp_path / "before/recipe.json").read_text())["sampling"]["batch"] == 8
    assert begun(tmp_path / "same", f"{staged}@3", "continue_with=steps") == 0
    assert figures(tmp_path / "same") == figures(staged, 3)  # through the stage that is yet to come


def test_a_model_card_tells_of_stages(staged, tmp_path):
    assert export(["--run", str(staged), "--to", str(tmp_path / "model")]) == 0
    card = (tmp_path / "model/README.md").read_text()
    assert "8 steps of 8 tiles, later of others, 80 tiles in all" in card
    assert "stages.4.views.crops.global_px=84" in card


def test_anchoring_from_the_first_step_is_warned_of(shards, tmp_path, capsys):
    assert run(shards, tmp_path / "run", "objective.gram_weight=2", stop_at=1) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "a teacher that has learnt nothing; begin it late: stages.6.objective.gram_weight=2" in said
    assert run(shards, tmp_path / "late", "stages.6.objective.gram_weight=2", stop_at=1) == 0
    assert "learnt nothing" not in capsys.readouterr().out


@pytest.mark.long
def test_two_processes_go_through_stages_as_one_does(shards, tmp_path):
    """But for `accumulate`, whose parts are of other tiles."""
    stage = [change for change in STAGE if "accumulate" not in change]
    assert run(shards, tmp_path / "one", *stage) == 0
    train_together(shards, tmp_path / "run", *stage, "compute.parallel=fsdp", stop_at=6)
    assert run(shards, tmp_path / "run", *stage) == 0
    close_to(tmp_path / "run", tmp_path / "one")
