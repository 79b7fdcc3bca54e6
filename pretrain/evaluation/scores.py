"""Figures of a judgement: balanced accuracy and weighted F1, each with an interval by resampling whole groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pretrain.compute.randomness import Purpose, uniforms

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_RESAMPLES = 1000
_COVERS = 0.95


@dataclass(frozen=True)
class Figure:
    """A mean over folds with its standard deviation (0 for one fold) and the ends of an interval that covers 95 %.

    The ends are NaN where there are fewer than two groups to resample.
    """

    value: float
    sd: float
    low: float
    high: float


def balanced_accuracies(confusions: Floats) -> Floats:
    """(..., C, C) counts, rows the true class -> (...) mean recall of the classes that there are."""
    support = confusions.sum(-1)
    right = np.diagonal(confusions, axis1=-2, axis2=-1)
    recall = np.divide(right, support, out=np.zeros_like(right, float), where=support > 0)
    return recall.sum(-1) / np.maximum((support > 0).sum(-1), 1)  # type: ignore[no-any-return]


def weighted_f1(confusions: Floats) -> Floats:
    """(..., C, C) counts, rows the true class -> (...) F1 of each class, weighted by how many tiles it has."""
    support, said = confusions.sum(-1), confusions.sum(-2)
    right = np.diagonal(confusions, axis1=-2, axis2=-1)
    both = support + said
    f1 = np.divide(2 * right, both, out=np.zeros_like(right, float), where=both > 0)
    return (f1 * support).sum(-1) / np.maximum(support.sum(-1), 1)  # type: ignore[no-any-return]


METRICS: dict[str, Callable[[Floats], Floats]] = {
    "balanced accuracy": balanced_accuracies,
    "weighted F1": weighted_f1,
}


def balanced_accuracy(predicted: Ints, labels: Ints, classes: int) -> float:
    """Of (n,) int64 against (n,) int64, both below `classes`."""
    none = np.zeros(len(labels), np.int64)
    return float(balanced_accuracies(confusions_of(predicted[None], labels, none, classes)[0].sum(0)))


def confusions_of(predicted: Ints, labels: Ints, groups: Ints, classes: int) -> Floats:
    """(D, n) guesses in D draws -> (D, G, C, C) counts: draw, group, true class, guessed class."""
    group = np.unique(groups, return_inverse=True)[1]
    count = int(group.max(initial=-1)) + 1
    place = (group * classes + labels) * classes + predicted
    each = [np.bincount(row, minlength=count * classes**2) for row in place]
    return np.stack(each).reshape(len(predicted), count, classes, classes).astype(np.float64)


def figures(folds: Sequence[tuple[Ints, Ints, Ints]], classes: int) -> dict[str, Figure]:
    """Each metric of guesses (D, n), labels (n,) and groups (n,) of the held-out tiles of each fold.

    Draws are averaged. Of one fold its groups are resampled; of several, groups among all folds, each fold weighing the
    product of how often its groups were drawn.
    """
    counts = [confusions_of(*fold, classes) for fold in folds]
    found = {}
    for name, metric in METRICS.items():
        values = np.array([metric(draws.sum(1)).mean() for draws in counts])
        if len(folds) == 1:
            resampled = _resampled(counts[0], metric)
        else:
            resampled = weighed(values, [np.unique(groups) for _, _, groups in folds])
        found[name] = Figure(float(values.mean()), float(values.std()), *interval(resampled))
    return found


def weighed(values: Floats, groups: Sequence[Ints]) -> Floats:
    """(R,) means of folds in resamples of the groups of all, each fold weighing the product of its groups' counts."""
    every = np.unique(np.concatenate(groups))
    drawn = multiplicities(len(every))
    weight = np.stack([drawn[:, np.searchsorted(every, of)].prod(1) for of in groups], axis=1)
    total = weight.sum(1)
    return (weight @ values)[total > 0] / total[total > 0] if len(every) > 1 else np.empty(0)


def interval(resampled: Floats) -> tuple[float, float]:
    """The ends between which 95 % of some resamples lie; NaN where there are none."""
    if not len(resampled):
        return float("nan"), float("nan")
    low, high = np.quantile(resampled, [(1 - _COVERS) / 2, (1 + _COVERS) / 2])
    return float(low), float(high)


def _resampled(counts: Floats, metric: Callable[[Floats], Floats]) -> Floats:
    _, groups, classes, _ = counts.shape
    if groups < 2:
        return np.empty(0)
    drawn = multiplicities(groups)
    of_draws = [metric((drawn @ draw.reshape(groups, -1)).reshape(-1, classes, classes)) for draw in counts]
    return np.mean(of_draws, axis=0)  # type: ignore[no-any-return]


def multiplicities(groups: int) -> Floats:
    """(R, G): how often each group is in a sample of G groups with replacement."""
    chosen = (uniforms(0, Purpose.BOOTSTRAP, 0, range(_RESAMPLES), groups) * groups).astype(np.int64)
    flat = np.arange(_RESAMPLES)[:, None] * groups + chosen
    return np.bincount(flat.ravel(), minlength=_RESAMPLES * groups).reshape(_RESAMPLES, groups).astype(np.float64)
