"""One call of `make pretrain`: a RUN folder is begun or gone on with, and says how it went.

RUN/recipe.json, run.json, metrics.jsonl, tensorboard/, checkpoints/, pictures/, drawn.json.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pretrain import distributed
from pretrain import recipe as recipes
from pretrain.errors import BadRun
from pretrain.flops import measured_peak
from pretrain.index import Index, open_index
from pretrain.metrics import MetricsLog
from pretrain.recipe import Recipe
from pretrain.sampler import Sampler
from pretrain.train import DTYPES, Outcome, Trainer

RUN_VERSION = 1
_COLLAPSED_SPREAD, _FLAT_TARGETS = 1e-4, 0.999


@dataclass(frozen=True)
class RunCall:
    """What a call asks for: `shards` and `where` as open_index takes them, `stop_at` a step to stop before."""

    folder: Path
    shards: tuple[str, ...]
    where: str | None
    index: Path
    stop_at: int | None = None


@dataclass(frozen=True)
class Ended:
    """How the call ended; `recipe.schedule.steps` says whether the run has, too."""

    recipe: Recipe
    outcome: Outcome
    seconds: float
    last: dict[str, Any]


class Reporter:
    """Told by the first process what people should see; the methods of train.Watcher, and two more. Does nothing."""

    def note(self, text: str) -> None:
        """Something to know, once."""

    def started(self, trainer: Trainer, step: int) -> None:
        """Before the first step."""

    def numbers(self, step: int, values: dict[str, Any]) -> None:
        """Of a logged step."""

    def stepped(self, trainer: Trainer, step: int) -> None:
        """After every step."""

    def saved(self, step: int) -> None:
        """A checkpoint is complete."""


def settle_recipe(folder: Path, wanted: Recipe | None, changes: Sequence[str], default: Callable[[], Recipe]) -> Recipe:
    """The recipe that the RUN folder goes on with, or begins with.

    Raises BadRun where `wanted` or `changes` would compute something else than what is saved there.
    """
    file = folder / "recipe.json"
    if not file.exists():
        return recipes.changed(wanted or default(), list(changes))
    saved = recipes.load(file)
    asked = recipes.changed(wanted or saved, list(changes))
    if differing := recipes.differences(asked, saved):
        raise BadRun(
            f"{folder} was begun with another recipe ({'; '.join(differing[:5])}); give another RUN, or the same recipe"
        )
    return asked


def run(
    call: RunCall, recipe: Recipe, world: distributed.World, reporter: Reporter, progress: Callable[[int, int], None]
) -> Ended:
    """Train until the recipe's last step, `stop_at` or a signal. Raises UsageError, NonFinite and TooManyBadTiles."""
    began = time.monotonic()
    if recipe.compute.threads:
        torch.set_num_threads(recipe.compute.threads)
    call.folder.mkdir(parents=True, exist_ok=True)
    index = _open(call, world, progress)
    sampler = Sampler(index, recipe.sampling)
    trainer = Trainer(recipe, sampler, call.folder, world)
    start = trainer.resume()
    stop = min(recipe.schedule.steps, call.stop_at if call.stop_at is not None else recipe.schedule.steps)
    if world.first:
        recipes.save(recipe, call.folder / "recipe.json")
        _write_run(call, index, trainer)
        loaded = trainer.loaded.lines() if trainer.loaded and not start else []
        for line in [*index.warnings, *sampler.warnings, *loaded]:
            reporter.note(line)
    watcher = _Watcher(call.folder, reporter, trainer, start) if world.first else Reporter()
    outcome = trainer.run(start, stop, watcher) if start < stop else Outcome(start)
    drawn = trainer.drawn()
    if world.first:
        (call.folder / "drawn.json").write_text(json.dumps(drawn, indent=1) + "\n")
    last = watcher.close() if isinstance(watcher, _Watcher) else {}
    return Ended(recipe, outcome, time.monotonic() - began, last)


def _open(call: RunCall, world: distributed.World, progress: Callable[[int, int], None]) -> Index:
    """The first process makes the index, the others find it made."""
    index = open_index(call.shards, call.index, call.where, progress) if world.first else None
    distributed.agree(mine=True)
    return index or open_index(call.shards, call.index, call.where)


def _write_run(call: RunCall, index: Index, trainer: Trainer) -> None:
    known = {
        "version": RUN_VERSION,
        "shards": list(call.shards),
        "where": call.where,
        "tiles": index.tiles,
        "slides": len(index.slides),
        "processes": trainer.world.size,
        "device": str(trainer.world.device),
        "parameters_backbone": sum(p.numel() for p in trainer.backbone.parameters()),
        "flops_a_tile_dense": trainer.flops.dense,
        "flops_a_tile_executed": trainer.flops.executed,
        "versions": {name: version(name) for name in ("torch", "timm", "mixed-magnification")},
    }
    (call.folder / "run.json").write_text(json.dumps(known, indent=1) + "\n")


class _Watcher(Reporter):
    """The first process's: metrics to their file, health, and everything on to the reporter."""

    def __init__(self, folder: Path, reporter: Reporter, trainer: Trainer, start: int) -> None:
        self._reporter = reporter
        self._log = MetricsLog(folder, start)
        self._peak = measured_peak(trainer.world.device, DTYPES[trainer.recipe.compute.precision])
        self._prototypes = trainer.recipe.objective.head.prototypes
        self._settled = trainer.recipe.schedule.warmup * trainer.recipe.schedule.steps
        self._said: set[str] = set()
        self._last: dict[str, Any] = {}

    def started(self, trainer: Trainer, step: int) -> None:
        self._reporter.started(trainer, step)

    def numbers(self, step: int, values: dict[str, Any]) -> None:
        values["mfu_share"] = values["executed_tflop_per_s_and_device"] * 1e12 / self._peak
        self._log.write(step, values)
        self._last = {"step": step, **values}
        collapsed = health(values, self._prototypes) if step >= self._settled else []
        for line in set(collapsed) - self._said:
            self._said.add(line)
            self._reporter.note(f"step {step}: {line}")
        self._reporter.numbers(step, values)

    def stepped(self, trainer: Trainer, step: int) -> None:
        self._reporter.stepped(trainer, step)

    def saved(self, step: int) -> None:
        self._reporter.saved(step)

    def close(self) -> dict[str, Any]:
        """Finish the files; returns the last logged numbers."""
        self._log.close()
        return self._last


def health(values: dict[str, Any], prototypes: int) -> list[str]:
    """What is wrong with a run that has warmed up, by its numbers: the two ways in which it collapses."""
    largest = math.log(prototypes)
    found = []
    if values["feature_spread"] < _COLLAPSED_SPREAD:
        found.append("collapse: all tiles look the same to the teacher (feature_spread near 0); lower schedule.rate")
    if values["target_entropy_nats"] > _FLAT_TARGETS * largest:
        found.append("collapse: the teacher's targets are flat (target_entropy_nats near log of the prototypes)")
    return found
