"""What self-distillation learns, from its own numbers: to tell tiles apart, and to agree with the teacher on them."""

import math

import numpy as np
import pytest
import torch

from pretrain.compute.randomness import Places
from pretrain.learning import schedules
from pretrain.learning.optimizer import OptimSettings, clip_gradients, make_optimizer, take_step
from pretrain.learning.schedules import ScheduleSettings
from pretrain.learning.self_distillation import ObjectiveSettings, SelfDistillation
from pretrain.model.backbone import BackboneSettings
from pretrain.model.heads import HeadSettings
from pretrain.views.colour import ColourSettings
from pretrain.views.crops import CropSettings
from pretrain.views.views import ViewSettings, make_views

pytestmark = pytest.mark.slow

TILES, PROTOTYPES = 8, 32
NONE = torch.zeros(())


@pytest.fixture(scope="module")
def textures():
    """(8, 3, 392, 392): stripes of two widths in four directions, of the same mean colour."""
    y, x = np.mgrid[:392, :392]
    waves = [np.sin((x * np.cos(n * np.pi / 4) + y * np.sin(n * np.pi / 4)) / (2, 7)[n % 2]) for n in range(TILES)]
    return torch.from_numpy(np.stack([[128 + 90 * wave] * 3 for wave in waves]).astype(np.uint8))


def learn(textures, steps, **settings):
    """The numbers of each step, of a run whose crops keep their direction and colour."""
    backbone = BackboneSettings(width=32, depth=2, heads=2, image_px=56, layer_scale=0.0)
    head = HeadSettings(prototypes=PROTOTYPES, hidden=64, bottleneck=16)
    objective = SelfDistillation(ObjectiveSettings(head=head, **settings), backbone, seed=0)
    optim = OptimSettings(layer_decay=1.0)
    optimizer = make_optimizer(objective.student, 2, optim)
    schedule = ScheduleSettings(steps, rate=0.06, momentum=(0.95, 1.0), temperature=(0.04, 0.04))
    views = ViewSettings(
        CropSettings(global_px=56, local_px=28, local_crops=2, flips=False),
        ColourSettings(jitter=0, grayscale=0, blur=(0, 0, 0)),
    )
    found = []
    for step in range(steps):
        at = schedules.at(schedule, step, TILES)
        losses = objective.losses(make_views(textures, views, Places(0, step, np.arange(TILES)), 14), at)
        losses.total.backward()
        clip_gradients(objective.student, optim)
        take_step(optimizer, at, NONE)
        optimizer.zero_grad()
        objective.update(at)
        found.append({name: value.item() for name, value in losses.parts.items()})
    return found


_KOLEO = pytest.param({"spread": "koleo", "spread_weight": 0.1}, marks=pytest.mark.long, id="koleo")


@pytest.mark.parametrize("settings", [pytest.param({}, id="kde"), _KOLEO])
def test_tiles_come_to_be_told_apart_and_agreed_on(textures, settings):
    found = learn(textures, 250, **settings)
    first, last = found[0], found[-1]
    assert last["loss_dino"] < 0.9 * math.log(PROTOTYPES) < first["loss_dino"]  # the student does better than a guess
    assert last["target_use_nats"] > 0.9 * math.log(PROTOTYPES)  # by all prototypes, not by a few
    assert last["loss_dino"] - last["target_entropy_nats"] < 0.25  # crops of a tile agree with its teacher
    assert last["feature_spread"] > 0.5 > first["feature_spread"]


def test_gradients_reach_every_parameter_of_the_student_and_none_of_the_teacher(textures):
    backbone = BackboneSettings(width=32, depth=2, heads=2, image_px=56, registers=2)
    objective = SelfDistillation(ObjectiveSettings(head=HeadSettings(64, 32, 16)), backbone, seed=0)
    views = ViewSettings(CropSettings(global_px=56, local_px=28, local_crops=2))
    losses = objective.losses(
        make_views(textures, views, Places(0, 0, np.arange(TILES)), 14), schedules.at(ScheduleSettings(), 0, 8)
    )
    losses.total.backward()
    assert [name for name, p in objective.student.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert [name for name, p in objective.ema.named_parameters() if p.grad is not None] == []
