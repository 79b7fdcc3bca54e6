"""Distillation: a small ViT from a frozen one."""

from __future__ import annotations

import sys
from dataclasses import replace

from pipelines.calls.training import DistillCall
from pipelines.command import Terminal, run_command
from pipelines.processes import noted
from pipelines.train import train

_RECIPE = "virchow2g_mini"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def work(call: DistillCall, terminal: Terminal) -> int:
        settings = (*call.set, f"teacher={call.teacher}")
        return train(replace(call, recipe=call.recipe or _RECIPE, set=settings), terminal, "pipelines.distill", words)

    return noted(lambda: run_command(DistillCall, work, words))


if __name__ == "__main__":
    sys.exit(main())
