"""What the guide's heads minimise and send back, against formulas written out."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import gelu

from pretrain.data.fields import Field
from pretrain.learning import schedules
from pretrain.learning.guide import Guide, class_weights, outputs
from pretrain.learning.optimizer import OptimSettings, clip_gradients
from pretrain.learning.schedules import ScheduleSettings
from pretrain.model.guide import GuideHeads

SITE = Field("institution", ("A", "B", "C"), (0.7, 0.2, 0.1), 0.8)
STAIN = Field("stain", ("HE", "IHC"), (0.5, 0.5), 1.0)
FOCUS = Field("focus", (), (), 0.9, 0.4, 0.1)
WEIGHTS = {"institution": 0.3, "stain": 0.2, "focus": 0.5}
TILES, CROPS, WIDTH, RAMP = 12, 2, 8, 0.6
LABELS = [
    np.array([0, 1, 2, -1, 0, 0, 1, -1, 2, 0, 0, 1]),
    np.arange(TILES) % 2,
    np.array([0.3, -4, np.nan, 1.2, 0, 2.5, np.nan, -0.4, 0.1, 1, -1, 0.7], np.float32),
]


def made(seed=0):
    torch.manual_seed(seed)
    guide = Guide([SITE, STAIN, FOCUS], torch.device("cpu"))
    heads = GuideHeads(WIDTH, outputs(guide.fields), WEIGHTS)
    for parameter in heads.parameters():
        nn.init.normal_(parameter, std=0.3)
    return guide, heads, torch.randn(CROPS * TILES, WIDTH)


def by_the_guide(guide, heads, tokens, parts=1):
    """Total, figures, and gradients of tokens and heads, in so many parts of the tiles; a term of all else besides."""
    x = tokens.clone().view(CROPS, TILES, WIDTH).requires_grad_()
    heads.zero_grad()
    labels, size, total, sums = guide.send(LABELS), TILES // parts, 0.0, {}
    for part in range(parts):
        rows = slice(part * size, (part + 1) * size)
        rest, told = heads(x[:, rows].flatten(0, 1), RAMP)
        loss, numbers = guide.losses(told, labels, rows, parts)
        ((loss + rest.square().sum()) / parts).backward()
        total += loss.item() / parts
        sums = {name: sums.get(name, 0.0) + value / parts for name, value in numbers.items()}
    return total, guide.figures(sums), x.grad, [p.grad.clone() for p in heads.parameters()]


def slow(heads, tokens):
    """Each field's loss by the formulas of the paper, in plain torch: its gradients by tokens and head, and figures."""
    found = {}
    for name, labels in zip(WEIGHTS, LABELS, strict=True):
        x, layers = tokens.clone().requires_grad_(), heads[name].mlp
        said = gelu(gelu(x @ layers[0].weight.T + layers[0].bias) @ layers[2].weight.T + layers[2].bias)
        said = said @ layers[4].weight.T + layers[4].bias
        loss, count, right, of = 0.0, 0, 0.0, 0.0
        for row in range(CROPS * TILES):
            label = labels[row % TILES]
            if name == "focus":
                if math.isnan(label):
                    continue
                off = said[row, 0] - float(label)
                loss = loss + (0.5 * off**2 if abs(off) < 1 else abs(off) - 0.5)
                right, of = right + float(label) ** 2 - off.item() ** 2, of + float(label) ** 2
            else:
                if label < 0:
                    continue
                shares = {"institution": SITE, "stain": STAIN}[name].shares
                weight = 1 / (len(shares) * shares[label])
                loss = loss - weight * (said[row, label] - said[row].exp().sum().log())
                right, of = right + weight * (said[row].argmax().item() == label), of + weight
            count += 1
        loss = loss / count
        parameters = list(heads[name].parameters())
        of_x, *of_head = torch.autograd.grad(loss, [x, *parameters])
        found[name] = (loss.item(), of_x, of_head, right / of)
    return found


