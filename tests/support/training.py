"""A recipe so small that a test can train with it, shards for it, and the command here or in other processes."""

import multiprocessing
import os
import sys
import uuid
from pathlib import Path
from unittest.mock import patch

import pytest
from safetensors.torch import load_file

from pipelines.train import main
from pretrain.train import call
from pretrain.train.checkpoint import step_folder
from pretrain.train.metrics import read_metrics
from tests.support.paths import ROOT
from tests.support.shard_folders import add_slide

TINY = [
    *("sampling.batch=8", "sampling.mix.40x=0", "sampling.mix.5x=0", "schedule.steps=8"),
    *("views.crops.global_px=56", "views.crops.local_px=28", "views.crops.local_crops=2"),
    *("backbone.width=32", "backbone.depth=2", "backbone.heads=2", "backbone.image_px=56"),
    *("objective.head.prototypes=64", "objective.head.hidden=32", "objective.head.bottleneck=16"),
    *("saving.every=3", "looking.log=1", "looking.picture=0", "looking.probe=0"),
    *("loader.threads=1", "compute.threads=1"),
]


def make_shards(out: Path, first: int = 1) -> Path:
    for number in range(first, first + 3):
        add_slide(out, number, {"20x": 12, "10x": 6}, stain="HE" if number < 3 else "IHC")
    return out


def tensors(folder: Path, step: int) -> dict:
    """All that a run's checkpoint holds, by name."""
    files = step_folder(folder / "checkpoints", step).glob("*.safetensors")
    return {name: value for file in files for name, value in load_file(file).items()}


def command(shards: Path, folder: Path, *changes: str, processes=1, stop_at=None, probe=(), begin_with="") -> list[str]:
    start = [sys.executable, "-m", "pipelines.train", *([f"--gpus={processes}"] if processes > 1 else [])]
    words = [*start, "--shards", str(shards), "--run", str(folder), "--index", str(folder.parent / "index")]
    stop = ["--stop-at", str(stop_at)] if stop_at is not None else []
    stop += ["--probe", *map(str, probe)] if probe else []
    stop += ["--continue-run", str(begin_with)] if begin_with else []
    return [*words, *stop, "--set", *TINY, *changes]


def run(shards, folder, *changes, curves=False, **options):
    """In this process; returns the exit code. Curves take half of so small a run: drawn where a test looks at them."""
    with patch.object(call, "draw_curves", call.draw_curves if curves else lambda *_: None):
        return main(command(shards, folder, *changes, **options)[3:])


_FORKS = multiprocessing.get_context("forkserver")  # of processes that have imported torch already
_FORKS.set_forkserver_preload([__name__])


def in_processes(target, *arguments, processes=2):
    """Call target(rank, *arguments) in processes of their own, and wait; all must end well."""
    with patch.dict(os.environ, {"PYTHONPATH": str(ROOT)}):
        ranks = [_FORKS.Process(target=target, args=(number, *arguments)) for number in range(processes)]
        for rank in ranks:
            rank.start()
    for rank in ranks:
        rank.join()
    assert [rank.exitcode for rank in ranks] == [0] * processes


def train_together(shards, folder, *changes, processes=2, target=None, **options):
    """The command in processes of one group, as torchrun starts them; what they import is imported once a session."""
    arguments, name = command(shards, folder, *changes, **options)[3:], uuid.uuid4().hex
    in_processes(target or as_rank, processes, name, arguments, processes=processes)


def as_rank(number, count, name, arguments):
    of_torchrun = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    os.environ.update({key: str(value) for key, value in of_torchrun.items()})
    os.environ["TORCHELASTIC_RUN_ID"] = name
    sys.exit(main(arguments))


def losses(folder):
    return [(row["step"], row["loss"], row["loss_dino"], row["gradient_norm"]) for row in read_metrics(folder)]


def figures(folder):
    """Losses, and what the global batch shows besides."""
    shown = ("feature_spread", "target_entropy_nats", "target_use_nats")
    looks = ([row.get(name, 0.0) for name in shown] for row in read_metrics(folder))
    return [(*row, *look) for row, look in zip(losses(folder), looks, strict=True)]


def close_to(folder, unbroken):
    found, expected = figures(folder), figures(unbroken)
    assert [step for step, *_ in found] == [step for step, *_ in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, rel=2e-4)
