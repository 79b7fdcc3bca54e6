"""Pretraining: from shards to a checkpointed vision transformer, on one core or many GPUs."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn

from pipelines.bars import Bar, ctrl_c_as_itself
from pipelines.calls.training import PretrainCall
from pipelines.command import (
    EXIT_INTERRUPTED,
    EXIT_OK,
    Terminal,
    progress,
    run_command,
)
from pipelines.processes import EXIT_SAVED, noted, run_together, said_by_another, torchrun_words, wants_processes
from pretrain.compute import distributed
from pretrain.compute.devices import gpu_memory, own_cores
from pretrain.data.index import default_folder
from pretrain.data.seen.near import SeenTiles
from pretrain.data.seen.overlap import overlap, without
from pretrain.errors import CheckpointFailed, NonFinite, ProcessDied, TooManyBadTiles
from pretrain.evaluation.tasks import table_of
from pretrain.train.branch import origin_of
from pretrain.train.call import RunCall, RunResult, run, settle_data, settle_recipe
from pretrain.train.checkpoint import latest_step
from pretrain.train.loop import Trainer
from pretrain.train.planning.preflight import require_fit
from pretrain.train.recipe.pieces import tiles_drawn
from pretrain.train.recipe.recipe import Recipe
from pretrain.train.recipe.recipes import debug, recipe
from pretrain.train.watch.watcher import Reporter
from wsi_prep.errors import BadOption, UsageError, counted
from wsi_prep.storage.overlap.shared import likenesses_of_table

EXIT_STOPPED = 3


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def work(call: PretrainCall, terminal: Terminal) -> int:
        return train(call, terminal, "pipelines.train", words)

    return noted(lambda: run_command(PretrainCall, work, words))


def train(call: PretrainCall, terminal: Terminal, module: str, words: list[str]) -> int:
    """Train as the call says; its processes, where it wants several, are `python -m MODULE WORDS` each."""
    terminal.said_elsewhere = said_by_another
    if call.continue_run and call.run is None:
        raise BadOption("CONTINUE needs RUN, the folder of the new run")
    folder = call.run or Path("runs") / (call.recipe or "debug")
    wanted = recipe(call.recipe) if call.recipe else None
    origin = call.continue_run or ""
    chosen = settle_recipe(folder, wanted, call.set, debug, origin)
    several = wants_processes(call)
    together = torchrun_words(call, folder, module, words) if several else []
    _require_fit(call, chosen, terminal)
    index = call.index or default_folder()
    begun = (folder / "run.json").exists() or not origin
    shards, where, note = settle_data(folder if begun else origin_of(origin)[0], call.shards, call.where)
    where, left_out = _leave_out(call, shards, where, index, terminal)
    if several:
        sys.stdout.flush()
        return _together(folder, terminal, together, call.gpus or 1)
    wishes = RunCall(folder, shards, where, index, call.stop_at, call.probe, call.time_limit)
    try:
        with distributed.world(chosen.compute.device) as world:
            terminal.out.quiet = not world.first
            for line in (note, *left_out):
                if line:
                    terminal.say(f"note: {line}")
            try:
                with ctrl_c_as_itself(), contextlib.ExitStack() as bar:
                    of_index = bar.enter_context(progress(terminal.out, "index"))
                    ended = run(wishes, chosen, world, _Shown(terminal, bar), of_index)
            except KeyboardInterrupt:
                if world.first:
                    terminal.warn(f"interrupted; {_saved(folder)}")
                return EXIT_INTERRUPTED
    except UsageError:
        raise
    except (NonFinite, TooManyBadTiles, CheckpointFailed, ProcessDied) as error:
        if not isinstance(error, ProcessDied) or distributed.first_here():
            terminal.warn(f"stopped: {error}")
        return EXIT_STOPPED
    except OSError as error:
        terminal.warn(f"stopped: {error.filename or folder}: {error.strerror or error}")
        return EXIT_STOPPED
    _show_end(terminal, folder, ended)
    return {0: EXIT_OK, signal.SIGINT: EXIT_INTERRUPTED}.get(ended.outcome.stopped, EXIT_SAVED)


def _together(folder: Path, terminal: Terminal, words: list[str], processes: int) -> int:
    try:
        code = run_together(words, processes)
    except ProcessDied as error:
        terminal.warn(f"stopped: {error}")
        return EXIT_STOPPED
    except KeyboardInterrupt:
        terminal.warn(f"interrupted; {_saved(folder)}")
        return EXIT_INTERRUPTED
    if code > 128 and code != EXIT_INTERRUPTED:  # nobody is left to say it
        terminal.warn(f"ended by {signal.Signals(code - 128).name}; {_saved(folder)}")
    return code


def _leave_out(
    call: PretrainCall, shards: Sequence[str], where: str | None, index: Path, terminal: Terminal
) -> tuple[str | None, list[str]]:
    """The condition that leaves out what tables of labelled tiles are of, too, and what is to be said of it."""
    if call.near and not call.exclude:
        raise BadOption("NEAR needs EXCLUDE, the tables whose tiles are looked for in SHARDS")
    tables = {spec: table_of(spec) for spec in call.exclude}
    shared, said = [], []
    for spec, path in tables.items():
        if path is None:
            raise BadOption(f"EXCLUDE names {spec}, which is no Parquet file of labelled tiles")
        shared.append(found := overlap(path, shards))
        if found.of_slides is None and found.of_patients is None and not call.near:
            raise BadOption(f"EXCLUDE={spec} cannot be excluded: {found.line}")
        what = f"{counted(len(found.slides), 'slide')} and {counted(len(found.patients), 'patient')}"
        said.append(f"{what} of {spec} are in SHARDS, and are not trained on")
    if not call.near:
        return without(where, shared), said
    alike: set[str] = set()
    quiet = distributed.of_torchrun()
    with contextlib.nullcontext(_silent) if quiet else progress(terminal.out, "tiles of SHARDS") as bar:
        seen = SeenTiles(shards, index, where, own_cores(), bar)
    for spec, path in tables.items():
        found_alike = seen.alike(likenesses_of_table(path, own_cores())) if path else None
        if found_alike:
            alike |= {*found_alike.slides}
            said.append(f"{spec}: {found_alike.copies.line}; these slides are not trained on")
    return without(where, shared, sorted(alike)), said


def _silent(done: int, of: int) -> None:
    del done, of


def _require_fit(call: PretrainCall, chosen: Recipe, terminal: Terminal) -> None:
    """Refuse what cannot fit into the GPUs, once for all processes: torchrun's own ask nothing."""
    if call.force or distributed.of_torchrun():
        return
    memory = gpu_memory(chosen.compute.device, apart=wants_processes(call))
    if memory is None:
        return
    if line := require_fit(chosen, (call.gpus or 1) * (call.nodes or 1), memory):
        terminal.note(f"note: {line}")


