"""Every loss against its paper's formula in loops over numpy, in value and in gradient, and which way it pushes."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity, softmax

from pretrain.learning.losses import dino_loss, ibot_loss, kde_loss, koleo_loss
from pretrain.learning.targets import Cosines, Targets
from pretrain.model.heads import Projection

TEMPERATURE, KAPPA = 0.1, 5.0


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def cosines(*shape, seed=0):
    return torch.tanh(random(*shape, seed=seed))


def seen(cosines):
    """A projection with these (..., K) cosines, row after row."""
    rows = cosines.flatten(0, -2)
    return Projection(rows, torch.eye(rows.shape[-1], dtype=rows.dtype))


def told(probabilities):
    """Targets that are these (..., K) probabilities."""
    rows = probabilities.flatten(0, -2)
    return Targets(Cosines(seen(rows.log())), 1.0, rows.new_zeros(rows.shape[-1]))


def dino(student, targets):
    return dino_loss(seen(student), told(targets), student.shape[1], TEMPERATURE)


def ibot(student, targets, weight):
    return ibot_loss(seen(student), told(targets), weight, TEMPERATURE)


def cross_entropy(target, logits):
    """-sum_k target_k log softmax(logits)_k."""
    logs = logits - logits.max()
    logs = logs - np.log(np.exp(logs).sum())
    return -sum(float(t * log) for t, log in zip(target, logs, strict=True))


def slow_dino(student, targets, temperature):
    """Caron et al. 2021, eq. 3, as a mean over pairs and tiles."""
    terms = [
        cross_entropy(targets[g, b], student[s, b] / temperature)
        for g in range(len(targets))
        for s in range(len(student))
        if s != g
        for b in range(student.shape[1])
    ]
    return np.mean(terms)


def slow_kde(features, kappa):
    """Zimmermann et al. 2024: mean_i log( 1/(n-1) sum_{j != i} exp(kappa x_i . x_j) )."""
    x = [row / np.sqrt((row**2).sum()) for row in features]
    n = len(x)
    means = [sum(np.exp(kappa * x[i] @ x[j]) for j in range(n) if j != i) / (n - 1) for i in range(n)]
    return np.mean(np.log(means))


def slow_koleo(features):
    """Sablayrolles et al. 2019, eq. 2: -mean_i log min_{j != i} |x_i - x_j|."""
    x = [row / np.sqrt((row**2).sum()) for row in features]
    n = len(x)
    nearest = [min(np.sqrt(((x[i] - x[j]) ** 2).sum()) for j in range(n) if j != i) for i in range(n)]
    return -np.mean(np.log(nearest))


def central_differences(function, at, width=1e-5):
    slope = np.zeros_like(at)
    for place in np.ndindex(*at.shape):
        up, down = at.copy(), at.copy()
        up[place] += width
        down[place] -= width
        slope[place] = (function(up) - function(down)) / (2 * width)
    return slope


SPREADS = [
    (lambda x: kde_loss(x, KAPPA), lambda x: slow_kde(x, KAPPA)),
    (koleo_loss, slow_koleo),
]
SPREAD_NAMES = ["kde", "koleo"]


@pytest.mark.parametrize(("crops", "wide"), [(2, 2), (5, 2), (4, 1), (3, 3)])
def test_dino_is_the_mean_over_pairs_of_a_global_and_another_crop(crops, wide):
    student = cosines(crops, 4, 7)
    targets = softmax(random(wide, 4, 7, seed=1) * 3, dim=-1)
    expected = slow_dino(student.numpy(), targets.numpy(), TEMPERATURE)
    assert dino(student, targets).item() == pytest.approx(expected, rel=1e-12)


def test_dino_never_compares_a_crop_with_itself():
    student = cosines(2, 3, 5).requires_grad_()
    targets = softmax(random(1, 3, 5, seed=1), dim=-1)
    dino(student, targets).backward()
    assert not student.grad[0].any()
    assert student.grad[1].any()


def test_ibot_is_the_weighted_cross_entropy():
    student, targets = cosines(6, 9), softmax(random(6, 9, seed=1) * 3, dim=-1)
    weight = torch.tensor([0.5, 0.25, 0.25, 0.1, 0.0, 0.0], dtype=torch.float64)
    rows = zip(weight.tolist(), targets.numpy(), student.numpy(), strict=True)
    expected = sum(w * cross_entropy(t, s / TEMPERATURE) for w, t, s in rows)
    assert ibot(student, targets, weight).item() == pytest.approx(expected, rel=1e-12)


def test_padding_of_ibot_changes_neither_loss_nor_gradient():
    student, targets = cosines(4, 9), softmax(random(4, 9, seed=1), dim=-1)
    weight = torch.tensor([0.5, 0.25, 0.25, 0.1], dtype=torch.float64)
    bare = student.clone().requires_grad_()
    padded = torch.cat([student, student[:1].expand(3, -1)]).requires_grad_()
    none = torch.zeros(3, dtype=torch.float64)
    without = ibot(bare, targets, weight)
    within = ibot(padded, torch.cat([targets, targets[:3]]), torch.cat([weight, none]))
    without.backward()
    within.backward()
    assert within.item() == pytest.approx(without.item(), rel=1e-12)
    assert torch.allclose(padded.grad[:4], bare.grad, rtol=1e-12)
    assert not padded.grad[4:].any()


def test_gradients_of_dino_and_ibot():
    targets = softmax(random(2, 3, 4, seed=1), dim=-1)
    weight = torch.tensor([0.5, 0.2, 0.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: dino(s, targets), cosines(4, 3, 4).requires_grad_())
    assert torch.autograd.gradcheck(lambda s: ibot(s, targets[0], weight), cosines(3, 4).requires_grad_())


@pytest.mark.parametrize(("loss", "slow"), SPREADS, ids=SPREAD_NAMES)
@pytest.mark.parametrize("n", [2, 3, 11])
def test_spreading_terms_are_their_formulas(loss, slow, n):
    features = random(n, 6) * 3
    assert loss(features).item() == pytest.approx(slow(features.numpy()), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("loss", "slow"), SPREADS, ids=SPREAD_NAMES)
def test_gradients_of_spreading_terms_are_those_of_their_formulas(loss, slow):
    """Finite differences of the slow version: the losses compute in float32, which gradcheck refuses."""
    features = random(7, 5).requires_grad_()
    loss(features).backward()
    expected = central_differences(slow, features.detach().numpy())
    assert np.allclose(features.grad.numpy(), expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize(("loss", "slow"), SPREADS, ids=SPREAD_NAMES)
def test_a_step_down_moves_a_clump_apart(loss, slow):
    clump = (1 + 0.1 * random(12, 8)).requires_grad_()
    before = cosine_similarity(clump[:, None], clump[None], dim=-1).mean()
    loss(clump).backward()
    moved = clump.detach() - 0.05 * clump.grad
    assert cosine_similarity(moved[:, None], moved[None], dim=-1).mean() < before
    assert slow(moved.numpy()) < slow(clump.detach().numpy())


@pytest.mark.parametrize(("loss", "slow"), SPREADS, ids=SPREAD_NAMES)
def test_length_does_not_matter(loss, slow):
    features = random(5, 6)
    lengths = torch.tensor([[0.1], [1.0], [7.0], [100.0], [3.0]])
    assert loss(features * lengths).item() == pytest.approx(loss(features).item(), rel=1e-5)
    assert loss(features).item() == pytest.approx(slow(features.numpy()), rel=1e-5)


@pytest.mark.parametrize(("loss", "slow"), SPREADS, ids=SPREAD_NAMES)
def test_one_sample_alone_is_pushed_nowhere(loss, slow):
    alone = random(1, 6).requires_grad_()
    value = loss(alone)
    value.backward()
    assert value.item() == 0
    assert torch.equal(alone.grad, torch.zeros_like(alone))


@pytest.mark.parametrize(("loss", "slow"), SPREADS, ids=SPREAD_NAMES)
def test_identical_samples_give_finite_gradients(loss, slow):
    same = torch.ones(4, 6, requires_grad=True)
    loss(same).backward()
    assert torch.isfinite(same.grad).all()


@pytest.mark.parametrize(("loss", "slow"), SPREADS, ids=SPREAD_NAMES)
def test_autocast_does_not_coarsen_spreading_terms(loss, slow):
    """A collapse begins with features closer together than bfloat16 can tell."""
    clump = (1 + 0.03 * random(16, 32)).float()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(clump)
    assert value.item() == pytest.approx(slow(clump.double().numpy()), rel=1e-4)
