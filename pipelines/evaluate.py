"""Judges runs, released weights and timm's models on labelled tiles, beside untrained networks and colours alone."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from pipelines.bars import Bar
from pipelines.calls.training import EvaluateCall
from pipelines.command import EXIT_OK, Terminal, progress, run_command
from pretrain.compute.devices import best_device
from pretrain.data.seen.near import SeenTiles, likenesses_of_tiles
from pretrain.data.seen.overlap import overlap
from pretrain.evaluation.class_folders import GroupPattern
from pretrain.evaluation.datasets import AnyTask, read_tasks
from pretrain.evaluation.judge import EvaluationRow, alike, judge, remarks
from pretrain.evaluation.probe import colour_statistics
from pretrain.evaluation.report import robustness_lines, summary_lines, write_page, write_parquet
from pretrain.evaluation.robustness.figures import remarks as robustness_remarks
from pretrain.evaluation.robustness.figures import robustness
from pretrain.evaluation.segmentation.judge import judge_patches
from pretrain.evaluation.segmentation.tasks import Segmentation
from pretrain.evaluation.tasks import Regression, Task, table_of
from pretrain.features.colours import of_patch_colours
from pretrain.features.embedder import Embedder, Inference, cached, features_of, of_backbone
from pretrain.train.runs import load_embedder, load_run, model_name, untrained
from wsi_prep.errors import BadOption, counted
from wsi_prep.storage.overlap.near import twins

COLOURS = "colours alone"
_WIDTH = 160  # of the table in a file


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(EvaluateCall, _work, arguments)


def _work(call: EvaluateCall, terminal: Terminal) -> int:
    if not terminal.out.is_terminal:
        terminal.out.width = _WIDTH
    cache = call.cache or default_cache()
    device = best_device()
    if min(call.limit, call.px) < 0 or min(call.batch, call.threads) < 1:
        raise BadOption("--limit and --px must be at least 0, --batch and --threads at least 1")
    inference = Inference(device, call.batch, call.threads)
    pattern, sites = _pattern(call), _sites(call)
    tasks = [task for spec in call.tasks for task in read_tasks(spec, call.limit, 0, call.px, pattern, sites)]
    notes = {task.name: _remarks(task) for task in tasks}
    shared = _shared(call)
    if len(notes) < len(tasks):
        twice = next(task.name for task in tasks if sum(task.name == other.name for other in tasks) > 1)
        raise BadOption(f"two tasks are named {twice!r}; rename a file or folder, so that the table can tell them")
    for name, note in _near(call, tasks, terminal.out):
        notes[name].append(note)
    names = [name for name in call.model if name != call.like]
    models = _models([*names, call.like] if call.like else names)
    like = list(models)[-1] if call.like else None  # of a run, what it has become
    rows = list(_judged(tasks, models, like, inference, cache, terminal.out))
    if call.to:
        call.to.mkdir(parents=True, exist_ok=True)
        write_parquet(rows, call.to / "figures.parquet")
        write_page(rows, call.to / "figures.html", notes)
    terminal.out.print(_table(rows, like))
    if lines := robustness_lines(rows):
        terminal.out.print(_robustness_table(lines))
    for name, note in ((name, note) for name, of_task in notes.items() for note in of_task):
        terminal.say(f"note: {name}: {note}")
    for name, note in shared.items():
        terminal.say(f"note: {name}: {note}")
    if call.to:
        terminal.say(f"look at {call.to}: figures.html, figures.parquet")
    return EXIT_OK


def _shared(call: EvaluateCall) -> dict[str, str]:
    """By table, what it shares with SHARDS."""
    if not call.shards:
        return {}
    tables = {str(path): path for spec in call.tasks if (path := table_of(spec)) is not None}
    return {name: overlap(path, call.shards).line for name, path in tables.items()} or {
        "SHARDS": "none of TASKS is a table that could say which slides and patients its tiles are of"
    }


def _near(call: EvaluateCall, tasks: Sequence[AnyTask], console: Console) -> list[tuple[str, str]]:
    """By task, how many of its tiles look like tiles in SHARDS."""
    if not call.near:
        return []
    if not call.shards:
        raise BadOption("NEAR needs SHARDS, which hold the tiles that those of TASKS may look like")
    with progress(console, "tiles of SHARDS") as bar:
        seen = SeenTiles(call.shards, threads=call.threads, progress=bar)
    lines = []
    for task in tasks:
        tiles = likenesses_of_tiles(task.tiles, call.threads)
        lines.append((task.name, seen.alike(tiles).copies.line))
        if (isinstance(task, Regression) or task.grouped) and (alike := twins(tiles, task.groups)):
            looks = counted(alike, "tile of it looks", "tiles of it look")
            lines.append((task.name, f"{looks} like a tile of another of its own slides or cases"))
    return lines


def _pattern(call: EvaluateCall) -> GroupPattern | None:
    if call.group_pattern is None:
        return None
    if not any(Path(spec).is_dir() for spec in call.tasks):
        raise BadOption("a group pattern is for folders of CLASS/*.png, and none of TASKS is one; leave it out")
    return GroupPattern(call.group_pattern)


def _sites(call: EvaluateCall) -> tuple[str, ...] | None:
    if call.site and not any(".parquet" in spec for spec in call.tasks):
        raise BadOption("a site is a column of a table, and none of TASKS is one; leave it out")
    return call.site or None


def _remarks(task: AnyTask) -> list[str]:
    if isinstance(task, Segmentation):
        return list(task.notes)
    return [*remarks(task), *(robustness_remarks(task) if isinstance(task, Task) else [])]


def _every_figure(task: Task | Regression, name: str, features: Tensor) -> list[EvaluationRow]:
    return [*judge(task, name, features), *(robustness(task, name, features) if isinstance(task, Task) else [])]


def _models(names: list[str]) -> dict[str, Embedder]:
    """By the names that rows are to have: runs twice, untrained and trained."""
    found: dict[str, Embedder] = {}
    for name in names:
        folder, label = Path(name), model_name(name)
        if (folder / "recipe.json").is_file():
            trained, step = load_run(folder)
            made = {
                f"{label}, untrained": of_backbone(untrained(folder)),
                f"{label}, step {step}": of_backbone(trained),
            }
        else:
            made = {label: load_embedder(name)}
        if shared := set(made) & set(found):
            raise BadOption(
                f"two models are named {sorted(shared)[0]!r}; rename a folder, so that the table can tell them"
            )
        found |= made
    return found


def _judged(
    tasks: list[AnyTask],
    models: dict[str, Embedder],
    like: str | None,
    inference: Inference,
    cache: Path,
    console: Console,
) -> list[EvaluationRow]:
    rows: list[EvaluationRow] = []
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("tiles, {task.fields[rate]}, left"), TimeRemainingColumn())
    with Bar(
        TextColumn("{task.description}"), *columns, console=console, disable=not console.is_terminal, transient=True
    ) as bar:
        for task in tasks:
            tiles = task.tiles
            if isinstance(task, Segmentation):
                rows += _segmented(task, models, inference, bar)
                continue
            colours = cached(cache, "colours", tiles, 0, lambda tiles=tiles: colour_statistics(tiles))  # type: ignore[misc]
            rows += _every_figure(task, COLOURS, colours)
            kept = {}
            for name, embedder in models.items():
                line = bar.add_task(f"{task.name}: {name}", total=len(tiles), rate="")
                advance = _Advance(bar, line)
                features = features_of(embedder, tiles, task.px, inference, cache, advance)
                bar.update(line, description=f"{task.name}: judging {name}")
                rows += _every_figure(task, name, features)
                bar.remove_task(line)
                if like is not None:
                    kept[name] = features
            if like is not None:
                rows += [alike(task, name, f, like, kept[like]) for name, f in kept.items() if name != like]
    return rows


def _segmented(
    task: Segmentation, models: dict[str, Embedder], inference: Inference, bar: Progress
) -> Iterator[EvaluationRow]:
    for name, embedder in {COLOURS: of_patch_colours(), **models}.items():
        line = bar.add_task(f"{task.name}: {name}", total=len(task.tiles), rate="")
        yield from judge_patches(task, name, embedder, inference, _Advance(bar, line))
        bar.remove_task(line)


class _Advance:
    """Moves a line of the bar, with its rate."""

    def __init__(self, bar: Progress, line: TaskID) -> None:
        self._bar, self._line = bar, line
        self._began, self._done = time.monotonic(), 0

    def __call__(self, tiles: int) -> None:
        self._done += tiles
        rate = self._done / max(time.monotonic() - self._began, 1e-9)
        self._bar.update(self._line, completed=self._done, rate=f"{rate:,.0f}/s")


def _table(rows: list[EvaluationRow], like: str | None) -> Table:
    title = "balanced accuracy on what is held out; r: Pearson's; IoU: mean over classes of pixels"
    headers = ["task", "features", "linear (95 % interval)", "weighted F1", "kNN", "10-shot", "folds"]
    if like is not None:
        headers.append("alike")
        title += f"; alike: of ten nearest neighbours, shared with {like}"
    table = Table(*headers, title=title)
    for line in summary_lines(rows):
        table.add_row(*line[: len(headers)])
    return table


def _robustness_table(lines: Sequence[tuple[str, ...]]) -> Table:
    headers = ["task", "by", "features", "k", "robustness index", "chance", "classes", "mean", "performance drop"]
    title = (
        "robustness to where a tile is from, 95 % intervals over slides; classes: by the same neighbours; -: see notes"
    )
    table = Table(*headers, "site told", "chance", title=title)
    for line in lines:
        table.add_row(*line)
    return table


def default_cache() -> Path:
    """Where features are kept; it can be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mixed-magnification" / "features"


if __name__ == "__main__":
    sys.exit(main())
