"""Figures of evaluate as a Parquet table, and as a page that lays them beside the paper's."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pyarrow.parquet as pq

from pretrain.evaluation.judge import ALIKE, FEW, LINEAR, NEIGHBOURS, RIDGE, EvaluationRow
from pretrain.evaluation.scores import METRICS
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
_NO_ENDS = {0: "no slides or cases known", 1: "one slide or case"}  # why there is no interval
_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0 2rem}
th,td{padding:.3rem .7rem;border-bottom:1px solid #ddd;text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums}tr.paper td{color:#777}h2{margin-top:2.5rem}
svg{display:block}.note{color:#666;max-width:50rem}
"""


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
    tasks = {task: [row for row in rows if row.task == task] for task in dict.fromkeys(row.task for row in rows)}
    parts = [_beside_the_paper(rows), *(_of_task(task, of, notes.get(task, ())) for task, of in tasks.items())]
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Evaluation</title><style>{_STYLE}</style>"
        f"<h1>Evaluation</h1>{''.join(parts)}</html>\n"
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


def _beside_the_paper(rows: Sequence[EvaluationRow]) -> str:
    if not any(row.task.split(":")[0] in PAPER_TASKS for row in rows):
        return ""
    models = dict.fromkeys(row.features for row in rows)
    head = "".join(f"<th>{task}</th>" for task in ("", *PAPER_TASKS))
    lines = [_line(name, paper_row(rows, name), "") for name in models]
    lines += [_line(f"{name} (paper)", values, " class=paper") for name, values in PAPER.items()]
    note = (
        "Weighted F1 of a linear probe on class token and mean patch token; HEST: Pearson&rsquo;s r, here by ridge "
        "regression as its authors do it now, in the paper by random forests. Grey rows are the paper&rsquo;s own "
        "figures (arXiv 2408.00738, table 2), not run here; how it cut MIDOG and labelled DLBCL is not known."
    )
    body = "".join(lines)
    return f"<h2>The paper&rsquo;s public tasks</h2><table><tr>{head}</tr>{body}</table><p class=note>{note}</p>"


def _line(name: str, values: Sequence[float], kind: str) -> str:
    cells = "".join(f"<td class=n>{_number(value)}</td>" for value in values)
    return f"<tr{kind}><td>{html.escape(name)}</td>{cells}</tr>"


def _of_task(task: str, rows: Sequence[EvaluationRow], notes: Sequence[str]) -> str:
    first = rows[0]
    folds = f", {first.folds} folds" if first.folds > 1 else ""
    ends = (
        f"bars are 95 % intervals over {first.groups:,} slides or cases" if first.groups > 1 else _NO_ENDS[first.groups]
    )
    about = f"{first.train:,} tiles to learn from, {first.test:,} held out{folds}; {ends}"
    about += "".join(f"<br>{html.escape(note)}" for note in notes)
    lines = []
    for row in rows:
        spread = f" ± {row.sd:.3f}" if row.folds > 1 and not math.isnan(row.sd) else ""
        cells = f"<td>{html.escape(row.features)}</td><td>{row.judge}</td><td>{row.metric}</td>"
        ends = _ends(row)
        lines.append(
            f"<tr>{cells}<td class=n>{_value(row)}{spread}</td><td class=n>{ends}</td><td>{_bar(row)}</td></tr>"
        )
    head = "".join(f"<th>{name}</th>" for name in ("features", "judge", "metric", "", "interval", "0 to 1"))
    return f"<h2>{html.escape(task)}</h2><p class=note>{about}</p><table><tr>{head}</tr>{''.join(lines)}</table>"


def _bar(row: EvaluationRow) -> str:
    """A dot for the figure and a line for its interval, 200 px from 0 to 1."""
    if math.isnan(row.value):
        return ""
    ends = (row.low, row.high) if not math.isnan(row.low) else (row.value, row.value)
    x, low, high = (200 * min(max(value, 0.0), 1.0) for value in (row.value, *ends))
    line = f'<path d="M{low:.1f} 7H{high:.1f}" stroke="#58a" stroke-width=3 />'
    axis, dot = '<path d="M0 7H200" stroke="#eee"/>', f'<circle cx={x:.1f} cy=7 r=4 fill="#246"/>'
    return f'<svg width=208 height=14 viewBox="-4 0 208 14">{axis}{line}{dot}</svg>'


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def _value(row: EvaluationRow) -> str:
    return "not finite" if math.isnan(row.value) else _number(row.value)


def _ends(row: EvaluationRow) -> str:
    """The interval, or why there is none."""
    if row.judge == ALIKE or math.isnan(row.value):
        return ""
    return _NO_ENDS[row.groups] if math.isnan(row.low) else f"{_number(row.low)} to {_number(row.high)}"


def summary_lines(rows: Sequence[EvaluationRow]) -> list[tuple[str, ...]]:
    """For the terminal: task, features, linear with interval, its weighted F1, kNN, 10-shot (or r), folds, alike."""
    lines = []
    for task, features in dict.fromkeys((row.task, row.features) for row in rows):
        found = {(r.judge, r.metric): r for r in rows if (r.task, r.features) == (task, features)}
        main = found.get((LINEAR, _BALANCED)) or next(iter(found.values()))
        others = [found.get(key) for key in ((LINEAR, _F1), (NEIGHBOURS, _BALANCED), (FEW, _BALANCED))]
        cells = [_number(row.value) if row else "" for row in others]
        spread = f" ± {main.sd:.3f}" if main.folds > 1 and not math.isnan(main.sd) else ""
        ends = f" ({_ends(main)})" if _ends(main) else ""
        kind = "r " if main.judge == RIDGE else ""
        shared = next((_number(row.value) for (judge, _), row in found.items() if judge == ALIKE), "")
        lines.append((task, features, f"{kind}{_value(main)}{spread}{ends}", *cells, str(main.folds), shared))
    return lines
