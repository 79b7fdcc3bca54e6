"""Writes a run's backbone as a folder that timm loads, with a model card."""

from __future__ import annotations

import sys

from pipelines.calls.training import ExportCall
from pipelines.command import EXIT_OK, Terminal, run_command
from pretrain.train.export import export


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(ExportCall, _work, arguments)


def _work(call: ExportCall, terminal: Terminal) -> int:
    step = export(call.run, call.to, call.licence, call.step)
    terminal.say(f'step {step}: timm.create_model("local-dir:{call.to}", pretrained=True)')
    if call.licence == "unknown":
        terminal.note("note: the model card says license: unknown; LICENCE=apache-2.0, say, and a new TO name one")
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
