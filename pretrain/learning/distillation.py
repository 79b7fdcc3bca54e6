"""Distillation: a student learns from a frozen teacher, of any width, through the same loop as self-distillation.

After Oquab et al. 2023 (arXiv 2304.07193, section 5): the objective of DINOv2 with another, larger teacher; nothing is
masked or dropped; what is kept is the student's moving mean. A teacher with heads (a run of ours) is compared by them,
one without (released weights) by its features, which a linear map of the student's must point at.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import record_function

from pretrain.learning.gram import Anchor
from pretrain.learning.schedules import Scheduled
from pretrain.learning.self_distillation import (
    Losses,
    ObjectiveSettings,
    begin,
    dino_ibot_losses,
    feature_spread,
    projection,
    spreading,
    update_ema,
)
from pretrain.learning.targets import MOST_NUMBERS, Cosines, sinkhorn_knopp
from pretrain.model.backbone import Backbone, BackboneSettings
from pretrain.model.heads import Head, Projection
from pretrain.model.network import Network, Seen
from pretrain.views.views import Views
from wsi_prep.errors import BadOption


class Distillation(nn.Module):
    """See the module; a self_distillation.Objective. Raises BadOption where student and teacher cannot be compared."""

    def __init__(
        self,
        settings: ObjectiveSettings,
        backbone: BackboneSettings,
        teacher: Network,
        seed: int,
        recompute: str = "none",
        most: int = MOST_NUMBERS,
    ) -> None:
        super().__init__()
        self._most = most
        self.anchor: Anchor | None = None
        self.teacher_settings = teacher.backbone.settings
        _check(settings, backbone, teacher)
        self.settings = settings
        self._has_heads = isinstance(teacher.cls_head, Head)
        if self._has_heads:
            network = Network.with_heads(backbone, settings.head, recompute)
        else:
            student, width = Backbone(backbone, recompute), self.teacher_settings.width
            network = Network(student, nn.Linear(backbone.width, width), nn.Linear(backbone.width, width))
        self.student: nn.Module = network
        self.ema = copy.deepcopy(network).requires_grad_(False)
        begin(network, self.ema, seed)
        self.teacher = teacher.requires_grad_(False).eval()

    @property
    def frozen(self) -> list[Network]:
        """See Objective."""
        return [self.ema, self.teacher]

    def materialise(self, device: torch.device, seed: int) -> None:
        """See Objective."""
        begin(self.student.to_empty(device=device), self.ema.to_empty(device=device), seed)

    @property
    def kept(self) -> dict[str, Tensor]:
        """See Objective."""
        return {}

    def losses(self, views: Views, at: Scheduled) -> Losses:
        """See Objective. The patches that self-distillation would mask are those that are compared, unmasked."""
        settings = self.settings
        with record_function("teacher"), torch.no_grad():
            told: Seen = self.teacher([views.global_crops], views.chosen, mpp=views.told[:1])
        with record_function("student"):
            seen: Seen = self.student(views.groups, views.chosen, ramp=at.guide, mpp=views.told)
        compare = self._compare_heads if self._has_heads else self._compare_features
        features = seen.features.view(-1, views.tiles, seen.features.shape[-1])
        with record_function("losses"):
            of_cls, of_patches, parts = compare(views, told, seen, at.temperature)
            spread = spreading(settings, features)
        total = settings.dino_weight * of_cls + settings.ibot_weight * of_patches + settings.spread_weight * spread
        parts |= {"loss": total, f"loss_{settings.spread}": spread, "feature_spread": feature_spread(seen.features)}
        return Losses(total, {name: value.detach() for name, value in parts.items()}, seen.told)

    def update(self, at: Scheduled) -> None:
        """See Objective."""
        update_ema(self.ema, self.student, at.momentum)

    def _compare_heads(
        self, views: Views, told: Seen, seen: Seen, temperature: float
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        cls, patches = (Cosines(projection(said), self._most) for said in (told.cls, told.patches))
        targets = sinkhorn_knopp(cls, temperature)
        patch_targets = sinkhorn_knopp(patches, temperature, (views.weight > 0).float())
        dino, ibot = dino_ibot_losses(self.settings, views, seen, targets, patch_targets)
        return dino, ibot, {"loss_dino": dino, "loss_ibot": ibot, **targets.looks()}

    def _compare_features(
        self, views: Views, told: Seen, seen: Seen, _temperature: float
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        assert not isinstance(seen.cls, Projection)
        assert not isinstance(seen.patches, Projection)
        assert not isinstance(told.cls, Projection)
        assert not isinstance(told.patches, Projection)
        cls = 1 - functional.cosine_similarity(seen.cls[: len(told.cls)].float(), told.cls.float()).mean()
        each = 1 - functional.cosine_similarity(seen.patches.float(), told.patches.float())
        patches = (each * views.weight).sum() / views.weight.sum().clamp_min(1e-12)
        return cls, patches, {"loss_cls_cosine": cls, "loss_patch_cosine": patches}


def _check(settings: ObjectiveSettings, backbone: BackboneSettings, teacher: Network) -> None:
    theirs = teacher.backbone.settings
    if backbone.patch_px != theirs.patch_px:
        raise BadOption(
            f"student and teacher must have patches of one size: set backbone.patch_px={theirs.patch_px}, which is the "
            "teacher's, or take another teacher"
        )
    if backbone.drop_path:
        raise BadOption("in distillation nothing is dropped: set backbone.drop_path=0")
    if isinstance(teacher.cls_head, Head) and len(teacher.cls_head.prototypes) != settings.head.prototypes:
        count = len(teacher.cls_head.prototypes)
        raise BadOption(f"the teacher's heads have {count} prototypes: set objective.head.prototypes={count}")
