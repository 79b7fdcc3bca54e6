"""What training minimises.

In each step the loop asks for two things: `losses` of some views, and `update` after the optimizer.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import record_function

from pretrain.compute import distributed
from pretrain.learning import losses
from pretrain.learning.gram import Anchor, gram_loss
from pretrain.learning.schedules import Scheduled
from pretrain.learning.targets import MOST_NUMBERS, Centre, Cosines, Targets, sinkhorn_knopp
from pretrain.model.backbone import BackboneSettings
from pretrain.model.guide import Told
from pretrain.model.heads import HeadSettings, Projection
from pretrain.model.initial import initialise
from pretrain.model.network import Network, Seen
from pretrain.model.packing import keep_crops, plan_drop
from pretrain.views.views import Views
from wsi_prep.errors import BadOption

TARGETS = ("sinkhorn", "centre")
SPREADS = ("kde", "koleo", "none")
_MOST_SCALE = 8.0


@dataclass(frozen=True)
class ObjectiveSettings:
    """DINO + iBOT + a term that spreads the class tokens of global crops.

    `targets`: how the teacher's cosines become probabilities. `spread`: which term, with `spread_weight`; each global
    crop's batch is spread by itself, and the terms are added. `kappa`: KDE's concentration.

    `gram_weight`: of Gram anchoring, see learning.gram; 0 for none. The anchor is the teacher at the step from which
    the weight is above 0, and again at each step that `gram_every` divides (0: never), at most `gram_refreshes` times
    (0: any number). It sees the global crops at `gram_scale` times their px.
    """

    head: HeadSettings = field(default_factory=HeadSettings)
    student_temperature: float = 0.1
    dino_weight: float = 1.0
    ibot_weight: float = 1.0
    targets: str = "sinkhorn"
    spread: str = "kde"
    spread_weight: float = 0.05
    kappa: float = 5.0
    gram_weight: float = 0.0
    gram_every: int = 10_000
    gram_refreshes: int = 3
    gram_scale: float = 2.0

    def __post_init__(self) -> None:
        for name, allowed in (("targets", TARGETS), ("spread", SPREADS)):
            if getattr(self, name) not in allowed:
                raise BadOption(f"{name} {getattr(self, name)!r} is not known; choose from {', '.join(allowed)}")
        if self.student_temperature <= 0 or self.kappa <= 0:
            raise BadOption("student_temperature and kappa must be above 0")
        for names in (("dino_weight", "ibot_weight", "spread_weight"), ("gram_weight", "gram_every", "gram_refreshes")):
            if min(getattr(self, name) for name in names) < 0:
                raise BadOption(f"{', '.join(names[:-1])} and {names[-1]} must be at least 0")
        if not 1 <= self.gram_scale <= _MOST_SCALE:
            raise BadOption(f"gram_scale {self.gram_scale} is not between 1 and {_MOST_SCALE:g}")


@dataclass(frozen=True)
class Losses:
    """`total` is minimised; `parts` are numbers to look at, single elements on the device, without gradients.

    `told`: what the guide's heads say of the class tokens, of which nothing is in `total`.
    """

    total: Tensor
    parts: Mapping[str, Tensor]
    told: Told


class Objective(Protocol):
    """What the loop needs of an objective, which is an nn.Module besides.

    `student`: what the optimizer moves. `ema`: its moving mean, which is what a run is for. `frozen`: all networks
    that no gradient moves. `kept`: what else changes and belongs in a checkpoint, by name. `teacher_settings`: of the
    backbone that teaches. `anchor`: of Gram anchoring, None without.
    """

    student: nn.Module
    ema: Network
    teacher_settings: BackboneSettings
    anchor: Anchor | None

    @property
    def frozen(self) -> list[Network]: ...  # noqa: D102

    def materialise(self, device: torch.device, seed: int) -> None:
        """Give networks that were made on the meta device their first weights; in shards, each process its own."""

    @property
    def kept(self) -> dict[str, Tensor]: ...  # noqa: D102

    def losses(self, views: Views, at: Scheduled) -> Losses:
        """Of this process's views; a mean over them, so that processes average gradients."""

    def update(self, at: Scheduled) -> None:
        """What follows an optimizer step."""


