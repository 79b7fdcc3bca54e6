"""A student learns from a frozen teacher by the same loop: by its heads or its features, whatever its width."""

import copy
import re

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from pipelines.export import main as export
from pretrain.compute.randomness import Places
from pretrain.errors import BadWeights
from pretrain.learning import schedules
from pretrain.learning.distillation import Distillation
from pretrain.learning.self_distillation import ObjectiveSettings
from pretrain.model.backbone import BackboneSettings
from pretrain.model.heads import Head, HeadSettings
from pretrain.model.network import Network
from pretrain.model.weights.load import released_backbone
from pretrain.train.metrics import read_metrics
from pretrain.train.runs import load_run, load_teacher
from pretrain.views.crops import CropSettings
from pretrain.views.views import ViewSettings, make_views
from tests.support.training import close_to, make_shards, run, train_together
from wsi_prep.errors import BadOption

pytestmark = pytest.mark.slow

NARROW = BackboneSettings(width=32, depth=2, heads=2, image_px=56)
WIDE = BackboneSettings(width=48, depth=3, heads=3, image_px=56, layer_scale=0.0)
HEAD = HeadSettings(prototypes=64, hidden=32, bottleneck=16)
OBJECTIVE = ObjectiveSettings(head=HEAD)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards") / "out")


@pytest.fixture(scope="module")
def teacher(shards, tmp_path_factory):
    """A run wider than its students, and the same as released weights: (run, folder)."""
    folder = tmp_path_factory.mktemp("teacher")
    wider = ("backbone.width=48", "backbone.depth=3", "backbone.heads=3")
    assert run(shards, folder / "run", "schedule.steps=3", "backbone.layer_scale=0", *wider) == 0
    assert export(["--folder", str(folder / "run"), "--to", str(folder / "model")]) == 0
    return folder / "run", folder / "model"


def views(count=4):
    torch.manual_seed(3)
    tiles = torch.randint(0, 256, (count, 3, 392, 392), dtype=torch.uint8)
    settings = ViewSettings(crops=CropSettings(global_px=56, local_px=28, local_crops=2))
    return make_views(tiles, settings, Places(0, 0, np.arange(count)), 14)


def at(step=0):
    return schedules.at(schedules.ScheduleSettings(), step, 8)


def headless(settings=WIDE):
    torch.manual_seed(5)
    full = Network.with_heads(settings, HEAD)
    return Network(full.backbone, nn.Identity(), nn.Identity())


def test_a_run_comes_with_its_heads_and_released_weights_without(teacher):
    whole, bare = map(load_teacher, teacher)
    assert isinstance(whole.cls_head, Head)
    assert not list(bare.cls_head.parameters())
    crops = torch.randn(2, 3, 56, 56)
    torch.testing.assert_close(whole.backbone([crops])[0].embedding, bare.backbone([crops])[0].embedding)
    assert bare.backbone.settings.heads == 3


@pytest.mark.parametrize("kind", ["run", "model"])
def test_it_goes_through_the_same_loop_and_on_to_the_bit(shards, teacher, tmp_path, kind):
    change = f"teacher={teacher[kind == 'model']}"
    assert run(shards, tmp_path / "whole", change) == 0
    assert run(shards, tmp_path / "parts", change, stop_at=4) == 0
    assert run(shards, tmp_path / "parts", change) == 0
    keys = {"run": "loss_dino", "model": "loss_cls_cosine"}
    whole, parts = (read_metrics(tmp_path / name) for name in ("whole", "parts"))
    for key in ("loss", "gradient_norm", keys[kind]):
        assert [row[key] for row in whole] == [row[key] for row in parts]
    file = next((tmp_path / "whole/checkpoints/step-00000008").glob("*.safetensors"))
    with safe_open(file, "pt") as saved:
        assert not [name for name in saved.keys() if name.startswith("teacher")]  # noqa: SIM118 - no dictionary


def test_two_processes_with_shards_do_what_one_does(shards, teacher, tmp_path):
    change = f"teacher={teacher[0]}"
    assert run(shards, tmp_path / "one", change, "schedule.steps=4") == 0
    train_together(shards, tmp_path / "two", change, "schedule.steps=4", "compute.parallel=fsdp")
    close_to(tmp_path / "two", tmp_path / "one")


