"""`make bench BENCH=train`: a training step's rate against the device's own matrix products, on made and real tiles."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from pretrain.compute import distributed
from pretrain.data.index import open_index
from pretrain.data.loader import Batch, on_device
from pretrain.data.sampler import Sampler
from pretrain.train.learner import DTYPES
from pretrain.train.loop import Trainer
from pretrain.train.recipe.flops import measured_peak
from pretrain.train.recipe.overrides import changed
from pretrain.train.recipe.recipe import Recipe
from pretrain.train.recipe.recipes import recipe
from tests.benchmarks.measure import Figure, machine, markdown, table
from tests.benchmarks.train_peers import PEERS, compare

_ON_GPU = {
    "virchow2": "sampling.batch=64 compute.recompute=selective",
    "virchow2g": "sampling.batch=32 compute.recompute=full",
}
_ON_CPU = {"debug": ""}


def main() -> None:
    """Measure the chosen recipes, print the figures, and write them as Markdown if asked."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--shards", default="shards", help="an OUT folder with the real tiles")
    parser.add_argument("--only", help="recipes (default: virchow2 virchow2g on a GPU, debug on a CPU)")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="changes to all of them")
    parser.add_argument("--steps", type=int, default=20, help="steps of a measurement")
    parser.add_argument("--profile", action="store_true", help="name what the time is spent on")
    parser.add_argument("--quick", action="store_true", help="small and once: does it run?")
    for name in PEERS:
        parser.add_argument(f"--{name}", type=Path, metavar="FOLDER", help=f"a step beside {name}'s, of this clone")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    given = parser.parse_args()
    if folders := {name: folder for name in PEERS if (folder := getattr(given, name))}:
        if given.only:
            raise SystemExit("--only: beside other code there is one recipe; omit it, and change the recipe with --set")
        print(machine(), flush=True)
        _tell(compare(folders, given.set, 2 if given.quick else given.steps, given.profile), given.markdown)
        return
    chosen = _ON_GPU if torch.cuda.is_available() else _ON_CPU
    if given.only:
        chosen = {name: chosen.get(name, "") for name in given.only.split()}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(machine(), device, sep=", ", flush=True)
    figures = []
    for name, changes in chosen.items():
        asked = changed(recipe(name), [*changes.split(), *given.set])
        figures += _measure(asked, given.shards, 2 if given.quick else given.steps, given.profile)
    _tell(figures, given.markdown)


def _tell(figures: list[Figure], page: Path | None) -> None:
    print(table(figures))
    if page:
        page.write_text(markdown(figures, "make bench BENCH=train"))


def _measure(asked: Recipe, shards: str, steps: int, profile: bool) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="train-") as folder, distributed.world(asked.compute.device) as world:
        sampler = Sampler(open_index([shards], Path(folder) / "index"), asked.sampling)
        trainer = Trainer(asked, sampler, Path(folder), world)
        peak = measured_peak(world.device, DTYPES[asked.compute.precision])
        with trainer.loader:
            made, _ = _rate(trainer, _again(trainer), steps)
            found = _figures(trainer, "made tiles", made, peak)
            real, waited = _rate(trainer, trainer.loader.batches(0, steps + 2), steps)
            found += _figures(trainer, "real tiles", real, peak)
            found.append(Figure(asked.name, "waiting for data", f"{waited:.2%}", "< 1 %", waited < 0.01))
            if profile:
                _profile(trainer)
    return found


def _again(trainer: Trainer) -> Iterator[Batch]:
    """One batch again and again, as if of the steps that follow each other: what a loader without cost would give."""
    batch = next(trainer.loader.batches(0, 1))
    pixels = batch.pixels.clone()
    for step in itertools.count():
        yield dataclasses.replace(batch, step=step, pixels=pixels)


def _rate(trainer: Trainer, batches: Iterator[Batch], steps: int) -> tuple[float, float]:
    """Median tiles/s of a step after two that are thrown away, and the share of the time spent waiting for batches."""
    seconds, waited = [], 0.0
    items = on_device(batches, trainer.world.device)
    for number in range(steps + 2):
        began = time.perf_counter()
        batch, tiles = next(items)
        got = time.perf_counter()
        with _unsynchronised(trainer.world.device, number >= 2):
            trainer.step(batch, tiles)
        list(trainer.numbers_ready())
        _wait(trainer.world.device)
        if number >= 2:
            seconds.append(time.perf_counter() - began)
            waited += got - began
    list(trainer.numbers_ready(everything=True))
    return len(tiles) / statistics.median(seconds), waited / sum(seconds)


def _figures(trainer: Trainer, part: str, rate: float, peak: float) -> list[Figure]:
    name, flops = trainer.recipe.name, trainer.flops
    share = rate * flops.executed / peak
    cuda = trainer.world.device.type == "cuda"
    target, ok = (">= 50 %", share >= 0.5) if cuda and name == "virchow2" else ("", None)
    found = [
        Figure(name, f"{part}: tiles/s", f"{rate:,.1f}"),
        Figure(name, f"{part}: executed TFLOP/s", f"{rate * flops.executed / 1e12:,.3g} of {peak / 1e12:,.3g}"),
        Figure(name, f"{part}: executed share of the matrix peak", f"{share:.1%}", target, ok),
        Figure(name, f"{part}: dense-equivalent TFLOP/s", f"{rate * flops.dense / 1e12:,.3g}"),
    ]
    if cuda:
        found.append(Figure(name, f"{part}: peak memory", f"{torch.cuda.max_memory_allocated() / 1e9:,.1f} GB"))
    return found


def _profile(trainer: Trainer) -> None:
    """The operations that take longest, of three steps."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if trainer.world.device.type == "cuda" else []
    items = on_device(_again(trainer), trainer.world.device)
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(3):
            trainer.step(*next(items))
            list(trainer.numbers_ready())
        _wait(trainer.world.device)
    by = "self_cuda_time_total" if trainer.world.device.type == "cuda" else "self_cpu_time_total"
    print(profile.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=60))


@contextlib.contextmanager
def _unsynchronised(device: torch.device, strict: bool) -> Iterator[None]:
    """On a GPU, an error where anything inside waits for it; not while blocks are still being compiled."""
    if device.type != "cuda" or not strict:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
