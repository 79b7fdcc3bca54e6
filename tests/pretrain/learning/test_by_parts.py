"""Losses over prototypes, by parts: the values and gradients of whole matrices, and no matrix that is whole."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax, normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrain.compute.randomness import Places
from pretrain.learning import schedules
from pretrain.learning.losses import dino_loss, ibot_loss, kde_loss
from pretrain.learning.self_distillation import ObjectiveSettings, SelfDistillation
from pretrain.learning.targets import Centre, Cosines, sinkhorn_knopp
from pretrain.model.backbone import BackboneSettings
from pretrain.model.heads import HeadSettings, Projection
from pretrain.views.crops import CropSettings
from pretrain.views.views import ViewSettings, make_views

STUDENT, TEACHER = 0.1, 0.05
PROTOTYPES, WIDTH = 41, 6
MOST = (1, 41, 100, 5 * 41, 10**9)  # numbers of a matrix: one row at a time, two, five, all


def unit(rows, seed, width=WIDTH, dtype=torch.float64):
    numbers = np.random.default_rng(seed).normal(size=(rows, width))
    return normalize(torch.from_numpy(numbers).to(dtype), dim=-1)


def said(rows, seed, **kind):
    return Projection(unit(rows, seed, **kind), unit(PROTOTYPES, 100 + seed, **kind))


def plain_sinkhorn(cosines, temperature, valid=None):
    """Caron et al. 2020, listing of appendix A, on the whole matrix: columns, then rows, three times."""
    scores = (cosines / temperature).exp() * (1 if valid is None else valid[:, None])
    for _ in range(3):
        scores = scores / scores.sum(0)
        scores = scores / scores.sum(1, keepdim=True).clamp_min(1e-30)
    return scores


def plain_dino(cosines, targets, tiles):
    """DINOv2's two terms with its scales: local crops, and the two global ones with each other's teacher."""
    logs = log_softmax(cosines.view(-1, tiles, PROTOTYPES) / STUDENT, dim=-1)
    told = targets.view(-1, tiles, PROTOTYPES)
    pairs = [(s, t) for s in range(len(logs)) for t in range(len(told)) if s != t]
    return sum(-(told[t] * logs[s]).sum(-1).mean() for s, t in pairs) / len(pairs)


def plain_ibot(cosines, targets, weight):
    return -((targets * log_softmax(cosines / STUDENT, dim=-1)).sum(-1) * weight).sum()


def with_gradients(loss, student):
    leaves = Projection(*(tensor.clone().requires_grad_() for tensor in student))
    value = loss(leaves)
    return value.detach(), *torch.autograd.grad(3 * value, leaves)


def cosines_of(projection):
    return projection.vectors @ projection.prototypes.T


@pytest.mark.parametrize("most", MOST)
@pytest.mark.parametrize(("crops", "wide"), [(5, 2), (2, 2), (4, 1), (3, 3)])
def test_dino_by_parts_is_the_plain_one(most, crops, wide):
    tiles = 7
    student, teacher = said(crops * tiles, 0), said(wide * tiles, 1)
    targets = sinkhorn_knopp(Cosines(teacher, most), TEACHER)
    whole = plain_sinkhorn(cosines_of(teacher), TEACHER)
    ours = with_gradients(lambda x: dino_loss(x, targets, tiles, STUDENT), student)
    plain = with_gradients(lambda x: plain_dino(cosines_of(x), whole, tiles), student)
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("most", MOST)
def test_ibot_by_parts_is_the_plain_one(most):
    student, teacher = said(13, 0), said(13, 1)
    weight = torch.tensor([0.1, 0.2] * 5 + [0.0] * 3, dtype=torch.float64)
    valid = (weight > 0).double()
    targets = sinkhorn_knopp(Cosines(teacher, most), TEACHER, valid)
    whole = plain_sinkhorn(cosines_of(teacher), TEACHER, valid)
    ours = with_gradients(lambda x: ibot_loss(x, targets, weight, STUDENT), student)
    plain = with_gradients(lambda x: plain_ibot(cosines_of(x), whole, weight), student)
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("most", MOST)
def test_targets_and_looks_by_parts_are_those_of_the_whole(most):
    teacher = said(13, 1)
    centre = Centre(PROTOTYPES).double()
    centre.centre.copy_(torch.linspace(-0.2, 0.2, PROTOTYPES))
    shifted = torch.softmax((cosines_of(teacher) - centre.centre) / TEACHER, dim=-1)
    for made, whole in (
        (sinkhorn_knopp(Cosines(teacher, most), TEACHER), plain_sinkhorn(cosines_of(teacher), TEACHER)),
        (centre(Cosines(teacher, most), TEACHER), shifted),
    ):
        parts = torch.cat([made.of(part)[0] for part in made.cosines.parts()])
        torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-14)
        looks = made.looks()
        assert looks["target_entropy_nats"].item() == pytest.approx(torch.special.entr(whole).sum(1).mean().item())
        assert looks["target_use_nats"].item() == pytest.approx(torch.special.entr(whole.mean(0)).sum().item())
    centre.update(Cosines(teacher, most))
    before = torch.linspace(-0.2, 0.2, PROTOTYPES).double()
    torch.testing.assert_close(centre.centre, 0.9 * before + 0.1 * cosines_of(teacher).mean(0))


def test_float32_is_exact_to_its_rounding_at_the_sharpest_temperature():
    student, teacher = said(40, 0, dtype=torch.float32), said(40, 1, dtype=torch.float32)
    weight = torch.full((40,), 1 / 40)
    whole = plain_sinkhorn(cosines_of(teacher).double(), 0.02)
    right = Projection(*(tensor.double() for tensor in student))
    plain = with_gradients(lambda x: plain_ibot(cosines_of(x), whole, weight.double()), right)
    for most in (3 * PROTOTYPES, 10**9):
        targets = sinkhorn_knopp(Cosines(teacher, most), 0.02)
        ours = with_gradients(lambda x, t=targets: ibot_loss(x, t, weight, STUDENT), student)
        for mine, wanted in zip(ours, plain, strict=True):
            assert (mine - wanted).abs().max() < 1e-5 * wanted.abs().max()


BACKBONE = BackboneSettings(width=32, depth=1, heads=2, image_px=56, layer_scale=0.0)
MANY = 16_384


@pytest.fixture(scope="module")
def views():
    tiles = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 3, 392, 392), dtype=np.uint8))
    settings = ViewSettings(CropSettings(global_px=56, local_px=28, local_crops=3))
    return make_views(tiles, settings, Places(0, 0, np.arange(8)), 14)


class Largest(TorchDispatchMode):
    """Notes the numbers of the largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        made = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.numbers = max([self.numbers, *made])
        return out


