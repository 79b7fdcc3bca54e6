"""Draws the curves of runs into one picture."""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console

from pipelines.local import local_path
from pipelines.options import Options
from pretrain.train.curves import draw_curves
from wsi_prep.errors import UsageError


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = Options(prog="python -m pipelines.curves", description=__doc__)
    parser.add_argument("--runs", required=True, nargs="+", type=Path, metavar="RUN", help="folders of make pretrain")
    parser.add_argument(
        "--out", type=local_path, default=Path("curves.png"), metavar="PNG", help="default: %(default)s"
    )
    options = parser.parse_args(arguments)
    errors = Console(stderr=True, highlight=False)
    try:
        draw_curves(options.runs, options.out)
    except UsageError as error:
        errors.print(f"curves: {error}", markup=False, soft_wrap=True)
        return 2
    except OSError as error:
        errors.print(f"curves: {options.out}: {error.strerror}", markup=False, soft_wrap=True)
        return 2
    Console(highlight=False).print(f"look at {options.out}", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
