"""Writes a run's backbone as a folder that timm loads, with a model card."""

from __future__ import annotations

import argparse
import sys

from pipelines.command import EXIT_OK, Terminal, local_path, run_command
from pipelines.options import Options
from pretrain.train.export import export


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(build_parser(), _work, arguments)


def _work(options: argparse.Namespace, terminal: Terminal) -> int:
    step = export(options.folder, options.to, options.licence, options.step)
    terminal.say(f'step {step}: timm.create_model("local-dir:{options.to}", pretrained=True)')
    return EXIT_OK


def build_parser() -> Options:
    """The command line."""
    parser = Options(prog="python -m pipelines.export", description=__doc__)
    add = parser.add_argument
    add("--folder", required=True, type=local_path, metavar="RUN", help="a folder that make pretrain has filled")
    add("--to", required=True, type=local_path, metavar="FOLDER", help="a new folder")
    add("--licence", default="unknown", help="the licence that the model card names (default: %(default)s)")
    add("--step", type=int, help="which checkpoint (default: the newest)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
