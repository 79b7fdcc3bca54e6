"""Shows a recipe: every setting with its name, as `--set name=value` takes it, and what the model costs."""

from __future__ import annotations

import sys

import torch
from rich.console import Console

from pipelines.options import Options
from pretrain.model.backbone import make_vit
from pretrain.train.recipe.flops import step_flops
from pretrain.train.recipe.overrides import changed
from pretrain.train.recipe.recipe import flat
from pretrain.train.recipe.recipes import RECIPES, recipe
from wsi_prep.errors import UsageError


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = Options(prog="python -m pipelines.recipe", description=__doc__)
    parser.add_argument("--recipe", default="debug", metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="changes, as in schedule.rate=0.002")
    options = parser.parse_args(arguments)
    console = Console(highlight=False)
    try:
        shown = changed(recipe(options.recipe), options.set)
    except UsageError as error:
        Console(stderr=True, highlight=False).print(f"recipe: {error}", markup=False, soft_wrap=True)
        return 2
    for line in (RECIPES[options.recipe].__doc__ or "").splitlines():
        console.print(f"# {line.strip()}", markup=False, soft_wrap=True)
    for name, value in flat(shown).items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        console.print(f"{name}={text}", markup=False, soft_wrap=True)
    with torch.device("meta"):
        millions = sum(p.numel() for p in make_vit(shown.backbone).parameters()) / 1e6
    flops = step_flops(shown)
    console.print(
        f"# backbone of {millions:,.1f} M parameters; {flops.executed / 1e12:.3g} TFLOP a tile "
        f"({flops.dense / 1e12:.3g} without stochastic depth and recomputation)",
        markup=False,
        soft_wrap=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