def test_features_come_to_point_at_the_teachers():
    objective = Distillation(OBJECTIVE, NARROW, headless(), seed=0)
    before = copy.deepcopy(objective.teacher.state_dict())
    steps = torch.optim.Adam(objective.student.parameters(), lr=3e-3)
    seen = views()
    found = []
    for step in range(40):
        made = objective.losses(seen, at(step))
        steps.zero_grad()
        made.total.backward()
        steps.step()
        found.append((made.parts["loss_cls_cosine"].item(), made.parts["loss_patch_cosine"].item()))
    assert found[0][0] > 0.5
    assert found[-1][0] < 0.1 * found[0][0]
    assert found[-1][1] < 0.5 * found[0][1]
    assert all(torch.equal(value, before[name]) for name, value in objective.teacher.state_dict().items())


def test_a_student_that_is_the_teacher_has_nothing_to_learn():
    objective = Distillation(OBJECTIVE, WIDE, headless(), seed=0)
    objective.student.backbone.load_state_dict(objective.teacher.backbone.state_dict())
    for head in (objective.student.cls_head, objective.student.patch_head):
        with torch.no_grad():
            head.weight.copy_(torch.eye(48))
            head.bias.zero_()
    parts = objective.losses(views(), at()).parts
    assert parts["loss_cls_cosine"].item() == pytest.approx(0, abs=1e-5)
    assert parts["loss_patch_cosine"].item() == pytest.approx(0, abs=1e-5)


def test_by_heads_the_teachers_own_answers_are_the_best_there_are():
    """Cross-entropy is least, for the same targets, where the student says what the teacher says of the same crops."""
    torch.manual_seed(7)
    teacher = Network.with_heads(WIDE, HEAD)
    objective = Distillation(OBJECTIVE, WIDE, copy.deepcopy(teacher), seed=0)
    stranger = objective.losses(views(), at()).parts["loss_ibot"].item()
    objective.student.load_state_dict(teacher.state_dict())
    assert objective.losses(views(), at()).parts["loss_ibot"].item() < stranger


def test_what_is_kept_is_the_moving_mean():
    objective = Distillation(OBJECTIVE, NARROW, headless(), seed=0)
    with torch.no_grad():
        for parameter in objective.student.parameters():
            parameter.add_(1.0)
    before = [p.clone() for p in objective.ema.parameters()]
    objective.update(at())
    for mean, was in zip(objective.ema.parameters(), before, strict=True):
        torch.testing.assert_close(mean, was + (1 - at().momentum))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("backbone.patch_px=28", r"backbone\.patch_px=14"),
        ("backbone.drop_path=0.2", r"backbone\.drop_path=0"),
        ("objective.head.prototypes=32", r"objective\.head\.prototypes=64"),
        ("teacher=nowhere", "nowhere"),
    ],
)
def test_what_cannot_be_compared_is_one_clear_line(shards, teacher, tmp_path, capsys, change, message):
    call = (f"teacher={teacher[0]}", "views.crops.local_px=28", change)
    assert run(shards, tmp_path / "run", *call) == 2
    text = capsys.readouterr().err.strip()
    assert "\n" not in text
    assert re.search(message, text)


def test_drop_path_is_refused_where_the_objective_is_made():
    with pytest.raises(BadOption, match="nothing is dropped"):
        Distillation(OBJECTIVE, BackboneSettings(width=32, depth=2, heads=2, drop_path=0.1), headless(), seed=0)


def test_a_distilled_run_teaches_by_its_features(shards, teacher, tmp_path):
    assert run(shards, tmp_path / "first", f"teacher={teacher[1]}", "schedule.steps=2") == 0
    assert run(shards, tmp_path / "second", f"teacher={tmp_path / 'first'}", "schedule.steps=2") == 0
    assert "loss_cls_cosine" in read_metrics(tmp_path / "second")[0]
    assert load_run(tmp_path / "second")[1] == 2


@pytest.mark.parametrize("config", [None, "{}", '{"architecture": "hf-hub:someone/model"}'])
def test_weights_without_a_plain_architecture_are_refused(teacher, tmp_path, config):
    (tmp_path / "model.safetensors").write_bytes((teacher[1] / "model.safetensors").read_bytes())
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(BadWeights, match=r"config\.json"):
        released_backbone(tmp_path)
