"""Patch tokens judged while a model learns: each a row of a task, its class that of most of its pixels.

The judges are those of whole tiles: a linear model, and the nearest patches of other slides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.compute.devices import send
from pretrain.compute.randomness import Purpose, uniforms
from pretrain.data.labelled import Tiles, read_batches, whole_patches
from pretrain.errors import BadTask
from pretrain.evaluation.segmentation.judge import patch_shares, seen_part
from pretrain.evaluation.segmentation.tasks import Segmentation
from pretrain.evaluation.tasks import Task
from pretrain.features.embedder import Embedder, Inference, each_seen
from wsi_prep.errors import counted

MOST_PATCHES = 8_000
"""Of either side: what bounds the time and memory of a judgement, however many tiles there are."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class PatchTask:
    """n patches of tiles with masks, the same at each step.

    `tiles`: those that the patches are of. `tile`: (n,) int64, which of them, in order. `place`: (n,) int64, where in
    the tile's grid of patches, row by row. `task`: labels, slides and sides of the patches; a row a patch.
    """

    tiles: Tiles
    tile: Ints
    place: Ints
    task: Task

    def tokens(self, embedder: Embedder, inference: Inference) -> Tensor:
        """(n, D) float32 on the CPU, of a model that is on the device. Raises BadTask."""
        if embedder.patches is None:
            raise BadTask(f"{self.task.name}: the model has no patch tokens to judge")
        rows, done = [], 0
        for found in each_seen(embedder.module, embedder.patches, self._batches(embedder, inference)):
            tokens = found.float().cpu().flatten(1, 2)
            first, last = np.searchsorted(self.tile, (done, done + len(tokens)))
            of, place = self.tile[first:last] - done, self.place[first:last]
            rows.append(tokens[torch.from_numpy(of), torch.from_numpy(place)])
            done += len(tokens)
        return torch.cat(rows)

    def _batches(self, embedder: Embedder, inference: Inference) -> Iterator[Tensor]:
        for pixels in read_batches(self.tiles, inference.batch, inference.threads):
            yield send(whole_patches(pixels, embedder.patch_px), inference.device)


def patches_of(found: Segmentation, patch_px: int, seed: int = 0) -> PatchTask:
    """Patches of `patch_px` of a segmentation's tiles, at most MOST_PATCHES a side.

    Drawn by `seed`: as many of each class as there are, so that rare ones are whole. A patch counts where at least half
    of its pixels have a class. Reads every mask. Raises BadTask.
    """
    columns = [_labelled(found, number, patch_px) for number in range(len(found.tiles))]
    tile, place, label = (np.concatenate(each) for each in zip(*columns, strict=True))
    side = np.where(found.train, 0, np.where(found.test, 1, 2))[tile]
    both = np.intersect1d(label[side == 0], label[side == 1])
    if len(both) < 2:
        raise BadTask(
            f"{found.name}: patches of {patch_px} px are of {counted(len(both), 'class', 'classes')} that both sides "
            "have; add tiles, or draw larger regions"
        )
    kept = np.flatnonzero(np.isin(label, both))
    kept = kept[_drawn(label[kept], side[kept], seed)]
    tile, place, label, side = tile[kept], place[kept], label[kept], side[kept]
    used, tile_of = np.unique(tile, return_inverse=True)
    valid = None if found.valid is None or not (side == 2).any() else side == 2
    tiles = found.tiles.take(used)
    task = Task(
        f"{found.name}_patches",
        tiles,
        np.searchsorted(both, label),
        tuple(found.classes[number] for number in both),
        found.groups[tile],
        side == 0,
        valid,
        divided=True,
        grouped=found.grouped,
        notes=found.notes,
    )
    return PatchTask(tiles, tile_of, place, task)


def _drawn(label: Ints, side: Ints, seed: int) -> Ints:
    """Which rows stay of each side, in order: by chance, the n-th of each class before the next of any."""
    order = np.argsort(uniforms(seed, Purpose.PATCHES, 0, range(len(label)), 1)[:, 0], kind="stable")
    kind = (3 * label + side)[order]
    by_kind = np.argsort(kind, kind="stable")
    nth = np.empty(len(kind), np.int64)
    nth[by_kind] = np.arange(len(kind)) - np.searchsorted(kind[by_kind], kind[by_kind])
    order = order[np.argsort(nth, kind="stable")]
    return np.sort(np.concatenate([order[side[order] == one][:MOST_PATCHES] for one in np.unique(side)]))


def _labelled(found: Segmentation, number: int, patch_px: int) -> tuple[Ints, Ints, Ints]:
    """Of one tile, its patches that have a class: the tile's number, their places, and their classes."""
    mask = found.masks.read(number)
    rows, columns = (seen_part(side, patch_px) for side in mask.shape)
    grid = ((rows.stop - rows.start) // patch_px, (columns.stop - columns.start) // patch_px)
    if not all(grid):
        raise BadTask(f"{found.name}: tiles of {mask.shape[::-1]} px are smaller than a patch of {patch_px} px")
    shares = patch_shares(mask[rows, columns], grid, len(found.classes)).reshape(-1, len(found.classes))
    place = np.flatnonzero(2 * shares.sum(1) >= patch_px**2)
    return np.full(len(place), number), place, shares[place].argmax(1)
