"""Guided training: fields of the catalog that the features should tell, or should not (learning.erasure)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pretrain.compute import distributed
from pretrain.compute.devices import send_together
from pretrain.data.fields import NUMBERS, Field, LabelArray
from pretrain.model.guide import REST, Told

_LARGEST_WEIGHT = 100.0
"""Of a class: one that is hardly ever drawn must not make a step of its own."""
_SUPPOSED_CLASSES = 16


@dataclass(frozen=True)
class GuideSettings:
    """Fields of the catalog that the features should tell (above 0), or should not (below 0); 0 for neither.

    Above 0, a head learns to tell the field from the student's class token, and the backbone gets so much of the head's
    gradient. Below 0, whatever the number, each checkpoint gets what erases the field. mpp and what follows are
    numbers, the others classes.
    """

    institution: float = 0.0
    scanner: float = 0.0
    vendor: float = 0.0
    stain: float = 0.0
    tissue: float = 0.0
    magnification: float = 0.0
    mpp: float = 0.0
    focus: float = 0.0
    saturation: float = 0.0
    od_haematoxylin: float = 0.0
    od_eosin: float = 0.0
    od_dab: float = 0.0

    @property
    def wanted(self) -> dict[str, float]:
        """The fields that are not 0."""
        return {name: weight for name, weight in dataclasses.asdict(self).items() if weight}

    @property
    def told(self) -> dict[str, float]:
        """The fields that have a head, with what goes into the backbone."""
        return {name: weight for name, weight in self.wanted.items() if weight > 0}

    @property
    def erased(self) -> list[str]:
        """The fields that are erased."""
        return [name for name, weight in self.wanted.items() if weight < 0]


def supposed_fields(settings: GuideSettings) -> list[Field]:
    """Fields as they might be, where there are no shards yet."""
    count = _SUPPOSED_CLASSES
    classes, shares = tuple(map(str, range(count))), (1 / count,) * count
    return [Field(name, *(((), ()) if name in NUMBERS else (classes, shares)), known=1.0) for name in settings.told]


def supposed_labels(settings: GuideSettings, tiles: int) -> list[LabelArray]:
    """Of so many tiles, for each of these fields."""
    return [np.zeros(tiles, np.float32) if name in NUMBERS else np.zeros(tiles, np.int64) for name in settings.told]


@dataclass(frozen=True)
class Labels:
    """Of a process's share of a batch, by field: `values` (B,) as Field.labels has them, and `known` of the whole
    global batch, a single number.
    """

    values: Mapping[str, Tensor]
    known: Mapping[str, Tensor]


class Guide:
    """What the heads of these fields learn, and how well they tell them."""

    def __init__(self, fields: Sequence[Field], device: torch.device) -> None:
        self.fields, self._device = tuple(fields), device
        self._weights = {field.name: torch.tensor(class_weights(field), device=device) for field in fields}

    def send(self, labels: Sequence[LabelArray]) -> Labels:
        """A share of a batch's labels to the device, one array a field; every process must."""
        if not self.fields:
            return Labels({}, {})
        values = dict(zip(self._weights, send_together(labels, self._device), strict=True))
        known = torch.stack([_known(value).sum().float() for value in values.values()])
        return Labels(values, dict(zip(values, distributed.all_sum(known).unbind(), strict=True)))

    def losses(self, told: Told, labels: Labels, rows: slice, parts: int) -> tuple[Tensor | float, dict[str, Tensor]]:
        """What the heads minimise, of the tiles in `rows` of this process's share, which is cut into so many `parts`.

        `told`: of crops of these tiles, crop after crop. The mean over parts and processes is that over all labelled
        tiles of the global batch and their crops. Returns numbers besides that `figures` makes readable.
        """
        total: Tensor | float = 0.0
        numbers: dict[str, Tensor] = {}
        for field in self.fields:
            said, values = told.outputs[field.name], labels.values[field.name][rows]
            crops = len(said) // len(values)
            values = values.repeat(crops)
            with torch.autocast(said.device.type, enabled=False):
                each, right, of = self._class(field, said, values) if field.classes else _number(said[:, 0], values)
            share = parts * distributed.size() / crops
            loss = each.sum() * share / labels.known[field.name].clamp_min(1)
            total = total + loss
            numbers[f"loss_guide_{field.name}"] = loss.detach()
            numbers |= {f"guide_{field.name}_right": right, f"guide_{field.name}_of": of}
        return total, numbers | {f"guide_{name}_sent": value for name, value in told.sent.items()}

    def figures(self, seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`seen`, means over parts and processes, with figures for people in place of what `losses` summed up."""
        made = dict(seen)
        if not self.fields:
            return made
        rest = made.pop(f"guide_{REST}_sent")
        for field in self.fields:
            name = f"guide_{field.name}"
            right, of, sent = (made.pop(f"{name}_{part}") for part in ("right", "of", "sent"))
            made[f"{name}_balanced_accuracy" if field.classes else f"{name}_r2"] = right / of
            made[f"{name}_gradient_ratio"] = (sent / rest).sqrt()
        return made

    def _class(self, field: Field, said: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        known, number = _known(values), values.clamp_min(0)
        weight = self._weights[field.name][number] * known
        each = functional.cross_entropy(said, number, reduction="none") * weight
        return each, ((said.detach().argmax(1) == number) * weight).sum(), weight.sum()


def outputs(fields: Iterable[Field]) -> dict[str, int]:
    """Numbers that the head of each field has to give."""
    return {field.name: max(1, len(field.classes)) for field in fields}


def class_weights(field: Field) -> list[float]:
    """Of each class of a field, one over its share of the draws, so that every class counts alike: 1 in the mean."""
    return [min(1 / (len(field.shares) * share), _LARGEST_WEIGHT) for share in field.shares]


def _number(said: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Smooth L1, which outliers of focus or density steer less than the square."""
    known = _known(values)
    wanted = torch.where(known, values, 0.0)
    each = functional.smooth_l1_loss(said, wanted, reduction="none") * known
    explained = (wanted.square() - (said.detach() - wanted).square()) * known
    return each, explained.sum(), wanted.square().sum()


def _known(values: Tensor) -> Tensor:
    """(B,) bool."""
    return values.isfinite() if values.is_floating_point() else values >= 0
