"""Gram anchoring: among themselves, the student's patches are to be as alike as an earlier teacher saw them.

Simeoni et al. 2025 (DINOv3, arXiv 2508.10104), section 4. In long training class tokens get better while patch tokens
lose their places; only the likenesses are held on to, so that the features themselves may move on.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from pretrain.compute import distributed
from pretrain.learning.targets import MOST_NUMBERS
from pretrain.model.backbone import Backbone
from pretrain.model.network import Network, Seen


class Anchor(Network):
    """A teacher's backbone as it was at some step. `refreshes`: float32 of shape (), how often it was taken again."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(copy.deepcopy(backbone), nn.Identity(), nn.Identity())
        self.shows_patches = True
        self.register_buffer("refreshes", torch.zeros(()))
        self.refreshes: Tensor
        self.requires_grad_(False)

    @torch.no_grad()
    def take(self, teacher: Network) -> None:
        """Become the teacher as it is now; whole or in shards alike, nothing is sent."""
        for own, theirs in self._pairs(teacher):
            own.copy_(theirs)
        self.refreshes.zero_()

    @torch.no_grad()
    def refresh(self, teacher: Network, most: int) -> None:
        """Become it again, unless that has been done `most` times (0: any number); nothing waits for the device."""
        again = self.refreshes < most if most else torch.ones_like(self.refreshes, dtype=torch.bool)
        for own, theirs in self._pairs(teacher):
            own.copy_(torch.where(again, theirs, own))
        self.refreshes += again

    def _pairs(self, teacher: Network) -> list[tuple[Tensor, Tensor]]:
        """What this process holds of own and the teacher's parameters."""
        theirs = dict(teacher.backbone.named_parameters())
        own = self.backbone.named_parameters()
        return [(distributed.local(value), distributed.local(theirs[name])) for name, value in own]

    @torch.no_grad()
    def tokens(self, crops: Tensor, side: int, mpp: tuple[Tensor, ...] = ()) -> Tensor:
        """(S, side^2, D) patch tokens of (S, 3, h, h) crops, reduced to side x side; `mpp` as Network takes it."""
        none = torch.zeros(0, dtype=torch.int64, device=crops.device)
        seen: Seen = self([crops], none, mpp=mpp)
        assert seen.tokens is not None
        return reduced(seen.tokens, side)


def reduced(tokens: Tensor, side: int) -> Tensor:
    """(S, n^2, D) of n x n patches -> (S, side^2, D), by a bicubic that does not blur, as DINOv3 does it."""
    crops, patches, width = tokens.shape
    own = round(patches**0.5)
    if own == side:
        return tokens
    grid = tokens.transpose(1, 2).reshape(crops, width, own, own)
    small = functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return small.flatten(2).transpose(1, 2)


def gram_loss(student: Tensor, anchor: Tensor, most: int = MOST_NUMBERS) -> Tensor:
    """Mean squared difference between the cosines of all pairs of a crop's patches, of student and anchor.

    mean over S crops and N x N pairs of (x_i . x_j - y_i . y_j)^2, with x and y of length 1; cosines below 0 count too.
    `student`, `anchor`: (S, N, D); no gradient goes to the anchor. `most`: numbers of the matrices held at a time.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    with torch.autocast(student.device.type, enabled=False):  # bfloat16 tells near cosines apart by hundredths only
        x = functional.normalize(student.to(dtype), dim=-1, eps=1e-8)
        y = functional.normalize(anchor.detach().to(dtype), dim=-1, eps=1e-8)
        loss: Tensor = _Gram.apply(x, y, most)  # type: ignore[no-untyped-call]
    return loss


class _Gram(torch.autograd.Function):
    """The loss and, in the same pass, its gradient 4 (x x' - y y') x: no matrix of (N, N) is kept."""

    @staticmethod
    def forward(context: Any, x: Tensor, y: Tensor, most: int) -> Tensor:
        crops, patches, _ = x.shape
        at_once = max(1, most // patches**2)
        pairs = crops * patches**2
        total, gradients = x.new_zeros(()), []
        for own, other in zip(torch.split(x, at_once), torch.split(y, at_once), strict=True):
            apart = torch.baddbmm(other @ other.transpose(1, 2), own, own.transpose(1, 2), beta=-1)
            total += apart.square().sum()
            if context.needs_input_grad[0]:
                gradients.append((apart @ own).mul_(4 / pairs))
        if gradients:
            context.save_for_backward(torch.cat(gradients))
        return total / pairs

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (of_x,) = context.saved_tensors
        return gradient * of_x, None, None
