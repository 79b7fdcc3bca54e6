"""One step of a recipe as the first of many processes would do it, over tensors that have shapes and no numbers.

It is the loop's own step, on the CPU's operators. On a GPU, these differ: compiled blocks hold less than is counted
here; blocks that are not, in shards, hold up to 8 bytes more for each token and channel, since LayerNorm is in float32.
"""

from __future__ import annotations

import gc
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pretrain.compute import distributed
from pretrain.compute.pretended import pretended
from pretrain.compute.randomness import Places
from pretrain.errors import SimulationFailed
from pretrain.learning.guide import outputs, supposed_fields, supposed_labels
from pretrain.learning.optimizer import optimizer_state
from pretrain.model.packing import plan_drop
from pretrain.train.learner import Learner, objective_of, require_division
from pretrain.train.planning import ledger as parts
from pretrain.train.planning.ledger import Collective, Ledger, Operation
from pretrain.train.recipe.recipe import Recipe
from pretrain.views.colour import plan_colour
from pretrain.views.crops import plan_crops
from pretrain.views.masking import plan_masks
from wsi_prep.errors import WsiPrepError, first_line
from wsi_prep.format.magnifications import TILE_PX

_ROUNDS = 2  # of compute.accumulate that are simulated: all but the last are alike
_DEPTHS = (4, 8)  # of a deep network that are simulated: its blocks are alike, so all else lies on a line
_TILES = (256, 2048)  # of a round that are simulated at least and at most, and twice as many; all else lies on a line
_PLANNED = 512  # tiles whose random numbers are timed


@dataclass(frozen=True)
class Simulated:
    """What a step holds on one GPU, in bytes by part (see ledger.PARTS), and does, with how often.

    `at_rest`: between steps. `peaks`: when most is held while a part is at work, by that part. `checkpoint`: bytes of
    one, of all processes together. `planning_s`: time that the numbers of a step's crops, colours and masks took here.
    """

    at_rest: Mapping[str, int]
    peaks: Mapping[str, Mapping[str, int]]
    operations: Mapping[Operation, float]
    collectives: Mapping[Collective, float]
    checkpoint: int
    planning_s: float

    @property
    def during(self) -> str:
        """The part that is at work when most is held."""
        return max(self.peaks, key=lambda part: sum(self.peaks[part].values()))

    @property
    def at_peak(self) -> Mapping[str, int]:
        """Bytes by part when most is held."""
        return self.peaks[self.during]

    @property
    def peak(self) -> int:
        """Bytes when most is held."""
        return sum(self.at_peak.values())


def simulate(recipe: Recipe, processes: int) -> Simulated:
    """A step in the middle of the run. Raises BadOption where recipe and processes do not fit together.

    Of a deep network, two shallow ones are simulated, and of many tiles, two smaller numbers of them. No other process
    group may be open in this process. Raises SimulationFailed where torch fails in a way that nobody foresaw.
    """
    require_division(recipe, processes)
    try:
        return _simulated(recipe, processes)
    except (WsiPrepError, OSError):
        raise
    except Exception as error:
        raise SimulationFailed(
            f"the simulation of a step failed ({first_line(error)}), so there is no plan; we know of no setting that "
            "causes this: it may be a fault of ours, please report it with RECIPE, SET and GPUS"
        ) from error


