"""The training loop: batches, views, losses, update; checkpoints and metrics beside it.

A run is a pure function of its recipe and shards: all random numbers are counted by step, so what is saved is
parameters, centres of targets, optimizer, step and what was drawn. Nothing in a step waits for the device; its numbers
are read a step later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pretrain.compute import distributed
from pretrain.compute.randomness import Places
from pretrain.data.fields import LabelArray, fields
from pretrain.data.loader import Batch, Loader, on_device
from pretrain.data.sampler import Sampler
from pretrain.errors import BadRun, NonFinite
from pretrain.learning import schedules
from pretrain.learning.erasure import columns, fit_eraser, width
from pretrain.model.backbone import Backbone
from pretrain.model.guide import Eraser
from pretrain.model.normalise import normalise
from pretrain.train.branch import begin_with, origin_of
from pretrain.train.checkpoint import Checkpoints, holds, load, read_state, step_folder
from pretrain.train.learner import Learner, require_division
from pretrain.train.metrics import Clock, Deferred
from pretrain.train.recipe.flops import step_flops
from pretrain.train.recipe.pieces import tiles_drawn
from pretrain.train.recipe.recipe import Recipe
from pretrain.train.watch.left_out import LeftOut
from pretrain.train.watch.signals import Signals
from pretrain.train.watch.spikes import Spikes
from pretrain.views.crops import TileScales
from wsi_prep.format.magnifications import TILE_PX
from wsi_prep.storage.atomic import write_json

_AT_ONCE = 64
"""Tiles that are read and cut together to erase fields over."""
_MOST_SPIKES = 20
"""Of a call, of which the tiles are written."""
_NAMED, _LONGEST = 8, 60  # classes in a message, and characters of each


class Watcher(Protocol):
    """Told how a run goes, in every process."""

    def started(self, step: int) -> None:
        """Before the first step of this call."""

    def numbers(self, step: int, values: dict[str, float]) -> None:
        """Of a logged step."""

    def odd(self, text: str) -> None:
        """A step was not finite and changed nothing, or was unlike those before: what there is to know of it."""

    def stepped(self, step: int) -> None:
        """After every step; `step` is the next one's number."""

    def stopping(self, number: int) -> None:
        """Told in a thread, as soon as the signal comes that ends the run after the step."""


@dataclass(frozen=True)
class Outcome:
    """How a call of `Trainer.run` ended: `step` is the next to be done, `stopped` by a signal and which.

    `heard`: a signal that came to this process, even where it was too late to stop anything.
    """

    step: int
    stopped: int = 0
    heard: int = 0


