"""The robustness index is that of loops written from its definition, and is moved by nothing but what it should be."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.evaluation.probe import colour_statistics
from pretrain.evaluation.robustness.figures import BOTH, CLASSES, INDEX, INDEX_CHANCE, index_rows, remarks, robustness
from pretrain.evaluation.robustness.neighbours import tally
from pretrain.evaluation.tasks import load_tasks
from tests.support.tinted_cohort import cohort, one_hot, task_with_sites, write_tinted


def neighbours(features, apart, tile):
    """All others that share no slide and no patient with a tile, the nearest by cosine first."""

    def cosine(other):
        a, b = features[tile], features[other]
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

    others = [n for n in range(len(features)) if n != tile and all(of[n] != of[tile] for of in apart)]
    return sorted(others, key=lambda n: -cosine(n))


def slowly(features, labels, sites, apart, k):
    """SO, OS and what the majority of the k nearest says, for each tile."""
    found = []
    for tile in range(len(features)):
        near = neighbours(features, apart, tile)[:k]
        so = sum(labels[n] == labels[tile] and sites[n] != sites[tile] for n in near)
        os = sum(labels[n] != labels[tile] and sites[n] == sites[tile] for n in near)
        said = int(np.bincount(labels[near]).argmax()) if near else -1
        found.append((so, os, said))
    return np.array(found)


def figures(task, features):
    """The rows at the chosen number of neighbours, by metric."""
    rows = index_rows(task, task.sites[0], torch.as_tensor(np.asarray(features), dtype=torch.float32))
    return {row.metric: row for row in rows if row.chosen}


@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.integers(2, 4), st.integers(1, 30))
@settings(max_examples=40)
def test_neighbours_are_counted_as_by_loops(seed, classes, sites, k):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 50))
    labels, site, slides = (rng.integers(0, top, n) for top in (classes, sites, 8))
    patients = slides // 2
    features = rng.normal(size=(n, 5)) + rng.normal(size=5)
    for apart in ((slides,), (slides, patients)):
        found = tally(torch.from_numpy(features).float(), labels, site, apart, sorted({1, k}))
        expected = slowly(features.astype(np.float32).astype(float), labels, site, apart, k)
        columns = (found.same_class_elsewhere[:, -1], found.other_class_here[:, -1], found.said[:, -1])
        np.testing.assert_array_equal(np.stack(columns, axis=1), expected)


def test_many_blocks_are_one(monkeypatch):
    labels, sites, slides = cohort(3, 3)
    features = torch.from_numpy(np.random.default_rng(0).normal(size=(len(labels), 8)))
    whole = tally(features, labels, sites, [slides], [1, 5, 11])
    monkeypatch.setattr("pretrain.evaluation.robustness.neighbours._SCORES", 7 * len(labels))
    parts = tally(features, labels, sites, [slides], [1, 5, 11])
    for one, other in zip(vars(whole).values(), vars(parts).values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_cosines_of_features_that_lie_close_together_keep_their_order():
    rng = np.random.default_rng(0)
    labels, sites, slides = cohort(2, 2, 5, 5)
    features = (1 + 1e-5 * rng.normal(size=(len(labels), 12))).astype(np.float32)
    found = tally(torch.from_numpy(features), labels, sites, [slides], [11])
    expected = slowly(features.astype(float), labels, sites, [slides], 11)
    np.testing.assert_array_equal(found.same_class_elsewhere[:, 0], expected[:, 0])


@given(st.integers(0, 2**32 - 1), st.integers(2, 4), st.integers(2, 4))
@settings(max_examples=15)
def test_the_site_alone_is_0_and_the_class_alone_is_1(seed, classes, sites):
    rng = np.random.default_rng(seed)
    labels, site, slides = cohort(classes, sites, int(rng.integers(2, 5)), int(rng.integers(1, 5)))
    order = rng.permutation(len(labels))
    task = task_with_sites(labels[order], site[order], slides[order])
    assert figures(task, one_hot(site[order], 1e-3, seed))[INDEX].value == 0
    by_class = figures(task, one_hot(labels[order], 1e-3, seed))
    assert by_class[INDEX].value == by_class[CLASSES].value == by_class[BOTH].value == 1


def test_the_figures_are_those_of_loops():
    rng = np.random.default_rng(1)
    labels, sites, slides = cohort(3, 2, 4, 5)
    kept = rng.random(len(labels)) < 0.8
    labels, sites, slides = labels[kept], sites[kept], slides[kept]
    features = one_hot(labels, 0.6) @ rng.normal(size=(3, 6)) + one_hot(sites, 0.6) @ rng.normal(size=(2, 6))
    features = features.astype(np.float32)
    task = task_with_sites(labels, sites, slides)
    rows = index_rows(task, task.sites[0], torch.from_numpy(features))
    looked = sorted({row.k for row in rows if row.metric == INDEX})
    assert looked[:3] == [1, 3, 5]
    for k in looked:
        so, os, said = slowly(features.astype(float), labels, sites, [slides], k).T
        recall = [(said[labels == c] == c).mean() for c in range(3)]
        of_k = {row.metric: row for row in rows if row.k == k}
        assert of_k[INDEX].value == pytest.approx(so.sum() / (so.sum() + os.sum()))
        assert of_k[CLASSES].value == pytest.approx(np.mean(recall))
        assert of_k[BOTH].value == pytest.approx((of_k[INDEX].value + np.mean(recall)) / 2)
        assert all(row.low <= row.value <= row.high for row in of_k.values())
        assert {row.chosen for row in of_k.values()} == {k == min(11, max(looked))}
    assert {row.groups for row in rows if row.k} == {len(np.unique(slides))}


def test_the_index_by_chance_is_that_of_features_that_know_nothing():
    rng = np.random.default_rng(4)
    labels, sites, slides = cohort(3, 2, 6, 8)
    kept = rng.random(len(labels)) < np.array([1, 0.5, 0.2])[labels]
    labels, sites, slides = labels[kept], sites[kept], slides[kept]
    task = task_with_sites(labels, sites, slides)
    so, os = np.zeros((2, len(labels)))
    for tile in range(len(labels)):
        others = [n for n in range(len(labels)) if slides[n] != slides[tile]]
        so[tile] = np.mean([labels[n] == labels[tile] and sites[n] != sites[tile] for n in others])
        os[tile] = np.mean([labels[n] != labels[tile] and sites[n] == sites[tile] for n in others])
    expected = so.sum() / (so.sum() + os.sum())
    assert figures(task, rng.normal(size=(len(labels), 30)))[INDEX_CHANCE].value == pytest.approx(expected)
    blind = [figures(task, rng.normal(size=(len(labels), 30)))[INDEX].value for _ in range(20)]
    assert np.mean(blind) == pytest.approx(expected, abs=0.03)


def test_the_interval_is_over_slides_and_not_over_tiles():
    """Slides of one place in feature space each: tiles of a slide say all the same, so that more tell nothing new."""
    rng = np.random.default_rng(0)
    width = {}
    for tiles in (2, 12):
        labels, sites, slides = cohort(2, 2, 6, tiles)
        centres = np.random.default_rng(5).normal(size=(slides.max() + 1, 4))
        row = figures(
            task_with_sites(labels, sites, slides), centres[slides] + 0.01 * rng.normal(size=(len(slides), 4))
        )
        width[tiles] = row[INDEX].high - row[INDEX].low
    assert width[12] > 0.6 * width[2] > 0.05  # resampled tiles would shrink it by the root of 6


def test_tiles_of_the_same_slide_or_patient_never_count():
    """Each tile lies at its slide's place, and slides of a patient side by side: neighbours are far all the same."""
    labels, sites, slides = cohort(2, 2, 4, 4)
    patients = slides // 2
    features = np.random.default_rng(2).normal(size=(slides.max() // 2 + 1, 6))[patients]
    features = features + 1e-4 * np.random.default_rng(3).normal(size=features.shape)
    for numbers, apart in ((None, [slides]), (patients, [slides, patients])):
        found = figures(task_with_sites(labels, sites, slides, numbers), features)[INDEX]
        so, os, _ = slowly(features.astype(np.float32).astype(float), labels, sites, apart, found.k).T
        assert found.value == pytest.approx(so.sum() / (so.sum() + os.sum()))


def test_where_no_neighbour_counts_the_figure_is_nan_and_says_so():
    """Two classes, each at a site of its own: a neighbour is of both, or of neither."""
    labels, sites, slides = cohort(2, 2, 4, 4)
    kept = labels == sites
    task = task_with_sites(labels[kept], sites[kept], slides[kept])
    found = figures(task, one_hot(labels[kept], 0.1))
    assert math.isnan(found[INDEX].value)
    assert math.isnan(found[INDEX].low)
    assert found[INDEX].why == "no neighbour counts"
    assert any("classes at one site only" in line for line in remarks(task))


def test_tiles_without_a_site_are_left_out_and_said():
    labels, sites, slides = cohort(2, 2, 4, 4)
    unknown = np.arange(len(labels)) % 5 == 0
    features = np.random.default_rng(0).normal(size=(len(labels), 4))
    holed = task_with_sites(labels, np.where(unknown, -1, sites), slides)
    kept = task_with_sites(labels[~unknown], sites[~unknown], slides[~unknown])
    one, other = figures(holed, features)[INDEX], figures(kept, features[~unknown])[INDEX]
    assert (one.value, one.k) == (other.value, other.k)
    assert f"scanner: {unknown.sum()} tiles without one skipped in the figures by it" in remarks(holed)


def test_one_site_or_unknown_slides_give_no_figure_and_one_line():
    labels, sites, slides = cohort(2, 2, 4, 4)
    features = torch.from_numpy(one_hot(labels))
    alone = task_with_sites(labels, np.zeros_like(sites), slides)
    assert robustness(alone, "made", features) == []
    assert remarks(alone) == ["scanner: no figures of robustness: all tiles are of A"]
    many = task_with_sites(labels, np.arange(len(labels)) * 4, slides, names=[str(n) for n in range(999)])
    many = replace(many, sites=(replace(many.sites[0], names=tuple(map(str, range(101)))),))
    assert remarks(many) == [
        "scanner: no figures of robustness: it has 101 values, more than 100; name a coarser column"
    ]
    flat = replace(task_with_sites(labels, sites, np.arange(len(labels))), grouped=False)
    assert robustness(flat, "made", features) == []
    (line,) = remarks(flat)
    assert "which slide a tile is of is not known" in line


def test_features_that_are_not_finite_have_no_figure():
    labels, sites, slides = cohort(2, 2, 4, 4)
    rows = robustness(task_with_sites(labels, sites, slides), "made", torch.full((len(labels), 3), torch.nan))
    assert rows
    assert all(math.isnan(row.value) and not row.why for row in rows)


def test_colours_of_a_tinted_cohort_are_the_hospitals(tmp_path):
    labels, sites, _ = write_tinted(tmp_path / "tinted.parquet", classes=2, sites=3, slides=4, tiles=4)
    (task,) = load_tasks(str(tmp_path / "tinted.parquet"))
    np.testing.assert_array_equal(task.sites[0].numbers, sites)
    assert task.sites[0].names == ("hospital 0", "hospital 1", "hospital 2")
    assert figures(task, colour_statistics(task.tiles))[INDEX].value < 0.02
    assert figures(task, one_hot(labels, 0.1))[INDEX].value > 0.98
