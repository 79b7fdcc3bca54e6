"""Folds of patients, and figures of slides with intervals over patients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pretrain.compute.randomness import Purpose, uniforms
from pretrain.evaluation.scores import Figure, balanced_accuracies, interval, multiplicities

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def patient_folds(labels: Ints, patients: Ints, count: int) -> Ints:
    """(n,) the fold of each slide, whole patients in one; folds have near the same number of slides of each class.

    Patients of the rarest classes are placed first, each where it evens the counts most.
    """
    (_, label), (_, owner) = (np.unique(values, return_inverse=True) for values in (labels, patients))
    counts = np.zeros((owner.max(initial=-1) + 1, label.max(initial=-1) + 1))
    np.add.at(counts, (owner, label), 1)
    shares = counts / counts.sum(0)
    chance = uniforms(0, Purpose.TASK_GROUPS, 1, range(len(counts)), 1)[:, 0]
    order = np.lexsort((chance, -shares.max(1)))
    held = np.zeros((count, counts.shape[1]))
    fold = np.empty(len(counts), np.int64)
    for patient in order:
        after = held[None] + np.eye(count)[:, :, None] * shares[patient]
        uneven = after.std(1).mean(1)
        fold[patient] = np.lexsort((held.sum(1), uneven.round(12)))[0]
        held[fold[patient]] += shares[patient]
    return fold[owner]


def splits(fold: Ints) -> Iterator[Bools]:
    """(n,) true for what is learnt from, a fold at a time."""
    for number in np.unique(fold):
        yield fold != number


def auc(scores: Floats, positive: Bools, weights: Floats) -> Floats:
    """(R,) areas under the ROC curve of (n,) scores, for each of (R, n) weights; ties count half, NaN for one class."""
    values, place = np.unique(scores, return_inverse=True)
    by_value = np.zeros((2, len(values), len(weights)))
    for side in (0, 1):
        rows = positive == bool(side)
        np.add.at(by_value[side], place[rows], weights[:, rows].T)
    negatives, positives = by_value
    below = np.cumsum(negatives, 0) - negatives + negatives / 2
    pairs = negatives.sum(0) * positives.sum(0)
    nothing = np.full(len(weights), np.nan)
    areas: Floats = np.divide((positives * below).sum(0), pairs, out=nothing, where=pairs > 0)
    return areas


def slide_figures(scores: Floats, labels: Ints, patients: Ints) -> dict[str, Figure]:
    """Of (n, C) probabilities, each by a network that has not seen the slide's patient: AUC and balanced accuracy.

    The AUC is of the second class where there are two, else the mean of each class against the others. Intervals
    resample patients.
    """
    owner = np.unique(patients, return_inverse=True)[1]
    people = int(owner.max(initial=-1)) + 1
    once = np.ones((1, len(labels)))
    drawn = multiplicities(people)[:, owner] if people > 1 else np.empty((0, len(labels)))
    found = {}
    for name, figure in (("AUC", _mean_auc), ("balanced accuracy", _accuracy)):
        resampled = figure(scores, labels, drawn)
        value = float(figure(scores, labels, once)[0])
        found[name] = Figure(value, 0.0, *interval(resampled[np.isfinite(resampled)]))
    return found


def _mean_auc(scores: Floats, labels: Ints, weights: Floats) -> Floats:
    classes = range(scores.shape[1])
    told = [1] if len(classes) == 2 else classes
    each: Floats = np.mean([auc(scores[:, number], labels == number, weights) for number in told], axis=0)
    return each


def _accuracy(scores: Floats, labels: Ints, weights: Floats) -> Floats:
    classes = scores.shape[1]
    place = labels * classes + scores.argmax(1)
    confusions = np.zeros((classes**2, len(weights)))
    np.add.at(confusions, place, weights.T)
    return balanced_accuracies(confusions.T.reshape(-1, classes, classes))
