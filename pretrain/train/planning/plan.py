"""A plan: what a recipe takes on some GPUs, whether it fits, and the nearest settings that do."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

from pretrain.data.sampler import SamplingSettings
from pretrain.model.recompute import MODES
from pretrain.train.learner import require_division
from pretrain.train.planning.assumptions import PlanAssumptions
from pretrain.train.planning.gpus import Gpu
from pretrain.train.planning.roofline import StepTime, step_time
from pretrain.train.planning.simulate import Simulated, simulate
from pretrain.train.recipe.pieces import pieces
from pretrain.train.recipe.recipe import Recipe

_GIGA = 1e9
_DAY_S, _HOUR_S = 86_400, 3600
_BLOCK_TILES = 6.0  # 1,603 / 275 by docs/training-data.md

Looking = Callable[[Recipe, int], None]
"""What is told the recipe and the number of GPUs of which a step is simulated next: each takes seconds or more."""


@dataclass(frozen=True)
class Plan:
    """What `recipe` takes on so many GPUs of a kind, under these assumptions.

    Of a run with stages, there is one for each piece, of the recipe that holds in it: from step `start` on, so many
    steps as are `of_piece`; 0 for all of the recipe.
    """

    recipe: Recipe
    gpus: int
    gpu: Gpu
    assumed: PlanAssumptions
    seen: Simulated
    start: int = 0
    of_piece: int = 0

    @property
    def steps(self) -> int:
        """That it is for."""
        return self.of_piece or self.recipe.schedule.steps

    @cached_property
    def time(self) -> StepTime:
        """Of a step."""
        return step_time(self.seen, self.gpu, self.recipe.compute.compile, self.assumed)

    @property
    def tiles(self) -> int:
        """Of a GPU in a step."""
        return self.recipe.sampling.batch // self.gpus

    @property
    def peak_gb(self) -> float:
        """What tensors hold of a GPU at the peak."""
        return self.seen.peak / _GIGA

    @property
    def needed_gb(self) -> float:
        """The same, with what is lost and what CUDA and NCCL take."""
        return needed_gb(self.seen, self.assumed)

    @property
    def fits(self) -> bool:
        """Into the GPU's memory."""
        return self.needed_gb <= self.gpu.memory_gb

    @property
    def tiles_per_s(self) -> float:
        """Of all GPUs."""
        return self.recipe.sampling.batch / self.time.step

    @property
    def peak_share(self) -> float:
        """What the step reaches of the GPU's dense peak."""
        return self.time.flops / self.time.step / (self.gpu.bf16_tflops * 1e12)

    @property
    def days(self) -> float:
        """For its steps."""
        return self.steps * self.time.step / _DAY_S

    @property
    def gpu_hours(self) -> float:
        """For its steps, of all GPUs."""
        return self.gpus * self.steps * self.time.step / _HOUR_S

    @property
    def cost(self) -> float:
        """In the currency of the price."""
        return self.gpu_hours * self.assumed.price

    @property
    def machines(self) -> int:
        """That hold the GPUs."""
        return -(-self.gpus // self.assumed.per_machine)

    @property
    def loader_cores(self) -> float:
        """Of each machine, to read and decode as fast as its GPUs train."""
        return self.tiles_per_s * _work(self.recipe.sampling) / self.machines / self.assumed.core_tiles

    @property
    def checkpoints(self) -> int:
        """How many are kept in the end: the newest, and one for every so many hours, of those that are made."""
        saving = self.recipe.saving
        hours = self.days * 24
        kept = hours / saving.keep_hours if saving.keep_hours else 0
        return saving.keep + int(min(kept, self.steps / saving.every))


def _work(sampling: SamplingSettings) -> float:
    """What reading one of a batch takes, in stored tiles; for any um/px as if it were log-uniform."""
    if not sampling.any_mpp:
        return 1.0
    alone = math.log2(sampling.alone)  # of each octave of um/px
    return alone + (1 - alone) * _BLOCK_TILES


def needed_gb(seen: Simulated, assumed: PlanAssumptions) -> float:
    """Memory of a GPU that a step needs, in GB: what tensors hold, what is lost between blocks, what CUDA takes."""
    return seen.peak / _GIGA / (1 - assumed.fragmentation) + assumed.reserved_gb


def make_plans(
    recipe: Recipe, gpus: int, gpu: Gpu, assumed: PlanAssumptions, looking: Looking | None = None
) -> list[Plan]:
    """Simulate a step of each piece of a run: one where it has no stages.

    Raises BadOption where recipe and processes do not fit together.
    """
    parts = pieces(recipe)
    for each in parts:
        require_division(each.recipe, gpus, each.start)
    return [
        Plan(each.recipe, gpus, gpu, assumed, _look(each.recipe, gpus, looking), each.start, each.stop - each.start)
        for each in parts
    ]


def nearest_plan(plan: Plan, looking: Looking | None = None) -> Plan | None:
    """With the nearest settings that fit, where these do not; None where none do."""
    found = nearest(plan.recipe, plan.gpus, lambda seen: replace(plan, seen=seen).fits, looking)
    return None if found is None else replace(plan, recipe=found[0], seen=found[1])


def nearest(
    recipe: Recipe, gpus: int, fits: Callable[[Simulated], bool], looking: Looking | None = None
) -> tuple[Recipe, Simulated] | None:
    """The recipe with the fewest changes that fit, and its step; None where none do.

    What computes the same comes first: recomputation and shards. Then `accumulate`, which changes what losses compare.
    """
    levels = [list(_leaner(recipe, gpus, parts)) for parts in _accumulations(recipe, gpus)]
    leanest: dict[int, Simulated] = {}

    def enough(number: int) -> bool:
        leanest[number] = _look(levels[number][-1], gpus, looking)
        return fits(leanest[number])

    if not levels or not enough(len(levels) - 1):
        return None
    chosen = bisect.bisect_left(range(len(levels) - 1), True, key=enough)  # in more parts, less is held
    tried = ((each, _look(each, gpus, looking)) for each in levels[chosen][:-1])
    return next(((each, seen) for each, seen in tried if fits(seen)), (levels[chosen][-1], leanest[chosen]))


def _look(recipe: Recipe, gpus: int, looking: Looking | None) -> Simulated:
    if looking is not None:
        looking(recipe, gpus)
    return simulate(recipe, gpus)


def changes(recipe: Recipe, other: Recipe, start: int = 0) -> str:
    """What SET has to say to make the other recipe of this one, of what `nearest` changes: "compute.recompute=full".

    Of a stage from step `start` on, what can change there alone.
    """
    before, now = recipe.compute, other.compute
    names = [
        name
        for name in ("parallel", "shard_group", "recompute", "accumulate")
        if getattr(now, name) != getattr(before, name)
    ]
    of_stage = f"stages.{start}." if start else ""
    return " ".join(
        f"{of_stage if name in ('recompute', 'accumulate') else ''}compute.{name}={getattr(now, name)}"
        for name in names
    )


def _accumulations(recipe: Recipe, gpus: int) -> Iterator[int]:
    """That of the recipe, and twice as many parts for as long as the batch divides."""
    parts = recipe.compute.accumulate
    while recipe.sampling.batch % (gpus * parts) == 0:
        yield parts
        parts *= 2


def _leaner(recipe: Recipe, gpus: int, accumulate: int) -> Iterator[Recipe]:
    """Settings that hold ever less, from the recipe's own on."""
    compute = recipe.compute
    modes = MODES[MODES.index(compute.recompute) :]
    ways = [compute.parallel]
    if gpus > compute.shard_group and gpus % compute.shard_group == 0 and compute.parallel == "ddp":
        ways.append("hsdp")
    if gpus > 1 and compute.parallel != "fsdp":
        ways.append("fsdp")
    for mode in modes:
        for way in ways:
            changed = replace(compute, recompute=mode, parallel=way, accumulate=accumulate)
            yield replace(recipe, compute=changed)