class SelfDistillation(nn.Module):
    """DINOv2 with Virchow2's changes: the student learns what the teacher, its own moving mean, says of other crops.

    Oquab et al. 2023 (arXiv 2304.07193), Zimmermann et al. 2024 (arXiv 2408.00738). `most`: numbers of a matrix of
    (rows, prototypes), see targets.
    """

    def __init__(
        self,
        settings: ObjectiveSettings,
        backbone: BackboneSettings,
        seed: int,
        recompute: str = "none",
        most: int = MOST_NUMBERS,
    ) -> None:
        super().__init__()
        self.settings, self.drop_path, self._most = settings, backbone.drop_path, most
        network = Network.with_heads(backbone, settings.head, recompute)
        self.student: nn.Module = network
        self.ema = copy.deepcopy(network).requires_grad_(False)
        self.anchor = Anchor(self.ema.backbone) if settings.gram_weight else None
        network.shows_patches = self.anchor is not None
        with torch.device("cpu"):  # wherever the rest is made
            self.cls_centre, self.patch_centre = (Centre(settings.head.prototypes) for _ in range(2))
        self.teacher_settings = backbone
        self._pending: list[tuple[Centre, Cosines, Tensor | None]] = []
        begin(network, self.ema, seed)

    @property
    def frozen(self) -> list[Network]:
        """See Objective."""
        return [self.ema] if self.anchor is None else [self.ema, self.anchor]

    def materialise(self, device: torch.device, seed: int) -> None:
        """See Objective."""
        for centre in (self.cls_centre, self.patch_centre):
            centre.to(device)
        begin(self.student.to_empty(device=device), self.ema.to_empty(device=device), seed)
        if self.anchor is not None:
            self.anchor.to_empty(device=device)

    @property
    def kept(self) -> dict[str, Tensor]:
        """See Objective."""
        return {"cls_centre": self.cls_centre.centre, "patch_centre": self.patch_centre.centre}

    def losses(self, views: Views, at: Scheduled) -> Losses:
        """See Objective."""
        settings, tiles = self.settings, views.tiles
        valid = (views.weight > 0).float()
        with record_function("teacher"):
            teacher_out = self._teach(views)
        with record_function("losses"):
            cls_targets = self._targets(self.cls_centre, teacher_out.cls, None, at.temperature)
            patch_targets = self._targets(self.patch_centre, teacher_out.patches, valid, at.temperature)
        with record_function("anchor"):
            anchored = self._anchored(views)
        with record_function("student"):
            student_out = self._study(views, at.guide)
        with record_function("losses"):
            dino, ibot = dino_ibot_losses(settings, views, student_out, cls_targets, patch_targets)
            features = student_out.features
            spread = spreading(settings, features.view(-1, tiles, features.shape[-1]))
            total = settings.dino_weight * dino + settings.ibot_weight * ibot + settings.spread_weight * spread
            parts = {"loss_dino": dino, "loss_ibot": ibot, f"loss_{settings.spread}": spread}
            if anchored is not None and student_out.tokens is not None:
                parts["loss_gram"] = gram_loss(student_out.tokens, anchored, self._most)
                total = total + settings.gram_weight * parts["loss_gram"]
            parts = {"loss": total, **parts}
            looks = cls_targets.looks() | {"feature_spread": feature_spread(teacher_out.features)}
        return Losses(total, {name: value.detach() for name, value in (parts | looks).items()}, student_out.told)

    @torch.no_grad()
    def update(self, at: Scheduled) -> None:
        """Move the teacher towards the student, and the centres by what the teacher said."""
        update_ema(self.ema, self.student, at.momentum)
        for centre, cosines, valid in self._pending:
            centre.update(cosines, valid)
        self._pending.clear()
        every = self.settings.gram_every
        if self.anchor is not None and every and (at.step + 1) % every == 0:
            self.anchor.refresh(self.ema, self.settings.gram_refreshes)

    @torch.no_grad()
    def _teach(self, views: Views) -> Seen:
        seen: Seen = self.ema([views.global_crops], views.chosen, mpp=views.told[:1])
        return seen

    def _anchored(self, views: Views) -> Tensor | None:
        """(G * B, N, D): what the anchor says of the global crops' patches."""
        if self.anchor is None:
            return None
        assert views.anchor_crops is not None
        side = views.global_crops.shape[-1] // self.ema.backbone.settings.patch_px
        told = tuple(mpp / self.settings.gram_scale for mpp in views.told[:1])
        return self.anchor.tokens(views.anchor_crops, side, told)

    def _study(self, views: Views, ramp: float) -> Seen:
        groups = views.groups
        backbone = self.ema.backbone  # of the same settings
        packing = backbone.packing([(len(group), group.shape[-1]) for group in groups])
        kept = None
        if self.drop_path:
            crops = sum(len(group) for group in groups) // views.tiles
            depth = backbone.settings.depth
            plan = plan_drop(views.places, crops, depth)
            kept = keep_crops(plan, packing, self.drop_path, views.global_crops.device)
        masks = [views.mask, *[None] * (len(groups) - 1)]
        seen: Seen = self.student(groups, views.chosen, masks, kept, ramp, views.told)
        return seen

    @torch.no_grad()
    def _targets(self, centre: Centre, out: Projection | Tensor, valid: Tensor | None, temperature: float) -> Targets:
        cosines = Cosines(projection(out), self._most)
        if self.settings.targets == "sinkhorn":
            return sinkhorn_knopp(cosines, temperature, valid)
        self._pending.append((centre, cosines, valid))
        targets: Targets = centre(cosines, temperature)
        return targets


