"""What one process learns with: the networks of a recipe's objective, spread over processes, and their optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.profiler import record_function

from pretrain.compute import distributed
from pretrain.compute.memory import require_memory
from pretrain.compute.randomness import Places
from pretrain.data.fields import Field, LabelArray
from pretrain.learning import schedules
from pretrain.learning.distillation import Distillation
from pretrain.learning.guide import Guide, outputs
from pretrain.learning.optimizer import clip_gradients, make_optimizer, optimizer_state, take_step
from pretrain.learning.self_distillation import Objective, SelfDistillation
from pretrain.model.guide import GuideHeads
from pretrain.model.initial import initialise
from pretrain.model.network import Network
from pretrain.model.weights.load import Loaded, load_backbone
from pretrain.train.recipe.recipe import Recipe
from pretrain.train.runs import load_teacher
from pretrain.views.crops import TileScales
from pretrain.views.views import Views, enlarged_crops, make_views
from wsi_prep.errors import BadOption

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _require_room(recipe: Recipe, shares: int) -> None:
    """Raise BadOption where not even the weights of student and average fit into this machine."""
    backbone, head = recipe.backbone, recipe.objective.head
    heads = sum(each.parameters(backbone.width) for each in (head, head.of_patches))
    numbers = 2 * (backbone.parameters + heads)
    anchor = backbone.parameters if recipe.objective.gram_weight else 0
    what = f"the recipe's network ({numbers / 2e6:,.0f} M parameters)"
    require_memory(4 * (numbers + anchor) / shares, what, BadOption)


class Learner:
    """What a step changes on this process, and how: the objective's networks, and their optimizer.

    Raises BadOption where recipe and processes do not fit together. `objective`: the recipe's own on the meta device,
    to plan with: it gets no weights, and no memory by itself. `fields`: those that the recipe's guide has heads for.
    Nothing can be learnt before `prepare`.
    """

    def __init__(
        self,
        recipe: Recipe,
        world: distributed.World,
        objective: Objective | None = None,
        fields: Sequence[Field] = (),
    ) -> None:
        self.recipe, self.world = recipe, world
        self.guide = Guide(fields, world.device)
        self.dtype = DTYPES[recipe.compute.precision]
        compute = recipe.compute
        self._spread = distributed.Spread(compute.parallel, compute.shard_group, self.dtype)
        shards = self._spread.shards(world.size)
        self._late = objective is not None or (shards > 1 and not recipe.start_from)  # nobody makes the whole network
        self.loaded: Loaded | None = None
        if objective is None:
            _require_room(recipe, shards if self._late else 1)
            objective = objective_of(recipe, recipe.seed, "meta" if self._late else "cpu", outputs(fields))
        self.objective = objective
        if not self._late:
            self.loaded = self._begin_from(recipe.start_from)
        self._spread_out()

    def prepare(self) -> None:
        """Weights for networks that were made on the meta device, and the optimizer."""
        if self._late:
            self.objective.materialise(self.world.device, self.recipe.seed)
        self.take_anchor()
        self.add_optimizer()

    def take_anchor(self) -> None:
        """Anchor to the teacher as it is now, where the recipe has an anchor."""
        if self.objective.anchor is not None:
            self.objective.anchor.take(self.objective.ema)

    def add_optimizer(self) -> None:
        """Of the student's parameters, with its state."""
        self.optimizer = make_optimizer(self.network, self.recipe.backbone.depth, self.recipe.optim)

    @property
    def network(self) -> Network:
        """The student, without what spreads it over processes."""
        return cast("Network", distributed.plain(self.objective.student))

    def learn(
        self, tiles: Tensor, places: Places, labels: Sequence[LabelArray] = (), scales: TileScales | None = None
    ) -> dict[str, Tensor]:
        """One update by this process's share of a batch, `tiles` (B, 3, 392, 392) uint8 on the device, at these places.

        `labels`: of the tiles, for each field of the guide, as Field.labels has them; `scales`: theirs. Returns single
        numbers on the device: losses, the gradient's norm, and whether they were `bad`.
        """
        recipe = self.recipe
        at = schedules.at(recipe.schedule, places.step, recipe.sampling.batch)
        parts = recipe.compute.accumulate
        size = len(tiles) // parts
        sums: dict[str, Tensor] = {}
        labelled = self.guide.send(labels)
        for part in range(parts):
            rows = slice(part * size, (part + 1) * size)
            with record_function("views"):
                views = self._views(tiles[rows], replace(places, position=places.position[rows]), scales, rows)
            with distributed.gradients_summed(self.objective.student, now=part == parts - 1):
                with self._autocast():
                    losses = self.objective.losses(views, at)
                with record_function("losses"):
                    of_guide, told = self.guide.losses(losses.told, labelled, rows, parts)
                with record_function("backward"):
                    ((losses.total + of_guide) / parts).backward()  # type: ignore[no-untyped-call]
            for name, value in {**losses.parts, **told}.items():
                sums[name] = sums[name] + value / parts if name in sums else value / parts
        with record_function("update"):
            norm = clip_gradients(self.network, recipe.optim)
            seen = self.guide.figures(distributed.all_mean(sums)) | {"gradient_norm": norm}
            bad = (~torch.isfinite(norm + seen["loss"])).float()
            take_step(self.optimizer, at, bad)
            self.optimizer.zero_grad(set_to_none=True)
            self.objective.update(at)
        return seen | {"bad": bad}

    def _views(self, tiles: Tensor, places: Places, scales: TileScales | None, rows: slice) -> Views:
        """Of a part of this process's share; `scales` of all of it."""
        recipe, dtype = self.recipe, self.dtype if tiles.is_cuda else torch.float32
        own = scales and scales.take(rows)
        views = make_views(tiles, recipe.views, places, recipe.backbone.patch_px, dtype, own)
        if self.objective.anchor is None:
            return views
        large = enlarged_crops(tiles, recipe.views.crops, places, recipe.objective.gram_scale, dtype, own)
        return replace(views, anchor_crops=large)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that changes, by name; parameters are named alike whether they are in shards or not."""
        objective = self.objective
        found: dict[str, Tensor] = {}
        for name, module in (("student", self.network), ("average", objective.ema), ("anchor", objective.anchor)):
            if module is not None:
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
        objective.student = distributed.share_out(student, student.units(), self._spread, self.world)
        if compute.parallel in distributed.SHARDED:
            for network in objective.frozen:
                distributed.share_out(network, network.units(), self._spread, self.world)
            for network in (student, *objective.frozen):
                distributed.gather_ahead(network.backbone.vit.blocks, compute.gather_ahead)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.world.device.type, self.dtype)


def require_division(recipe: Recipe, processes: int, start: int = 0) -> None:
    """Raise BadOption where the batch cannot be shared out to so many processes; `start`: of the recipe's stage."""
    parts = recipe.compute.accumulate
    if recipe.sampling.batch % (processes * parts):
        raise BadOption(
            f"{f'from step {start:,} on: ' if start else ''}a batch of {recipe.sampling.batch} does not divide by "
            f"{processes} processes times {parts} parts; change sampling.batch, compute.accumulate or GPUS"
        )


def objective_of(recipe: Recipe, seed: int, where: str = "cpu", guide: Mapping[str, int] | None = None) -> Objective:
    """What the recipe minimises: self-distillation, or distillation from `recipe.teacher`.

    `where`: the device that the student is made on; on "meta" it has no weights until self_distillation.begin. `guide`:
    by field of the recipe's guide, what its head has to give. Raises BadRun and BadWeights where the teacher cannot be
    loaded.
    """
    recompute, most = recipe.compute.recompute, (recipe.compute.loss_mb << 20) // 4
    teacher = load_teacher(Path(recipe.teacher)) if recipe.teacher else None
    with torch.device(where):
        objective: SelfDistillation | Distillation
        if teacher is None:
            objective = SelfDistillation(recipe.objective, recipe.backbone, seed, recompute, most)
        else:
            objective = Distillation(recipe.objective, recipe.backbone, teacher, seed, recompute, most)
        heads = GuideHeads(recipe.backbone.width, guide or {}, recipe.guide.told)
        objective.student.guide = heads
    if where != "meta":
        initialise(heads, seed, "guide.")
    return objective
