"""The training loop: batches, views, losses, update; checkpoints and metrics beside it.

A run is a pure function of its recipe and shards: all random numbers are counted by step, so what is saved is
parameters, centres of targets, optimizer, step and what was drawn. Nothing in a step waits for the device; its numbers
are read a step later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.profiler import record_function

from pretrain.compute import distributed
from pretrain.compute.memory import require_memory
from pretrain.compute.randomness import Places
from pretrain.data.loader import Batch, Loader, on_device
from pretrain.data.sampler import Sampler
from pretrain.errors import NonFinite
from pretrain.learning import schedules
from pretrain.learning.distillation import Distillation
from pretrain.learning.optimizer import clip_gradients, make_optimizer, optimizer_state, take_step
from pretrain.learning.self_distillation import Objective, SelfDistillation
from pretrain.model.backbone import Backbone
from pretrain.model.network import Network
from pretrain.model.weights.load import Loaded, load_backbone
from pretrain.train.branch import begin_with
from pretrain.train.checkpoint import Checkpoints
from pretrain.train.metrics import Clock, Deferred
from pretrain.train.recipe.flops import step_flops
from pretrain.train.recipe.recipe import Recipe
from pretrain.train.runs import load_teacher
from pretrain.train.watch.left_out import LeftOut
from pretrain.train.watch.signals import Signals
from pretrain.train.watch.spikes import Spikes
from pretrain.views.views import make_views
from wsi_prep.errors import BadOption
from wsi_prep.storage.atomic import write_json

_MOST_SPIKES = 20
"""Of a call, of which the tiles are written."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


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


def _require_room(recipe: Recipe, shares: int) -> None:
    """Raise BadOption where not even the weights of student and average fit into this machine."""
    backbone, head = recipe.backbone, recipe.objective.head
    heads = sum(each.parameters(backbone.width) for each in (head, head.of_patches))
    numbers = 2 * (backbone.parameters + heads)
    require_memory(4 * numbers / shares, f"the recipe's network ({numbers / 2e6:,.0f} M parameters)", BadOption)


@dataclass(frozen=True)
class Outcome:
    """How a call of `Trainer.run` ended: `step` is the next to be done, `stopped` by a signal and which."""

    step: int
    stopped: int = 0


class Learner:
    """What a step changes on this process, and how: the objective's networks, and their optimizer.

    Raises BadOption where recipe and processes do not fit together. `objective`: the recipe's own on the meta device,
    to plan with: it gets no weights, and no memory by itself. Nothing can be learnt before `prepare`.
    """

    def __init__(self, recipe: Recipe, world: distributed.World, objective: Objective | None = None) -> None:
        self.recipe, self.world = recipe, world
        self.dtype = DTYPES[recipe.compute.precision]
        shards = recipe.compute.parallel == "fsdp" and world.size > 1
        self._late = objective is not None or (shards and not recipe.start_from)  # no process makes the whole network
        self.loaded: Loaded | None = None
        if objective is None:
            _require_room(recipe, world.size if self._late else 1)
            objective = objective_of(recipe, recipe.seed, "meta" if self._late else "cpu")
        self.objective = objective
        if not self._late:
            self.loaded = self._begin_from(recipe.start_from)
        self._spread_out()

    def prepare(self) -> None:
        """Weights for networks that were made on the meta device, and the optimizer."""
        if self._late:
            self.objective.materialise(self.world.device, self.recipe.seed)
        self.add_optimizer()

    def add_optimizer(self) -> None:
        """Of the student's parameters, with its state."""
        self.optimizer = make_optimizer(self.network, self.recipe.backbone.depth, self.recipe.optim)

    @property
    def network(self) -> Network:
        """The student, without what spreads it over processes."""
        return cast("Network", distributed.plain(self.objective.student))

    def learn(self, tiles: Tensor, places: Places) -> dict[str, Tensor]:
        """One update by this process's share of a batch, `tiles` (B, 3, 392, 392) uint8 on the device, at these places.

        Returns single numbers on the device: losses, the gradient's norm, and whether they were `bad`.
        """
        recipe = self.recipe
        at = schedules.at(recipe.schedule, places.step, recipe.sampling.batch)
        parts = recipe.compute.accumulate
        size = len(tiles) // parts
        sums: dict[str, Tensor] = {}
        for part in range(parts):
            rows = slice(part * size, (part + 1) * size)
            with record_function("views"):
                views = make_views(
                    tiles[rows],
                    recipe.views,
                    replace(places, position=places.position[rows]),
                    recipe.backbone.patch_px,
                    self.dtype if tiles.is_cuda else torch.float32,
                )
            with distributed.gradients_summed(self.objective.student, now=part == parts - 1):
                with self._autocast():
                    losses = self.objective.losses(views, at)
                with record_function("backward"):
                    (losses.total / parts).backward()  # type: ignore[no-untyped-call]
            for name, value in losses.parts.items():
                sums[name] = sums[name] + value / parts if name in sums else value / parts
        with record_function("update"):
            norm = clip_gradients(self.network, recipe.optim)
            seen = distributed.all_mean(sums) | {"gradient_norm": norm}
            bad = (~torch.isfinite(norm + seen["loss"])).float()
            take_step(self.optimizer, at, bad)
            self.optimizer.zero_grad(set_to_none=True)
            self.objective.update(at)
        return seen | {"bad": bad}

    def tensors(self) -> dict[str, Tensor]:
        """Everything that changes, by name; parameters are named alike whether they are in shards or not."""
        objective = self.objective
        found: dict[str, Tensor] = {}
        for name, module in (("student", self.network), ("average", objective.ema)):
            found |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
        found |= {f"objective.{key}": value for key, value in objective.kept.items()}
        found |= {f"optimizer.{k}": v for k, v in optimizer_state(self.optimizer, self.network).items()}
        return {name: value.detach() for name, value in found.items()}

    def _begin_from(self, weights: str) -> Loaded | None:
        if not weights:
            return None
        loaded = load_backbone(self.network.backbone, Path(weights))
        self.objective.ema.backbone.load_state_dict(self.network.backbone.state_dict())
        return loaded

    def _spread_out(self) -> None:
        """To the device, where there are weights yet, and over the processes."""
        compute, objective = self.recipe.compute, self.objective
        student = self.network
        if not self._late:
            cast("torch.nn.Module", objective).to(self.world.device)
        if compute.compile:
            for network in (student, *objective.frozen):
                network.backbone.compile_blocks()
        objective.student = distributed.share_out(student, student.units(), compute.parallel, self.world, self.dtype)
        if compute.parallel == "fsdp":
            for network in objective.frozen:
                distributed.share_out(network, network.units(), compute.parallel, self.world, self.dtype)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.world.device.type, self.dtype)


