"""From a teacher's cosines to the probabilities that a student learns: Sinkhorn-Knopp, or centring."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pretrain.compute import distributed


@torch.no_grad()
def sinkhorn_knopp(cosines: Tensor, temperature: float, valid: Tensor | None = None, rounds: int = 3) -> Tensor:
    """(M, K) cosines -> (M, K) probabilities whose columns are used evenly over the global batch.

    Alternately scales the columns of exp(cosines / temperature) to the same sum and its rows to sum 1 (Caron et al.
    2020, arXiv 2006.09882). `valid`: (M,) 1 for rows that count, 0 for padding, which becomes 0.
    """
    scores = torch.exp(cosines.float() / temperature)  # at most e^(1 / 0.04), far inside float32
    if valid is not None:
        scores = scores * valid[:, None]
    for _ in range(rounds):
        scores = scores / distributed.all_sum(scores.sum(0)).clamp_min(1e-30)
        scores = scores / scores.sum(1, keepdim=True).clamp_min(1e-30)
    return scores


class Centre(nn.Module):
    """Centring: softmax((cosines - centre) / temperature), with a moving mean of the cosines for the centre.

    Caron et al. 2021, eq. 4. `forward` changes nothing; `update` moves the centre by the global batch's mean.
    """

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre", torch.zeros(prototypes))
        self.centre: Tensor

    def forward(self, cosines: Tensor, temperature: float) -> Tensor:
        """(M, K) -> (M, K) probabilities."""
        return functional.softmax((cosines.float() - self.centre) / temperature, dim=-1)

    @torch.no_grad()
    def update(self, cosines: Tensor, valid: Tensor | None = None) -> None:
        """Move towards the mean of the valid rows of (M, K) on all ranks."""
        weight = torch.ones(len(cosines), device=cosines.device) if valid is None else valid
        total = distributed.all_sum(torch.cat([weight @ cosines.float(), weight.sum()[None]]))
        self.centre.lerp_(total[:-1] / total[-1].clamp_min(1), 1 - self.momentum)
