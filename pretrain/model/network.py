"""A backbone with the two heads that distillation compares: student, teacher, and the student's moving mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pretrain.model.backbone import Backbone, BackboneSettings
from pretrain.model.guide import GuideHeads, Told
from pretrain.model.heads import Head, HeadSettings, Projection
from pretrain.model.packing import Kept


class Seen(NamedTuple):
    """What a network says of some crops.

    `cls`: what the head makes of every crop's class token, group after group. `patches`: the same of the M chosen
    patches of the first group. Projections; of a network whose heads are none of DINO's, (crops, K) and (M, K) tensors.
    `features`: (B, D) class tokens of the first group, as the heads get them. `told`: what the guide's heads say of
    these. `tokens`: (B, N, D) patch tokens of the first group, of a network that `shows_patches`.
    """

    cls: Projection | Tensor
    patches: Projection | Tensor
    features: Tensor
    told: Told
    tokens: Tensor | None = None


class Network(nn.Module):
    """A backbone, a head for class tokens, and one for patch tokens. A student may have heads of a `guide` besides.

    `shows_patches`: whether it gives all patch tokens of the first group, too, which then stay in memory.
    """

    def __init__(self, backbone: Backbone, cls_head: nn.Module, patch_head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.cls_head, self.patch_head = backbone, cls_head, patch_head
        self.guide = GuideHeads(0, {}, {})
        self.shows_patches = False

    @staticmethod
    def with_heads(backbone: BackboneSettings, head: HeadSettings, recompute: str = "none") -> Network:
        """A new one, with the projection heads of DINO and iBOT."""
        width = backbone.width
        return Network(Backbone(backbone, recompute), Head(width, head), Head(width, head.of_patches))

    def forward(
        self,
        groups: Sequence[Tensor],
        chosen: Tensor,
        masks: Sequence[Tensor | None] | None = None,
        kept: Kept | None = None,
        ramp: float = 1.0,
        mpp: Sequence[Tensor] = (),
    ) -> Seen:
        """Groups of (B, 3, h, w) crops; `chosen` (M,) int64: patches of the first group, flattened over its crops;
        `ramp`: see GuideHeads; `mpp`: see Backbone.
        """
        if self.shows_patches:
            tokens = self.backbone(groups, masks, kept, mpp)
            cls_of, shown = [group.cls for group in tokens], tokens[0].patches
            patches = shown.flatten(0, 1)[chosen]
        else:
            shown = None
            cls_of, patches = self.backbone.read(groups, chosen, masks, kept, mpp)
        first, told = self.guide(cls_of[0], ramp)
        cls = torch.cat([first, *cls_of[1:]])
        return Seen(self.cls_head(cls), self.patch_head(patches), first, told, shown)

    def units(self) -> list[nn.Module]:
        """The parts that are spread over processes one by one, and gathered when they are called."""
        heads = [head for head in (self.cls_head, self.patch_head) if any(True for _ in head.parameters())]
        return [*self.backbone.vit.blocks, *heads, *self.guide.values()]
