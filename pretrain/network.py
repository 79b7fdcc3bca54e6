"""A backbone with the two heads that self-distillation compares: the student, and its moving mean, the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pretrain.backbone import Backbone, BackboneSettings
from pretrain.heads import Head, HeadSettings
from pretrain.packing import Kept


class Seen(NamedTuple):
    """What a network says of some crops.

    `cls`: (crops, K) cosines of every crop's class token, group after group. `patches`: (M, K) cosines of the chosen
    patches of the first group. `features`: (B, D) class tokens of the first group, as the heads get them.
    """

    cls: Tensor
    patches: Tensor
    features: Tensor


class Network(nn.Module):
    """Backbone, DINO head on class tokens, iBOT head on patch tokens."""

    def __init__(self, backbone: BackboneSettings, head: HeadSettings, recompute: str = "none") -> None:
        super().__init__()
        self.backbone = Backbone(backbone, recompute)
        self.cls_head = Head(backbone.width, head)
        self.patch_head = Head(backbone.width, head)

    def forward(
        self,
        groups: Sequence[Tensor],
        chosen: Tensor,
        masks: Sequence[Tensor | None] | None = None,
        kept: Kept | None = None,
    ) -> Seen:
        """Groups of (B, 3, h, w) crops; `chosen` (M,) int64: patches of the first group, flattened over its crops."""
        tokens = self.backbone(groups, masks, kept)
        patches = tokens[0].patches.flatten(0, 1)[chosen]
        cls = torch.cat([group.cls for group in tokens])
        return Seen(self.cls_head(cls), self.patch_head(patches), tokens[0].cls)

    def units(self) -> list[nn.Module]:
        """The parts that are spread over processes one by one, and gathered when they are called."""
        return [*self.backbone.vit.blocks, self.cls_head, self.patch_head]
