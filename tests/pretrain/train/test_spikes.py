"""Steps that stand out are named once, and what others would wait for too long stops nobody."""

import json
import time
from datetime import timedelta
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from pretrain.train import learner
from pretrain.train.watch import spikes, watcher
from pretrain.train.watch.spikes import Spikes
from tests.support.labelled_tiles import table
from tests.support.training import as_rank, make_shards, run, train_together


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards") / "out")


def named(losses, norms):
    seen = Spikes()
    said = [
        seen.add(step, {"loss": a, "gradient_norm": b}) for step, (a, b) in enumerate(zip(losses, norms, strict=True))
    ]
    assert seen.count == sum(map(bool, said))
    return {step: text for step, text in enumerate(said) if text}


def falling(steps, seed):
    """A loss and a norm as they are: falling, with noise of a few per cent."""
    rng = np.random.default_rng(seed)
    along = np.linspace(0, 1, steps)
    return (8 - 5 * along) * rng.normal(1, 0.01, steps), (4 - 3 * along) * rng.lognormal(0, 0.25, steps)


@pytest.mark.slow
@given(seed=st.integers(0, 10**6), steps=st.integers(60, 300))
def test_a_run_that_only_falls_has_none(seed, steps):
    assert named(*falling(steps, seed)) == {}


@given(seed=st.integers(0, 10**6), at=st.integers(60, 250), times=st.floats(12, 1000), of=st.sampled_from([0, 1]))
@pytest.mark.slow
def test_a_step_far_beyond_the_others_is_named_once(seed, at, times, of):
    both = falling(300, seed)
    usual = np.median(both[of][max(0, at - 200) : at])
    both[of][at : at + 5] *= times  # as an excursion of a few steps is
    (step, text), *more = named(*both).items()
    assert not more
    assert step == at
    name = ("loss", "gradient norm")[of]
    assert text.startswith(f"{name} {both[of][at]:.4g}, usually {usual:.4g} in the {min(at, 200)} steps before")


@pytest.mark.slow
def test_a_run_says_it_goes_on_and_writes_the_tiles(shards, tmp_path, capsys):
    real = learner.clip_gradients

    def clipped(network, settings):
        norm = real(network, settings)
        calls.append(norm)
        return norm * 100 if len(calls) == 6 else norm

    calls = []
    with patch.object(learner, "clip_gradients", clipped), patch.object(spikes, "_LEAST", 4):
        assert run(shards, tmp_path / "run") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "step 5: spike: gradient norm" in said
    assert said.count("spike:") == 1
    (file,) = (tmp_path / "run").glob("spike-*.json")
    told = json.loads(file.read_text())
    assert told["step"] == 5
    assert len(told["tiles"]) == 8


def _probing_for_longer_than_others_wait(rank, processes, name, arguments):
    begin, embed = dist.init_process_group, watcher.embed

    def slow(*given):
        ends = time.monotonic() + 1.5
        while time.monotonic() < ends:  # as a probe of many tiles is
            torch.ones(10).sum()
        return embed(*given)

    def impatient(*words, **given):
        begin(*words, **(given | {"timeout": timedelta(seconds=1)}))

    with patch.object(dist, "init_process_group", impatient), patch.object(watcher, "embed", slow):
        as_rank(rank, processes, name, arguments)


@pytest.mark.long
def test_a_long_probe_of_the_first_process_is_waited_for(shards, tmp_path):
    tiles = table(tmp_path / "tiles.parquet", label=list("ab") * 10, group=[str(n // 4) for n in range(20)])
    settings = ("looking.probe=2", "schedule.steps=2")
    train_together(shards, tmp_path / "run", *settings, target=_probing_for_longer_than_others_wait, probe=[tiles])
