"""Sinkhorn-Knopp against the published loops, and the moving centre."""

import numpy as np
import pytest
import torch
from torch.nn.functional import softmax

from pretrain.learning.targets import Centre, Cosines, Targets, sinkhorn_knopp
from pretrain.model.heads import Projection


def cosines(samples, prototypes, seed=0):
    """Some prototypes are liked by everyone, as in training."""
    rng = np.random.default_rng(seed)
    common = rng.normal(0, 0.3, prototypes)
    return torch.from_numpy(np.tanh(common + rng.normal(0, 0.2, (samples, prototypes)))).float()


def held(scores):
    """Some (M, K) cosines as a teacher says them."""
    return Cosines(Projection(scores, torch.eye(scores.shape[1])))


def probabilities(targets: Targets):
    return targets.of(slice(0, targets.cosines.rows))[0]


def sinkhorn(scores, *arguments, **named):
    return probabilities(sinkhorn_knopp(held(scores), *arguments, **named))


def slow_sinkhorn(scores, temperature, rounds=3):
    """Caron et al. 2020 (arXiv 2006.09882), listing of appendix A: Q is (K, B)."""
    q = np.exp(scores.astype(np.float64) / temperature).T
    prototypes, samples = q.shape
    q /= q.sum()
    for _ in range(rounds):
        for k in range(prototypes):
            q[k] /= q[k].sum() * prototypes
        for b in range(samples):
            q[:, b] /= q[:, b].sum() * samples
    return (q * samples).T


@pytest.mark.parametrize(("samples", "prototypes"), [(12, 5), (5, 12), (1, 4), (64, 256)])
@pytest.mark.parametrize("temperature", [0.04, 0.07])
@pytest.mark.parametrize("rounds", [1, 3])
def test_sinkhorn_is_the_published_algorithm(samples, prototypes, temperature, rounds):
    scores = cosines(samples, prototypes)
    expected = slow_sinkhorn(scores.numpy(), temperature, rounds)
    out = sinkhorn(scores, temperature, rounds=rounds).numpy()
    assert np.allclose(out, expected, rtol=1e-4, atol=1e-7)
    assert np.allclose(out.sum(1), 1, atol=1e-6)


def test_columns_are_used_more_evenly_than_by_softmax():
    scores = cosines(256, 32)
    even = sinkhorn(scores, 0.07).mean(0)
    plain = softmax(scores / 0.07, dim=-1).mean(0)
    assert even.std() < 0.2 * plain.std()
    assert even.mean().item() == pytest.approx(1 / 32)


def test_many_rounds_use_all_columns_alike():
    out = sinkhorn(cosines(64, 16), 0.07, rounds=200)
    assert torch.allclose(out.sum(0), torch.full((16,), 4.0), rtol=1e-4)


def test_padding_changes_nothing_for_the_others():
    scores = cosines(20, 8)
    valid = torch.ones(20)
    valid[[3, 4, 19]] = 0
    out = sinkhorn(scores, 0.05, valid)
    assert torch.allclose(out[valid == 1], sinkhorn(scores[valid == 1], 0.05), rtol=1e-5, atol=1e-8)


def test_padding_alone_is_no_division_by_zero():
    assert torch.isfinite(sinkhorn(cosines(4, 8), 0.05, torch.zeros(4))).all()


def test_inputs_are_left_alone_and_no_gradient_flows():
    scores = cosines(6, 4).requires_grad_()
    before = scores.detach().clone()
    assert not sinkhorn(scores, 0.05, torch.ones(6)).requires_grad
    assert torch.equal(scores, before)


def test_the_lowest_temperature_that_schedules_allow_still_gives_probabilities():
    scores = cosines(32, 16)
    scores[0, 3] = 1.0
    out = sinkhorn(scores, 0.02)
    assert torch.allclose(out.sum(1), torch.ones(32), atol=1e-5)
    assert np.allclose(out.numpy(), slow_sinkhorn(scores.numpy(), 0.02), atol=1e-4)


def test_centring_is_a_softmax_around_the_centre():
    centre = Centre(5)
    centre.centre.copy_(torch.linspace(-0.2, 0.2, 5))
    scores = cosines(7, 5)
    shifted = np.exp((scores.numpy().astype(np.float64) - np.linspace(-0.2, 0.2, 5)) / 0.05)
    assert np.allclose(
        probabilities(centre(held(scores), 0.05)).numpy(), shifted / shifted.sum(1, keepdims=True), atol=1e-5
    )


def test_forward_of_a_centre_changes_nothing():
    centre = Centre(5)
    scores = cosines(7, 5)
    first = probabilities(centre(held(scores), 0.05))
    assert torch.equal(centre.centre, torch.zeros(5))
    assert torch.equal(probabilities(centre(held(scores), 0.05)), first)


def test_the_centre_is_the_moving_mean_of_valid_rows():
    centre = Centre(5, momentum=0.8)
    expected = np.zeros(5)
    for seed in range(4):
        scores = cosines(10, 5, seed)
        valid = torch.from_numpy((np.random.default_rng(seed).random(10) < 0.6).astype(np.float32))
        rows = [row for row, counts in zip(scores.numpy(), valid.numpy(), strict=True) if counts]
        expected = 0.8 * expected + 0.2 * np.mean(rows, axis=0)
        centre.update(held(scores), valid)
    assert np.allclose(centre.centre.numpy(), expected, atol=1e-6)
    centre.update(held(scores))
    assert np.allclose(centre.centre.numpy(), 0.8 * expected + 0.2 * scores.numpy().mean(0), atol=1e-6)
