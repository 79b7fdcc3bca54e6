"""Finished backbones, as they were before their first step, and any features judged on labelled tiles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from pretrain.evaluation.probe import SHOTS, few_shot, knn, linear, ridge, shared_neighbours
from pretrain.evaluation.scores import METRICS, Figure, figures, interval, weighed
from pretrain.evaluation.tasks import Ints, Regression, Task

LINEAR, NEIGHBOURS, FEW, RIDGE, ALIKE = "linear", "kNN", "10-shot", "ridge", "alike"
PEARSON = "Pearson r"
_JUDGES: dict[str, Callable[[Tensor, Task], Ints]] = {LINEAR: linear, NEIGHBOURS: knn, FEW: few_shot}
_MOST_FOLDS = 32


@dataclass(frozen=True)
class EvaluationRow:
    """One figure of one kind of features on one task.

    `judge`: linear, kNN, 10-shot, or ridge for a regression; patches for pixels, attention and mean of tiles for
    slides; alike for a comparison with another model. `metric`: balanced accuracy or weighted F1, Pearson r, Dice or
    IoU, AUC, or the model whose neighbours are shared.
    `value`: the mean over `folds`, `sd` its standard deviation over them, `low` and `high` the ends of a 95 % interval
    over groups; both NaN where there are fewer than two. `train`, `test`: tiles of the first fold. `groups`: slides or
    cases that are judged on, in all folds, 0 where they are not known.
    Of robustness, `judge` is "by" and a column of sites; `k`: how many neighbours, 0 where none are counted; `chosen`:
    whether this k is the one to compare models at; `why`: why there is no value, where that is not the features' fault,
    or why the value says little.
    """

    task: str
    features: str
    judge: str
    metric: str
    value: float
    sd: float
    low: float
    high: float
    folds: int
    train: int
    test: int
    groups: int = 0
    k: int = 0
    chosen: bool = True
    why: str = ""


def folds(task: Task) -> list[Task]:
    """The task as the data divide it; else, where owners are few, once for each choice of an owner of every class.

    The chosen owners (patients, slides or cases) are held out with all their tiles. Where there are more than 32
    choices, as it was divided.
    """
    by_class = [np.unique(task.owners[task.labels == number]) for number in range(len(task.classes))]
    choices = math.prod(len(groups) for groups in by_class)
    if task.divided or choices > _MOST_FOLDS:
        return [task]
    found = []
    for chosen in itertools.product(*by_class):
        train = ~np.isin(task.owners, chosen)
        if all(train[task.labels == n].any() and not train[task.labels == n].all() for n in range(len(task.classes))):
            found.append(replace(task, train=train))
    return found or [task]


def judge(task: Task | Regression, name: str, features: Tensor) -> list[EvaluationRow]:
    """Every figure of features (n, F) on a task; all NaN where one of them is not finite."""
    if isinstance(task, Regression):
        return [_regressed(task, name, features)]
    divided = folds(task)
    return [row for by, guess in _JUDGES.items() for row in _judged(task, name, features, divided, (by, guess))]


def judge_linear(task: Task, features: Tensor) -> EvaluationRow:
    """Balanced accuracy of the linear probe alone, of features (n, F) that have no name."""
    return _judged(task, "", features, folds(task), (LINEAR, linear))[0]


def _judged(
    task: Task, name: str, features: Tensor, divided: Sequence[Task], by: tuple[str, Callable[[Tensor, Task], Ints]]
) -> list[EvaluationRow]:
    """A row each metric."""
    said_by, guess = by
    judged_on = np.unique(np.concatenate([fold.owners[fold.test] for fold in divided]))
    sides = (len(divided), int(divided[0].train.sum()), int(divided[0].test.sum()))
    if features.isfinite().all():
        guesses = [np.atleast_2d(guess(features, fold)) for fold in divided]
        judged = [
            (said, fold.labels[fold.test], fold.owners[fold.test]) for said, fold in zip(guesses, divided, strict=True)
        ]
        found = figures(judged, len(task.classes))
    else:
        found = dict.fromkeys(METRICS, Figure(*[math.nan] * 4))
    rows = []
    for metric, f in found.items():
        ends, groups = ((f.low, f.high), len(judged_on)) if task.grouped else ((math.nan, math.nan), 0)
        rows.append(EvaluationRow(task.name, name, said_by, metric, f.value, f.sd, *ends, *sides, groups))
    return rows


def remarks(task: Task | Regression) -> list[str]:
    """What a user should know of a task's figures."""
    if isinstance(task, Regression):
        return list(task.notes)
    least = np.bincount(task.labels[task.train], minlength=len(task.classes))
    few = [f"{name} ({count})" for name, count in zip(task.classes, least.tolist(), strict=True) if count < SHOTS]
    return [
        *task.notes,
        *([f"10-shot takes fewer, for want of tiles to learn from: {', '.join(few[:4])}"] if few else []),
    ]


def alike(task: Task | Regression, name: str, features: Tensor, other: str, others: Tensor) -> EvaluationRow:
    """The share of ten nearest neighbours among the task's tiles that features have in common with `other`'s."""
    share, nan = shared_neighbours(features, others), math.nan
    return EvaluationRow(
        task.name, name, ALIKE, f"neighbours shared with {other}", share, 0.0, nan, nan, 1, 0, len(features)
    )


def _regressed(task: Regression, name: str, features: Tensor) -> EvaluationRow:
    """HEST's figure: the mean over folds of the mean over targets; the interval is over the groups of its folds."""
    by_fold = np.array([ridge(features, task, train, test).mean() for train, test in task.folds])
    resampled = weighed(by_fold, [np.unique(task.groups[test]) for _, test in task.folds])
    low, high = interval(resampled)
    first, held = task.folds[0]
    value, sd = float(by_fold.mean()), float(by_fold.std())
    judged_on = np.unique(np.concatenate([task.groups[test] for _, test in task.folds]))
    sides = (len(by_fold), int(first.sum()), int(held.sum()), len(judged_on))
    return EvaluationRow(task.name, name, RIDGE, PEARSON, value, sd, low, high, *sides)