def _simulated(recipe: Recipe, processes: int) -> Simulated:
    rounds = processes * recipe.compute.accumulate
    tiles = recipe.sampling.batch // rounds
    of_a_tile = 8e-6 * recipe.objective.head.prototypes  # MB of two class tokens; beyond loss_mb, losses go by parts
    few = min(max(_TILES[0], math.ceil(recipe.compute.loss_mb / of_a_tile)), _TILES[1])
    if tiles <= 2 * few:
        found = _of_depth(recipe, processes)
    else:
        less, more = (
            _of_depth(replace(recipe, sampling=replace(recipe.sampling, batch=number * rounds)), processes)
            for number in (few, 2 * few)
        )
        found = _along(less, more, (tiles - few) / few)
    return replace(found, planning_s=_planning(recipe, recipe.sampling.batch // processes))


def _of_depth(recipe: Recipe, processes: int) -> Simulated:
    depth = recipe.backbone.depth
    if depth <= _DEPTHS[1]:
        return simulate_whole(recipe, processes)
    few, more = (
        simulate_whole(replace(recipe, backbone=replace(recipe.backbone, depth=number)), processes)
        for number in _DEPTHS
    )
    return _along(few, more, (depth - _DEPTHS[0]) / (_DEPTHS[1] - _DEPTHS[0]))


def simulate_whole(recipe: Recipe, processes: int) -> Simulated:
    """As `simulate`, with every block and tile, and without `planning_s`."""
    share, times = recipe.sampling.batch // processes, recipe.compute.accumulate
    rounds = min(times, _ROUNDS)
    compute = replace(recipe.compute, accumulate=rounds, compile=False, device="cpu")
    shown = replace(recipe, compute=compute, start_from="")
    places = Places(recipe.seed, recipe.schedule.steps // 2, np.arange(share // times * rounds))
    with pretended(processes):
        learner, ledger = _learner(shown, processes), Ledger()
        with FakeTensorMode(allow_non_fake_inputs=True), ledger:
            buckets = _prepare(learner, ledger, processes)
            at_rest = +ledger.now
            tiles = torch.empty(share, 3, TILE_PX, TILE_PX, dtype=torch.uint8)
            ledger.assign([tiles], parts.VIEWS)
            ledger.begin()
            labels = supposed_labels(recipe.guide, len(places.position))
            learner.learn(tiles[: len(places.position)], places, labels)
        del buckets
    return Simulated(
        at_rest,
        {part: +held for part, held in ledger.peaks.items()},
        _repeated(ledger.operations, times),
        _repeated(ledger.collectives, times) | _gradients_summed(learner, processes),
        sum(tensor.numel() * tensor.itemsize for tensor in learner.tensors().values()),
        0.0,
    )


def _along(few: Simulated, more: Simulated, way: float) -> Simulated:
    """On the line through two depths or numbers of tiles, so many times as far from the first as the second is.

    Counts may be negative: of one operation over all parameters or tiles, the smaller one's is taken away.
    """

    def line(one: Mapping[Any, float], other: Mapping[Any, float]) -> dict[Any, float]:
        keys = dict.fromkeys([*one, *other])
        return {key: one.get(key, 0) + way * (other.get(key, 0) - one.get(key, 0)) for key in keys}

    def whole(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
        return {part: max(0, round(nbytes)) for part, nbytes in line(one, other).items()}

    return Simulated(
        whole(few.at_rest, more.at_rest),
        {part: whole(few.peaks.get(part, {}), more.peaks[part]) for part in more.peaks},
        line(few.operations, more.operations),
        line(few.collectives, more.collectives),
        round(few.checkpoint + way * (more.checkpoint - few.checkpoint)),
        0.0,
    )


def _learner(recipe: Recipe, processes: int) -> Learner:
    """One without weights. With ddp it is alone, since what wraps it takes no tensors without numbers."""
    fields = supposed_fields(recipe.guide)
    objective = objective_of(recipe, recipe.seed, "meta", outputs(fields))
    cast("nn.Module", objective).to("meta")
    spread = processes if recipe.compute.parallel in distributed.SHARDED else 1
    return Learner(recipe, distributed.World(0, spread, torch.device("cpu")), objective, fields)


def _prepare(learner: Learner, ledger: Ledger, processes: int) -> list[torch.Tensor]:
    """Give it what it holds between steps; returns what has to stay besides."""
    cast("nn.Module", learner.objective).to_empty(device="cpu")
    learner.add_optimizer()
    parameters, kept = list(learner.network.parameters()), []
    objective = learner.objective
    for frozen in objective.frozen:
        part = {id(objective.ema): parts.EMA, id(objective.anchor): parts.ANCHOR}.get(id(frozen), parts.TEACHER)
        ledger.assign(frozen.parameters(), part)
    ledger.assign(parameters, parts.PARAMETERS)
    ledger.assign(optimizer_state(learner.optimizer, learner.network).values(), parts.OPTIMIZER)
    if processes > 1 and learner.recipe.compute.parallel == "ddp":  # ddp's buckets stay; gradients lie in them
        kept = [torch.zeros_like(parameter) for parameter in parameters]
        ledger.assign(kept, parts.GRADIENTS)
        if learner.recipe.compute.accumulate == 1:
            for parameter, bucket in zip(parameters, kept, strict=True):
                parameter.grad = bucket
    for parameter in parameters:
        if distributed.local(parameter) is parameter:
            parameter.register_post_accumulate_grad_hook(_assigned(ledger))  # type: ignore[no-untyped-call]
    gc.collect()
    return kept


def _assigned(ledger: Ledger) -> Callable[[torch.Tensor], None]:
    def hook(parameter: torch.Tensor) -> None:
        if parameter.grad is not None:
            ledger.assign([parameter.grad], parts.GRADIENTS)

    return hook


def _repeated(counts: Counter[Any], times: int) -> dict[Any, float]:
    """With the first of two rounds as often as there are rounds but for the last."""
    return {each: count * (times - 1 if times > 1 and each.round == 1 else 1) for each, count in counts.items()}


def _gradients_summed(learner: Learner, processes: int) -> dict[Collective, float]:
    """What ddp sends, which the simulation does not."""
    if processes == 1 or learner.recipe.compute.parallel != "ddp":
        return {}
    nbytes = sum(parameter.numel() * 4 for parameter in learner.network.parameters())
    return {Collective("allreduce", nbytes, processes, 0): 1}


def _planning(recipe: Recipe, share: int) -> float:
    """Seconds that the host needs here for the random numbers of a process's share of the batch."""
    rounds, views, crops = recipe.compute.accumulate, recipe.views, recipe.views.crops
    tiles = min(share // rounds, _PLANNED)
    began = time.perf_counter()
    places = Places(recipe.seed, 0, np.arange(tiles))
    plan_crops(crops, places)
    for kind, count in (("global", crops.global_crops), ("local", crops.local_crops)):
        plan_colour(views.colour, places, kind, count)
    plan_masks(views.masking, places, crops.global_crops, crops.global_px // recipe.backbone.patch_px)
    plan_drop(places, crops.global_crops + crops.local_crops, recipe.backbone.depth)
    return (time.perf_counter() - began) * share / tiles
