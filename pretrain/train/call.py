"""One call of `make pretrain`: a RUN folder is begun or gone on with, and says how it went.

RUN/recipe.json, run.json, metrics.jsonl, curves.png, tensorboard/, checkpoints/, pictures/, drawn.json.
"""

from __future__ import annotations

import contextlib
import gc
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import torch

from pretrain.compute import distributed
from pretrain.compute.devices import slow_precision
from pretrain.compute.plain_files import read_json
from pretrain.data.index import Index, open_index
from pretrain.data.sampler import Sampler
from pretrain.data.tables.folder import holds_tiles
from pretrain.errors import BadRun
from pretrain.evaluation.probe import Score
from pretrain.train.branch import branched, continued, continued_notes, origin_of, prolonged
from pretrain.train.checkpoint import latest_step
from pretrain.train.curves import draw_curves
from pretrain.train.learner import require_division
from pretrain.train.loop import Outcome, Trainer
from pretrain.train.recipe import recipe as recipes
from pretrain.train.recipe.caveats import anchored_to_nothing, caveats
from pretrain.train.recipe.overrides import changed
from pretrain.train.recipe.pieces import Piece, piece_at, pieces, said, tiles_drawn
from pretrain.train.recipe.recipe import Recipe
from pretrain.train.watch.probes import Probe, load_probes, task_of
from pretrain.train.watch.watcher import Reporter, RunWatcher
from wsi_prep.errors import BadOption, first_line
from wsi_prep.storage.atomic import write_json
from wsi_prep.untrusted.below import file_below, folder_below
from wsi_prep.untrusted.sql import CONDITION_SECONDS

RUN_VERSION = 1
_DATA = ("shards", "where", "tiles", "slides")
_SHOWN = 5


@dataclass(frozen=True)
class RunCall:
    """What a call asks for: `shards` and `where` as open_index takes them, `stop_at` a step to stop before, `probe`
    tasks as probes.load_probes takes them, `seconds` as parts.read_filter does.
    """

    folder: Path
    shards: tuple[str, ...]
    where: str | None
    index: Path
    stop_at: int | None = None
    probe: tuple[str, ...] = ()
    seconds: float = CONDITION_SECONDS


@dataclass(frozen=True)
class RunResult:
    """How the call ended; `recipe.schedule.steps` says whether the run has, too.

    `last`: the last logged numbers, `scores` the last of each task. `coverage`: share of the tiles that can be drawn
    that are expected to have been.
    """

    recipe: Recipe
    outcome: Outcome
    seconds: float
    last: dict[str, float]
    scores: dict[str, Score]
    coverage: float


def settle_recipe(
    folder: Path, wanted: Recipe | None, changes: Sequence[str], default: Callable[[], Recipe], origin: str = ""
) -> Recipe:
    """The recipe that the RUN folder goes on with, or begins with; `origin` is the run that a new one continues.

    Raises BadRun where `wanted` or `changes` would compute something else than what is saved there.
    """
    file = folder / "recipe.json"
    if not file.exists():
        if origin and wanted:
            raise BadOption("CONTINUE takes the recipe of the run that it names: change it by SET, without RECIPE")
        steps = any("".join(change.split()) == "continue_with=steps" for change in changes)
        return changed(branched(origin, steps) if origin else wanted or default(), list(changes))
    saved = recipes.load(file)
    if origin and not saved.continue_from.startswith(f"{origin_of(origin)[0]}@"):
        raise BadRun(f"{folder} did not begin with {origin}; name another RUN")
    asked = changed(wanted or saved, list(changes))
    if not (differing := recipes.differences(asked, saved)):
        return asked
    if longer := prolonged(asked, saved, latest_step(folder / "checkpoints") or 0):
        return longer
    raise BadRun(
        f"{folder} was started with another recipe ({'; '.join(differing[:5])}); leave out RECIPE and SET to "
        f"continue it with its own values, name another RUN, or begin another with what this one has learnt: "
        f"CONTINUE={folder}"
    )


