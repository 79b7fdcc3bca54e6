"""From what a teacher says to the probabilities that a student learns: Sinkhorn-Knopp, or centring.

With 131,072 prototypes, a matrix of (rows, prototypes) is larger than the network. Nothing here or in losses holds one
of more than so many numbers: it is made from vectors and prototypes when it is needed, some rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pretrain.compute import distributed
from pretrain.model.heads import Projection

MOST_NUMBERS = 1 << 26  # of a matrix of (rows, prototypes): 256 MB
_LEAST_SUM = 1e-30


class Cosines:
    """The (rows, K) cosines of a projection, without gradient; kept where they are at most `most` numbers.

    `rows`: how many there are. `at_once`: how many of them are made at a time.
    """

    def __init__(self, seen: Projection, most: int = MOST_NUMBERS) -> None:
        self.vectors, self.prototypes = (tensor.detach() for tensor in seen)
        self.rows = len(self.vectors)
        self.at_once = max(1, most // len(self.prototypes))
        self._kept: Tensor | None = None

    def parts(self, groups: int = 1) -> Iterator[slice]:
        """The rows of each of so many groups of them, in parts."""
        each, step = self.rows // groups, max(1, self.at_once // groups)
        yield from (slice(first, min(first + step, each)) for first in range(0, each, step))

    def of(self, part: slice, groups: int = 1) -> Tensor:
        """(groups, n, K): those of a part of the rows of each group. Not to be written to."""
        if self.rows > self.at_once:
            chosen = self.vectors.view(groups, self.rows // groups, -1)[:, part].flatten(0, 1)
            return _product(chosen, self.prototypes).view(groups, -1, len(self.prototypes))
        if self._kept is None:
            self._kept = _product(self.vectors, self.prototypes)
        return self._kept.view(groups, -1, len(self.prototypes))[:, part]


def _product(vectors: Tensor, prototypes: Tensor) -> Tensor:
    with torch.autocast(vectors.device.type, enabled=False):
        return vectors @ prototypes.T


@dataclass(frozen=True)
class Targets:
    """A teacher's probabilities: softmax(cosines / temperature + bias), with one `bias` (K,) for all rows."""

    cosines: Cosines
    temperature: float
    bias: Tensor

    def of(self, part: slice, groups: int = 1) -> Tensor:
        """(groups, n, K): those of a part of the rows of each group, see Cosines."""
        return torch.softmax(self.cosines.of(part, groups).div(self.temperature).add_(self.bias), dim=-1)

    @torch.no_grad()
    def looks(self) -> dict[str, Tensor]:
        """Entropies of the global batch's rows: the mean of this process's, and that of the mean of all."""
        use = torch.zeros_like(self.bias)
        entropy = use.new_zeros(())
        for part in self.cosines.parts():
            probabilities = self.of(part)[0]
            use += probabilities.sum(0)
            entropy += torch.special.entr(probabilities).sum()
        rows = self.cosines.rows
        use = distributed.all_sum(use) / distributed.size()
        return {"target_entropy_nats": entropy / rows, "target_use_nats": torch.special.entr(use / rows).sum()}


@torch.no_grad()
def sinkhorn_knopp(cosines: Cosines, temperature: float, valid: Tensor | None = None, rounds: int = 3) -> Targets:
    """Probabilities whose columns are used evenly over the global batch.

    Alternately scales the columns of exp(cosines / temperature) to the same sum and its rows to sum 1 (Caron et al.
    2020, arXiv 2006.09882). What is scaled stays as it is; one factor for each column is all that comes of it, since
    those of the rows follow. `valid`: (M,) 1 for rows that count, 0 for padding, whose probabilities mean nothing.
    """
    with torch.autocast(cosines.vectors.device.type, enabled=False):  # in bfloat16, factors are off by half a per cent
        return Targets(cosines, temperature, _factors(cosines, temperature, valid, rounds).log())


def _factors(cosines: Cosines, temperature: float, valid: Tensor | None, rounds: int) -> Tensor:
    """(K,): what Sinkhorn-Knopp scales each column by."""
    count = cosines.prototypes.new_full((1,), cosines.rows) if valid is None else valid.sum()[None]
    count = distributed.all_sum(count) / len(cosines.prototypes)  # of rows for each column, else factors grow and grow
    factors = cosines.prototypes.new_ones(len(cosines.prototypes))
    one = cosines.rows <= cosines.at_once
    scores = torch.empty(0)
    for number in range(rounds):
        total = torch.zeros_like(factors)
        for part in cosines.parts():
            if not (one and number):
                scores = cosines.of(part)[0].div(temperature).exp_()  # at most e^(1 / 0.02), inside float32
            rows = 1 / (scores @ factors).clamp_min(_LEAST_SUM) if number else scores.new_ones(len(scores))
            total += (rows if valid is None else rows * valid[part]) @ scores
        factors = count.clamp_min(_LEAST_SUM) / distributed.all_sum(total).clamp_min(_LEAST_SUM)
    return factors


class Centre(nn.Module):
    """Centring: softmax((cosines - centre) / temperature), with a moving mean of the cosines for the centre.

    Caron et al. 2021, eq. 4. `forward` changes nothing; `update` moves the centre by the global batch's mean.
    """

    def __init__(self, prototypes: int, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("centre", torch.zeros(prototypes))
        self.centre: Tensor

    def forward(self, cosines: Cosines, temperature: float) -> Targets:  # noqa: D102 - see the class
        return Targets(cosines, temperature, self.centre / -temperature)

    @torch.no_grad()
    def update(self, cosines: Cosines, valid: Tensor | None = None) -> None:
        """Move towards the mean of the valid rows on all ranks: the cosines of their mean vector."""
        vectors = cosines.vectors
        weight = vectors.new_ones(len(vectors)) if valid is None else valid
        own = cosines.prototypes @ (weight @ vectors)
        total = distributed.all_sum(torch.cat([own, weight.sum()[None]]))
        moved = self.centre.lerp(total[:-1] / total[-1].clamp_min(1), 1 - self.momentum)
        self.centre.copy_(torch.where(moved.isfinite().all(), moved, self.centre))  # a step that is left out stays out
