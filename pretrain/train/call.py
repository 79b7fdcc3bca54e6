"""One call of `make pretrain`: a RUN folder is begun or gone on with, and says how it went.

RUN/recipe.json, run.json, metrics.jsonl, curves.png, tensorboard/, checkpoints/, pictures/, drawn.json.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from pretrain.compute import distributed
from pretrain.compute.devices import slow_precision
from pretrain.compute.plain_files import read_json
from pretrain.data.index import Index, open_index
from pretrain.data.sampler import Sampler
from pretrain.errors import BadRun
from pretrain.evaluation.probe import Score, colour_statistics, embed
from pretrain.evaluation.probe import score as judge
from pretrain.evaluation.robustness.figures import indices
from pretrain.evaluation.tasks import Task, load_tasks
from pretrain.features.embedder import Inference
from pretrain.pictures.feature_picture import FeaturePictures, LookSettings, save_picture
from pretrain.train.curves import draw_curves
from pretrain.train.loop import DTYPES, Outcome, Trainer
from pretrain.train.metrics import MetricsLog
from pretrain.train.recipe import recipe as recipes
from pretrain.train.recipe.caveats import caveats
from pretrain.train.recipe.flops import measured_peak
from pretrain.train.recipe.overrides import changed
from pretrain.train.recipe.recipe import Recipe
from wsi_prep.errors import first_line
from wsi_prep.storage.atomic import write_json
from wsi_prep.untrusted.below import file_below, folder_below
from wsi_prep.untrusted.sql import CONDITION_SECONDS

RUN_VERSION = 1
_DATA = ("shards", "where", "tiles", "slides")
_SHOWN = 5
_COLLAPSED_SPREAD, _FLAT_TARGETS = 1e-4, 0.999


@dataclass(frozen=True)
class RunCall:
    """What a call asks for: `shards` and `where` as open_index takes them, `stop_at` a step to stop before, `probe`
    tables of labelled tiles as tasks.load_tasks takes them, `seconds` as parts.read_filter does.
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


class Reporter:
    """Told by the first process what people should see. Does nothing."""

    def note(self, text: str) -> None:
        """Something to know, once."""

    def started(self, trainer: Trainer, step: int) -> None:
        """Before the first step."""

    def numbers(self, step: int, values: dict[str, float]) -> None:
        """Of a logged step."""

    def stepped(self, step: int) -> None:
        """After every step; `step` is the next one's number."""

    def stopping(self, number: int) -> None:
        """Told in a thread, as soon as the signal comes: the run ends after the step, or at once by a second one."""


def settle_recipe(folder: Path, wanted: Recipe | None, changes: Sequence[str], default: Callable[[], Recipe]) -> Recipe:
    """The recipe that the RUN folder goes on with, or begins with.

    Raises BadRun where `wanted` or `changes` would compute something else than what is saved there.
    """
    file = folder / "recipe.json"
    if not file.exists():
        return changed(wanted or default(), list(changes))
    saved = recipes.load(file)
    asked = changed(wanted or saved, list(changes))
    if differing := recipes.differences(asked, saved):
        raise BadRun(
            f"{folder} was started with another recipe ({'; '.join(differing[:5])}); leave out RECIPE and SET to "
            "continue it with its own values, or name another RUN"
        )
    return asked


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
    missing = [each for each in own if not (Path(each) / "catalog/slides").is_dir()]
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
    tasks = [task for spec in call.probe for task in load_tasks(spec, recipe.looking.probe_tiles)]
    index = _open(call, world, progress)
    sampler = Sampler(index, recipe.sampling)
    trainer = Trainer(recipe, sampler, call.folder, world)
    start = trainer.resume()
    stop = min(recipe.schedule.steps, call.stop_at if call.stop_at is not None else recipe.schedule.steps)
    if world.first:
        recipes.save(recipe, call.folder / "recipe.json")
        loaded = trainer.loaded.lines() if trainer.loaded and not start else []
        slow = slow_precision(world.device, recipe.compute.precision)
        of_tasks = [f"{task.name}: {line}" for task in tasks for line in task.notes]
        notes = [*index.warnings, *sampler.warnings, *caveats(recipe, sampler), *slow, *loaded, *of_tasks]
        for line in [*notes, *_write_run(call, index, trainer, notes)]:
            reporter.note(line)
    watcher = _Watcher(call, trainer, reporter, tasks)
    try:
        outcome = trainer.run(start, stop, watcher) if start < stop else Outcome(start)
    finally:
        watcher.close()
    drawn, bad = trainer.drawn(), trainer.bad_tiles()
    if world.first:
        if bad:
            reporter.note(bad)
        write_json(call.folder / "drawn.json", drawn)
        if watcher.last:
            draw_curves([call.folder], call.folder / "curves.png")
    coverage = sampler.expected_coverage(outcome.step)
    return RunResult(recipe, outcome, time.monotonic() - began, watcher.last, watcher.scores, coverage)


def _open(call: RunCall, world: distributed.World, progress: Callable[[int, int], None]) -> Index:
    """The first process makes the index, then the first of each machine that does not see it; the others find it."""
    index = None
    for turn in (world.first, world.first_here, True):
        if turn and index is None:
            index = open_index(call.shards, call.index, call.where, progress, call.seconds)
        distributed.wait_for_all()
    assert index is not None
    return index


