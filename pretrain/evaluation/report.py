"""Figures of evaluate as a Parquet table, and as a page that lays them beside the paper's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq

from pretrain.evaluation.judge import ALIKE, FEW, LINEAR, NEIGHBOURS, RIDGE, EvaluationRow
from pretrain.evaluation.robustness.figures import BOTH, BY, CHANCE, CLASSES, DROP, INDEX, INDEX_CHANCE, READ, STEPS
from pretrain.evaluation.robustness.plot import site_plots
from pretrain.evaluation.scores import METRICS
from pretrain.evaluation.segmentation.judge import PATCHES
from wsi_prep.storage.atomic import aside, write_atomically

PAPER_TASKS = ("pcam", "crc", "crc-nonorm", "wilds", "tils", "mhist", "dlbcl", "midog", "hest")
"""Columns of the paper's table 2 that are public: weighted F1 of a linear probe, and Pearson's r for HEST."""
PAPER: dict[str, tuple[float, ...]] = {
    "Virchow2G": (0.947, 0.973, 0.970, 0.988, 0.948, 0.864, 0.629, 0.836, 0.349),
    "Virchow2": (0.935, 0.974, 0.969, 0.987, 0.948, 0.859, 0.606, 0.804, 0.340),
    "Virchow": (0.933, 0.973, 0.968, 0.971, 0.949, 0.836, 0.602, 0.787, 0.344),
    "H-optimus-0": (0.937, 0.969, 0.926, 0.986, 0.949, 0.846, 0.591, 0.796, 0.354),
    "UNI": (0.935, 0.967, 0.954, 0.983, 0.946, 0.848, 0.584, 0.759, 0.334),
}
_BALANCED, _F1 = METRICS
_CHANCES = (CHANCE, INDEX_CHANCE)  # what they are beside has the interval
_NO_ENDS = {0: "no slides or cases known", 1: "one slide or case"}  # why there is no interval


def write_parquet(rows: Sequence[EvaluationRow], file: Path) -> None:
    """A row a figure, with EvaluationRow's names."""
    names = [field.name for field in dataclasses.fields(EvaluationRow)]
    with aside(file) as unfinished:
        pq.write_table(pa.table({name: [getattr(row, name) for row in rows] for name in names}), unfinished)


