"""How much two models agree on which tiles lie beside each other."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from pretrain.evaluation import probe


def test_shared_neighbours_are_those_that_scikit_learn_finds():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(300, 8)) + 3
    other = one @ rng.normal(size=(8, 5)) + 0.5 * rng.normal(size=(300, 5))
    nearest = []
    for rows in (one - one.mean(0), other - other.mean(0)):
        search = NearestNeighbors(n_neighbors=11, metric="cosine").fit(rows)
        nearest.append(search.kneighbors(rows, return_distance=False)[:, 1:])  # the first is the tile itself
    expected = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*nearest, strict=True)])
    shared = probe.shared_neighbours(torch.from_numpy(one).float(), torch.from_numpy(other).float())
    assert 0.2 < expected < 0.8
    assert shared == pytest.approx(expected, abs=1e-3)


def test_shared_neighbours_are_all_of_a_turned_copy_and_few_of_strangers():
    rows = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1)))
    strangers = torch.randn(400, 6, generator=torch.Generator().manual_seed(2))
    assert probe.shared_neighbours(rows, 3 * rows @ turn + 1) > 0.99
    assert probe.shared_neighbours(rows, strangers) == pytest.approx(10 / 399, abs=0.01)
    assert math.isnan(probe.shared_neighbours(rows, strangers * math.inf))
