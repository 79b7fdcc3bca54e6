"""Gram anchoring: loss and gradient against plain loops in float64, what the anchor sees, and when it is taken."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from pretrain.compute.randomness import Places
from pretrain.learning import schedules
from pretrain.learning.gram import gram_loss, reduced
from pretrain.learning.schedules import ScheduleSettings
from pretrain.learning.self_distillation import ObjectiveSettings, SelfDistillation
from pretrain.model.backbone import BackboneSettings
from pretrain.model.heads import HeadSettings
from pretrain.model.normalise import normalise
from pretrain.views.crops import CropSettings, TileScales, plan_crops
from pretrain.views.views import ViewSettings, enlarged_crops, make_views

BACKBONE = BackboneSettings(width=32, depth=2, heads=2, image_px=56, layer_scale=0.0, registers=1)
CROPS = CropSettings(global_px=56, local_px=28, local_crops=2, right_angles=True)
TILES = 3


def slow_gram(student, anchor):
    """Pair by pair, of (S, N, D) in float64."""
    total = 0.0
    for own, other in zip(student, anchor, strict=True):
        for i in range(len(own)):
            for j in range(len(own)):
                cosines = [(x[i] @ x[j]) / (x[i].norm() * x[j].norm()) for x in (own, other)]
                total = total + (cosines[0] - cosines[1]) ** 2
    return total / (len(student) * student.shape[1] ** 2)


@pytest.mark.parametrize("most", [1 << 20, 60, 1])  # all crops at once, two at a time, one by one
def test_loss_and_gradient_are_those_of_a_slow_reference(most):
    rng = torch.Generator().manual_seed(0)
    student, anchor = (torch.randn(3, 5, 4, generator=rng, dtype=torch.float64) for _ in range(2))
    slow = student.clone().requires_grad_()
    expected = slow_gram(slow, anchor)
    expected.backward()
    for dtype, near in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        own = student.clone().to(dtype).requires_grad_()
        loss = gram_loss(own, anchor.to(dtype), most)
        (3 * loss).backward()
        assert loss.item() == pytest.approx(expected.item(), rel=10 * near)
        assert torch.allclose(own.grad.double(), 3 * slow.grad, atol=near)


def test_under_autocast_it_is_of_float32():
    rng = torch.Generator().manual_seed(0)
    student, anchor = (torch.randn(2, 6, 8, generator=rng) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        found = gram_loss(student, anchor)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(slow_gram(student.double(), anchor.double()).item(), rel=1e-5)


def test_features_of_larger_crops_are_reduced_by_a_bicubic_of_four_by_four():
    """Whose weights half-way between two numbers are those of Keys 1981 with a = -0.75; edges are repeated."""
    tokens = torch.randn(2, 36, 3, generator=torch.Generator().manual_seed(0))
    weights = (-0.09375, 0.59375, 0.59375, -0.09375)
    grid, found = tokens.view(2, 6, 6, 3), reduced(tokens, 3).view(2, 3, 3, 3)
    for row in range(3):
        for column in range(3):
            value = sum(
                weights[y] * weights[x] * grid[:, min(max(2 * row - 1 + y, 0), 5), min(max(2 * column - 1 + x, 0), 5)]
                for y in range(4)
                for x in range(4)
            )
            assert torch.allclose(found[:, row, column], value, atol=1e-5)
    assert reduced(tokens, 6) is tokens


@pytest.fixture(scope="module")
def tiles():
    """Of few levels, so that no bicubic overshoots black or white."""
    return torch.from_numpy(np.random.default_rng(0).integers(90, 160, (TILES, 3, 392, 392), np.uint8))


def test_an_anchor_sees_the_same_windows_of_the_tile_at_twice_the_px(tiles):
    places = Places(0, 3, np.arange(TILES))
    windows, _ = plan_crops(CROPS, places)
    found = enlarged_crops(tiles, CROPS, places, 2.0)
    assert found.shape == (2 * TILES, 3, 112, 112)
    for crop in range(2):
        for tile in range(TILES):
            x0, y0, w, h = (getattr(windows, name)[tile, crop] for name in ("x0", "y0", "width", "height"))
            whole = Image.fromarray(tiles[tile].permute(1, 2, 0).numpy().copy())
            cut = np.array(whole.resize((112, 112), Image.Resampling.BICUBIC, (x0, y0, x0 + w, y0 + h)))
            cut = cut[:, ::-1] if windows.flip_x[tile, crop] else cut
            cut = cut[::-1] if windows.flip_y[tile, crop] else cut
            cut = cut.transpose(1, 0, 2) if windows.transposed[tile, crop] else cut
            expected = normalise(torch.from_numpy(cut.copy()).permute(2, 0, 1)[None] / 255)
            assert (found[crop * TILES + tile] - expected[0]).abs().max() < 0.02  # Pillow rounds to whole levels


SCALES = TileScales(np.array([0.25, 0.5, 1.0], np.float32), np.array([0.25, 0.5, 1.0], np.float32))


def objective(backbone=BACKBONE, **settings):
    made = ObjectiveSettings(head=HeadSettings(64, 32, 16), **settings)
    return SelfDistillation(made, backbone, seed=0)


def anchored(tiles, scale=2.0, step=0):
    """Views, with what an anchor sees."""
    places = Places(0, step, np.arange(TILES))
    views = make_views(tiles, ViewSettings(CROPS), places, BACKBONE.patch_px, scales=SCALES)
    return replace(views, anchor_crops=enlarged_crops(tiles, CROPS, places, scale, scales=SCALES))


def moved(made):
    """With a teacher that differs from its anchor."""
    with torch.no_grad():
        for parameter in made.ema.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return made


AT = schedules.at(ScheduleSettings(), 0, 8)


@pytest.mark.parametrize("told", [False, True])
def test_it_is_added_to_the_objective_with_its_weight_and_the_anchor_gets_no_gradient(tiles, told):
    """An anchor that is told the um/px is told those of its own, smaller pixels."""
    backbone = replace(BACKBONE, mpp_token=told)
    plain, made = objective(backbone), moved(objective(backbone, gram_weight=3.0))
    made.ema.load_state_dict(plain.ema.state_dict())
    if told:
        with torch.no_grad():
            made.anchor.backbone.mpp_token.second.weight.normal_(generator=torch.Generator().manual_seed(2))
    anchor = copy.deepcopy(made.anchor.backbone)
    views = anchored(tiles)
    without, found = plain.losses(views, AT), made.losses(views, AT)
    with torch.no_grad():
        student = made.student.backbone([views.global_crops], [views.mask], mpp=views.told[:1])[0].patches
        tokens = anchor([views.anchor_crops], mpp=(views.told[0] / 2,))[0].patches
    small = functional.interpolate(tokens.transpose(1, 2).unflatten(2, (8, 8)), size=(4, 4), mode="bicubic")
    expected = slow_gram(student.double(), small.flatten(2).transpose(1, 2).double()).item()
    assert expected > 1e-4
    assert found.parts["loss_gram"].item() == pytest.approx(expected, rel=1e-4)
    assert found.total.item() == pytest.approx(without.total.item() + 3 * expected, rel=1e-5)
    assert "loss_gram" not in without.parts
    found.total.backward()
    assert all(parameter.grad is None for parameter in made.anchor.parameters())
    without.total.backward()
    pairs = zip(made.student.parameters(), plain.student.parameters(), strict=True)
    assert any(not torch.allclose(one.grad, other.grad) for one, other in pairs)


def same(anchor, teacher):
    pairs = zip(anchor.backbone.parameters(), teacher.backbone.parameters(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize(
    ("every", "most", "taken"),
    [(3, 2, [3, 6]), (3, 0, [3, 6, 9]), (0, 3, [])],
)
def test_it_is_taken_again_every_so_many_steps_and_at_most_so_often(every, most, taken):
    made = objective(gram_weight=1.0, gram_every=every, gram_refreshes=most)
    found = []
    for step in range(10):
        moved(made)
        made.update(schedules.at(ScheduleSettings(steps=20, momentum=(1.0, 1.0)), step, 8))
        if same(made.anchor, made.ema):
            found.append(step + 1)
    assert found == taken
    assert int(made.anchor.refreshes) == len(taken)


def test_without_a_weight_there_is_none():
    made = objective()
    assert made.anchor is None
    assert made.frozen == [made.ema]
