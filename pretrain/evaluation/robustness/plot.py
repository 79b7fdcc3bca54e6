"""Biology against site, a model a point, and the robustness index by the number of neighbours, as drawn on the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.evaluation.judge import LINEAR, EvaluationRow
from pretrain.evaluation.robustness.figures import BY, CHANCE, INDEX, INDEX_CHANCE, READ
from pretrain.evaluation.scores import METRICS

SIDE = 300  # px of a plot, whose axes go from 0 to 1
_COLOURS = ("#246", "#c60", "#283", "#a2a", "#b33", "#067", "#770", "#555")
_BALANCED = next(iter(METRICS))


@dataclass(frozen=True)
class Point:
    """A model: its number in the plot, a colour, what it is drawn as, and where, in px from the upper left.

    `kind`: "square" for colours alone, "hollow" for an untrained network, "full" for others. `across`, `down`: the ends
    of the intervals of x and of y. `curve`: the index by number of neighbours, as SVG's points; `figures`: as text.
    """

    number: int
    name: str
    colour: str
    kind: str
    x: str
    y: str
    across: tuple[str, str]
    down: tuple[str, str]
    curve: str
    figures: tuple[str, str, str]


@dataclass(frozen=True)
class SitePlot:
    """The models of one task by one column of sites; `chance`: where the site would be told by chance, in px, and
    `blind`: where the index would be; empty where neither is known.

    `ticks`: some numbers of neighbours, and where they are, in px.
    """

    column: str
    points: tuple[Point, ...]
    chance: str
    blind: str
    ticks: tuple[tuple[int, str], ...]
    side: int = SIDE


def site_plots(rows: Sequence[EvaluationRow]) -> list[SitePlot]:
    """Of the rows of one task: a plot each column of sites."""
    judges = dict.fromkeys(row.judge for row in rows if row.judge.startswith(BY))
    return [plot for judge in judges if (plot := _plot(rows, judge)).points]


def _plot(rows: Sequence[EvaluationRow], judge: str) -> SitePlot:
    of_judge = [row for row in rows if row.judge == judge]
    looked = sorted({row.k for row in of_judge if row.metric == INDEX})
    chance, blind = (
        next((row.value for row in of_judge if row.metric == metric), math.nan) for metric in (CHANCE, INDEX_CHANCE)
    )
    points = []
    for number, name in enumerate(dict.fromkeys(row.features for row in of_judge), 1):
        site, classes, index = (
            next((r for r in rows if r.features == name and (r.judge, r.metric) == key and r.chosen), None)
            for key in ((judge, READ), (LINEAR, _BALANCED), (judge, INDEX))
        )
        curve = [r for r in of_judge if (r.features, r.metric) == (name, INDEX)]
        if site and classes and not math.isnan(site.value + classes.value):
            points.append(_point(number, name, (site, classes, index), _curve(curve, looked)))
    ticks = [k for n, k in enumerate(looked) if n in (0, len(looked) // 2, len(looked) - 1)]
    return SitePlot(
        judge.removeprefix(BY),
        tuple(points),
        "" if math.isnan(chance) else _px(chance),
        "" if math.isnan(blind) else _px(1 - blind),
        tuple((k, _along(looked.index(k), looked)) for k in ticks),
    )


def _point(
    number: int, name: str, judged: tuple[EvaluationRow, EvaluationRow, EvaluationRow | None], curve: str
) -> Point:
    site, classes, index = judged
    kind = "square" if name == "colours alone" else "hollow" if name.endswith("untrained") else "full"
    return Point(
        number,
        name,
        _COLOURS[(number - 1) % len(_COLOURS)],
        kind,
        _px(site.value),
        _px(1 - classes.value),
        (_px(_or(site.low, site)), _px(_or(site.high, site))),
        (_px(1 - _or(classes.low, classes)), _px(1 - _or(classes.high, classes))),
        curve,
        (
            f"{site.value:.3f}",
            f"{classes.value:.3f}",
            "" if not index or math.isnan(index.value) else f"{index.value:.3f}",
        ),
    )


def _curve(rows: Sequence[EvaluationRow], looked: Sequence[int]) -> str:
    known = [row for row in rows if not math.isnan(row.value)]
    return " ".join(f"{_along(looked.index(row.k), looked)},{_px(1 - row.value)}" for row in known)


def _along(place: int, looked: Sequence[int]) -> str:
    return _px(place / (len(looked) - 1) if len(looked) > 1 else 0.5)


def _or(end: float, row: EvaluationRow) -> float:
    return row.value if math.isnan(end) else end


def _px(share: float) -> str:
    return f"{SIDE * min(max(share, 0.0), 1.0):.1f}"
