"""The ladder of training sets has the association that it names, and the drop is what confounding costs."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.evaluation.probe import linear
from pretrain.evaluation.robustness.confounded import DRAWS, LADDER, MOST_TILES, cramers_v, draws, shares
from pretrain.evaluation.robustness.figures import (
    CHANCE,
    DROP,
    LADDER_PENALTIES,
    READ,
    STEPS,
    drop_rows,
    remarks,
    told_rows,
)
from tests.support.labelled_tiles import task_of
from tests.support.tinted_cohort import cohort, one_hot, task_with_sites


@pytest.fixture
def two_draws(monkeypatch):
    """Fewer, as each learns five probes."""
    monkeypatch.setattr("pretrain.evaluation.robustness.confounded.DRAWS", 2)


def association(labels, sites):
    """Cramer's V by its definition: the root of chi squared over n and the smaller side less one."""
    n, chi2 = len(labels), 0.0
    classes, places = np.unique(labels), np.unique(sites)
    for c in classes:
        for s in places:
            expected = (labels == c).sum() * (sites == s).sum() / n
            chi2 += (((labels == c) & (sites == s)).sum() - expected) ** 2 / expected
    return math.sqrt(chi2 / n / (min(len(classes), len(places)) - 1))


@given(st.integers(2, 7), st.integers(2, 7), st.floats(0, 1))
def test_shares_have_the_association_and_even_classes(classes, sites, wanted):
    table = shares(classes, sites, wanted)
    assert table.sum() == pytest.approx(1)
    np.testing.assert_allclose(table.sum(1), 1 / classes)
    assert cramers_v(table) == pytest.approx(wanted, abs=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.integers(2, 4))
@settings(max_examples=10)
def test_draws_hold_what_they_say(seed, classes, sites):
    rng = np.random.default_rng(seed)
    labels, site, slides = cohort(classes, sites, 4, 20)
    kept = rng.random(len(labels)) < 0.9
    labels, site, slides = labels[kept], site[kept], slides[kept]
    found = draws(labels, site, slides, ("abcdef"[:classes], "ABCDEF"[:sites]))
    assert not isinstance(found, str)
    assert len(found) == DRAWS
    for draw in found:
        assert len(draw.learnt) == len(LADDER)
        assert len(np.unique(draw.cells)) == classes * sites
        np.testing.assert_array_equal(draw.cells, labels[draw.judged] * sites + site[draw.judged])
        sizes = [len(rows) for rows in draw.learnt]
        assert max(sizes) - min(sizes) <= classes * sites
        assert max(sizes) <= MOST_TILES + classes * sites
        for wanted, rows in zip(LADDER, draw.learnt, strict=True):
            assert len(np.unique(rows)) == len(rows)
            assert not np.intersect1d(slides[rows], slides[draw.judged]).size
            assert association(labels[rows], site[rows]) == pytest.approx(wanted, abs=0.08)


def test_too_few_tiles_of_a_class_at_a_site_are_one_line_and_no_figure():
    labels, sites, slides = cohort(2, 2, 4, 8)
    few = ~((labels == 1) & (sites == 0) & (slides % 4 > 0))
    task = task_with_sites(labels[few], sites[few], slides[few])
    assert drop_rows(task, task.sites[0], torch.from_numpy(one_hot(labels[few]))) == []
    (line,) = [line for line in remarks(task) if "performance drop" in line]
    assert line.startswith("scanner: no performance drop: 1 at A has 8 tiles of 1 slide, and it takes 20 of 2 slides")


def features_of(labels, sites, site_weight, seed=0):
    rng = np.random.default_rng(seed)
    signal = np.stack([2 * labels - 1.0, site_weight * (2 * sites - 1.0)], axis=1)
    return torch.from_numpy(signal + rng.normal(size=signal.shape)).float()


@pytest.mark.slow
def test_the_drop_is_that_of_loops_over_the_same_draws(two_draws):
    labels, sites, slides = cohort(2, 2, 5, 10)
    features = features_of(labels, sites, 4)
    task = task_with_sites(labels, sites, slides)
    rows = {row.metric: row for row in drop_rows(task, task.sites[0], features)}
    found = draws(labels, sites, slides, (task.classes, task.sites[0].names))
    accuracy = np.zeros((len(found), len(LADDER)))
    for number, draw in enumerate(found):
        for step, learnt in enumerate(draw.learnt):
            chosen = np.concatenate([learnt, draw.judged])
            part = task_of(labels[chosen], np.arange(len(chosen)) < len(learnt), slides[chosen], [b""] * len(chosen))
            right = linear(features[chosen], part, LADDER_PENALTIES) == labels[draw.judged]
            cells = [
                right[(labels[draw.judged] == c) & (sites[draw.judged] == s)].mean() for c in (0, 1) for s in (0, 1)
            ]
            accuracy[number, step] = np.mean(cells)
    lost = [np.mean([1 - row[step] / row[0] for step in range(1, len(LADDER))]) for row in accuracy]
    assert rows[DROP].value == pytest.approx(np.mean(lost))
    assert rows[DROP].sd == pytest.approx(np.std(lost))
    for step, metric in enumerate(STEPS):
        assert rows[metric].value == pytest.approx(accuracy[:, step].mean())
    assert rows[DROP].low <= rows[DROP].value <= rows[DROP].high


@pytest.mark.slow
def test_features_that_know_the_site_lose_more(monkeypatch):
    monkeypatch.setattr("pretrain.evaluation.robustness.confounded.DRAWS", 1)
    labels, sites, slides = cohort(2, 2, 6, 10)
    task = task_with_sites(labels, sites, slides)
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(len(labels), 3))).float()
    assert drop_rows(task, task.sites[0], noise)[0].why == "at V = 0 no better than chance"
    lost = []
    for weight in (0, 6):
        rows = {row.metric: row for row in drop_rows(task, task.sites[0], features_of(labels, sites, weight))}
        lost.append(rows[DROP].value)
        assert rows[DROP].why == ""
        assert rows[STEPS[0]].value > 0.75
    assert abs(lost[0]) < 0.05
    assert lost[1] > 0.08


def test_how_well_the_site_is_told_is_the_linear_probes_on_held_out_slides():
    labels, sites, slides = cohort(2, 3, 5, 4)
    task = task_with_sites(labels, sites, slides)
    rows = {r.metric: r for r in told_rows(task, task.sites[0], torch.from_numpy(one_hot(sites, 0.05)).float())}
    assert rows[READ].value == 1
    assert rows[CHANCE].value == pytest.approx(1 / 3)
    assert rows[READ].low <= rows[READ].value <= rows[READ].high
    assert rows[READ].groups < len(np.unique(slides))
    (blind, _) = told_rows(task, task.sites[0], torch.from_numpy(one_hot(slides, 0.05)).float())
    assert blind.value < 0.7  # a slide that was not learnt tells nothing
