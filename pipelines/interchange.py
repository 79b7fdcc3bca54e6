"""Writes what other tools read: outlines for QuPath, places of tiles for TRIDENT or CLAM, tiles as tars or tables."""

from __future__ import annotations

import shlex
import sys

from pipelines.calls.slides import InterchangeCall
from pipelines.command import (
    EXIT_NOT_ALL,
    EXIT_OK,
    Terminal,
    output_named,
    require_apart,
    run_command,
)
from wsi_prep.curation.exchange.coordinates import Written, write_clam, write_qupath, write_trident
from wsi_prep.curation.exchange.stored import Wanted
from wsi_prep.curation.exchange.tables import write_tables
from wsi_prep.curation.exchange.tars import write_tars
from wsi_prep.errors import counted

KINDS = ("qupath", "trident", "clam", "webdataset", "parquet")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(InterchangeCall, _work, arguments, "interrupted; files under their final names are complete")


def _work(call: InterchangeCall, terminal: Terminal) -> int:
    written = write(call)
    terminal.warn_of([f"skipped: {name}: {reason}" for name, reason in written.left_out.items()])
    tiles = f", {counted(written.tiles, 'tile')}" if written.tiles else ""
    terminal.say(f"{counted(written.files, 'file')}{tiles}: {call.to}")
    if call.kind in ("clam", "trident") and (call.to / "link_slides.sh").is_file():
        terminal.say(
            f"sh {shlex.quote(str(call.to / 'link_slides.sh'))} FOLDER links the slides of FOLDER by their names here"
        )
    return EXIT_NOT_ALL if written.left_out else EXIT_OK


def write(call: InterchangeCall) -> Written:
    """Do as the call says; raises UsageError."""
    shards, seconds = output_named(call.shards), call.time_limit
    require_apart("TO", call.to, [shards])
    if call.kind in ("webdataset", "parquet"):
        mixed = call.shuffle if call.kind == "webdataset" else call.shuffle or 0
        write_tiles = write_tars if call.kind == "webdataset" else write_tables
        return write_tiles(Wanted(shards, call.where, mixed, seconds), call.to, call.file_mb * 1_000_000)
    writers = {"qupath": write_qupath, "trident": write_trident, "clam": write_clam}
    return writers[call.kind](shards, call.where, call.to, seconds)


if __name__ == "__main__":
    sys.exit(main())
