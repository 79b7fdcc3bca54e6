"""Runs with Gram anchoring: exact when gone on with, and what a run that continues another is anchored to."""

import pytest
import torch

from pretrain.train.metrics import read_metrics
from tests.support.training import losses, make_shards, run, tensors, train_together

pytestmark = pytest.mark.slow

GRAM = ("objective.gram_weight=2", "objective.gram_every=3", "saving.keep=9", "schedule.steps=7")
STILL = ("schedule.rate=0", "schedule.least_rate=0", "schedule.momentum=1,1", "schedule.decay=0,0", "schedule.steps=1")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards") / "out")


@pytest.fixture(scope="module")
def unbroken(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    assert run(shards, folder, *GRAM) == 0
    return folder


def anchored_to(mine, theirs, what="average"):
    """Whether the anchor of one checkpoint is what another has as its moving mean, or as its anchor."""
    names = [name.removeprefix("anchor.") for name in mine if name.startswith("anchor.backbone.")]
    assert names
    return all(torch.equal(mine[f"anchor.{name}"], theirs[f"{what}.{name}"]) for name in names)


@pytest.mark.parametrize("stop", [2, 5])  # before it is first taken again, and after
def test_an_anchored_run_that_was_stopped_goes_on_to_the_bit(shards, unbroken, tmp_path, stop):
    assert run(shards, tmp_path / "run", *GRAM, stop_at=stop) == 0
    assert run(shards, tmp_path / "run", *GRAM) == 0
    assert losses(tmp_path / "run") == losses(unbroken)
    gram = [row["loss_gram"] for row in read_metrics(tmp_path / "run")]
    assert gram == [row["loss_gram"] for row in read_metrics(unbroken)]
    assert min(gram) > 0


def test_the_anchor_is_the_teacher_of_the_step_at_which_it_was_taken(unbroken):
    at = {step: tensors(unbroken, step) for step in (3, 6, 7)}
    assert anchored_to(at[3], at[3])
    assert anchored_to(at[6], at[6])
    assert anchored_to(at[7], at[6])
    assert not anchored_to(at[7], at[3])
    assert [int(at[step]["anchor.refreshes"]) for step in (3, 6, 7)] == [1, 2, 2]


def test_a_run_that_continues_another_is_anchored_to_what_it_begins_with(shards, unbroken, tmp_path):
    """Whether the other was anchored itself or not."""
    assert run(shards, tmp_path / "bare", *GRAM, "objective.gram_weight=0", stop_at=2) == 0
    before = tensors(tmp_path / "bare", 2)
    assert not [name for name in before if name.startswith("anchor.")]
    anchored = ("objective.gram_weight=2", *STILL)
    assert run(shards, tmp_path / "late", *anchored, begin_with=f"{tmp_path / 'bare'}@2") == 0
    assert anchored_to(tensors(tmp_path / "late", 1), before)
    assert run(shards, tmp_path / "again", *anchored, begin_with=f"{unbroken}@7") == 0
    after, theirs = tensors(tmp_path / "again", 1), tensors(unbroken, 7)
    assert anchored_to(after, theirs)
    assert not anchored_to(after, theirs, "anchor")
    assert int(after["anchor.refreshes"]) == 0
    assert run(shards, tmp_path / "off", "objective.gram_weight=0", *STILL, begin_with=f"{unbroken}@7") == 0
    assert not [name for name in tensors(tmp_path / "off", 1) if name.startswith("anchor.")]


@pytest.mark.long
def test_copies_in_shards_go_on_from_what_one_process_saved(shards, unbroken, tmp_path):
    assert run(shards, tmp_path / "run", *GRAM, stop_at=2) == 0
    train_together(shards, tmp_path / "run", *GRAM, "compute.parallel=hsdp", "compute.shard_group=2", processes=4)
    found, expected = ([row["loss_gram"] for row in read_metrics(folder)] for folder in (tmp_path / "run", unbroken))
    assert found == pytest.approx(expected, rel=1e-3)
