"""Patients are never divided, folds are even, and figures with their intervals are those of slow references."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from pretrain.evaluation.scores import multiplicities
from pretrain.evaluation.slides.folds import auc, patient_folds, slide_figures, splits


def cohort(seed, people=40, classes=3):
    """Patients of one to four slides each, nearly all of one class; their numbers are no ranks."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(rng.permutation(1000)[:people], rng.integers(1, 5, people))
    of = dict(zip(np.unique(patients), rng.integers(0, classes, people), strict=True))
    labels = np.array([of[p] if rng.random() < 0.9 else rng.integers(classes) for p in patients])
    return labels, patients


@given(st.integers(0, 10**6), st.integers(2, 6))
def test_whole_patients_are_in_one_fold_each_and_none_is_empty(seed, count):
    labels, patients = cohort(seed)
    fold = patient_folds(labels, patients, count)
    assert all(len(np.unique(fold[patients == p])) == 1 for p in np.unique(patients))
    assert np.unique(fold).tolist() == list(range(count))
    (*trains,) = splits(fold)
    assert (np.sum([~train for train in trains], axis=0) == 1).all()


def test_folds_have_near_as_many_slides_of_each_class():
    for seed in range(10):
        labels, patients = cohort(seed, 100)
        fold = patient_folds(labels, patients, 5)
        for number in range(3):
            counts = np.bincount(fold[labels == number], minlength=5)
            assert counts.max() - counts.min() <= 0.5 * counts.mean(), (seed, counts)


def test_two_patients_of_a_class_are_in_two_folds():
    labels = np.array([0] * 9 + [1, 1, 1])
    patients = np.array([*range(9), 20, 20, 21])
    fold = patient_folds(labels, patients, 2)
    assert fold[9] == fold[10] != fold[11]


@pytest.mark.parametrize("seed", range(5))
def test_areas_are_scikit_learns_also_with_ties_and_weights(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, 50) / 5
    positive = rng.random(50) < 0.3
    weights = rng.integers(0, 4, (7, 50)).astype(float)
    expected = [roc_auc_score(positive, scores, sample_weight=w) for w in weights]
    assert auc(scores, positive, weights) == pytest.approx(expected)
    assert np.isnan(auc(scores, np.zeros(50, bool), weights)).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_figures_and_intervals_resample_patients(classes):
    labels, patients = cohort(1, 25, classes)
    rng = np.random.default_rng(0)
    scores = rng.random((len(labels), classes)) + 0.5 * np.eye(classes)[labels]
    scores /= scores.sum(1, keepdims=True)
    found = slide_figures(scores, labels, patients)
    drawn = []
    for times in multiplicities(len(np.unique(patients))):
        rows = np.concatenate(
            [
                np.flatnonzero(patients == p)
                for p, n in zip(np.unique(patients), times, strict=True)
                for _ in range(int(n))
            ]
        )
        drawn.append((slow_auc(scores[rows], labels[rows]), balanced(scores[rows], labels[rows])))
    for column, (name, slow) in enumerate((("AUC", slow_auc), ("balanced accuracy", balanced))):
        assert found[name].value == pytest.approx(slow(scores, labels))
        ends = np.quantile([row[column] for row in drawn], [0.025, 0.975])
        assert (found[name].low, found[name].high) == pytest.approx(tuple(ends))


def slow_auc(scores, labels):
    """By every pair of slides."""
    areas = []
    for number in [1] if scores.shape[1] == 2 else range(scores.shape[1]):
        mine, others = scores[labels == number, number], scores[labels != number, number]
        areas.append(((mine[:, None] > others) + 0.5 * (mine[:, None] == others)).mean())
    return np.mean(areas)


def balanced(scores, labels):
    right = scores.argmax(1) == labels
    return np.mean([right[labels == number].mean() for number in np.unique(labels)])


def test_one_patient_has_no_interval():
    found = slide_figures(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1]), np.array([4, 4]))
    assert (found["AUC"].value, np.isnan(found["AUC"].low)) == (1.0, True)
