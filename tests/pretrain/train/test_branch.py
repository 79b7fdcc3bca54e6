"""Runs that are made longer, and runs that begin with what another has learnt."""

import json
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from pipelines.command import EXIT_WRONG_CALL
from pipelines.export import main as export
from pipelines.train import main
from pretrain.train.checkpoint import step_folder
from tests.support.training import close_to, losses, make_shards, run, train_together

pytestmark = pytest.mark.slow

CONSTANT = ("schedule.shape=constant", "schedule.cooldown=0.25")
STILL = ("schedule.rate=0", "schedule.least_rate=0", "schedule.momentum=1,1", "schedule.decay=0,0", "schedule.steps=1")
"""One step that moves no parameter."""


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards") / "out")


@pytest.fixture(scope="module")
def first(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert run(shards, folder, "saving.keep=9") == 0
    return folder


def tensors(folder, step):
    found = {}
    for file in step_folder(folder / "checkpoints", step).glob("*.safetensors"):
        found |= load_file(file)
    return found


def same(mine, theirs, beginning=""):
    names = [name for name in theirs if name.startswith(beginning)]
    assert names
    return all(torch.equal(mine[name], theirs[name]) for name in names)


def test_a_constant_rate_is_made_longer_as_if_it_had_been_from_the_start(shards, tmp_path):
    assert run(shards, tmp_path / "long", *CONSTANT, "schedule.steps=12", "schedule.shares_of=8") == 0
    assert run(shards, tmp_path / "run", *CONSTANT, stop_at=5) == 0
    assert run(shards, tmp_path / "run", *CONSTANT, "schedule.steps=12") == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "long")
    saved = json.loads((tmp_path / "run/recipe.json").read_text())["schedule"]
    assert (saved["steps"], saved["shares_of"]) == (12, 8)


@pytest.mark.parametrize("changes", [(), CONSTANT])
def test_what_has_begun_to_fall_is_not_made_longer(shards, tmp_path, capsys, changes):
    assert run(shards, tmp_path / "run", *changes, stop_at=8) == 0
    assert run(shards, tmp_path / "run", *changes, "schedule.steps=12") == EXIT_WRONG_CALL
    said = capsys.readouterr().err
    assert "schedule.steps: 8 -> 12" in said
    assert f"begin another with what this one has learnt: CONTINUE={tmp_path / 'run'}" in said


@pytest.mark.parametrize(("how", "steps"), [("all", 7), ("network", 1), ("backbone", 1)])
def test_a_new_run_begins_with_what_another_has_learnt(shards, first, tmp_path, how, steps):
    folder = tmp_path / "run"
    assert run(shards, folder, *STILL, f"continue_with={how}", begin_with=f"{first}@6") == 0
    before, now = tensors(first, 6), tensors(folder, 1)
    assert same(now, before, "student.backbone.")
    assert same(now, before, "average.backbone.")
    for part in ("student.cls_head.", "student.patch_head.", "average.cls_head."):
        assert same(now, before, part) == (how != "backbone")
    assert {float(value) for name, value in now.items() if name.endswith(".step")} == {steps}


def test_it_is_recorded_and_said(shards, first, tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(shards, folder, "schedule.rate=0.001", "schedule.steps=2", begin_with=f"{first}@3") == 0
    told = json.loads((folder / "run.json").read_text())["continued"]
    assert (told["run"], told["step"], told["with"]) == (str(first), 3, "all")
    assert sorted(told["changes"]) == ["schedule.rate: 0.004 -> 0.001", "schedule.steps: 8 -> 2"]
    said = " ".join(capsys.readouterr().out.split())
    assert f"begins with network, moving mean and optimizer of {first} at step 3; changed: " in said
    assert "the seed is as there" in said


def test_an_exported_model_does_not_name_the_folder_that_its_run_began_with(shards, first, tmp_path):
    assert run(shards, tmp_path / "run", "schedule.steps=1", begin_with=first) == 0
    assert export(["--run", str(tmp_path / "run"), "--to", str(tmp_path / "model")]) == 0
    texts = [file.read_bytes() for file in (tmp_path / "model").iterdir()]
    assert texts
    assert not any(str(first.parent).encode() in text for text in texts)


def test_shards_and_filter_are_those_of_the_run_that_is_continued(first, tmp_path):
    words = ["--run", str(tmp_path / "run"), "--index", str(tmp_path / "index"), "--continue-run", str(first)]
    assert main([*words, "--set", "schedule.steps=1", "sampling.seed=5"]) == 0
    mine, theirs = (json.loads((folder / "run.json").read_text()) for folder in (tmp_path / "run", first))
    assert mine["shards"] == theirs["shards"]
    assert mine["continued"]["step"] == 8  # the newest


def test_one_that_was_killed_before_it_saved_begins_there_again(shards, first, tmp_path):
    with patch("pretrain.train.loop.Trainer.run", side_effect=KeyboardInterrupt):
        run(shards, tmp_path / "run", "schedule.rate=0.001", begin_with=f"{first}@3")
    assert run(shards, tmp_path / "run") == 0  # by its own recipe, without naming the other run
    assert run(shards, tmp_path / "unbroken", "schedule.rate=0.001", begin_with=f"{first}@3") == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "unbroken")


@pytest.mark.long
def test_two_processes_begin_in_shards_with_what_one_has_saved(shards, first, tmp_path):
    assert run(shards, tmp_path / "one", "schedule.steps=3", begin_with=first) == 0
    train_together(shards, tmp_path / "two", "schedule.steps=3", "compute.parallel=fsdp", begin_with=first)
    close_to(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize(
    ("changes", "begin_with", "why"),
    [
        (("objective.head.prototypes=32",), "{first}", "SET=continue_with=backbone"),
        (("backbone.width=48",), "{first}", "leave the network's settings as they are"),
        (("start_from=weights",), "{first}", "start_from or continue_from, not both"),
        (("continue_with=heads",), "{first}", "choose from all, network, backbone"),
        (("continue_from=elsewhere",), "{first}", "continue_from 'elsewhere' names no step"),
        ((), "{first}@4", "holds no checkpoint of step 4"),
        ((), "{first}/checkpoints", "no folder of a run"),
        ((), "{first}@", "no folder of a run"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(shards, first, tmp_path, capsys, changes, begin_with, why):
    assert run(shards, tmp_path / "run", *changes, begin_with=begin_with.format(first=first)) == EXIT_WRONG_CALL
    said = capsys.readouterr().err
    assert why in said
    assert said.count("\n") == 1


def test_another_run_than_it_began_with_and_a_recipe_beside_it_are_refused(shards, first, tmp_path, capsys):
    assert run(shards, tmp_path / "run", stop_at=1) == 0
    assert run(shards, tmp_path / "run", begin_with=first) == EXIT_WRONG_CALL
    assert "did not begin with" in capsys.readouterr().err
    assert main(["--continue-run", str(first)]) == EXIT_WRONG_CALL
    assert "the folder of the new run" in capsys.readouterr().err
    words = ["--run", str(tmp_path / "new"), "--recipe", "small", "--continue-run", str(first)]
    assert main(words) == EXIT_WRONG_CALL
    assert "change it by SET, without RECIPE" in capsys.readouterr().err
