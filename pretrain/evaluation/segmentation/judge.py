"""Patch tokens judged on tiles with masks: a linear head, its logits enlarged to pixels."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pretrain.compute.devices import send
from pretrain.compute.randomness import Purpose, uniforms
from pretrain.data.labelled import read_batches, resized, whole_patches
from pretrain.errors import BadTask
from pretrain.evaluation.judge import EvaluationRow
from pretrain.evaluation.scores import Figure
from pretrain.evaluation.segmentation.head import Head, best_head
from pretrain.evaluation.segmentation.scores import pixel_confusion, segmentation_figures
from pretrain.evaluation.segmentation.tasks import Segmentation
from pretrain.evaluation.tasks import hold_out
from pretrain.features.embedder import Embedder, Inference, each_seen

PATCHES = "patches"
MOST_PATCHES = 50_000
"""Patches that the head is fitted to, drawn by chance, as many of each tile."""

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]
Progress = Callable[[int], None]


def judge_patches(
    task: Segmentation,
    name: str,
    embedder: Embedder,
    inference: Inference,
    progress: Progress = lambda tiles: None,
) -> list[EvaluationRow]:
    """Each figure of a model's patch tokens; all NaN where one of them is not finite. Raises BadTask."""
    embedder.module.to(inference.device)
    tokens, shares, tile = _patches(task, embedder, inference, progress)
    confusions = None
    if tokens.isfinite().all():
        head = best_head(tokens, shares, torch.from_numpy(_held(task, tile)))
        confusions = _judged(task, embedder, head, inference, progress)
    found = (
        {metric: Figure(*[math.nan] * 4) for metric in segmentation_figures(_nothing(task), task.classes, False)}
        if confusions is None
        else segmentation_figures(confusions, task.classes, task.grouped)
    )
    groups = len(np.unique(task.groups[task.test])) if task.grouped else 0
    sides = (1, int(task.train.sum()), int(task.test.sum()), groups)
    return [
        EvaluationRow(task.name, name, PATCHES, metric, f.value, f.sd, f.low, f.high, *sides)
        for metric, f in found.items()
    ]


def _nothing(task: Segmentation) -> NDArray[np.float64]:
    return np.zeros((1, len(task.classes), len(task.classes)))


def _held(task: Segmentation, tile: Ints) -> NDArray[np.bool_]:
    """Which patches choices are made on: those of the valid side, or of a third of the groups to learn from."""
    if task.valid is not None:
        return task.valid[tile]
    rows = np.unique(tile)
    held = hold_out(task.groups[rows], np.zeros(len(rows), np.int64))
    if not held.any():
        held = hold_out(rows, np.zeros(len(rows), np.int64))
    if not held.any():
        raise BadTask(f"{task.name}: one tile to learn from is too few; add tiles")
    return np.isin(tile, rows[held])


