"""Makes the sample slides."""

from __future__ import annotations

import sys
from pathlib import Path

from pipelines.calls.slides import SamplesCall
from pipelines.command import EXIT_OK, EXIT_WRONG_CALL, Terminal, run_command
from sample_slides.make import FOLDER, NAMES, make_missing, write_manifest
from wsi_prep.errors import BadOption, WsiPrepError


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(SamplesCall, _work, arguments)


def _work(call: SamplesCall, terminal: Terminal) -> int:
    for name in call.only:
        if name not in NAMES:
            raise BadOption(f"{name} is no sample slide; they are {', '.join(NAMES)}")
    folder: Path = call.to or FOLDER
    try:
        make_missing(folder, call.only or NAMES, terminal.say)
        write_manifest(folder)
    except WsiPrepError as error:
        terminal.warn(str(error))
        return EXIT_WRONG_CALL
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
