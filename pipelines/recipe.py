"""Shows a recipe: every setting with its name, as `--set name=value` takes it, and what the model costs."""

from __future__ import annotations

import argparse
import sys

import torch

from pipelines.command import EXIT_OK, Terminal, run_command
from pipelines.options import Options
from pretrain.model.backbone import make_vit
from pretrain.train.recipe.flops import step_flops
from pretrain.train.recipe.overrides import changed
from pretrain.train.recipe.recipe import flat
from pretrain.train.recipe.recipes import RECIPES, recipe


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(build_parser(), _work, arguments)


def _work(options: argparse.Namespace, terminal: Terminal) -> int:
    shown = changed(recipe(options.recipe), options.set)
    for line in (RECIPES[options.recipe].__doc__ or "").splitlines():
        terminal.say(f"# {line.strip()}")
    for name, value in flat(shown).items():
        terminal.say(f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}")
    with torch.device("meta"):
        millions = sum(p.numel() for p in make_vit(shown.backbone).parameters()) / 1e6
    flops = step_flops(shown)
    terminal.say(
        f"# backbone of {millions:,.1f} M parameters; {flops.executed / 1e12:.3g} TFLOP a tile "
        f"({flops.dense / 1e12:.3g} without stochastic depth and recomputation)"
    )
    return EXIT_OK


def build_parser() -> Options:
    """The command line."""
    parser = Options(prog="python -m pipelines.recipe", description=__doc__)
    parser.add_argument("--recipe", default="debug", metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="changes, as in schedule.rate=0.002")
    return parser


if __name__ == "__main__":
    sys.exit(main())
