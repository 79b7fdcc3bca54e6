"""Writes what other tools read: outlines for QuPath, places of tiles for TRIDENT or CLAM, tiles for webdataset."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from pipelines.console import printable
from pipelines.options import Options
from pipelines.verify import output_named
from wsi_prep.curation.exchange.coordinates import Written, write_clam, write_qupath, write_trident
from wsi_prep.curation.exchange.tars import write_tars
from wsi_prep.errors import UsageError
from wsi_prep.untrusted.sql import QUESTION_SECONDS

EXIT_OK, EXIT_WRONG_CALL, EXIT_LEFT_OUT, EXIT_INTERRUPTED = 0, 2, 3, 130
KINDS = ("qupath", "trident", "clam", "webdataset")
_SHOWN = 20

EPILOG = "exit codes: 0 all is written; 2 the call is wrong; 3 something had to be left out; 130 interrupted."


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    options = build_parser().parse_args(arguments)
    errors, console = Console(stderr=True, highlight=False), Console(highlight=False)
    try:
        written = write(options)
    except UsageError as error:
        errors.print(f"interchange: {printable(str(error))}", markup=False, soft_wrap=True)
        return EXIT_WRONG_CALL
    except OSError as error:
        what = f"{error.filename or options.to}: {error.strerror or error}"
        errors.print(f"interchange: {printable(what)}", markup=False, soft_wrap=True)
        return EXIT_WRONG_CALL
    except KeyboardInterrupt:
        errors.print("interchange: interrupted; the files that have their names are whole")
        return EXIT_INTERRUPTED
    for name, reason in list(written.left_out.items())[:_SHOWN]:
        errors.print(printable(f"interchange: left out: {name}: {reason}"), markup=False, soft_wrap=True)
    more = len(written.left_out) - _SHOWN
    if more > 0:
        errors.print(f"interchange: and {more:,} more left out")
    tiles = f", {written.tiles:,} tiles" if written.tiles else ""
    console.print(f"{written.files:,} files{tiles}: {options.to}", markup=False, soft_wrap=True)
    return EXIT_LEFT_OUT if written.left_out else EXIT_OK


def write(options: argparse.Namespace) -> Written:
    """Do as the options say; raises UsageError."""
    shards, seconds = output_named(options.shards), options.time_limit
    if options.kind == "webdataset":
        return write_tars(shards, options.where, options.to, options.tar_mb * 1_000_000, options.shuffle, seconds)
    writers = {"qupath": write_qupath, "trident": write_trident, "clam": write_clam}
    return writers[options.kind](shards, options.where, options.to, seconds)


def build_parser() -> Options:
    """The command line."""
    parser = Options(prog="python -m pipelines.interchange", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    add("--shards", required=True, metavar="OUT", help="a folder or object-store URL that make shards has filled")
    add("--kind", required=True, choices=KINDS, help="for which tool")
    add("--to", required=True, type=Path, metavar="FOLDER", help="where the files go")
    add("--where", default="true", metavar="SQL", help="a condition on the columns of slides and tiles")
    add(
        "--time-limit",
        type=float,
        default=QUESTION_SECONDS,
        metavar="SECONDS",
        help="most that the catalog may take to answer (default: %(default)g)",
    )
    add("--tar-mb", type=int, default=1000, metavar="MB", help="webdataset: largest tar (default: %(default)s)")
    add("--shuffle", type=int, metavar="SEED", help="webdataset: tiles in random order (default: slide by slide)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
