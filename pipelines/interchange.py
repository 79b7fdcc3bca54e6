"""Writes what other tools read: outlines for QuPath, places of tiles for TRIDENT or CLAM, tiles for webdataset."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pipelines.command import (
    EXIT_NOT_ALL,
    EXIT_OK,
    Terminal,
    output_named,
    question_time_limit,
    require_apart,
    run_command,
    shards_option,
)
from pipelines.options import Options
from wsi_prep.curation.exchange.coordinates import Written, write_clam, write_qupath, write_trident
from wsi_prep.curation.exchange.tars import write_tars

KINDS = ("qupath", "trident", "clam", "webdataset")

EPILOG = "exit codes: 0 all is written; 2 the call is wrong; 3 something had to be left out; 130 interrupted."


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(build_parser(), _work, arguments, "interrupted; the files that have their names are whole")


def _work(options: argparse.Namespace, terminal: Terminal) -> int:
    written = write(options)
    terminal.warn_of([f"left out: {name}: {reason}" for name, reason in written.left_out.items()])
    tiles = f", {written.tiles:,} tiles" if written.tiles else ""
    terminal.say(f"{written.files:,} files{tiles}: {options.to}")
    return EXIT_NOT_ALL if written.left_out else EXIT_OK


def write(options: argparse.Namespace) -> Written:
    """Do as the options say; raises UsageError."""
    shards, seconds = output_named(options.shards), options.time_limit
    require_apart("TO", options.to, [shards])
    if options.kind == "webdataset":
        return write_tars(shards, options.where, options.to, options.tar_mb * 1_000_000, options.shuffle, seconds)
    writers = {"qupath": write_qupath, "trident": write_trident, "clam": write_clam}
    return writers[options.kind](shards, options.where, options.to, seconds)


def build_parser() -> Options:
    """The command line."""
    parser = Options(prog="python -m pipelines.interchange", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    shards_option(parser, several=False)
    add("--kind", required=True, choices=KINDS, help="for which tool")
    add("--to", required=True, type=Path, metavar="FOLDER", help="where the files go")
    add("--where", default="true", metavar="SQL", help="a condition on the columns of slides and tiles")
    question_time_limit(parser)
    add("--tar-mb", type=int, default=1000, metavar="MB", help="webdataset: largest tar (default: %(default)s)")
    add("--shuffle", type=int, metavar="SEED", help="webdataset: tiles in random order (default: slide by slide)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
