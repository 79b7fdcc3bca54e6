"""Runs: exact when gone on with, the same on any number of processes, and stopped where the numbers go bad."""

import json
import os
import shutil
import signal
import socket
import subprocess

import pytest

from pipelines.command import EXIT_WRONG_CALL
from pipelines.train import EXIT_SAVED, EXIT_STOPPED, main
from pretrain.train.checkpoint import superseded
from pretrain.train.watch.watcher import health
from tests.support.training import ROOT, close_to, command, losses, make_shards, run, train_together

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards") / "out")


@pytest.fixture(scope="module")
def unbroken(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    assert run(shards, folder) == 0
    assert [step for step, *_ in losses(folder)] == list(range(8))
    return folder


@pytest.mark.parametrize("stop", [3, 5])
def test_a_run_that_was_stopped_goes_on_to_the_bit(shards, unbroken, tmp_path, stop):
    assert run(shards, tmp_path / "run", stop_at=stop) == 0
    assert run(shards, tmp_path / "run") == 0
    assert losses(tmp_path / "run") == losses(unbroken)
    assert (tmp_path / "run/drawn.json").read_text() == (unbroken / "drawn.json").read_text()


def test_a_run_that_is_done_does_nothing_more(shards, tmp_path, capsys):
    assert run(shards, tmp_path / "run", "schedule.steps=2") == 0
    before = (tmp_path / "run/metrics.jsonl").read_text()
    assert run(shards, tmp_path / "run", "schedule.steps=2") == 0
    assert "step 2 of 2: done" in capsys.readouterr().out
    assert (tmp_path / "run/metrics.jsonl").read_text() == before


def test_accumulation_and_threads_train_as_well(shards, tmp_path):
    assert run(shards, tmp_path / "run", "compute.accumulate=2", "backbone.drop_path=0.3", "schedule.steps=3") == 0
    assert len(losses(tmp_path / "run")) == 3


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_do_what_one_does_and_one_goes_on_from_them(shards, unbroken, tmp_path, parallel):
    train_together(shards, tmp_path / "run", f"compute.parallel={parallel}", stop_at=5)
    assert run(shards, tmp_path / "run") == 0
    close_to(tmp_path / "run", unbroken)
    assert json.loads((tmp_path / "run/drawn.json").read_text()) == json.loads((unbroken / "drawn.json").read_text())


@pytest.mark.long
def test_a_narrow_virchow2g_in_shards_does_what_it_does_whole(shards, tmp_path):
    """Its optimizer, registers, normalised queries and keys, SwiGLU, and recomputation, in two processes and in one."""
    narrow = (
        *("backbone.swiglu=true", "backbone.mlp_ratio=6.5", "backbone.registers=8", "backbone.qk_norm=true"),
        *("optim.kind=stable_adamw", "optim.betas=0.9,0.95", "compute.recompute=selective", "schedule.steps=5"),
    )
    assert run(shards, tmp_path / "one", *narrow) == 0
    train_together(shards, tmp_path / "two", *narrow, "compute.parallel=fsdp")
    close_to(tmp_path / "two", tmp_path / "one")


@pytest.mark.long
def test_copies_in_shards_do_what_one_process_does_and_one_goes_on_from_them(shards, tmp_path):
    """Two copies, each over two of four processes, with an optimizer that looks at whole tensors."""
    narrow = ("optim.kind=stable_adamw", "optim.betas=0.9,0.95", "backbone.registers=2")
    assert run(shards, tmp_path / "one", *narrow) == 0
    copies = ("compute.parallel=hsdp", "compute.shard_group=2")
    train_together(shards, tmp_path / "run", *narrow, *copies, processes=4, stop_at=5)
    assert run(shards, tmp_path / "run", *narrow) == 0
    close_to(tmp_path / "run", tmp_path / "one")


def test_what_one_process_saved_two_go_on_from(shards, unbroken, tmp_path):
    assert run(shards, tmp_path / "run", stop_at=4) == 0
    train_together(shards, tmp_path / "run", "compute.parallel=fsdp", "compute.gather_ahead=2")
    close_to(tmp_path / "run", unbroken)


@pytest.mark.long
def test_two_machines_do_what_one_does_and_each_makes_its_own_index(shards, unbroken, tmp_path):
    """Each makes the same call, and they find each other at --head."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        head = f"127.0.0.1:{free.getsockname()[1]}"
    agents = []
    for disk in ("a", "b"):
        call = [*command(shards, tmp_path / "run", stop_at=3), "--nodes", "2", "--head", head]
        call[call.index("--index") + 1] = str(tmp_path / disk)
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        piped = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        agents.append(subprocess.Popen(call, env=environment, **piped))
    try:
        said = [agent.communicate(timeout=300)[1] for agent in agents]
        assert [agent.returncode for agent in agents] == [0, 0], said
    finally:
        for agent in agents:
            agent.kill()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(p.name for p in (tmp_path / "b").iterdir())
    assert run(shards, tmp_path / "run") == 0
    close_to(tmp_path / "run", unbroken)


def interrupted(shards, folder, number):
    """Begin a run in a process of its own and send it the signal after a few steps; returns the exit code."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    call = command(shards, folder, "schedule.steps=30")
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(call, env=environment, **piped) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step      7"):
                process.send_signal(number)
                break
        rest = process.stdout.read()
        return process.wait(), rest


@pytest.fixture(scope="module")
def long_run(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "long"
    assert run(shards, folder, "schedule.steps=30") == 0
    return folder


def test_a_run_that_was_killed_goes_on_to_the_bit(shards, long_run, tmp_path):
    code, _ = interrupted(shards, tmp_path / "run", signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert run(shards, tmp_path / "run", "schedule.steps=30") == 0
    assert losses(tmp_path / "run") == losses(long_run)


def test_sigterm_saves_and_says_so(shards, long_run, tmp_path):
    code, text = interrupted(shards, tmp_path / "run", signal.SIGTERM)
    assert code == EXIT_SAVED
    assert "repeat the command to continue" in text
    done = max(int(path.name.removeprefix("step-")) for path in (tmp_path / "run/checkpoints").glob("step-*"))
    assert losses(tmp_path / "run")[-1][0] == done - 1  # nothing that was computed is lost
    assert run(shards, tmp_path / "run", "schedule.steps=30") == 0
    assert losses(tmp_path / "run") == losses(long_run)


def test_numbers_that_are_not_finite_stop_the_run_and_name_the_tiles(shards, tmp_path, capsys):
    assert run(shards, tmp_path / "run", "schedule.rate=1e30", "optim.clip=0") == EXIT_STOPPED
    message = capsys.readouterr().err
    assert "this update was skipped" in message
    found = json.loads(next((tmp_path / "run").glob("nonfinite-*.json")).read_text())
    assert len(found["tiles"]) == 8
    assert all("stores/slide" in tile["tile"] for tile in found["tiles"])
    assert not list((tmp_path / "run/checkpoints").glob("step-*"))


def test_a_checkpoint_that_was_being_written_survives_what_stops_the_run(shards, tmp_path):
    changes = ("schedule.rate=1e30", "optim.clip=0", "saving.every=1")
    assert run(shards, tmp_path / "run", *changes) == EXIT_STOPPED
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("change", ["compute.accumulate=3", "sampling.batch=9"])
def test_a_batch_that_cannot_be_shared_is_refused(shards, tmp_path, capsys, change):
    assert run(shards, tmp_path / "run", "compute.accumulate=2", change) == EXIT_WRONG_CALL
    assert "does not divide" in capsys.readouterr().err


@pytest.mark.long
def test_other_tiles_than_before_are_said(shards, tmp_path, capsys):
    assert run(shards, tmp_path / "run", stop_at=2) == 0
    more = make_shards(tmp_path / "more", first=7)
    call = command(shards, tmp_path / "run", stop_at=4)[3:]
    assert main([*call[:2], str(more), *call[2:]]) == 0
    assert "tiles 54 -> 108" in capsys.readouterr().out


def test_another_recipe_is_refused(shards, tmp_path, capsys):
    assert run(shards, tmp_path / "run", "schedule.steps=2") == 0
    assert run(shards, tmp_path / "run", "schedule.steps=2", "backbone.depth=3") == EXIT_WRONG_CALL
    assert "backbone.depth: 2 -> 3" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_one_clear_line(shards, tmp_path, capsys):
    assert run(shards, tmp_path / "run", "schedule.steps=4", stop_at=2) == 0
    file = next((tmp_path / "run/checkpoints/step-00000002").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    assert run(shards, tmp_path / "run", "schedule.steps=4") == EXIT_WRONG_CALL
    message = capsys.readouterr().err.strip()
    assert "step-00000002 cannot be read" in message
    assert "\n" not in message


def test_a_full_disk_stops_the_run_and_loses_no_checkpoint(shards, unbroken, small_disk, capsys):
    folder = small_disk / "run"
    changes = ("saving.every=1", "saving.keep=8")
    assert run(shards, folder, *changes) == EXIT_STOPPED
    message = capsys.readouterr().err.strip()
    assert "No space left on device" in message
    assert "\n" not in message
    saved = len(list((folder / "checkpoints").glob("step-*")))
    assert 0 < saved < 8
    subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
    assert run(shards, folder, *changes) == 0
    assert losses(folder) == losses(unbroken)


def test_checkpoints_thin_out_by_count_and_by_time():
    hourly = {step: 3600.0 * step for step in range(1, 31)}
    gone = superseded(hourly, keep=2, keep_hours=12)
    assert sorted(set(hourly) - set(gone)) == [1, 13, 25, 29, 30]
    assert sorted(set(hourly) - set(superseded(hourly, keep=3, keep_hours=0))) == [28, 29, 30]


@pytest.mark.parametrize(
    ("spread", "entropy", "said"),
    [(0.6, 3.0, ""), (1e-6, 3.0, "look the same"), (0.6, 4.1588, "targets are flat")],
)
def test_collapse_is_said(spread, entropy, said):
    lines = health({"feature_spread": spread, "target_entropy_nats": entropy}, prototypes=64)
    assert bool(lines) == bool(said)
    assert all(said in line for line in lines)


def test_a_run_that_collapses_says_so(shards, tmp_path, capsys):
    """Without a spreading term, and with a rate at which nothing can be learnt, all tiles soon look the same."""
    changes = ("schedule.steps=40", "schedule.warmup=0.05", "schedule.rate=3", "objective.spread=none")
    assert run(shards, tmp_path / "run", *changes, "optim.clip=0", "objective.targets=centre") == 0
    assert "collapse" in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on a CPU needs a C++ compiler")
@pytest.mark.filterwarnings("ignore")  # the compiler sets off warnings of torch with what it does itself
def test_compiled_blocks_do_what_plain_ones_do(shards, tmp_path):
    few = ("backbone.depth=1", "schedule.steps=3")  # every block is compiled by itself
    assert run(shards, tmp_path / "plain", *few) == 0
    from torch._inductor import config

    with config.patch(compile_threads=1):  # no other processes, which would each import torch
        assert run(shards, tmp_path / "run", *few, "compute.compile=true", "compute.recompute=lean") == 0
    close_to(tmp_path / "run", tmp_path / "plain")