def step(views, most, precision, targets="sinkhorn", head=None):
    """Loss, gradients by name, and the largest tensor of a whole step."""
    settings = ObjectiveSettings(head=head or HeadSettings(MANY, 32, 8), targets=targets)
    objective = SelfDistillation(settings, BACKBONE, seed=1, most=most)
    with torch.no_grad():  # a teacher of its own, or there is nothing to learn
        for parameter in objective.ema.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    at = schedules.at(schedules.ScheduleSettings(), 0, 8)
    with Largest() as largest:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            losses = objective.losses(views, at)
        losses.total.backward()
        objective.update(at)
    gradients = {name: p.grad for name, p in objective.student.named_parameters()}
    return {name: value.item() for name, value in losses.parts.items()}, gradients, largest.numbers


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("targets", ["sinkhorn", "centre"])
def test_a_step_makes_no_matrix_of_all_rows_and_prototypes_and_is_the_same(views, precision, targets):
    rows = min(len(views.chosen), 2 * views.tiles)  # of the smaller matrix
    whole, gradients, most = step(views, 10**9, precision, targets)
    assert most >= rows * MANY
    by_parts, same, largest = step(views, 4 * MANY, precision, targets)
    assert largest <= 10 * MANY < rows * MANY  # as large as the prototypes themselves, or the crops
    assert by_parts == pytest.approx(whole, rel=1e-6, abs=1e-6)  # in bf16, too: what is of prototypes is float32
    coarse = {"fp32": 1e-4, "bf16": 2e-2}  # what rounding makes of the last bit of bfloat16
    for name, gradient in gradients.items():
        assert (same[name] - gradient).norm() < coarse[precision] * gradient.norm(), name


def plain_step(objective, views, at):
    """A step of DINOv2's with whole matrices and what autograd makes of them, and KDE in KoLeo's place."""
    with torch.no_grad():
        told = objective.ema([views.global_crops], views.chosen)
        valid = (views.weight > 0).float()
        targets = plain_sinkhorn(cosines_of(told.cls), at.temperature)
        of_patches = plain_sinkhorn(cosines_of(told.patches), at.temperature, valid)
    seen = objective.student(views.groups, views.chosen, [views.mask, None])
    dino = plain_dino(cosines_of(seen.cls), targets, views.tiles)
    ibot = plain_ibot(cosines_of(seen.patches), of_patches, views.weight)
    kde = sum(kde_loss(features, 5.0) for features in seen.features.chunk(2))
    return dino + ibot + 0.05 * kde


@pytest.mark.parametrize("most", [3 * PROTOTYPES, 10**9])
def test_a_whole_step_is_dinov2s(views, most):
    head = HeadSettings(PROTOTYPES, 32, 16, patch_bottleneck=8)
    objective = SelfDistillation(ObjectiveSettings(head=head), BACKBONE, seed=1, most=most)
    at = schedules.at(schedules.ScheduleSettings(), 0, 8)
    found = []
    for loss in (plain_step(objective, views, at), objective.losses(views, at).total):
        objective.zero_grad()
        loss.backward()
        found.append((loss.item(), {name: p.grad.clone() for name, p in objective.student.named_parameters()}))
    (plain, gradients), (value, same) = found
    assert value == pytest.approx(plain, rel=1e-6)
    for name, gradient in gradients.items():
        assert (same[name] - gradient).norm() < 1e-4 * gradient.norm(), name


@pytest.mark.parametrize("targets", ["sinkhorn", "centre"])
def test_where_nothing_is_masked_the_loss_is_dinos_and_all_parameters_have_gradients(views, targets):
    settings = ObjectiveSettings(head=HeadSettings(PROTOTYPES, 32, 16), targets=targets, spread="none")
    objective = SelfDistillation(settings, BACKBONE, seed=1)
    bare = replace(views, mask=torch.zeros_like(views.mask), chosen=views.chosen[:0], weight=views.weight[:0])
    losses = objective.losses(bare, schedules.at(schedules.ScheduleSettings(), 0, 8))
    losses.total.backward()
    assert losses.total.item() == losses.parts["loss_dino"].item() > 0
    assert losses.parts["loss_ibot"].item() == 0
    for name, parameter in objective.student.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or "patch_head" in name or "mask_token" in name, name


def test_memory_of_a_step_does_not_grow_with_the_rows(views):
    """Only how much is allowed shows."""
    head = HeadSettings(MANY, 32, 2)
    largest = [step(views, budget * MANY, "fp32", head=head)[2] for budget in (4, 8)]
    assert largest == [4 * MANY, 8 * MANY]
