"""Plans a training: whether a recipe fits on some GPUs, how long it takes and what it costs, without a GPU."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

from docstring_parser import parse_from_object
from rich import box
from rich.progress import TextColumn, TimeElapsedColumn
from rich.table import Table

from pipelines.bars import Bar
from pipelines.calls.training import PlanTrainCall
from pipelines.command import EXIT_NOT_ALL, EXIT_OK, EXIT_WRONG_CALL, Terminal, run_command
from pretrain.errors import SimulationFailed
from pretrain.train.planning.assumptions import PlanAssumptions
from pretrain.train.planning.gpus import gpu_named
from pretrain.train.planning.host import erasing_bytes, starting_bytes, unread
from pretrain.train.planning.ledger import PARTS
from pretrain.train.planning.plan import Looking, Plan, changes, make_plans, nearest_plan
from pretrain.train.recipe.caveats import student_alone
from pretrain.train.recipe.overrides import changed
from pretrain.train.recipe.recipe import Recipe
from pretrain.train.recipe.recipes import recipe
from wsi_prep.errors import BadOption, counted
from wsi_prep.storage.atomic import write_atomically

_GIGA = 1e9
_MOST_GPUS = 1 << 20


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(PlanTrainCall, _work_or_refuse, arguments)


def _work_or_refuse(call: PlanTrainCall, terminal: Terminal) -> int:
    try:
        return _work(call, terminal)
    except SimulationFailed as error:
        terminal.warn(str(error))
        return EXIT_WRONG_CALL


def _work(call: PlanTrainCall, terminal: Terminal) -> int:
    assumed = PlanAssumptions(**{each.name: getattr(call, each.name) for each in fields(PlanAssumptions)})
    gpu, made = gpu_named(call.gpu), changed(recipe(call.recipe), call.set)
    for count in call.gpus:
        if not 1 <= count <= _MOST_GPUS:
            raise BadOption(f"GPUS={count} is no number of GPUs")
    with _looking(terminal) as looking:
        plans = [plan for count in call.gpus for plan in make_plans(made, count, gpu, assumed, looking)]
        found = [plan if plan.fits else nearest_plan(plan, looking) for plan in plans]
    if len(call.gpus) == 1:
        for plan, near in zip(plans, found, strict=True):
            _show(terminal, plan, near)
        if made.stages:
            _show_all(terminal, plans, found)
    else:
        _show_several(terminal, made, plans, found)
    for line in (*filter(None, [student_alone(made), unread(made)]), *_assumptions(plans[0])):
        terminal.note(line)
    if call.to:
        told = [{"asked": _told(plan), "fits": near and _told(near)} for plan, near in zip(plans, found, strict=True)]
        write_atomically(call.to, json.dumps(told, indent=2).encode())
        terminal.say(f"written: {call.to}")
    return EXIT_OK if all(plan.fits for plan in plans) else EXIT_NOT_ALL


@contextlib.contextmanager
def _looking(terminal: Terminal) -> Iterator[Looking]:
    """What is simulated now, and for how long plans have been looked for."""
    columns = (TextColumn("{task.description}"), TimeElapsedColumn())
    with Bar(*columns, console=terminal.out, disable=not terminal.out.is_terminal, transient=True) as bar:
        task, tried = bar.add_task("", total=None), itertools.count(1)

        def show(now: Recipe, gpus: int) -> None:
            compute = now.compute
            settings = f"{compute.parallel}, recompute {compute.recompute}, accumulate {compute.accumulate}"
            bar.update(task, description=f"simulation {next(tried)}: {counted(gpus, 'GPU')}, {settings}", refresh=True)

        yield show


def _show(terminal: Terminal, plan: Plan, near: Plan | None) -> None:
    """One plan: its memory, then time and money of what fits."""
    at = f" from {plan.start:,} on" if plan.start else ""
    what = f"{plan.recipe.name} on {plan.gpus:,} x {plan.gpu.name}"
    terminal.say(f"{what}, by simulation of a step{at}: {_settings(plan)}")
    terminal.out.print(_memory(plan))
    needed = (
        f"peak in: {plan.seen.during}. With {plan.assumed.fragmentation:.0%} lost between blocks and "
        f"{plan.assumed.reserved_gb:g} GB for CUDA and NCCL it needs {plan.needed_gb:.1f} of {plan.gpu.memory_gb:g} GB"
    )
    if plan.fits:
        terminal.say(f"{needed}: it fits")
    elif near is None:
        terminal.say(f"{needed}: it does not fit, with no recomputation, shards or accumulation")
        terminal.say("take more GPUs, GPUs with more memory, or a smaller sampling.batch")
        return
    else:
        terminal.say(f"{needed}: it does not fit")
        terminal.note(
            f'the nearest settings that do: SET="{_changes(plan, near)}", {near.needed_gb:.1f} GB at '
            f"{_tiles(near)}. With these:"
        )
    terminal.out.print(_time(near or plan))


def _show_all(terminal: Terminal, plans: list[Plan], found: list[Plan | None]) -> None:
    """Of a run with stages: its peak, and what all of it takes."""
    worst = max(plans, key=lambda plan: plan.needed_gb)
    where = f"from step {worst.start:,} on" if worst.start else "before the first stage"
    fits = "it fits" if all(plan.fits for plan in plans) else "it does not fit"
    terminal.say(f"all stages: the peak is {where}, {worst.needed_gb:.1f} of {worst.gpu.memory_gb:g} GB: {fits}")
    chosen = [near for near in found if near is not None]
    if len(chosen) == len(found):
        days, hours, cost = (sum(getattr(each, what) for each in chosen) for what in ("days", "gpu_hours", "cost"))
        price = f", cost {cost:,.0f}" if worst.assumed.price else ""
        terminal.say(f"all stages: {days:,.1f} days, {hours:,.0f} GPU hours{price}")


def _changes(plan: Plan, near: Plan) -> str:
    return changes(plan.recipe, near.recipe, plan.start)


def _settings(plan: Plan) -> str:
    compute = plan.recipe.compute
    return (
        f"batch {plan.recipe.sampling.batch:,}, {_tiles(plan)}, {compute.parallel}, recompute {compute.recompute}, "
        f"accumulate {compute.accumulate}"
    )


def _tiles(plan: Plan) -> str:
    parts = plan.recipe.compute.accumulate
    return f"{counted(plan.tiles, 'tile')} a GPU" + (f" in {parts} parts" if parts > 1 else "")


def _memory(plan: Plan) -> Table:
    """GB of a GPU by part, at rest and at the peak."""
    table = Table("GB of a GPU", "at rest", "at peak", box=box.SIMPLE_HEAD, pad_edge=False, show_footer=True)
    rest, peak = plan.seen.at_rest, plan.seen.at_peak
    for column, held in zip(table.columns[1:], (rest, peak), strict=True):
        column.justify, column.footer = "right", f"{sum(held.values()) / _GIGA:.2f}"
    table.columns[0].footer = "all"
    for part in PARTS:
        if part in rest or part in peak:
            table.add_row(part, *(f"{held.get(part, 0) / _GIGA:.2f}" for held in (rest, peak)))
    return table


def _time(plan: Plan) -> Table:
    """A step, and what follows of it for the run."""
    time, saving = plan.time, plan.recipe.saving
    checkpoint = plan.seen.checkpoint / _GIGA
    rows = [
        ("matrix products", f"{time.products:.3f} s of a step, {time.flops / 1e12:,.0f} TFLOP"),
        ("other operations", f"{time.memory:.3f} s"),
        ("collectives", f"{time.exposed:.3f} s, and {time.collectives - time.exposed:.3f} s meanwhile"),
        ("host, meanwhile", f"{time.host:.3f} s: {time.planning:.3f} for random numbers, {time.launches:.3f} to start"),
        ("a step", f"{time.step:.3f} s, {plan.peak_share:.0%} of the GPU's peak"),
        ("tiles per second", f"{plan.tiles_per_s:,.0f}, {plan.tiles_per_s / plan.gpus:,.1f} a GPU"),
        ("all steps", f"{plan.steps:,}: {plan.days:,.1f} days, {plan.gpu_hours:,.0f} GPU hours"),
    ]
    if plan.assumed.price:
        rows.append(("cost", f"{plan.cost:,.0f}"))
    rows += [
        (
            "checkpoints",
            f"{checkpoint:,.1f} GB each, one every {counted(saving.every, 'step')}; {plan.checkpoints:,} stay: "
            f"{checkpoint * plan.checkpoints / 1e3:,.2f} TB",
        ),
        ("memory of the host", _host(plan)),
        ("cores to load tiles", f"{plan.loader_cores:.1f} of each of {counted(plan.machines, 'machine')}"),
    ]
    table = Table(show_header=False, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return table


def _host(plan: Plan) -> str:
    start, erasing = starting_bytes(plan.recipe, plan.gpus) / _GIGA, erasing_bytes(plan.recipe) / _GIGA
    shown = [f"{start:.1f} GB of each process at the start, for whole networks" if start else "no whole network"]
    if erasing:
        tiles = counted(plan.recipe.saving.erase_tiles, "tile")
        shown.append(f"{erasing:.1f} GB of the first process at each checkpoint, to erase fields over {tiles}")
    return "; ".join(shown) + "; what loads tiles is not counted"


def _show_several(terminal: Terminal, made: Recipe, plans: list[Plan], found: list[Plan | None]) -> None:
    """A line for each number of GPUs, in Markdown."""
    terminal.say(f"{made.name} on {plans[0].gpu.name}, by simulation of a step; with the nearest settings that fit")
    heads = ("GPUs", "SET", "tiles a GPU", "GB at rest", "GB at peak", "step, s", "tiles/s", "days")
    rows = [heads, ("---",) * len(heads)]
    for plan, near in zip(plans, found, strict=True):
        numbers = ("does not fit", f"{plan.tiles}", "", f"{plan.peak_gb:.0f}", "", "", "")
        if near is not None:
            rest = sum(near.seen.at_rest.values()) / _GIGA
            memory = (f"{near.tiles}", f"{rest:.1f}", f"{near.peak_gb:.0f}")
            speed = (f"{near.time.step:.2f}", f"{near.tiles_per_s:,.0f}", f"{near.days:,.1f}")
            numbers = (_changes(plan, near), *memory, *speed)
        rows.append((f"{plan.gpus:,}" + (f", from step {plan.start:,}" if plan.start else ""), *numbers))
    for row in rows:
        terminal.say(f"| {' | '.join(row)} |")


def _assumptions(plan: Plan) -> list[str]:
    """What was assumed, by the names that change it."""
    gpu, assumed = plan.gpu, plan.assumed
    lines = [
        f"{gpu.name} by its data sheet: {gpu.memory_gb:g} GB at {gpu.memory_gb_s:,g} GB/s, {gpu.bf16_tflops:,g} "
        f"TFLOP/s of dense bfloat16, {gpu.machine_gb_s:g} GB/s within a machine, {gpu.network_gb_s:g} beyond; products "
        "of float32 take twice as long",
        "assumed; change these with PRICE=3 and so on:",
    ]
    for each in parse_from_object(PlanAssumptions).params:
        value = getattr(assumed, each.arg_name)
        shown = gpu.network_gb_s if value is None else value
        lines.append(f"  {each.arg_name.upper()}={shown:g}: {each.description}")
    return lines


def _told(plan: Plan) -> dict[str, Any]:
    """Everything, for programs."""
    compute, time = plan.recipe.compute, plan.time
    return {
        "recipe": plan.recipe.name,
        "from_step": plan.start,
        "steps": plan.steps,
        "gpus": plan.gpus,
        "gpu": asdict(plan.gpu),
        "batch": plan.recipe.sampling.batch,
        "tiles_per_gpu": plan.tiles,
        "parallel": compute.parallel,
        "recompute": compute.recompute,
        "accumulate": compute.accumulate,
        "at_rest_bytes": dict(plan.seen.at_rest),
        "at_peak_bytes": dict(plan.seen.at_peak),
        "peak_during": plan.seen.during,
        "needed_gb": plan.needed_gb,
        "fits": plan.fits,
        "step_s": {**asdict(time), "host": time.host, "step": time.step},
        "tiles_per_s": plan.tiles_per_s,
        "days": plan.days,
        "gpu_hours": plan.gpu_hours,
        "cost": plan.cost,
        "checkpoint_bytes": plan.seen.checkpoint,
        "checkpoints_kept": plan.checkpoints,
        "host_start_bytes": starting_bytes(plan.recipe, plan.gpus),
        "host_erasing_bytes": erasing_bytes(plan.recipe),
        "loader_cores_per_machine": plan.loader_cores,
        "assumed": asdict(plan.assumed),
    }


if __name__ == "__main__":
    sys.exit(main())
