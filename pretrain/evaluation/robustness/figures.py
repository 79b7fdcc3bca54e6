"""Figures of robustness: the index, the drop of a confounded probe, and how well the site itself is read.

Koemen et al. 2025, "Towards robust foundation models for digital pathology", arXiv 2507.17845.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.compute.randomness import Purpose, uniforms
from pretrain.evaluation.judge import EvaluationRow, judge_linear
from pretrain.evaluation.probe import PENALTIES, linear
from pretrain.evaluation.robustness.confounded import LADDER, Draw, draws
from pretrain.evaluation.robustness.neighbours import tally
from pretrain.evaluation.robustness.sites import Site
from pretrain.evaluation.scores import Floats, balanced_accuracies, confusions_of, interval, multiplicities
from pretrain.evaluation.tasks import Ints, Task, hold_out
from wsi_prep.errors import counted

BY = "by "  # before a column of sites: the judge of these figures
INDEX_CHANCE = "robustness index, by chance"
INDEX, CLASSES, BOTH = "robustness index", "classes by the same neighbours", "mean of both"
DROP = "performance drop"
STEPS = tuple(f"accuracy at Cramer's V {association:.2f}" for association in LADDER)
READ, CHANCE = "site, linear", "site, by chance"
NUMBERS = (1, 3, 5, 7, 9, *range(11, 102, 10))
"""Of neighbours: those that PathoROB looks at, up to a hundred."""
LADDER_PENALTIES = PENALTIES[1::2]  # of a confounded probe, as many are fitted
MOST_TILES = 100_000  # that are compared
MOST_SITES = 100
_CHOSEN = 11
_FILLED = 0.9  # of tiles that have so many neighbours of their class, and of their site
_NO_NEIGHBOUR = "no neighbour counts"
_NONE_RIGHT, _AT_CHANCE = "no tile was told right at V = 0", "at V = 0 no better than chance"


def robustness(task: Task, name: str, features: Tensor) -> list[EvaluationRow]:
    """Every figure of features (n, F) for every column of sites; what the data do not allow is in `remarks` instead."""
    found = []
    for site in task.sites:
        if _nothing_to_compare(task, site):
            continue
        if features.isfinite().all():
            rows = [
                *index_rows(task, site, features),
                *drop_rows(task, site, features),
                *told_rows(task, site, features),
            ]
        else:
            rows = [_row(site, metric, math.nan) for metric in (INDEX, CLASSES, BOTH, READ)]
        found += [replace(row, task=task.name, features=name) for row in rows]
    return found


def indices(task: Task, features: Tensor) -> dict[str, float]:
    """The robustness index of features (n, F) alone, by column of sites; NaN where a feature is not finite."""
    sites = [site for site in task.sites if not _nothing_to_compare(task, site)]
    if not features.isfinite().all():
        return {site.column: math.nan for site in sites}
    return {
        site.column: next(row.value for row in index_rows(task, site, features) if row.metric == INDEX and row.chosen)
        for site in sites
    }


def remarks(task: Task) -> list[str]:
    """What a user should know of these figures, and why there are none, a line each."""
    found = []
    for site in task.sites:
        if why := _nothing_to_compare(task, site):
            found.append(f"{site.column}: no figures of robustness: {why}")
            continue
        known = site.numbers >= 0
        if unknown := int((~known).sum()):
            found.append(f"{site.column}: {counted(unknown, 'tile')} without one skipped in the figures by it")
        if site.within is None and known.sum() > MOST_TILES:
            found.append(f"{site.column}: the index is of {MOST_TILES:,} of {known.sum():,} tiles, drawn by chance")
        table = _table(task, site)
        if alone := [task.classes[n] for n in np.flatnonzero((table > 0).sum(1) == 1)]:
            said = f"classes at one site only, whose tiles lower the index: {', '.join(alone[:4])}"
            found.append(f"{site.column}: {said}{f' and {len(alone) - 4} more' if len(alone) > 4 else ''}")
        if isinstance(ladder := _draws(task, site), str):
            found.append(f"{site.column}: no performance drop: {ladder}")
        if isinstance(told := _site_task(task, site), str):
            found.append(f"{site.column}: no figure of how well it is told: {told}")
    return found


def _nothing_to_compare(task: Task, site: Site) -> str:
    """Why there are no figures at all; empty where there are."""
    if len(site.names) < 2:
        return f"all tiles are of {site.names[0]}" if site.names else "no tile has one"
    if len(site.names) > MOST_SITES:
        return f"it has {len(site.names):,} values, more than {MOST_SITES}; name a coarser column"
    if site.within == ():
        return "none of the choices has tiles left"
    if not task.grouped:
        return "which slide a tile is of is not known, and neighbours of its own slide would count; add a column group"
    return ""


def _table(task: Task, site: Site) -> Ints:
    """(C, S) counts of tiles."""
    known = site.numbers >= 0
    cell = task.labels[known] * len(site.names) + site.numbers[known]
    return np.bincount(cell, minlength=len(task.classes) * len(site.names)).reshape(len(task.classes), -1)


def _row(site: Site, metric: str, value: float, ends: tuple[float, float] = (math.nan, math.nan)) -> EvaluationRow:
    return EvaluationRow("", "", f"{BY}{site.column}", metric, value, 0.0, *ends, 1, 0, 0)


def _compared(site: Site) -> tuple[Ints, ...]:
    """The rows of tiles that are compared with each other."""
    if site.within is not None:
        return site.within
    rows = np.flatnonzero(site.numbers >= 0)
    if len(rows) > MOST_TILES:
        order = np.argsort(uniforms(0, Purpose.CONFOUNDED, 0, range(len(rows)), 1)[:, 0])
        rows = np.sort(rows[order[:MOST_TILES]])
    return (rows,)


def numbers_of_neighbours(task: Task, site: Site) -> tuple[list[int], int]:
    """How many neighbours are looked at, rising, and how many count.

    No more than nine in ten tiles have of their class, and of their site, on other slides (those that have none do not
    matter): more would bring in others, whatever the features. A site's own `k` counts, where it has one.
    """
    rows = np.unique(np.concatenate(_compared(site)))
    owner = task.owners[rows]
    most = len(rows)
    for numbers in (task.labels[rows], site.numbers[rows]):
        others = _alike(numbers) - _alike(numbers, owner)
        if (others > 0).any():
            most = min(most, int(np.quantile(others[others > 0], 1 - _FILLED)))
    looked = [k for k in NUMBERS if k <= max(most, 1)]
    chosen = site.k or max(k for k in looked if k <= _CHOSEN)
    return sorted({*looked, chosen}), chosen


def index_rows(task: Task, site: Site, features: Tensor) -> list[EvaluationRow]:
    """SO / (SO + OS), the class by the same neighbours, and the mean of both, each k; resampled by whole slides."""
    looked, chosen = numbers_of_neighbours(task, site)
    compared = _compared(site)
    slides = np.unique(task.groups[np.concatenate(compared)])
    drawn = multiplicities(len(slides))
    so, os = np.zeros((2, len(slides), len(looked)))
    accuracy: list[list[float]] = []
    resampled: list[list[Floats]] = []
    for rows in compared:
        slide = np.searchsorted(slides, task.groups[rows])
        apart = [numbering[rows] for numbering in (task.groups, task.owners)]
        labels = task.labels[rows]
        found = tally(features[torch.from_numpy(rows)], labels, site.numbers[rows], apart, looked)
        np.add.at(so, slide, found.same_class_elsewhere)
        np.add.at(os, slide, found.other_class_here)
        each = [_classes(said, labels, slide, drawn, len(task.classes)) for said in found.said.T]
        accuracy.append([value for value, _ in each])
        resampled.append([values for _, values in each])
    mean, tiles = np.mean(accuracy, axis=0), len(np.unique(np.concatenate(compared)))
    rows_of = []
    for at, k in enumerate(looked):
        index, again = _ratio(so[:, at].sum(), os[:, at].sum()), _ratios(drawn @ so[:, at], drawn @ os[:, at])
        classes_again = np.mean([values[at] for values in resampled], axis=0)
        for metric, value, values in (
            (INDEX, index, again),
            (CLASSES, mean[at], classes_again),
            (BOTH, (index + mean[at]) / 2, (again + classes_again) / 2),
        ):
            row = _row(site, metric, float(value), _ends(values))
            why = "" if math.isfinite(value) else _NO_NEIGHBOUR
            rows_of.append(replace(row, test=tiles, groups=len(slides), k=k, chosen=k == chosen, why=why))
    blind = _row(site, INDEX_CHANCE, chance_index(task, site))
    why = "" if math.isfinite(blind.value) else _NO_NEIGHBOUR
    return [*rows_of, replace(blind, test=tiles, groups=len(slides), why=why)]


def chance_index(task: Task, site: Site) -> float:
    """The index where neighbours are drawn by chance, of all that may be; not 1/2 where classes or sites are uneven."""
    so = os = 0.0
    for rows in _compared(site):
        label, at, owner = task.labels[rows], site.numbers[rows], task.owners[rows]
        both, own_both = _alike(label, at), _alike(owner, label, at)
        others = np.maximum(len(rows) - _alike(owner), 1)
        so += ((_alike(label) - both - _alike(owner, label) + own_both) / others).sum()
        os += ((_alike(at) - both - _alike(owner, at) + own_both) / others).sum()
    return _ratio(so, os)


def _alike(*numbers: Ints) -> Ints:
    """(n,): how many have the same in all of these (n,) as each."""
    same = np.unique(np.stack(numbers), axis=1, return_inverse=True)[1].ravel()
    return np.bincount(same)[same]


def _ends(resampled: Floats) -> tuple[float, float]:
    """Of an interval; NaN where no resample has a value."""
    return interval(resampled[np.isfinite(resampled)])


def _ratio(so: float, os: float) -> float:
    return so / (so + os) if so + os else math.nan


def _ratios(so: Floats, os: Floats) -> Floats:
    return np.divide(so, so + os, out=np.full_like(so, np.nan), where=so + os > 0)


def _classes(said: Ints, labels: Ints, slides: Ints, drawn: Floats, classes: int) -> tuple[float, Floats]:
    """Balanced accuracy of what neighbours say, NaN where none says anything, and (R,) of resamples of slides."""
    told = said >= 0
    if not told.any():
        return math.nan, np.full(len(drawn), np.nan)
    counts = confusions_of(said[told][None], labels[told], slides[told], classes)[0]
    weights = drawn[:, np.unique(slides[told])]
    again = balanced_accuracies((weights @ counts.reshape(len(counts), -1)).reshape(-1, classes, classes))
    return float(balanced_accuracies(counts.sum(0))), again


def _draws(task: Task, site: Site) -> list[Draw] | str:
    known = np.flatnonzero(site.numbers >= 0)
    found = draws(task.labels[known], site.numbers[known], task.owners[known], (task.classes, site.names))
    if isinstance(found, str):
        return found
    return [Draw(tuple(known[rows] for rows in d.learnt), known[d.judged], d.cells) for d in found]


def drop_rows(task: Task, site: Site, features: Tensor) -> list[EvaluationRow]:
    """By how much a linear probe does worse on even tiles the more class and site went together in what it learnt."""
    found = _draws(task, site)
    if isinstance(found, str):
        return []
    slides = np.unique(np.concatenate([task.groups[draw.judged] for draw in found]))
    drawn = multiplicities(len(slides))
    cells = len(task.classes) * len(site.names)
    accuracy = np.zeros((len(found), len(LADDER)))
    again = np.zeros((len(found), len(LADDER), len(drawn)))
    for number, draw in enumerate(found):
        place = np.searchsorted(slides, task.groups[draw.judged]) * cells + draw.cells
        asked = np.bincount(place, minlength=len(slides) * cells).reshape(-1, cells)
        for step, learnt in enumerate(draw.learnt):
            right = (
                linear(*_learning(task, features, learnt, draw.judged), LADDER_PENALTIES) == task.labels[draw.judged]
            )
            hits = np.bincount(place, right, len(slides) * cells).reshape(-1, cells)
            accuracy[number, step] = (hits.sum(0) / asked.sum(0)).mean()
            again[number, step] = _mean_of_known(drawn @ hits, drawn @ asked)
    drop, even = _drops(accuracy), _ends(again[:, 0].mean(0))
    why = "" if even[0] > 1 / len(task.classes) else _AT_CHANCE
    rows = [_row(site, DROP, float(drop.mean()), _ends(_drops(again.transpose(0, 2, 1)).mean(0)))]
    rows[0] = replace(rows[0], sd=float(drop.std()), why=why if math.isfinite(drop.mean()) else _NONE_RIGHT)
    for step, metric in enumerate(STEPS):
        row = _row(site, metric, float(accuracy[:, step].mean()), _ends(again[:, step].mean(0)))
        rows.append(replace(row, sd=float(accuracy[:, step].std())))
    sides = (len(found), len(found[0].learnt[0]), len(found[0].judged), len(slides))
    return [_on(row, *sides) for row in rows]


def _on(row: EvaluationRow, folds: int, train: int, test: int, groups: int) -> EvaluationRow:
    """The row with what it stands on."""
    return replace(row, folds=folds, train=train, test=test, groups=groups)


def _drops(accuracy: Floats) -> Floats:
    """(..., steps) -> (...) mean over the steps after the first of the share of its accuracy that is lost."""
    first = np.where(accuracy[..., :1] > 0, accuracy[..., :1], np.nan)
    return (1 - accuracy[..., 1:] / first).mean(-1)  # type: ignore[no-any-return]


def _mean_of_known(hits: Floats, asked: Floats) -> Floats:
    """(R, cells) -> (R,) mean share of hits, over the cells that were asked for."""
    share = np.divide(hits, asked, out=np.zeros_like(hits), where=asked > 0)
    return share.sum(1) / np.maximum((asked > 0).sum(1), 1)  # type: ignore[no-any-return]


def _learning(task: Task, features: Tensor, learnt: Ints, judged: Ints) -> tuple[Tensor, Task]:
    """Features and a task of these rows alone."""
    rows = np.concatenate([learnt, judged])
    return features[torch.from_numpy(rows)], _part(task, rows, np.arange(len(rows)) < len(learnt))


def _part(task: Task, rows: Ints, train: NDArray[np.bool_]) -> Task:
    """A task of these rows, whose groups are slides or patients, and of which those of `train` (m,) are learnt from."""
    labels, owners, tiles = task.labels[rows], task.owners[rows], task.tiles.take(rows)
    return replace(task, tiles=tiles, labels=labels, groups=owners, train=train, valid=None, sites=(), patients=None)


def _site_task(task: Task, site: Site) -> tuple[Task, Ints] | str:
    """The task of telling the site, slides or patients held out, and its rows; or why there is none."""
    rows = np.flatnonzero(site.numbers >= 0)
    train = ~hold_out(task.owners[rows], site.numbers[rows])
    both = np.intersect1d(site.numbers[rows[train]], site.numbers[rows[~train]])
    if len(both) < 2:
        return "fewer than two of them have two slides, one to learn from and one to judge on"
    kept = np.isin(site.numbers[rows], both)
    rows, train = rows[kept], train[kept]
    told = replace(
        _part(task, rows, train),
        labels=np.searchsorted(both, site.numbers[rows]),
        classes=tuple(site.names[number] for number in both),
        divided=False,
    )
    return told, rows


def told_rows(task: Task, site: Site, features: Tensor) -> list[EvaluationRow]:
    """How well a linear probe tells the site of held-out slides, and what chance would."""
    found = _site_task(task, site)
    if isinstance(found, str):
        return []
    told, rows = found
    row = judge_linear(told, features[torch.from_numpy(rows)])
    chance = _on(_row(site, CHANCE, 1 / len(told.classes)), row.folds, row.train, row.test, row.groups)
    return [replace(row, judge=f"{BY}{site.column}", metric=READ), chance]
