"""Draws the curves of runs into one picture."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipelines.command import EXIT_OK, Terminal, local_path, run_command
from pipelines.options import Options
from pretrain.train.curves import draw_curves


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(build_parser(), _work, arguments)


def _work(options: argparse.Namespace, terminal: Terminal) -> int:
    draw_curves(options.runs, options.out)
    terminal.say(f"look at {options.out}")
    return EXIT_OK


def build_parser() -> Options:
    """The command line."""
    parser = Options(prog="python -m pipelines.curves", description=__doc__)
    add = parser.add_argument
    add("--runs", required=True, nargs="+", type=Path, metavar="RUN", help="folders of make pretrain")
    add("--out", type=local_path, default=Path("curves.png"), metavar="PNG", help="default: %(default)s")
    return parser


if __name__ == "__main__":
    sys.exit(main())