class _Shown(Reporter):
    """Lines, and below them, where the output is a terminal, a bar of the steps in place of what is in `bar`."""

    def __init__(self, terminal: Terminal, bar: contextlib.ExitStack) -> None:
        self._terminal, self._bar = terminal, bar
        self._steps = 0
        self._task: TaskID | None = None
        self._last: dict[str, float] = {}
        columns = (TextColumn("steps"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        live = terminal.out.is_terminal and not terminal.out.quiet
        self._progress = Bar(*columns, console=terminal.out, disable=not live, lines=False, transient=True)

    def note(self, text: str) -> None:
        self._terminal.note(f"note: {text}")

    def started(self, trainer: Trainer, step: int) -> None:
        self._steps = trainer.recipe.schedule.steps
        millions = sum(p.numel() for p in trainer.backbone.parameters()) / 1e6
        self._terminal.say(
            f"{trainer.recipe.name}: ViT of {millions:.1f} M parameters, batch {trainer.recipe.sampling.batch}, "
            f"step {step} of {self._steps}, {trainer.world.size} x {trainer.world.device.type}"
        )
        self._bar.close()
        if self._task is not None:  # of the stage before
            self._progress.remove_task(self._task)
        self._bar.enter_context(self._progress)
        self._task = self._progress.add_task("", total=self._steps, completed=step)

    def numbers(self, step: int, values: dict[str, float]) -> None:
        parts = "  ".join(f"{name.removeprefix('loss_')} {v:.3f}" for name, v in values.items() if name[:5] == "loss_")
        self._last = values
        self._terminal.say(
            f"step {step:>6}  loss {values['loss']:.3f}  {parts}  spread {values['feature_spread']:.3f}  "
            f"lr {values['learning_rate']:.2e}  {values['tiles_per_s']:.1f} tiles/s  "
            f"wait {values['data_wait_share']:.0%}  mfu {values['mfu_share']:.0%}  left {self._left(step + 1)}"
        )

        self._update(description=self._short(step + 1))

    def stepped(self, step: int) -> None:
        self._update(completed=step, description=self._short(step))

    def _update(self, description: str, completed: int | None = None) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=completed, description=description)

    def stopping(self, number: int) -> None:
        self._progress.stop()
        again = "Ctrl-C again" if number == signal.SIGINT else "SIGTERM again"
        if number == signal.SIGHUP:
            again = "the terminal is gone (SIGHUP), SIGTERM"
        self._terminal.warn(f"stopping after this step, then saving; {again} ends without saving")

    def _short(self, step: int) -> str:
        """The last numbers in few words, for a bar at this step."""
        if not self._last:
            return ""
        return f"loss {self._last['loss']:.3f}  {self._last['tiles_per_s']:.1f} tiles/s  left {self._left(step)}"

    def _left(self, step: int) -> str:
        return _clock((self._steps - step) * self._last["step_s"])


def _show_end(terminal: Terminal, folder: Path, ended: RunResult) -> None:
    steps, done = ended.recipe.schedule.steps, ended.outcome.step
    state = "done" if done >= steps else "stopped, repeat the command to continue"
    terminal.say(f"step {done} of {steps}: {state}; {_clock(ended.seconds)} in this command")
    drawn = tiles_drawn(ended.recipe, done)
    loss = f"loss {ended.last['loss']:.3f}, " if ended.last else ""
    terminal.say(f"{loss}{counted(drawn, 'tile')} drawn; {ended.coverage:.0%} of all tiles at least once")
    for score in ended.scores.values():
        terminal.say(f"{score.task}: linear {score.linear:.3f}, kNN {score.knn:.3f}")
    terminal.say(f"look at {folder}: pictures, curves.png, metrics.jsonl, tensorboard, drawn.json")


def _saved(folder: Path) -> str:
    """What there is to go on from."""
    step = latest_step(folder / "checkpoints")
    if step is None:
        return "no step is saved: repeat the command to begin again"
    return f"step {step} is saved: repeat the command to continue from it"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


if __name__ == "__main__":
    sys.exit(main())
