"""Shows a recipe: every setting with its name, as `--set name=value` takes it, and what the model costs."""

from __future__ import annotations

import sys

import torch

from pipelines.calls.training import RecipeCall
from pipelines.command import EXIT_OK, Terminal, run_command
from pretrain.model.backbone import make_vit
from pretrain.train.recipe.flops import step_flops
from pretrain.train.recipe.overrides import at_step, changed, shown
from pretrain.train.recipe.recipe import flat
from pretrain.train.recipe.recipes import RECIPES, recipe
from pretrain.train.recipe.sources import sources_of

_COLUMN = 44


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(RecipeCall, _work, arguments)


def _work(call: RecipeCall, terminal: Terminal) -> int:
    made = recipe(call.recipe)
    asked = changed(made, call.set)
    for line in (RECIPES[call.recipe].__doc__ or "").splitlines():
        terminal.say(f"# {line.strip()}")
    before, sources = flat(made), sources_of(made)
    for name, value in flat(asked).items():
        line = f"{name}={shown(value)}"
        source = sources[name] if before.get(name) == value else "SET"
        terminal.say(f"{line:<{_COLUMN}}  # {source}" if name != "name" else line)
    if not asked.stages:
        terminal.note("# no stages; SET=stages.STEP.name=value changes a setting from that step on")
    terminal.note(f"# recipes: {' '.join(RECIPES)}; RECIPE=name shows one")
    with torch.device("meta"):
        millions = sum(p.numel() for p in make_vit(asked.backbone).parameters()) / 1e6
    flops = step_flops(asked)
    terminal.say(
        f"# backbone of {millions:,.1f} M parameters; {flops.executed / 1e12:.3g} TFLOP a tile "
        f"({flops.dense / 1e12:.3g} without stochastic depth and recomputation)"
    )
    for stage in asked.stages:
        flops = step_flops(at_step(asked, stage.start))
        terminal.say(f"# from step {stage.start:,} on: {flops.executed / 1e12:.3g} TFLOP a tile")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
