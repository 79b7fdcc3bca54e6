"""Features judged on slides: by attention over their tiles, and by the mean of their tiles and a linear model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.data.labelled import EncodedTiles
from pretrain.errors import BadTask
from pretrain.evaluation.judge import EvaluationRow
from pretrain.evaluation.probe import linear_scores
from pretrain.evaluation.slides.attention import AttentionSettings, attention_scores
from pretrain.evaluation.slides.bags import Bags, LabelledSlides
from pretrain.evaluation.slides.folds import patient_folds, slide_figures, splits
from pretrain.evaluation.tasks import Task
from wsi_prep.errors import counted

ATTENTION, MEAN = "attention", "mean of tiles"
FEW_PATIENTS = 10
_LEAST = 2  # patients of a class

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Scorer = Callable[[Sequence[NDArray[np.float32]], Ints, Bools, int], Floats]


def judged_slides(told: LabelledSlides, bags: Sequence[Bags], folds: int) -> tuple[LabelledSlides, Ints]:
    """The slides that all models have features of, of classes with patients enough, and the fold of each.

    Raises BadTask where fewer than two classes are left.
    """
    common = set.intersection(*(set(each.slides) for each in bags))
    rows = np.array([n for n, slide in enumerate(told.slides) if slide in common], np.int64)
    labels, patients = told.labels[rows], told.patients[rows]
    owners = [len(np.unique(patients[labels == number])) for number in range(len(told.classes))]
    kept = [number for number, count in enumerate(owners) if count >= _LEAST]
    said = ", ".join(f"{name} {count}" for name, count in zip(told.classes, owners, strict=True))
    if len(kept) < 2:
        raise BadTask(
            f"{told.name}: two classes of {_LEAST} patients each are needed, and of those with features there are: "
            f"{said}; add slides"
        )
    notes = [*told.notes]
    if gone := [f"{told.classes[n]} ({counted(owners[n], 'patient')})" for n in range(len(owners)) if n not in kept]:
        notes.append(f"classes of too few patients skipped: {', '.join(gone)}")
    rows = rows[np.isin(labels, kept)]
    found = told.take(rows)
    classes = tuple(told.classes[n] for n in kept)
    found = replace(found, labels=np.searchsorted(kept, found.labels), classes=classes)
    count = min(folds, *(owners[n] for n in kept))
    if count < folds:
        notes.append(f"{count} folds in place of {folds}, for want of patients: {said}")
    if min(owners[n] for n in kept) < FEW_PATIENTS:
        notes.append(f"fewer than {FEW_PATIENTS} patients of a class ({said}): intervals are too narrow")
    return replace(found, notes=tuple(notes)), patient_folds(found.labels, found.patients, count)


def judge_slides(
    told: LabelledSlides, fold: Ints, bags: Bags, settings: AttentionSettings | None = None
) -> list[EvaluationRow]:
    """Each figure of each judge; every slide is judged once, by what was learnt from other patients' slides."""
    place = {slide: number for number, slide in enumerate(bags.slides)}
    features = [bags.features[place[slide]] for slide in told.slides]
    first = fold != np.unique(fold)[0]
    counts = (len(np.unique(fold)), int(first.sum()), int((~first).sum()), len(np.unique(told.patients)))
    rows = []
    scorers: dict[str, Scorer] = {
        ATTENTION: partial(attention_scores, settings=settings),
        MEAN: partial(mean_scores, patients=told.patients),
    }
    for judge, scorer in scorers.items():
        scores = np.empty((len(fold), len(told.classes)))
        for train in splits(fold):
            scores[~train] = scorer(features, told.labels, train, len(told.classes))
        for metric, f in slide_figures(scores, told.labels, told.patients).items():
            rows.append(EvaluationRow(told.name, bags.name, judge, metric, f.value, f.sd, f.low, f.high, *counts))
    return rows


def mean_scores(
    bags: Sequence[NDArray[np.float32]], labels: Ints, train: Bools, classes: int, patients: Ints
) -> Floats:
    """(slides judged on, C) probabilities by logistic regression on the mean of a slide's tiles.

    Its penalty is chosen on `patients` (n,) that are held out of those to learn from.
    """
    features = torch.from_numpy(np.stack([bag.mean(0, dtype=np.float64) for bag in bags]).astype(np.float32))
    names = tuple(map(str, range(classes)))
    task = Task("slides", EncodedTiles(()), labels, names, patients, train)
    logits = torch.from_numpy(linear_scores(features, task)).double()
    found: Floats = torch.softmax(logits, 1).numpy()
    return found