def require_division(recipe: Recipe, processes: int) -> None:
    """Raise BadOption where the batch cannot be shared out to so many processes."""
    parts = recipe.compute.accumulate
    if recipe.sampling.batch % (processes * parts):
        raise BadOption(
            f"a batch of {recipe.sampling.batch} does not divide by {processes} processes times {parts} parts; change "
            "sampling.batch or compute.accumulate"
        )


class Trainer(Learner):
    """One run on this process. Raises BadOption where recipe and processes do not fit together."""

    def __init__(self, recipe: Recipe, sampler: Sampler, run: Path, world: distributed.World) -> None:
        require_division(recipe, world.size)
        super().__init__(recipe, world)
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
        if self.recipe.compute.parallel == "fsdp" and self.world.size > 1:
            tensors = {name: distributed.whole(value) for name, value in backbone.state_dict().items()}
            if self.world.first:
                backbone = Backbone(self.recipe.backbone).to(self.world.device)
                backbone.load_state_dict(tensors)
        return backbone if self.world.first else None

    def resume(self) -> int:
        """Go on from the newest checkpoint, or begin with another run's; returns the next step. Raises BadRun."""
        step = self.checkpoints.latest()
        if step is None:
            if self.recipe.continue_from:
                begin_with(self.recipe, self.tensors())
            return 0
        state = self.checkpoints.load(step, self.tensors())
        self._left_out.restore(state.get("left_out"), step)
        if self.world.first:  # counts are summed over processes
            self.loader.drawn.restore(state["drawn"])
        return step

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
        return Outcome(step, signals.caught if step < stop else 0)

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
        self._deferred.put(batch.step, self.learn(tiles, places))
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
            "tiles_seen": (step + 1) * recipe.sampling.batch,
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
        pairs = zip(index.addresses(batch.draw.tile), batch.draw.mpp.tolist(), strict=True)
        known = {"step": batch.step, "values": {name: str(value) for name, value in values.items()}}
        file = self.run_folder / f"{kind}-step-{batch.step:08d}-rank-{self.world.rank}.json"
        write_json(file, {**known, "tiles": [{"tile": at.name, "mpp": mpp} for at, mpp in pairs]})
        return f"the batch's tiles are in {file}"

    def _save(self, step: int) -> None:
        state = {"recipe": self.recipe.name, "drawn": self.drawn(), "left_out": self._left_out.steps}
        self.checkpoints.save(step, self.tensors(), state)

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


def _resident_gb() -> float:
    import resource  # noqa: PLC0415 - not on every system

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def objective_of(recipe: Recipe, seed: int, where: str = "cpu") -> Objective:
    """What the recipe minimises: self-distillation, or distillation from `recipe.teacher`.

    `where`: the device that the student is made on; on "meta" it has no weights until self_distillation.begin. Raises
    BadRun and BadWeights where the teacher cannot be loaded.
    """
    recompute, most = recipe.compute.recompute, (recipe.compute.loss_mb << 20) // 4
    teacher = load_teacher(Path(recipe.teacher)) if recipe.teacher else None
    with torch.device(where):
        if teacher is None:
            return SelfDistillation(recipe.objective, recipe.backbone, seed, recompute, most)
        return Distillation(recipe.objective, recipe.backbone, teacher, seed, recompute, most)