def _write_run(call: RunCall, index: Index, trainer: Trainer, notes: list[str]) -> list[str]:
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


class _Watcher:
    """Every process's: what all must do together, and on the first one metrics, pictures, probes and health."""

    def __init__(self, call: RunCall, trainer: Trainer, reporter: Reporter, tasks: list[Task]) -> None:
        self._folder, self._trainer, self._reporter, self._tasks = call.folder, trainer, reporter, tasks
        self._looking = trainer.recipe.looking
        schedule = trainer.recipe.schedule
        self._last_step, self._settled = schedule.steps, schedule.warmup * schedule.steps
        self._log: MetricsLog | None = None
        self._said: set[str] = set()
        self._to_show: list[Callable[[], None]] = []
        self.last: dict[str, float] = {}
        self.scores: dict[str, Score] = {}

    def started(self, step: int) -> None:
        """See train.Watcher."""
        trainer = self._trainer
        if trainer.world.first:
            self._log = MetricsLog(self._folder, step)
            self._peak = measured_peak(trainer.world.device, DTYPES[trainer.recipe.compute.precision])
            self._lookout = FeaturePictures(trainer.sampler, LookSettings()) if self._looking.picture else None
            self._reporter.started(trainer, step)
            if not step:
                self._judge_colour()
        if not step:
            self._look(step)

    def numbers(self, step: int, values: dict[str, float]) -> None:
        """See train.Watcher."""
        if self._log is None:
            return
        values["mfu_share"] = values["executed_tflop_per_s_and_device"] * 1e12 / self._peak
        self._log.write(step, values)
        self.last = {"step": step, **values}
        prototypes = self._trainer.recipe.objective.head.prototypes
        collapsed = health(values, prototypes) if step >= self._settled else []
        for text in set(collapsed) - self._said:
            self._said.add(text)
            self._to_show.append(partial(self._reporter.note, f"step {step}: {text}"))
        self._to_show.append(partial(self._reporter.numbers, step, values))

    def left_out(self, text: str) -> None:
        """See train.Watcher."""
        if self._log is not None:
            self._to_show.append(partial(self._reporter.note, text))

    def stepped(self, step: int) -> None:
        """See train.Watcher."""
        self._show()
        self._look(step)
        if self._log is not None:
            self._reporter.stepped(step)

    def stopping(self, number: int) -> None:
        """See train.Watcher."""
        if self._log is not None:
            self._reporter.stopping(number)

    def close(self) -> None:
        """Finish the files, and show what is not shown yet."""
        if self._log is not None:
            self._log.close()
        self._show()

    def _show(self) -> None:
        """What has come since the last step: late, so that the step is saved even where showing it does not end."""
        shown, self._to_show = self._to_show, []
        for show in shown:
            show()

    def _look(self, step: int) -> None:
        """Draw and probe where it is time to; every process gives its share of the weights."""
        draw, probe = (_due(step, every, self._last_step) for every in (self._looking.picture, self._looking.probe))
        if not (draw or (probe and self._tasks)):
            return
        backbone = self._trainer.whole_backbone()
        if backbone is None or self._log is None:
            return
        device = self._trainer.world.device
        if draw and self._lookout:
            save_picture(self._lookout.draw(backbone, step, device), self._folder / f"pictures/step-{step:08d}.png")
        if probe:
            for task in self._tasks:
                features = embed(backbone, task, Inference(device))
                self._judged(step, judge(features, task), indices(task, features))

    def _judged(self, step: int, score: Score, robust: dict[str, float]) -> None:
        self.scores[score.task] = score
        if self._log is not None:
            figures = {"linear": score.linear, "knn": score.knn}
            by_site = {f"probe_{score.task}_{site}_robustness_index": value for site, value in robust.items()}
            judged = {f"probe_{score.task}_{by}_balanced_accuracy": v for by, v in figures.items()}
            self._log.write(step, judged | by_site)
        said = "".join(f", robust to {site} {value:.3f}" for site, value in robust.items())
        self._reporter.note(f"step {step}: {score.task}: linear {score.linear:.3f}, kNN {score.knn:.3f}{said}")

    def _judge_colour(self) -> None:
        for task in self._tasks:
            score = judge(colour_statistics(task.tiles), task)
            sides = f"{score.train} tiles to learn from, {score.test} held out"
            self._reporter.note(f"{task.name}: colour alone: linear {score.linear:.3f}, kNN {score.knn:.3f}; {sides}")


def _due(step: int, every: int, last: int) -> bool:
    return bool(every) and (step % every == 0 or step == last)


def health(values: dict[str, float], prototypes: int) -> list[str]:
    """What is wrong with a run that has warmed up, by its numbers: the two ways in which it collapses."""
    largest = math.log(prototypes)
    found = []
    if values["feature_spread"] < _COLLAPSED_SPREAD:
        found.append("collapse: all tiles look the same to the teacher (feature_spread near 0); lower schedule.rate")
    if values.get("target_entropy_nats", 0.0) > _FLAT_TARGETS * largest:
        found.append("collapse: the teacher's targets are flat (target_entropy_nats near log of the prototypes)")
    return found
