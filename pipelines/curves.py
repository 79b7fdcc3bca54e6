"""Draws the curves of runs into one picture."""

from __future__ import annotations

import sys

from pipelines.calls.training import CurvesCall
from pipelines.command import EXIT_OK, Terminal, run_command
from pretrain.train.curves import draw_curves


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(CurvesCall, _work, arguments)


def _work(call: CurvesCall, terminal: Terminal) -> int:
    draw_curves(call.runs, call.png)
    terminal.say(f"look at {call.png}")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