def write_page(
    rows: Sequence[EvaluationRow], file: Path, notes: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> None:
    """A page that needs nothing else: the public tasks beside the paper's rows, then every figure with its interval.

    `notes`: what there is to know of each task, by its name.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("pretrain.evaluation"),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"metric": _metric, "number": _number, "figure": _figure, "ends": _ends, "bar": _bar}
    tasks = {task: [row for row in rows if row.task == task] for task in dict.fromkeys(row.task for row in rows)}
    page = environment.get_template("evaluation.html").render(
        paper_tasks=PAPER_TASKS,
        beside=_beside_the_paper(rows),
        tasks=[
            (task, _about(of[0]), notes.get(task, ()), [row for row in of if _is_shown(row)], site_plots(of))
            for task, of in tasks.items()
        ],
    )
    write_atomically(file, page.encode())


def paper_row(rows: Sequence[EvaluationRow], features: str) -> list[float]:
    """What goes under the paper's columns for these features, NaN where it was not judged; HEST is the organs' mean."""
    found = []
    for task in PAPER_TASKS:
        wanted = (RIDGE, "Pearson r") if task == "hest" else (LINEAR, _F1)
        of_task = [
            row.value
            for row in rows
            if row.features == features and row.task.split(":")[0] == task and (row.judge, row.metric) == wanted
        ]
        found.append(sum(of_task) / len(of_task) if of_task else math.nan)
    return found


def _beside_the_paper(rows: Sequence[EvaluationRow]) -> list[tuple[str, Sequence[float], str]]:
    """Rows of the table of public tasks: a name, its figures, and whose they are; none where no such task is here."""
    if not any(row.task.split(":")[0] in PAPER_TASKS for row in rows):
        return []
    ours = [(name, paper_row(rows, name), "") for name in dict.fromkeys(row.features for row in rows)]
    return [*ours, *((f"{name} (paper)", values, "paper") for name, values in PAPER.items())]


def _about(first: EvaluationRow) -> str:
    """What a task's figures stand on, by one of them."""
    folds = f", {first.folds} folds" if first.folds > 1 else ""
    ends = (
        f"bars are 95 % intervals over {first.groups:,} slides, cases or patients"
        if first.groups > 1
        else _NO_ENDS[first.groups]
    )
    return f"{first.train:,} tiles to learn from, {first.test:,} held out{folds}; {ends}"


def _bar(row: EvaluationRow) -> list[tuple[str, ...]]:
    """Where a dot for the figure and the ends of its interval lie on 200 px from 0 to 1; none where there is none."""
    if math.isnan(row.value):
        return []
    ends = (row.low, row.high) if not math.isnan(row.low) else (row.value, row.value)
    return [tuple(f"{200 * min(max(value, 0.0), 1.0):.1f}" for value in (row.value, *ends))]


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _value(row: EvaluationRow) -> str:
    return (row.why or "not finite") if math.isnan(row.value) else _number(row.value)


def _is_shown(row: EvaluationRow) -> bool:
    """Whether the page lists it: not at other numbers of neighbours, nor what the plot or another figure shows."""
    return row.chosen and row.metric not in _CHANCES and row.metric not in STEPS


def _metric(row: EvaluationRow) -> str:
    """With the number of neighbours, where some are counted."""
    return f"{row.metric}, {row.k} neighbours" if row.k else row.metric


def _figure(row: EvaluationRow) -> str:
    """The figure, with its spread over folds."""
    return _value(row) + (f" ± {row.sd:.3f}" if row.folds > 1 and not math.isnan(row.sd) else "")


def _ends(row: EvaluationRow) -> str:
    """The interval, or why there is none, and why the figure says little."""
    if row.judge == ALIKE or row.metric in _CHANCES or math.isnan(row.value):
        return ""
    ends = _NO_ENDS.get(row.groups, "") if math.isnan(row.low) else f"{_number(row.low)} to {_number(row.high)}"
    return f"{ends}; {row.why}" if row.why else ends


def summary_lines(rows: Sequence[EvaluationRow]) -> list[tuple[str, ...]]:
    """For the terminal: task, features, linear with interval, its weighted F1, kNN, 10-shot (or r), folds, alike."""
    lines = []
    rows = [row for row in rows if not row.judge.startswith(BY)]
    for task, features in dict.fromkeys((row.task, row.features) for row in rows):
        found = {(r.judge, r.metric): r for r in rows if (r.task, r.features) == (task, features)}
        main = found.get((LINEAR, _BALANCED)) or next(iter(found.values()))
        others = [found.get(key) for key in ((LINEAR, _F1), (NEIGHBOURS, _BALANCED), (FEW, _BALANCED))]
        cells = [_number(row.value) if row else "" for row in others]
        spread = f" ± {main.sd:.3f}" if main.folds > 1 and not math.isnan(main.sd) else ""
        ends = f" ({_ends(main)})" if _ends(main) else ""
        kind = {RIDGE: "r ", PATCHES: "IoU "}.get(main.judge, "")
        shared = next((_number(row.value) for (judge, _), row in found.items() if judge == ALIKE), "")
        lines.append((task, features, f"{kind}{_value(main)}{spread}{ends}", *cells, str(main.folds), shared))
    return lines


def robustness_lines(rows: Sequence[EvaluationRow]) -> list[tuple[str, ...]]:
    """For the terminal: task, sites, features, k, index, by chance, classes by neighbours, mean, drop, site, chance."""
    rows = [row for row in rows if row.judge.startswith(BY) and row.chosen]
    lines: list[tuple[str, ...]] = []
    for task, judge, features in dict.fromkeys((row.task, row.judge, row.features) for row in rows):
        found = {r.metric: r for r in rows if (r.task, r.judge, r.features) == (task, judge, features)}
        k = str(found[INDEX].k or "") if INDEX in found else ""
        plain = {
            metric: _number(found[metric].value) if metric in found else "" for metric in (*_CHANCES, CLASSES, BOTH)
        }
        index, drop, read = (_with_ends(found.get(metric)) for metric in (INDEX, DROP, READ))
        cells = (k, index, plain[INDEX_CHANCE], plain[CLASSES], plain[BOTH], drop, read, plain[CHANCE])
        lines.append((task, judge.removeprefix(BY), features, *cells))
    return lines


def _with_ends(row: EvaluationRow | None) -> str:
    """The figure and its interval; a dash where the data do not allow it."""
    if row is None:
        return "-"
    return _value(row) + (f" ({_ends(row)})" if _ends(row) else "")