def dino_ibot_losses(
    settings: ObjectiveSettings, views: Views, seen: Seen, cls_targets: Targets, patch_targets: Targets
) -> tuple[Tensor, Tensor]:
    """The losses of DINO and iBOT, from what the student says and the teacher's probabilities."""
    temperature = settings.student_temperature
    dino = losses.dino_loss(projection(seen.cls), cls_targets, views.tiles, temperature)
    return dino, losses.ibot_loss(projection(seen.patches), patch_targets, views.weight, temperature)


def projection(said: Projection | Tensor) -> Projection:
    """What a head of DINO's or iBOT's has said."""
    assert isinstance(said, Projection)
    return said


def spreading(settings: ObjectiveSettings, features: Tensor) -> Tensor:
    """The spreading term, summed over the (G, B, D) class tokens of each global crop."""
    if settings.spread == "kde":
        return torch.stack([losses.kde_loss(f, settings.kappa) for f in features]).sum()
    if settings.spread == "koleo":
        return torch.stack([losses.koleo_loss(f) for f in features]).sum()
    return features.new_zeros(())


def begin(student: nn.Module, ema: Network, seed: int) -> None:
    """Fill both with the same first weights; nothing while they are on the meta device."""
    if any(parameter.is_meta for parameter in student.parameters()):
        return
    initialise(student, seed)
    with torch.no_grad():
        for mine, theirs in _pairs(ema, student):
            mine.copy_(theirs)


@torch.no_grad()
def update_ema(ema: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the moving mean's parameters towards the student's; whole or in shards alike."""
    mine, theirs = zip(*_pairs(ema, student), strict=True)
    torch._foreach_lerp_(list(mine), list(theirs), 1 - momentum)


def _pairs(ema: nn.Module, student: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """What this process holds of the moving mean's parameters, each with the student's; a guide's heads have none."""
    of_student = dict(distributed.plain(student).named_parameters())
    return [(distributed.local(own), distributed.local(of_student[name])) for name, own in ema.named_parameters()]


@torch.no_grad()
def feature_spread(features: Tensor) -> Tensor:
    """One minus the squared length of the mean of all processes' (n, D) features, each of length 1; 0 where all are the
    same.
    """
    mean = distributed.all_sum(functional.normalize(features.float(), dim=-1).mean(0)) / distributed.size()
    return 1 - mean.square().sum()
