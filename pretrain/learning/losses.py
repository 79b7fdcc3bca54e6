"""The losses of the objective, each a mean over the local crops that ranks average.

Where a term looks across samples (KDE, KoLeo) it looks across the global batch: see distributed.gather.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from pretrain.compute import distributed


def dino_loss(student: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Cross-entropy between the crops of a tile, averaged over all pairs of a global and another crop.

    `student`: (S, B, K) cosines of S crops, global ones first. `targets`: (G, B, K) probabilities of the G
    global ones.
    Caron et al. 2021, eq. 3: mean over g, s != g and b of -sum_k targets[g] log softmax(student[s] / temperature).
    """
    logs = functional.log_softmax(student / temperature, dim=-1)
    crops, globals_ = len(student), len(targets)
    everything = (targets.sum(0) * logs.sum(0)).sum()
    own = (targets * logs[:globals_]).sum()
    return -(everything - own) / (student.shape[1] * globals_ * (crops - 1))


def ibot_loss(student: Tensor, targets: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """Cross-entropy at the masked patches: weighted sum over M of -sum_k targets log softmax(student / temperature).

    `student`, `targets`: (M, K). `weight`: (M,), see masking.Masks. Zhou et al. 2021, eq. 2.
    """
    logs = functional.log_softmax(student / temperature, dim=-1)
    return -((targets * logs).sum(-1) * weight).sum()


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