class Trainer(Learner):
    """One run on this process, or a piece of it. Raises BadOption where recipe and processes do not fit together.

    `recipe`: that of the piece, without stages; `whole` that of the run, where it has some.
    """

    def __init__(
        self, recipe: Recipe, sampler: Sampler, run: Path, world: distributed.World, whole: Recipe | None = None
    ) -> None:
        require_division(recipe, world.size)
        self._whole = whole or recipe
        super().__init__(recipe, world, fields=fields(sampler, recipe.guide.told))
        self.erased = fields(sampler, recipe.guide.erased)
        self.prepare()
        self.sampler, self.run_folder = sampler, run
        self.loader = Loader(sampler, recipe.loader, world.rank, world.size)
        self.checkpoints = Checkpoints(run / "checkpoints", recipe.saving, world)
        self.flops = step_flops(recipe, self.objective.teacher_settings)
        self._deferred = Deferred()
        self._recent: dict[int, Batch] = {}
        self._left_out = LeftOut(recipe.compute.skips, recipe.compute.skip_window)
        self._spikes = Spikes()
        self._clock = Clock()

    @property
    def backbone(self) -> Backbone:
        """That of the student's moving mean, which is what a run is for."""
        return self.objective.ema.backbone

    def whole_backbone(self) -> Backbone | None:
        """That backbone, whole, on the first process, None on the others; every process must ask."""
        backbone = self.backbone
        if self.recipe.compute.parallel in distributed.SHARDED and self.world.size > 1:
            tensors = {name: distributed.whole(value) for name, value in backbone.state_dict().items()}
            if self.world.first:
                backbone = Backbone(self.recipe.backbone).to(self.world.device)
                backbone.load_state_dict(tensors)
        return backbone if self.world.first else None

    def resume(self, at: int | None = None) -> int:
        """Go on from the newest checkpoint, or begin with another run's; returns the next step. Raises BadRun.

        `at`: the step of the checkpoint, where all processes know it: on a shared disk, one may list the folder before
        it shows what another has just written.
        """
        step, folder = self.checkpoints.latest() if at is None else at, self.run_folder
        if step is None and self.recipe.continue_with == "steps" and self.recipe.continue_from:
            folder, step = origin_of(self.recipe.continue_from)
        if step is not None:
            self._go_on_from(step_folder(folder / "checkpoints", step), step)
            return step
        if self.recipe.continue_from:
            begin_with(self.recipe, self.tensors())
            self.take_anchor()
        return 0

    def _go_on_from(self, folder: Path, step: int) -> None:
        """From a checkpoint, as if the run had never stopped. An anchor that it has not is the teacher that it has."""
        self._require_classes(read_state(folder))
        tensors = self.tensors()
        begins = self.objective.anchor is not None and not holds(folder, "anchor.")
        if begins:
            tensors = {name: value for name, value in tensors.items() if not name.startswith("anchor.")}
        state = load(folder, tensors)
        if begins:
            self.take_anchor()
        self._left_out.restore(state.get("left_out"), step)
        if self.world.first:  # counts are summed over processes
            self.loader.drawn.restore(state["drawn"])

    def _require_classes(self, state: dict[str, Any]) -> None:
        """Raise BadRun where a head of the guide has learnt other classes than the shards have now."""
        learnt = state.get("guide")
        for name, now in self._classes().items():
            before = learnt.get(name) if isinstance(learnt, dict) else None
            if before != now:
                raise BadRun(
                    f"guide.{name} had {_listed(before)} when this run began, and the tiles that can be drawn now have "
                    f"{_listed(now)}; name the SHARDS and WHERE of then, or begin another run with what this one has "
                    f"learnt: CONTINUE={self.run_folder}"
                )

    def _classes(self) -> dict[str, list[str]]:
        return {field.name: list(field.classes) for field in self.guide.fields}

    def run(self, start: int, stop: int, watcher: Watcher) -> Outcome:
        """Steps `start` up to `stop`, with a checkpoint at the end. Raises NonFinite and TooManyBadTiles."""
        watcher.started(start)
        with self.loader, Signals(watcher.stopping) as signals:
            try:
                step = self._steps(start, stop, watcher, signals)
                self._tell(watcher, everything=True, last=True)
                self._save(step)
            finally:  # what was being written is whole, whatever stopped the run
                self.checkpoints.settle(wait=True)
        return Outcome(step, signals.caught if step < stop else 0, signals.caught)

    def _steps(self, start: int, stop: int, watcher: Watcher, signals: Signals) -> int:
        """The loop; returns the next step."""
        step, due = start, False
        self._clock.start()
        batches = on_device(self.loader.batches(start, stop), self.world.device)
        for batch, tiles in self._clock.waiting(batches):
            self.step(batch, tiles)
            step = batch.step + 1
            self._tell(watcher)
            due |= step % self.recipe.saving.every == 0
            if due and step < stop:
                self._tell(watcher, everything=True)
                if not self._left_out.last_was(step - 1):  # nothing is saved before it is known to be finite
                    self._save(step)
                    due = False
            self.checkpoints.settle()
            with self._clock.stopped():
                watcher.stepped(step)
            if signals.agreed():
                break
        return step

    def step(self, batch: Batch, tiles: Tensor) -> None:
        """One update by this process's share of a batch, `tiles` (B, 3, 392, 392) uint8 on the device."""
        self._recent[batch.step] = batch
        places = Places(self.recipe.seed, batch.step, batch.draw.position)
        labels = [field.labels(batch.draw) for field in self.guide.fields]
        scales = TileScales(batch.draw.mpp, batch.draw.wanted)
        self._deferred.put(batch.step, self.learn(tiles, places, labels, scales))
        self._clock.stepped(len(tiles) * self.world.size)

    def numbers_ready(
        self, everything: bool = False, odd: Callable[[str], None] = lambda _: None
    ) -> Iterator[tuple[int, dict[str, float]]]:
        """Losses and norms of past steps, all but the last one if not `everything`. Raises NonFinite.

        `odd` is told of each step whose numbers are not finite, while they are few, and of spikes.
        """
        for step, values in self._deferred.take(everything):
            batch = self._recent.pop(step)
            if not values.pop("bad"):
                if said := self._spikes.add(step, values):
                    few = self._spikes.count <= _MOST_SPIKES
                    odd(
                        f"step {step}: spike: {said}"
                        + (f"; {self._write_tiles('spike', batch, values)}" if few else "")
                    )
                yield step, values
                continue
            text = self._report(batch, values)
            if self._left_out.add(step):
                raise NonFinite(f"{text}; look at them, or begin again with a lower schedule.rate")
            odd(text)

    def _tell(self, watcher: Watcher, everything: bool = False, last: bool = False) -> None:
        for step, values in self.numbers_ready(everything, watcher.odd):
            if step % self.recipe.looking.log == 0 or last:
                watcher.numbers(step, values | self._numbers(step))

    def _numbers(self, step: int) -> dict[str, float]:
        recipe = self.recipe
        at = schedules.at(recipe.schedule, step, recipe.sampling.batch)
        rates = self._clock.rates()
        per_process = self.flops.executed * recipe.sampling.batch / self.world.size
        cuda = self.world.device.type == "cuda"
        return {
            "learning_rate": at.rate,
            "weight_decay": at.decay,
            "teacher_momentum": at.momentum,
            "teacher_temperature": at.temperature,
            "tiles_seen": tiles_drawn(self._whole, step + 1),
            "bad_tiles": self.loader.bad.bad,
            "steps_left_out": len(self._left_out.steps),
            "spikes": self._spikes.count,
            **rates,
            "executed_tflop_per_s_and_device": per_process / rates["step_s"] / 1e12,
            "memory_peak_gb": torch.cuda.max_memory_allocated() / 1e9 if cuda else _resident_gb(),
        }

    def _report(self, batch: Batch, values: dict[str, float]) -> str:
        """Write what is known of the batch that went wrong; returns the line for the user."""
        what = f"loss {values['loss']:.4g}, gradient norm {values['gradient_norm']:.4g}"
        allowed, so_far = self.recipe.compute, len(self._left_out.steps) + 1
        return (
            f"step {batch.step}: {what}; this update was skipped, number {so_far} in {allowed.skip_window:,} steps, of "
            f"which {allowed.skips} may be (compute.skips); {self._write_tiles('nonfinite', batch, values)}"
        )

    def _write_tiles(self, kind: str, batch: Batch, values: dict[str, float]) -> str:
        """Write this process's tiles of a batch; returns where, in words."""
        index = self.sampler.index
        pairs = zip(index.addresses(batch.draw.tile), batch.draw.wanted.tolist(), strict=True)
        known = {"step": batch.step, "values": {name: str(value) for name, value in values.items()}}
        file = self.run_folder / f"{kind}-step-{batch.step:08d}-rank-{self.world.rank}.json"
        write_json(file, {**known, "tiles": [{"tile": at.name, "mpp": mpp} for at, mpp in pairs]})
        return f"the batch's tiles are in {file}"

    def _save(self, step: int) -> None:
        state: dict[str, object] = {"recipe": self.recipe.name, "drawn": self.drawn(), "left_out": self._left_out.steps}
        if self.guide.fields:
            state["guide"] = self._classes()
        self.checkpoints.save(step, self.tensors() | self._erasing(), state)

    def _erasing(self) -> dict[str, Tensor]:
        """What erases the guide's fields from the average as it is, by name in a checkpoint; every process must ask.

        Nothing of it is in the networks that learn. The first process fits it.
        """
        if not self.erased:
            return {}
        whole, device, settings = self.whole_backbone(), self.world.device, self.recipe.backbone
        eraser = Eraser(settings.depth + 2, self.backbone.prefix + 1, settings.width, width(self.erased)).to(device)
        if whole is not None:
            with self._clock.stopped(), torch.compiler.set_stance("force_eager"):
                eraser = fit_eraser(whole, *self._to_erase_over())
        found = eraser.state_dict().items()
        return {f"average.backbone.eraser.{name}": distributed.all_sum(value) for name, value in found}

    def _to_erase_over(self) -> tuple[Iterator[tuple[Tensor, Tensor]], Callable[[], Tensor]]:
        """Crops with their um/px, and labels, as fit_eraser takes them, of tiles drawn as in training.

        Their middle, of the size that is to be embedded, in its own colours.
        """
        recipe, patch_px = self.recipe, self.recipe.backbone.patch_px
        sampler = Sampler(self.sampler.index, replace(recipe.sampling, batch=min(recipe.sampling.batch, _AT_ONCE)))
        side = (recipe.saving.erase_px or TILE_PX) // patch_px * patch_px
        middle = slice((TILE_PX - side) // 2, (TILE_PX + side) // 2)
        labels: list[list[LabelArray]] = []

        def crops() -> Iterator[tuple[Tensor, Tensor]]:
            with Loader(sampler, recipe.loader) as loader:
                for batch in loader.batches(0, -(-recipe.saving.erase_tiles // sampler.settings.batch)):
                    labels.append([field.labels(batch.draw) for field in self.erased])
                    yield normalise(batch.pixels[:, :, middle, middle].float() / 255), batch.mpp.clone()

        def seen() -> Tensor:
            return columns(self.erased, [np.concatenate(of_field) for of_field in zip(*labels, strict=True)])

        return crops(), seen

    def drawn(self) -> list[dict[str, object]]:
        """What all processes have drawn, by stratum; every process must ask."""
        counts = distributed.all_sum(torch.from_numpy(self.loader.drawn.counts.copy())).numpy()
        return [row for row in self.loader.drawn.table(counts) if row["drawn"]]

    def bad_tiles(self) -> str:
        """A line on the tiles of this call that no process could read, empty without any; every process must ask."""
        own = self.loader.bad
        bad, read = distributed.all_sum(torch.tensor([own.bad, own.read])).tolist()
        first = next((f", as {name} ({why})" for name, why in own.named.items()), "")
        return f"{bad:,} of {read:,} tiles cannot be read{first}; others of their strata replaced them" if bad else ""


def _listed(classes: object) -> str:
    """Values for a message."""
    if not isinstance(classes, list) or not classes:
        return "none"
    more = f" and {len(classes) - _NAMED} more" if len(classes) > _NAMED else ""
    return ", ".join(repr(value)[:_LONGEST] for value in classes[:_NAMED]) + more


def _resident_gb() -> float:
    import resource  # noqa: PLC0415 - not on every system

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
