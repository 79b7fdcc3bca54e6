"""Gated attention computes what its paper says, and finds the few tiles that tell a slide's class."""

import math

import numpy as np
import pytest
import torch

from pretrain.evaluation.slides.attention import AttentionSettings, GatedAttention, attention_scores


def affine(layer, x):
    weight, bias = (value.detach().double().tolist() for value in (layer.weight, layer.bias))
    return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


def slow_forward(network, tiles):
    """The logits of a slide, number by number."""
    hidden = [[max(value, 0.0) for value in affine(network.project, tile)] for tile in tiles]
    energy = []
    for each in hidden:
        look, gate = affine(network.look, each), affine(network.gate, each)
        gated = [math.tanh(a) / (1 + math.exp(-b)) for a, b in zip(look, gate, strict=True)]
        energy.append(affine(network.weigh, gated)[0])
    shares = [math.exp(e - max(energy)) for e in energy]
    shares = [share / sum(shares) for share in shares]
    pooled = [sum(s * each[n] for s, each in zip(shares, hidden, strict=True)) for n in range(len(hidden[0]))]
    return shares, affine(network.tell, pooled)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return GatedAttention(5, 3, AttentionSettings(hidden=6, gate=4)).double().eval()


def test_logits_and_attention_are_those_of_a_slow_reference(network):
    tiles = np.random.default_rng(0).normal(size=(7, 5)) * 3
    shares, logits = slow_forward(network, tiles.tolist())
    given = torch.from_numpy(tiles)
    found = network.weights(torch.relu(network.project(given)))
    assert found.detach().numpy() == pytest.approx(shares, rel=1e-12)
    assert network(given).detach().numpy() == pytest.approx(logits, rel=1e-12)


def test_gradients_are_those_of_finite_differences(network):
    tiles = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    values = [value.detach().clone().requires_grad_() for value in network.parameters()]
    names = [name for name, _ in network.named_parameters()]

    def logits(given, *weights):
        return torch.func.functional_call(network, dict(zip(names, weights, strict=True)), (given,))

    assert torch.autograd.gradcheck(logits, (tiles, *values))


def needles(patients=60, tiles=40, width=8, seed=0):
    """Slides of the second class have three tiles that are unlike all others; no mean tells them well."""
    rng = np.random.default_rng(seed)
    labels = np.arange(patients) % 2
    bags = []
    for label in labels:
        bag = rng.normal(size=(tiles, width)) + 1.5 * rng.normal(size=width)
        if label:
            bag[:3] = rng.normal(size=(3, width)) * 0.1 + [0, 9, 0, 0, 0, 0, 0, 0]
        bags.append(bag.astype(np.float32))
    return bags, labels, np.arange(patients) < 40


@pytest.mark.slow
def test_a_few_telling_tiles_are_found():
    bags, labels, train = needles()
    scores = attention_scores(bags, labels, train, 2)
    assert scores.shape == (20, 2)
    assert scores.sum(1) == pytest.approx(1)
    assert (scores.argmax(1) == labels[~train]).mean() >= 0.9


def test_nothing_is_learnt_of_the_slides_that_are_judged_on_and_one_seed_gives_one_answer():
    bags, labels, train = needles(patients=12, tiles=4)
    train = np.arange(12) < 8
    settings = AttentionSettings(hidden=8, gate=4, epochs=2, steps=0)
    before = attention_scores(bags, labels, train, 2, settings)
    state = torch.random.get_rng_state()
    assert (attention_scores(bags, labels, train, 2, settings) == before).all()
    assert torch.equal(torch.random.get_rng_state(), state)
    other = [bag * 100 if n == 11 else bag for n, bag in enumerate(bags)]
    after = attention_scores(other, np.where(np.arange(12) >= 8, 1 - labels, labels), train, 2, settings)
    assert (before[:-1] == after[:-1]).all()
