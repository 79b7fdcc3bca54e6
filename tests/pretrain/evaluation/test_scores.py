"""Figures agree with scikit-learn's, and their intervals with how far figures really scatter."""

import math

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score

from pretrain.evaluation.scores import balanced_accuracies, confusions_of, figures, weighted_f1


def guesses(seed, count=300, classes=4, right=0.6):
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, count, p=np.arange(1, classes + 1) / (classes * (classes + 1) / 2))
    said = np.where(rng.random(count) < right, labels, rng.integers(0, classes, count))
    return said, labels, rng.integers(0, 12, count)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("missing", [False, True])
def test_metrics_are_scikit_learns(classes, missing):
    said, labels, groups = guesses(0, classes=classes)
    if missing:  # a class that is guessed but not there
        labels = np.where(labels == 0, 1, labels)
    confusion = confusions_of(said[None], labels, groups, classes)[0].sum(0)
    assert weighted_f1(confusion) == pytest.approx(f1_score(labels, said, average="weighted"))
    there = np.isin(said, labels)
    expected = np.mean([(said[labels == c] == c).mean() for c in np.unique(labels)])
    assert balanced_accuracies(confusion) == pytest.approx(expected)
    if there.all():
        assert balanced_accuracies(confusion) == pytest.approx(balanced_accuracy_score(labels, said))


def test_draws_are_averaged():
    many = [guesses(0, right=right)[0] for right in (0.2, 0.9)]
    _, labels, groups = guesses(0)
    found = figures([(np.stack(many), labels, groups)], 4)
    for name, reference in (
        ("balanced accuracy", balanced_accuracy_score),
        ("weighted F1", lambda y, s: f1_score(y, s, average="weighted")),
    ):
        assert found[name].value == pytest.approx(np.mean([reference(labels, said) for said in many]))


def cohort(rng, slides):
    """Slides on which a judge is right more or less often; two classes, twenty tiles a slide."""
    ease = rng.beta(2, 1, slides)
    groups = np.repeat(np.arange(slides), 20)
    labels = rng.integers(0, 2, len(groups))
    said = np.where(rng.random(len(groups)) < ease[groups], labels, 1 - labels)
    return said, labels, groups


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """EvaluationRow on forty slides; the truth is the mean of the beta distribution that slides come from."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        said, labels, groups = cohort(rng, 40)
        figure = figures([(said[None], labels, groups)], 2)["balanced accuracy"]
        hits += figure.low <= 2 / 3 <= figure.high
    assert 0.88 <= hits / 200 <= 0.99


def test_slides_are_resampled_and_not_tiles():
    said, labels, groups = cohort(np.random.default_rng(1), 20)
    by_slide = figures([(said[None], labels, groups)], 2)["balanced accuracy"]
    by_tile = figures([(said[None], labels, np.arange(len(labels)))], 2)["balanced accuracy"]
    assert by_slide.high - by_slide.low > 1.5 * (by_tile.high - by_tile.low)


def test_folds_have_a_mean_a_spread_and_an_interval():
    folds = [guesses(seed, 60, 2) for seed in range(6)]
    folds = [
        (said[None], labels, np.where(labels == 0, n // 3, 10 + n % 3)) for n, (said, labels, _) in enumerate(folds)
    ]
    figure = figures(folds, 2)["balanced accuracy"]
    each = [balanced_accuracy_score(labels, said[0]) for said, labels, _ in folds]
    assert figure.value == pytest.approx(np.mean(each))
    assert figure.sd == pytest.approx(np.std(each))
    assert min(each) <= figure.low < figure.value < figure.high <= max(each)


def test_one_group_has_no_interval():
    said, labels, groups = guesses(0)
    figure = figures([(said[None], labels, np.zeros_like(groups))], 4)["weighted F1"]
    assert math.isnan(figure.low)
    assert math.isnan(figure.high)
