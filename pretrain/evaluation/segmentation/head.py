"""A linear model from a patch's token to the shares of classes in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)


@dataclass(frozen=True)
class Head:
    """`mean`, `scale` (F,) that tokens are standardised by; `weight` (F, C), `bias` (C,); float32."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def logits(self, tokens: Tensor) -> Tensor:
        """(..., F) -> (..., C)."""
        return ((tokens.float() - self.mean) / self.scale) @ self.weight + self.bias


def fitted(tokens: Tensor, shares: Tensor, penalties: Sequence[float] = PENALTIES) -> Iterator[Head]:
    """For each penalty, strongest first, the head of least mean cross entropy + penalty / 2 |W|^2.

    `tokens`: (n, F); `shares`: (n, C), each row's sum is 1. The intercept is free.
    """
    mean, scale = tokens.double().mean(0).float(), tokens.double().std(0, correction=0).float()
    scale = torch.where(scale > 1e-6 * mean.abs(), scale, torch.inf)
    x = (tokens.float() - mean) / scale
    both = torch.zeros(x.shape[1] + 1, shares.shape[1], requires_grad=True)
    for penalty in penalties:
        steps = torch.optim.LBFGS([both], max_iter=100, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

        def loss(penalty: float = penalty) -> Tensor:
            both.grad = None
            value = functional.cross_entropy(x @ both[:-1] + both[-1], shares)
            value = value + penalty * both[:-1].square().sum() / 2
            value.backward()  # type: ignore[no-untyped-call]
            return value

        steps.step(loss)  # type: ignore[no-untyped-call]
        yield Head(mean, scale, both[:-1].detach().clone(), both[-1].detach().clone())


def best_head(tokens: Tensor, shares: Tensor, held: Tensor) -> Head:
    """The head whose penalty does best on the rows `held` (n,) bool, fitted to the others alone."""
    heads = list(fitted(tokens[~held], shares[~held]))
    losses = [float(functional.cross_entropy(head.logits(tokens[held]), shares[held])) for head in heads]
    return heads[int(torch.tensor(losses).argmin())]