def _patches(
    task: Segmentation, embedder: Embedder, inference: Inference, progress: Progress
) -> tuple[Tensor, Tensor, Ints]:
    """Some patches of the tiles not judged on: tokens (n, F), shares of classes (n, C), and whose they are (n,)."""
    rows = np.flatnonzero(~task.test)
    each = max(1, MOST_PATCHES // max(len(rows), 1))
    tokens, shares, tile = [], [], []
    for number, found, mask, _ in _seen(task, rows, embedder, inference, progress):
        share = patch_shares(mask, (found.shape[0], found.shape[1]), len(task.classes)).reshape(-1, len(task.classes))
        labelled = np.flatnonzero(share.sum(1) > 0)
        chance = uniforms(0, Purpose.PATCHES, 0, range(number, number + 1), share.shape[0])[0, labelled]
        chosen = labelled[np.sort(np.argsort(chance, kind="stable")[:each])]
        tokens.append(found.reshape(-1, found.shape[2])[torch.from_numpy(chosen)])
        part = share[chosen]
        shares.append(part / part.sum(1, keepdims=True))
        tile.append(np.full(len(chosen), number))
    if not sum(map(len, tile)):
        raise BadTask(f"{task.name}: no pixel to learn from has a class")
    return torch.cat(tokens), torch.from_numpy(np.concatenate(shares)).float(), np.concatenate(tile)


def _judged(
    task: Segmentation, embedder: Embedder, head: Head, inference: Inference, progress: Progress
) -> NDArray[np.float64]:
    """(G, C, C) counts of pixels by group, of the tiles judged on."""
    rows = np.flatnonzero(task.test)
    names, group = np.unique(task.groups[rows], return_inverse=True)
    counts = np.zeros((len(names), len(task.classes), len(task.classes)))
    place = dict(zip(rows.tolist(), group.tolist(), strict=True))
    for number, found, _, whole in _seen(task, rows, embedder, inference, progress):
        said = enlarged(head.logits(found), whole.shape, embedder)
        counts[place[number]] += pixel_confusion(said, whole, len(task.classes))
    return counts


def _seen(
    task: Segmentation, rows: Ints, embedder: Embedder, inference: Inference, progress: Progress
) -> Iterator[tuple[int, Tensor, Bytes, Bytes]]:
    """Of each of these tiles: number, tokens (rows, columns, F), the mask of what they are of, and all of it."""
    if embedder.patches is None:
        raise BadTask(f"{task.name}: the model has no patch tokens to judge")
    shapes: deque[tuple[int, ...]] = deque()

    def fitting() -> Iterator[Tensor]:
        for pixels in read_batches(task.tiles.take(rows), inference.batch, inference.threads):
            shapes.extend(tile.shape[:2] for tile in pixels)
            sized = [resized(tile, embedder.px) for tile in pixels]
            yield send(whole_patches(sized, embedder.patch_px), inference.device)

    batches, done = fitting(), 0
    for found in each_seen(embedder.module, embedder.patches, batches, inference.autocast):
        for tokens in found.float().cpu():
            number = int(rows[done])
            mask, shape = task.masks.read(number), shapes.popleft()
            if mask.shape != shape:
                raise BadTask(f"{task.name}: mask {number} is of {mask.shape[::-1]} px, its tile of {shape[::-1]}")
            yield number, tokens, mask[region(mask.shape, embedder)], mask
            done += 1
        progress(len(found))


def region(shape: tuple[int, ...], embedder: Embedder) -> tuple[slice, slice]:
    """What of a tile (h, w) a model sees: all of it, or its middle in whole patches."""
    if embedder.px:
        return slice(0, shape[0]), slice(0, shape[1])
    first, second = (seen_part(side, embedder.patch_px) for side in shape)
    return first, second


def seen_part(side: int, patch_px: int) -> slice:
    """What of a tile's side (px) a model of such patches sees, that takes tiles of any size: its middle."""
    whole = side // patch_px * patch_px
    return slice((side - whole) // 2, (side - whole) // 2 + whole)


def patch_shares(mask: Bytes, grid: tuple[int, int], classes: int) -> NDArray[np.float64]:
    """(rows, columns, C): counts of pixels of each class in each cell of (h, w) numbers; others count for nothing."""
    (h, w), (rows, columns) = mask.shape, grid
    cell = (np.arange(h) * rows // h)[:, None] * columns + np.arange(w) * columns // w
    known = mask < classes
    place = cell[known] * classes + mask[known]
    return np.bincount(place, minlength=rows * columns * classes).reshape(rows, columns, classes).astype(np.float64)


def enlarged(logits: Tensor, shape: tuple[int, ...], embedder: Embedder) -> Bytes:
    """(rows, columns, C) -> (h, w) classes: bilinear over what the model saw, its edge repeated to the tile's."""
    seen = region(shape, embedder)
    size = [part.stop - part.start for part in seen]
    large = functional.interpolate(logits.permute(2, 0, 1)[None], size=size, mode="bilinear", align_corners=False)
    top, left = (part.start for part in seen)
    beyond = (left, shape[1] - seen[1].stop, top, shape[0] - seen[0].stop)
    said = functional.pad(large, beyond, mode="replicate")[0].argmax(0)
    return said.numpy().astype(np.uint8)
