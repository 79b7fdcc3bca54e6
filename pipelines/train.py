"""Pretraining: from shards to a checkpointed vision transformer, on one core or many GPUs."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from pipelines.command import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    Terminal,
    local_path,
    progress,
    run_command,
    shards_option,
    where_options,
)
from pipelines.options import Options
from pretrain.compute import distributed
from pretrain.data.index import default_folder
from pretrain.errors import CheckpointFailed, NonFinite, TooManyBadTiles
from pretrain.train.call import Reporter, RunCall, RunResult, run, settle_recipe
from pretrain.train.loop import Trainer
from pretrain.train.recipe.recipes import debug, recipe
from wsi_prep.errors import UsageError

EXIT_STOPPED, EXIT_SAVED = 3, 75

EPILOG = (
    "exit codes: 0 done, or STOP_AT reached; 2 the call is wrong; 3 numbers, tiles or a checkpoint went bad; "
    "75 stopped by SIGTERM, saved, call again to go on; 130 the same by Ctrl-C."
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    goes_on = "interrupted; call again to go on from the last checkpoint"
    return run_command(build_parser(), _work, arguments, goes_on, name="pretrain")


def _work(options: argparse.Namespace, terminal: Terminal) -> int:
    wanted = recipe(options.recipe) if options.recipe else None
    chosen = settle_recipe(options.folder, wanted, options.set, debug)
    try:
        with distributed.world(chosen.compute.device) as world:
            terminal.out.quiet = not world.first
            call = RunCall(
                options.folder,
                tuple(options.shards),
                options.where,
                options.index,
                options.stop_at,
                tuple(options.probe),
                options.time_limit,
            )
            with progress(terminal.out, "index") as of_index:
                ended = run(call, chosen, world, _Lines(terminal), of_index)
    except UsageError:
        raise
    except (NonFinite, TooManyBadTiles, CheckpointFailed) as error:
        terminal.warn(f"stopped: {error}")
        return EXIT_STOPPED
    except OSError as error:
        terminal.warn(f"stopped: {error.filename or options.folder}: {error.strerror or error}")
        return EXIT_STOPPED
    _show_end(terminal, options.folder, ended)
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
    state = "done" if done >= steps else "stopped, call again to go on"
    terminal.say(f"step {done} of {steps}: {state}; {_clock(ended.seconds)} in this call")
    drawn = done * ended.recipe.sampling.batch
    loss = f"loss {ended.last['loss']:.3f}, " if ended.last else ""
    terminal.say(f"{loss}{drawn:,} tiles drawn, of those there are {ended.coverage:.0%} at least once")
    for score in ended.scores.values():
        terminal.say(f"{score.task}: linear {score.linear:.3f}, kNN {score.knn:.3f}")
    terminal.say(f"look at {folder}: pictures, curves.png, metrics.jsonl, tensorboard, drawn.json")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


def build_parser() -> Options:
    """The command line."""
    parser = Options(prog="python -m pipelines.train", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    shards_option(parser)
    add("--folder", required=True, type=local_path, metavar="FOLDER", help="where the run is kept, and gone on with")
    add(
        "--recipe",
        metavar="NAME",
        help="a function of pretrain/train/recipe/recipes.py (default: the run's own, else debug)",
    )
    add("--set", nargs="*", default=[], metavar="NAME=VALUE", help="changes to the recipe, as in schedule.rate=0.002")
    where_options(parser, "\"stain = 'HE' and focus > 0.3\"")
    add(
        "--probe",
        nargs="*",
        default=[],
        metavar="PARQUET",
        help="labelled tiles, as file.parquet or file.parquet:column",
    )
    add("--stop-at", type=int, metavar="STEP", help="stop before this step, with a checkpoint")
    add("--index", type=local_path, default=default_folder(), metavar="FOLDER", help="where the index is kept")
    return parser


if __name__ == "__main__":
    sys.exit(main())
