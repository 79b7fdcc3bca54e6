"""Whose neighbours tiles have: of their class from elsewhere, or of another class from their own site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Ints = NDArray[np.int64]
_ROWS = 8192  # that are held in double precision at once
_SCORES = 1 << 25  # likenesses that are held at once: 128 MB


@dataclass(frozen=True)
class Tally:
    """What the nearest neighbours of n tiles are, for each of K numbers of them.

    `same_class_elsewhere`, `other_class_here`: (n, K) int64 counts, the first of the tile's class and another site, the
    second of another class and the tile's site. `said`: (n, K) int64, the class of most of them, the lowest number
    among equals, -1 where there are none.
    """

    same_class_elsewhere: Ints
    other_class_here: Ints
    said: Ints


def tally(features: Tensor, labels: Ints, sites: Ints, apart: Sequence[Ints], numbers: Sequence[int]) -> Tally:
    """Of features (n, F), by cosine, among all others; `numbers`: how many neighbours, rising.

    `labels`, `sites`: (n,) int64. `apart`: numberings (n,) of slides, of patients; a tile that shares any of these
    with another is never its neighbour. Where fewer are left, these count. Memory goes with n, not with its square.
    """
    rows, offset = _for_cosines(features)
    k = min(max(numbers), len(rows))
    ends = np.minimum(numbers, k) - 1
    label, site = torch.from_numpy(labels), torch.from_numpy(sites)
    owners = [torch.from_numpy(numbering) for numbering in apart]
    classes = int(labels.max(initial=0)) + 1
    found: list[tuple[Ints, Ints, Ints]] = []
    for part in torch.split(torch.arange(len(rows)), max(1, _SCORES // max(len(rows), 1))):
        likeness = torch.addmm(offset, rows[part], rows.T)
        likeness[torch.arange(len(part)), part] = -torch.inf
        for owner in owners:
            likeness.masked_fill_(owner[part, None] == owner[None, :], -torch.inf)
        value, nearest = likeness.topk(k, dim=1)
        there = value > -torch.inf
        same_class, same_site = label[nearest] == label[part, None], site[nearest] == site[part, None]
        counts = [(there & of).cumsum(1)[:, ends].numpy() for of in (same_class & ~same_site, ~same_class & same_site)]
        said = _majorities(label[nearest], there, classes, ends)
        found.append((counts[0], counts[1], said))
    return Tally(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _for_cosines(features: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (n, F) and an offset (n,), both float32: row_i . row_j + offset_j is the cosine of i and j, but for a number
    of i's own.

    By the difference from the mean direction, so that cosines of features that lie close together keep their digits.
    """
    parts = torch.split(features, _ROWS)
    mean = torch.stack([_unit(part).sum(0) for part in parts]).sum(0) / len(features)
    rows = torch.cat([(_unit(part) - mean).float() for part in parts])
    return rows, torch.cat([(_unit(part) @ mean - mean @ mean).float() for part in parts])


def _unit(part: Tensor) -> Tensor:
    return functional.normalize(part.double(), dim=1)


def _majorities(labels: Tensor, there: Tensor, classes: int, ends: Ints) -> Ints:
    """(b, K): the class of most of the first neighbours, where `labels` and `there` are (b, k)."""
    votes = torch.zeros(len(labels), classes, dtype=torch.int32)
    said, begin = [], 0
    for end in ends.tolist():
        votes.scatter_add_(1, labels[:, begin : end + 1], there[:, begin : end + 1].int())
        begin = end + 1
        most = votes.numpy().argmax(1)  # numpy takes the first of equals, torch any
        said.append(np.where(votes.sum(1).numpy() > 0, most, -1))
    return np.stack(said, axis=1)