def settle_data(folder: Path, shards: tuple[str, ...], where: str | None) -> tuple[tuple[str, ...], str | None, str]:
    """Shards and filter of a call, and a note on them: the RUN folder's own where it names no `shards`.

    Those of a new run are in the folder "shards". Raises BadRun where the run's own are not there to be taken.
    """
    if shards:
        return shards, where, ""
    file, before = folder / "run.json", {}
    if file.exists():
        before = _before(file_below(folder, file.name)[0])
    elif (folder / "recipe.json").exists():
        raise BadRun(f"RUN={folder} needs SHARDS: it has no run.json that names those it was trained on")
    else:
        return ("shards",), where, ""
    own, own_where = before.get("shards"), before.get("where")
    if not isinstance(own, list) or not own or not all(isinstance(each, str) for each in own):
        raise BadRun(f"RUN={folder} needs SHARDS: its run.json names none")
    named = " ".join(own[:_SHOWN]) + (f" and {len(own) - _SHOWN:,} more" if len(own) > _SHOWN else "")
    missing = [each for each in own if not holds_tiles(Path(each))]
    if missing:  # nor is a URL asked that somebody else may have written there
        raise BadRun(f"RUN={folder} needs SHARDS: it had {named}, and {missing[0]} is no folder of shards here")
    chosen = where if where is not None or not isinstance(own_where, str) else own_where
    filtered = f", where {chosen}" if chosen is not None else ""
    return tuple(own), chosen, f"SHARDS is not named; the run continues with its own: {named}{filtered}"


def run(
    call: RunCall, recipe: Recipe, world: distributed.World, reporter: Reporter, progress: Callable[[int, int], None]
) -> RunResult:
    """Train until the recipe's last step, `stop_at` or a signal. Raises UsageError, NonFinite and TooManyBadTiles."""
    began = time.monotonic()
    if recipe.compute.threads:
        torch.set_num_threads(recipe.compute.threads)
    call.folder.mkdir(parents=True, exist_ok=True)
    for name in ("checkpoints", "pictures", "tensorboard"):  # in which files are deleted, or written by libraries
        folder_below(call.folder, name)
    for name in ("recipe.json", "run.json", "metrics.jsonl"):  # which are read, or added to
        with contextlib.suppress(FileNotFoundError):
            file_below(call.folder, name)
    for piece in pieces(recipe):  # a stage that cannot be shared out is refused before it is reached
        require_division(piece.recipe, world.size, piece.start)
    probes = load_probes(call.probe, recipe.looking.probe_tiles, recipe.backbone.patch_px)
    going = _Going(call, recipe, world, reporter, _open(call, world, progress), probes)
    stop = min(recipe.schedule.steps, call.stop_at if call.stop_at is not None else recipe.schedule.steps)
    outcome = going.through(piece_at(recipe, first_step(call.folder, recipe)), stop)
    while not outcome.stopped and outcome.step < stop:
        step = outcome.step
        _leave_memory(recipe)
        if world.first:
            reporter.note(said(recipe, step))
        outcome = going.through(piece_at(recipe, step), stop, step)
    if world.first and going.last:
        draw_curves([call.folder], call.folder / "curves.png")
    return RunResult(recipe, outcome, time.monotonic() - began, going.last, going.scores, going.coverage)


def first_step(folder: Path, recipe: Recipe) -> int:
    """The step that the RUN folder goes on with."""
    step = latest_step(folder / "checkpoints")
    if step is None and recipe.continue_from and recipe.continue_with == "steps":
        step = origin_of(recipe.continue_from)[1]
    return step or 0


