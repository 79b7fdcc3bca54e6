"""Gated attention over a slide's tiles: Ilse, Tomczak and Welling 2018, arXiv 1802.04712, section 2.4."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pretrain.compute.randomness import Purpose, uniforms

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class AttentionSettings:
    """How the network is made and trained: AdamW at a rate that falls to 0 as a half cosine, a slide a step.

    `hidden`: width that features are projected to; `gate`: of the attention. Slides are seen `epochs` times, and more
    often where these are fewer than `steps`. There is no early stopping, which would need slides to stop by.
    """

    hidden: int = 128
    gate: int = 64
    dropout: float = 0.25
    rate: float = 1e-3
    decay: float = 1e-2
    epochs: int = 20
    steps: int = 2000
    seed: int = 0


class GatedAttention(nn.Module):
    """(tiles, F) features of a slide -> (C,) logits.

    h = relu(W x), a = softmax over tiles of w . (tanh(V h) * sigmoid(U h)), logits = O sum(a h), each with its bias.
    """

    def __init__(self, width: int, classes: int, settings: AttentionSettings) -> None:
        super().__init__()
        self.project = nn.Linear(width, settings.hidden)
        self.look = nn.Linear(settings.hidden, settings.gate)
        self.gate = nn.Linear(settings.hidden, settings.gate)
        self.weigh = nn.Linear(settings.gate, 1)
        self.tell = nn.Linear(settings.hidden, classes)
        self.dropout = nn.Dropout(settings.dropout)

    def forward(self, tiles: Tensor) -> Tensor:
        """See the class."""
        hidden = self.dropout(functional.relu(self.project(tiles)))
        weights = self.weights(hidden)
        told: Tensor = self.tell(self.dropout(weights @ hidden))
        return told

    def weights(self, hidden: Tensor) -> Tensor:
        """(tiles,) attention, which sums to 1."""
        gated = torch.tanh(self.look(hidden)) * torch.sigmoid(self.gate(hidden))
        return torch.softmax(self.weigh(gated)[:, 0], dim=0)


def attention_scores(
    bags: Sequence[NDArray[np.float32]],
    labels: Ints,
    train: NDArray[np.bool_],
    classes: int,
    settings: AttentionSettings | None = None,
) -> NDArray[np.float64]:
    """(slides judged on, C) probabilities by a network that was trained on the slides of `train` (n,), classes equal.

    `bags`: (tiles, F) of each slide, standardised here by the slides to learn from, each of which counts the same.
    """
    settings = settings or AttentionSettings()
    mean, scale = _moments([bags[n] for n in np.flatnonzero(train).tolist()])
    rows = [torch.from_numpy(((bag - mean) / scale).astype(np.float32)) for bag in bags]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = GatedAttention(rows[0].shape[1], classes, settings)
        _train(network, rows, labels, np.flatnonzero(train), settings)
    network.eval()
    with torch.no_grad():
        told = [torch.softmax(network(rows[n]).double(), 0).numpy() for n in np.flatnonzero(~train).tolist()]
    return np.stack(told)


def _moments(bags: Sequence[NDArray[np.float32]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(F,) mean and standard deviation of tiles, slides counting alike; what is constant keeps its scale."""
    mean = np.mean([bag.mean(0, dtype=np.float64) for bag in bags], axis=0)
    spread = np.sqrt(np.mean([((bag - mean) ** 2).mean(0) for bag in bags], axis=0))
    return mean, np.where(spread > 1e-6 * np.abs(mean), spread, np.inf)


def _train(
    network: GatedAttention, rows: Sequence[Tensor], labels: Ints, known: Ints, settings: AttentionSettings
) -> None:
    counts = np.bincount(labels[known], minlength=len(network.tell.bias))
    weight = torch.from_numpy(len(known) / np.maximum(counts, 1) / max((counts > 0).sum(), 1)).float()
    optimizer = torch.optim.AdamW(network.parameters(), settings.rate, weight_decay=settings.decay)
    epochs = max(settings.epochs, math.ceil(settings.steps / len(known)))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(known))
    network.train()
    for epoch in range(epochs):
        chance = uniforms(settings.seed, Purpose.BAG, 1 + epoch, range(len(known)), 1)[:, 0]
        for slide in known[np.argsort(chance, kind="stable")].tolist():
            label = torch.tensor(labels[slide])
            loss = functional.cross_entropy(network(rows[slide]), label) * weight[label]
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
