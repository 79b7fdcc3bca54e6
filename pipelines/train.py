"""Pretraining: from shards to a checkpointed vision transformer, on one core or many GPUs."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from pipelines.calls.training import PretrainCall
from pipelines.command import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    Terminal,
    progress,
    run_command,
)
from pipelines.processes import torchrun, wants_processes
from pretrain.compute import distributed
from pretrain.data.index import default_folder
from pretrain.errors import CheckpointFailed, NonFinite, TooManyBadTiles
from pretrain.train.call import Reporter, RunCall, RunResult, run, settle_recipe
from pretrain.train.loop import Trainer
from pretrain.train.recipe.recipes import debug, recipe
from wsi_prep.errors import UsageError, counted

EXIT_STOPPED, EXIT_SAVED = 3, 75


INTERRUPTED = "interrupted; repeat the command to continue from the last checkpoint"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def work(call: PretrainCall, terminal: Terminal) -> int:
        return train(call, terminal, "pipelines.train", words)

    return run_command(PretrainCall, work, words, INTERRUPTED)


def train(call: PretrainCall, terminal: Terminal, module: str, words: list[str]) -> int:
    """Train as the call says; its processes, where it wants several, are `python -m MODULE WORDS` each."""
    folder = call.run or Path("runs") / (call.recipe or "debug")
    if wants_processes(call):
        command = torchrun(call, folder, module, words)
        sys.stdout.flush()
        os.execv(command[0], command)  # noqa: S606 - no shell
    wanted = recipe(call.recipe) if call.recipe else None
    chosen = settle_recipe(folder, wanted, call.set, debug)
    index = call.index or default_folder()
    wishes = RunCall(folder, call.shards, call.where, index, call.stop_at, call.probe, call.time_limit)
    try:
        with distributed.world(chosen.compute.device) as world:
            terminal.out.quiet = not world.first
            with progress(terminal.out, "index") as of_index:
                ended = run(wishes, chosen, world, _Lines(terminal), of_index)
    except UsageError:
        raise
    except (NonFinite, TooManyBadTiles, CheckpointFailed) as error:
        terminal.warn(f"stopped: {error}")
        return EXIT_STOPPED
    except OSError as error:
        terminal.warn(f"stopped: {error.filename or folder}: {error.strerror or error}")
        return EXIT_STOPPED
    _show_end(terminal, folder, ended)
    return {0: EXIT_OK, signal.SIGINT: EXIT_INTERRUPTED}.get(ended.outcome.stopped, EXIT_SAVED)


class _Lines(Reporter):
    """Lines on the terminal."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._steps = 0

    def note(self, text: str) -> None:
        self._terminal.say(f"note: {text}")

    def started(self, trainer: Trainer, step: int) -> None:
        self._steps = trainer.recipe.schedule.steps
        millions = sum(p.numel() for p in trainer.backbone.parameters()) / 1e6
        self._terminal.say(
            f"{trainer.recipe.name}: ViT of {millions:.1f} M parameters, batch {trainer.recipe.sampling.batch}, "
            f"step {step} of {self._steps}, {trainer.world.size} x {trainer.world.device.type}"
        )

    def numbers(self, step: int, values: dict[str, float]) -> None:
        parts = "  ".join(f"{name.removeprefix('loss_')} {v:.3f}" for name, v in values.items() if name[:5] == "loss_")
        left = (self._steps - step - 1) * values["step_s"]
        self._terminal.say(
            f"step {step:>6}  loss {values['loss']:.3f}  {parts}  spread {values['feature_spread']:.3f}  "
            f"lr {values['learning_rate']:.2e}  {values['tiles_per_s']:.1f} tiles/s  "
            f"wait {values['data_wait_share']:.0%}  mfu {values['mfu_share']:.0%}  left {_clock(left)}"
        )


def _show_end(terminal: Terminal, folder: Path, ended: RunResult) -> None:
    steps, done = ended.recipe.schedule.steps, ended.outcome.step
    state = "done" if done >= steps else "stopped, repeat the command to continue"
    terminal.say(f"step {done} of {steps}: {state}; {_clock(ended.seconds)} in this command")
    drawn = done * ended.recipe.sampling.batch
    loss = f"loss {ended.last['loss']:.3f}, " if ended.last else ""
    terminal.say(f"{loss}{counted(drawn, 'tile')} drawn; {ended.coverage:.0%} of all tiles at least once")
    for score in ended.scores.values():
        terminal.say(f"{score.task}: linear {score.linear:.3f}, kNN {score.knn:.3f}")
    terminal.say(f"look at {folder}: pictures, curves.png, metrics.jsonl, tensorboard, drawn.json")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


if __name__ == "__main__":
    sys.exit(main())