@dataclass
class _Going:
    """A call that is under way, in pieces; nothing of a piece but its figures is left when the next begins.

    `last`, `scores`, `coverage` as in RunResult.
    """

    call: RunCall
    recipe: Recipe
    world: distributed.World
    reporter: Reporter
    index: Index
    probes: list[Probe]
    last: dict[str, float] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    coverage: float = 0.0
    _said: set[str] = field(default_factory=set)

    def through(self, piece: Piece, stop: int, at: int | None = None) -> Outcome:
        """Train through a piece, at most to `stop`; from the checkpoint of step `at`, or from where the run is."""
        call, recipe = self.call, piece.recipe
        sampler = Sampler(self.index, recipe.sampling)
        trainer = Trainer(recipe, sampler, call.folder, self.world, self.recipe)
        start, until = trainer.resume(at), min(stop, piece.stop)
        if self.world.first:
            self._tell(trainer, start)
        watcher = RunWatcher(call.folder, trainer, self.reporter, self.probes)
        try:
            outcome = trainer.run(start, until, watcher) if start < until else Outcome(start)
        finally:
            watcher.close()
        if until < stop and distributed.agree(bool(outcome.heard)):  # too late for this piece, but not for the run
            outcome = replace(outcome, stopped=outcome.heard or signal.SIGTERM)
        drawn, bad = trainer.drawn(), trainer.bad_tiles()
        if self.world.first:
            if bad:
                self.reporter.note(bad)
            write_json(call.folder / "drawn.json", drawn)
        self.last = watcher.last or self.last
        self.scores |= watcher.scores
        batches = tiles_drawn(self.recipe, outcome.step) / recipe.sampling.batch
        self.coverage = sampler.expected_coverage(batches)
        return outcome

    def _tell(self, trainer: Trainer, start: int) -> None:
        """Before a piece: what is to be known of the run, or of this piece besides; the files of a run that begins."""
        call, sampler = self.call, trainer.sampler
        lines = [*sampler.warnings, *caveats(trainer.recipe, sampler, [*trainer.guide.fields, *trainer.erased])]
        if not self._said:
            fresh = latest_step(call.folder / "checkpoints") is None
            goes_on = _changed_since(call.folder / "recipe.json", self.recipe)
            recipes.save(self.recipe, call.folder / "recipe.json")
            lines = [
                *self.index.warnings,
                *lines,
                *(anchored_to_nothing(trainer.recipe) if not start else []),
                *slow_precision(self.world.device, self.recipe.compute.precision),
                *(trainer.loaded.lines() if trainer.loaded and fresh else []),
                *(continued_notes(self.recipe) if fresh else []),
                *goes_on,
                *(f"{task.name}: {line}" for task in map(task_of, self.probes) for line in task.notes),
            ]
            lines += _write_run(call, self.index, trainer, self.recipe, lines)
        for line in lines:
            if line not in self._said:
                self.reporter.note(line)
        self._said |= {*lines, ""}


def _changed_since(file: Path, recipe: Recipe) -> list[str]:
    """What a run goes on with otherwise than it was saved, in steps that it has not done."""
    changes = recipes.differences(recipe, recipes.load(file)) if file.exists() else []
    return [f"the run continues with changes: {', '.join(changes)}"] if changes else []


def _leave_memory(recipe: Recipe) -> None:
    """Between two pieces: what the one held is free for the other, and blocks are compiled for its crops."""
    gc.collect()
    if any(piece.recipe.compute.compile for piece in pieces(recipe)):
        torch.compiler.reset()  # of blocks for more sizes than it allows, torch would compile none, and say nothing
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _open(call: RunCall, world: distributed.World, progress: Callable[[int, int], None]) -> Index:
    """The first process makes the index, then the first of each machine that does not see it; the others find it."""
    index = None
    for turn in (world.first, world.first_here, True):
        if turn and index is None:
            index = open_index(call.shards, call.index, call.where, progress, call.seconds)
        distributed.wait_for_all()
    assert index is not None
    return index


def _write_run(call: RunCall, index: Index, trainer: Trainer, recipe: Recipe, notes: list[str]) -> list[str]:
    """Write run.json; returns what a user should know of its change."""
    known = {
        "version": RUN_VERSION,
        "shards": list(call.shards),
        "where": call.where,
        "tiles": index.tiles,
        "slides": len(index.slides),
        "processes": trainer.world.size,
        "device": str(trainer.world.device),
        "parameters_backbone": sum(p.numel() for p in trainer.backbone.parameters()),
        "flops_a_tile_dense": trainer.flops.dense,
        "flops_a_tile_executed": trainer.flops.executed,
        "continued": continued(recipe),
        "notes": notes,
        "versions": {name: version(name) for name in ("torch", "timm", "mixed-magnification")},
    }
    file = call.folder / "run.json"
    before = _before(file) if file.exists() else known
    write_json(file, known)
    changes = [f"{name} {before.get(name)} -> {known[name]}" for name in _DATA if before.get(name) != known[name]]
    return [f"the run continues with other tiles than before: {', '.join(changes)}"] if changes else []


def _before(file: Path) -> dict[str, object]:
    """What run.json says of the run before. Raises BadRun."""
    try:
        said = read_json(file)
    except (OSError, ValueError) as error:
        raise BadRun(f"{file} cannot be read ({first_line(error)}); remove it to continue") from error
    if not isinstance(said, dict):
        raise BadRun(f"{file} is none of a run's; remove it to continue")
    return said
