"""Dice and intersection over union of each class, with intervals over groups."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pretrain.evaluation.scores import Figure, interval, multiplicities

Floats = NDArray[np.float64]
MEAN_IOU, MEAN_DICE = "mean IoU", "mean Dice"


def pixel_confusion(said: NDArray[np.uint8], mask: NDArray[np.uint8], classes: int) -> Floats:
    """(C, C) counts of pixels, rows the true class; pixels of (h, w) masks that are no class count for nothing."""
    known = mask < classes
    place = mask[known].astype(np.int64) * classes + said[known]
    return np.bincount(place, minlength=classes**2).reshape(classes, classes).astype(np.float64)


def overlaps(confusions: Floats) -> tuple[Floats, Floats]:
    """(..., C, C) -> (..., C) Dice and IoU of each class; NaN for one that no pixel is of."""
    right = np.diagonal(confusions, axis1=-2, axis2=-1)
    truth, said = confusions.sum(-1), confusions.sum(-2)
    nothing = np.full_like(right, np.nan, float)
    dice = np.divide(2 * right, truth + said, out=nothing.copy(), where=truth > 0)
    iou = np.divide(right, truth + said - right, out=nothing, where=truth > 0)
    return dice, iou


def segmentation_figures(confusions: Floats, classes: tuple[str, ...], grouped: bool) -> dict[str, Figure]:
    """Of (G, C, C) counts by group: the means over classes that are there, then each class's Dice and IoU.

    Pixels of all tiles are counted together. Without `grouped`, no interval.
    """
    groups = len(confusions)
    resampled = np.empty((0, *confusions.shape[1:]))
    if grouped and groups > 1:
        resampled = (multiplicities(groups) @ confusions.reshape(groups, -1)).reshape(-1, *confusions.shape[1:])
    (dice, iou), (dices, ious) = overlaps(confusions.sum(0)), overlaps(resampled)
    found = {}
    for name, value, drawn in ((MEAN_IOU, iou, ious), (MEAN_DICE, dice, dices)):
        found[name] = _figure(_mean(value[None])[0], _mean(drawn))
    for number, name in enumerate(classes):
        found[f"Dice {name}"] = _figure(dice[number], dices[:, number])
        found[f"IoU {name}"] = _figure(iou[number], ious[:, number])
    return found


def _mean(values: Floats) -> Floats:
    """(R, C) -> (R,) over what is no NaN."""
    there = np.isfinite(values)
    means: Floats = np.where(there, values, 0).sum(1) / np.maximum(there.sum(1), 1)
    return means


def _figure(value: float, drawn: Floats) -> Figure:
    return Figure(float(value), 0.0, *interval(drawn[np.isfinite(drawn)]))