@pytest.mark.parametrize("parts", [1, 3])
def test_values_and_gradients_are_those_of_the_formulas_however_the_batch_is_cut(parts):
    guide, heads, tokens = made()
    total, figures, of_tokens, of_heads = by_the_guide(guide, heads, tokens, parts)
    wanted = slow(heads, tokens)
    assert total == pytest.approx(sum(loss for loss, *_ in wanted.values()), rel=1e-5)
    back = 2 * tokens / parts  # of all else
    for name, weight in WEIGHTS.items():
        back = back + RAMP * weight * wanted[name][1]
    torch.testing.assert_close(of_tokens.flatten(0, 1), back, rtol=1e-4, atol=1e-6)
    in_full = [gradient for name in WEIGHTS for gradient in wanted[name][2]]
    for mine, theirs in zip(of_heads, in_full, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    for name, (loss, of_x, _, score) in wanted.items():
        assert figures[f"loss_guide_{name}"].item() == pytest.approx(loss, rel=1e-5)
        kind = "r2" if name == "focus" else "balanced_accuracy"
        assert figures[f"guide_{name}_{kind}"].item() == pytest.approx(score, rel=1e-4)
        ratio = RAMP * abs(WEIGHTS[name]) * of_x.norm() / (2 * tokens).norm() * (1 if parts == 1 else parts)
        assert figures[f"guide_{name}_gradient_ratio"].item() == pytest.approx(ratio.item(), rel=1e-4)


def test_absent_values_send_nothing_back_and_a_batch_without_any_label_costs_nothing():
    _, _, tokens = made()
    only = GuideHeads(WIDTH, {"institution": 3}, {"institution": 1.0})
    alone = Guide([SITE], torch.device("cpu"))
    x = tokens[:TILES].clone().requires_grad_()
    loss, _ = alone.losses(only(x, 1.0)[1], alone.send(LABELS[:1]), slice(0, TILES), 1)
    loss.backward()
    assert (x.grad[LABELS[0] < 0] == 0).all()
    assert (x.grad[LABELS[0] >= 0].abs().sum(1) > 0).all()
    none = alone.send([np.full(TILES, -1)])
    loss, numbers = alone.losses(only(x, 1.0)[1], none, slice(0, TILES), 1)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None for p in only.parameters())  # ddp waits for them
    assert math.isnan(alone.figures(numbers)["guide_institution_balanced_accuracy"])


def test_without_a_guide_tokens_are_passed_on_as_they_are():
    tokens = torch.randn(3, WIDTH)
    rest, told = GuideHeads(0, {}, {})(tokens, 1.0)
    assert rest is tokens
    guide = Guide([], torch.device("cpu"))
    assert guide.losses(told, guide.send([]), slice(0, 3), 1) == (0.0, {})


def test_every_class_weighs_alike_but_one_that_is_hardly_drawn_not_more_than_a_hundred():
    assert np.dot(class_weights(SITE), SITE.shares) == pytest.approx(1)
    assert [w * s for w, s in zip(class_weights(SITE), SITE.shares, strict=True)] == pytest.approx([1 / 3] * 3)
    assert class_weights(Field("scanner", ("S", "T"), (1 - 1e-4, 1e-4), 1.0))[1] == 100


def test_the_weight_rises_by_the_papers_schedule_over_its_share_of_the_steps():
    settings = ScheduleSettings(steps=1000, guide_ramp=0.4)
    for step in (0, 1, 40, 399):
        assert schedules.at(settings, step, 8).guide == pytest.approx(2 / (1 + math.exp(-10 * step / 400)) - 1)
    assert [schedules.at(settings, step, 8).guide for step in (400, 999)] == [1, 1]
    assert schedules.at(ScheduleSettings(steps=10, guide_ramp=0.0), 0, 8).guide == 1


def test_each_of_the_guides_heads_is_clipped_by_itself():
    network = nn.Module()
    network.guide = GuideHeads(WIDTH, {"stain": 2, "tissue": 2}, {})
    for number, head in enumerate(network.guide.values()):
        for parameter in head.parameters():
            parameter.grad = torch.full_like(parameter, 10.0 ** (-3 * number))
    clip_gradients(network, OptimSettings(clip=3.0))
    norms = [math.sqrt(sum(p.grad.square().sum().item() for p in head.parameters())) for head in network.guide.values()]
    assert norms[0] == pytest.approx(3)
    assert norms[1] == pytest.approx(1e-3 * math.sqrt(sum(p.numel() for p in network.guide["tissue"].parameters())))
