"""A step with a number that is not finite changes nothing, in any process, and few of them do not end a run."""

import json
import math
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.train import EXIT_STOPPED
from pretrain.learning.targets import Centre, Cosines
from pretrain.model.heads import Projection
from pretrain.train import learner
from pretrain.train.metrics import read_metrics
from pretrain.train.watch.left_out import LeftOut
from tests.support.training import as_rank, close_to, losses, make_shards, run, train_together

PLACE = 5  # of a batch of 8: in the second of two processes


@given(st.lists(st.integers(0, 60), unique=True), st.integers(0, 5), st.integers(1, 20))
def test_too_many_are_more_than_are_allowed_in_any_window(steps, most, window):
    left_out = LeftOut(most, window)
    for number, step in enumerate(sorted(steps), 1):
        within = [other for other in sorted(steps)[:number] if step - window < other <= step]
        assert left_out.add(step) == (len(within) > most)
        assert left_out.last_was(step)
        assert not left_out.last_was(step - 1)
        again = LeftOut(most, window)
        again.restore(json.loads(json.dumps(left_out.steps)), step + 1)
        assert again.steps == [other for other in left_out.steps if other > step + 1 - window]


@pytest.mark.parametrize("saved", [None, 3, "1", {"a": 1}, ["x", True, 1.5], [10**9]])
def test_a_checkpoint_that_says_nothing_of_it_is_taken(saved):
    left_out = LeftOut(1, 10)
    left_out.restore(saved, 5)
    assert left_out.steps == []


def test_a_centre_stays_where_it_is():
    centre = Centre(3)
    for vectors, moved in ((torch.eye(3), True), (torch.full((2, 3), math.nan), False)):
        before = centre.centre.clone()
        centre.update(Cosines(Projection(vectors, torch.eye(3))))
        assert torch.equal(centre.centre, before) != moved
        assert centre.centre.isfinite().all()


def planted(steps, place=PLACE):
    """A number of the first global crop is NaN, of the tile at this place of the batch, in these steps."""
    real = learner.make_views

    def views(tiles, settings, places, *arguments):
        made = real(tiles, settings, places, *arguments)
        if places.step not in steps or place not in places.position:
            return made
        crops = made.global_crops.clone()
        crops[list(places.position).index(place), 1, 2, 3] = math.nan
        return replace(made, global_crops=crops)

    return patch.object(learner, "make_views", views)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards") / "out")


@pytest.fixture(scope="module")
def one_left_out(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "one"
    with planted({3}):
        assert run(shards, folder) == 0
    return folder


@pytest.mark.slow
def test_a_run_goes_on_without_the_step_and_names_its_tiles(shards, one_left_out, tmp_path, capsys):
    rows = losses(one_left_out)
    assert [step for step, *_ in rows] == [0, 1, 2, 4, 5, 6, 7]
    assert all(math.isfinite(number) for row in rows for number in row)
    assert [row["steps_left_out"] for row in read_metrics(one_left_out)] == [0, 0, 0, 1, 1, 1, 1]
    (file,) = one_left_out.glob("nonfinite-*.json")
    assert file.name == "nonfinite-step-00000003-rank-0.json"
    assert len(json.loads(file.read_text())["tiles"]) == 8
    # a checkpoint was due after that step, whose place the next one takes
    with planted({2, 3}):
        assert run(shards, tmp_path / "run", "saving.keep=9", "saving.keep_hours=0") == 0
    saved = sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert saved == ["step-00000005", "step-00000006", "step-00000008"]
    said = capsys.readouterr().out
    assert "step 3: loss nan" in said
    assert "number 2 in 1,000 steps, of which 5 may be" in said


@pytest.mark.slow
def test_it_goes_on_to_the_bit_and_counts_over_calls(shards, one_left_out, tmp_path, capsys):
    with planted({3, 6}):
        for stop in (5, 6):
            assert run(shards, tmp_path / "run", "compute.skips=1", stop_at=stop) == 0
        assert losses(tmp_path / "run") == losses(one_left_out)[:-2]
        assert run(shards, tmp_path / "run", "compute.skips=1") == EXIT_STOPPED
        said = capsys.readouterr().err
        assert "step 6: loss nan" in said
        assert "number 2 in 1,000 steps, of which 1 may be" in said
        assert "lower schedule.rate" in said
        assert run(shards, tmp_path / "run", "compute.skips=1", "compute.skip_window=3") == 0


def _with_a_nan(rank, processes, name, arguments):
    with planted({3}):
        as_rank(rank, processes, name, arguments)


@pytest.mark.slow
def test_two_processes_leave_it_out_though_only_one_has_it(shards, one_left_out, tmp_path):
    train_together(shards, tmp_path / "run", "compute.parallel=fsdp", target=_with_a_nan)
    close_to(tmp_path / "run", one_left_out)
    assert len(list((tmp_path / "run").glob("nonfinite-step-00000003-rank-*.json"))) == 2
