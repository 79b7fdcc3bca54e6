"""The losses of the objective, each a mean over the local crops that ranks average.

Where a term looks across samples (KDE, KoLeo) it looks across the global batch: see distributed.gather.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from pretrain.compute import distributed
from pretrain.learning.targets import Targets
from pretrain.model.heads import Projection


@dataclass(frozen=True)
class _Comparison:
    """With which `targets`, at which `temperature` of the student; `apart`: no crop with the teacher of its number."""

    targets: Targets
    temperature: float
    apart: bool


def dino_loss(student: Projection, targets: Targets, tiles: int, temperature: float) -> Tensor:
    """Cross-entropy between the crops of a tile, averaged over all pairs of a global and another crop.

    `student`: S crops of each of `tiles` tiles, B, crop after crop, global ones first. `targets`: of the G global ones.
    Caron et al. 2021, eq. 3: mean over g, s != g and b of -sum_k targets[g] log softmax(student[s] / temperature).
    """
    crops, globals_ = len(student.vectors) // tiles, targets.cosines.rows // tiles
    weight = student.vectors.new_full((tiles,), 1 / (tiles * globals_ * (crops - 1)))
    return _cross_entropy(student, weight, _Comparison(targets, temperature, apart=True))


def ibot_loss(student: Projection, targets: Targets, weight: Tensor, temperature: float) -> Tensor:
    """Cross-entropy at the masked patches: weighted sum over M of -sum_k targets log softmax(student / temperature).

    `student`, `targets`: of M patches. `weight`: (M,), see masking.Masks. Zhou et al. 2021, eq. 2.
    """
    return _cross_entropy(student, weight, _Comparison(targets, temperature, apart=False))


def _cross_entropy(student: Projection, weight: Tensor, comparison: _Comparison) -> Tensor:
    """Sum over rows b, crops s and teachers g of weight[b] times the cross-entropy of s with g's targets."""
    if not len(weight):  # nothing is masked; ddp still waits for the head's gradients
        return 0 * (student.vectors.sum() + student.prototypes.sum())
    with torch.autocast(weight.device.type, enabled=False):
        loss: Tensor = _CrossEntropy.apply(*student, weight, comparison)  # type: ignore[no-untyped-call]
    return loss


class _CrossEntropy(torch.autograd.Function):
    """The loss and, in the same pass, its gradients: of what is made of some rows, nothing is kept or made again.

    d loss / d cosines = weight (n softmax(cosines / t) - sum_g targets[g]) / t, for a crop with n teachers.
    """

    @staticmethod
    def forward(context: Any, vectors: Tensor, prototypes: Tensor, weight: Tensor, comparison: _Comparison) -> Tensor:
        targets, temperature, apart = comparison.targets, comparison.temperature, comparison.apart
        of_crops = vectors.view(-1, len(weight), vectors.shape[-1])
        cosines = targets.cosines
        teachers = cosines.rows // len(weight)
        wanted = any(context.needs_input_grad)
        gradients = (torch.zeros_like(of_crops), torch.zeros_like(prototypes)) if wanted else None
        total = vectors.new_zeros(())
        for part in cosines.parts(teachers):
            told = targets.of(part, teachers)
            size = part.stop - part.start
            for first, last in _groups(len(of_crops), teachers * apart, max(1, cosines.at_once // size)):
                others = [number for number in range(teachers) if not (apart and number == first)]
                if not others:
                    continue
                whole = functools.reduce(torch.add, [told[number] for number in others])
                rows = of_crops[first:last, part].flatten(0, 1)
                logits = (rows @ prototypes.T).div_(temperature).view(last - first, size, -1)
                norm = logits.logsumexp(-1)
                total += ((len(others) * norm - (logits * whole).sum(-1)) * weight[part]).sum()
                if gradients is None:
                    continue
                slope = logits.sub_(norm[..., None]).exp_().mul_(len(others)).sub_(whole)
                slope = slope.mul_(weight[part, None] / temperature).flatten(0, 1)
                gradients[0][first:last, part] = (slope @ prototypes).view(last - first, size, -1)
                gradients[1].addmm_(slope.T, rows)
        if gradients is not None:
            context.save_for_backward(gradients[0].view_as(vectors), gradients[1])
        return total

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_vectors, of_prototypes = context.saved_tensors
        return gradient * of_vectors, gradient * of_prototypes, None, None


def _groups(crops: int, alone: int, most: int) -> Iterator[tuple[int, int]]:
    """First and last of the crops that are computed together: the first `alone` by themselves, of others so many."""
    yield from ((crop, crop + 1) for crop in range(min(alone, crops)))
    yield from ((first, min(first + most, crops)) for first in range(alone, crops, most))


def kde_loss(features: Tensor, kappa: float) -> Tensor:
    """The samples' mean log density under all others: the von Mises-Fisher kernel estimate of Virchow2, minimised.

    mean_i log( 1/(n-1) sum_{j != i} exp(kappa x_i . x_j) ) over the n samples of the global batch.
    `features`: (B, D), of this rank. Zimmermann et al. 2024 (arXiv 2408.00738), after Wang & Isola 2020.
    """
    own = functional.normalize(features.float(), dim=-1, eps=1e-8)
    everyone = distributed.gather(own)
    if len(everyone) < 2:
        return own.sum() * 0
    with torch.autocast(own.device.type, enabled=False):  # near 1, bfloat16 tells no two cosines apart
        similar = (kappa * own @ everyone.T).masked_fill(_diagonal(own, everyone), -math.inf)
    return (similar.logsumexp(dim=1) - math.log(len(everyone) - 1)).mean()


def koleo_loss(features: Tensor) -> Tensor:
    """Kozachenko-Leonenko estimate of the differential entropy, negated: -mean_i log(min_{j != i} |x_i - x_j|).

    `features`: (B, D), of this rank; neighbours come from the global batch. Sablayrolles et al. 2019, arXiv 1806.03198.
    """
    own = functional.normalize(features.float(), dim=-1, eps=1e-8)
    everyone = distributed.gather(own)
    if len(everyone) < 2:
        return own.sum() * 0
    with torch.no_grad(), torch.autocast(own.device.type, enabled=False):
        nearest = (own @ everyone.T).masked_fill(_diagonal(own, everyone), -math.inf).argmax(dim=1)
    distance = (own - everyone[nearest]).square().sum(1).add(1e-12).sqrt()
    return -(distance + 1e-8).log().mean()


def _diagonal(own: Tensor, everyone: Tensor) -> Tensor:
    """(B, n) bool: where a row meets itself."""
    first = distributed.rank() * len(own)
    columns = torch.arange(len(everyone), device=own.device)
    return columns == torch.arange(first, first + len(own), device=own.device)[:, None]
