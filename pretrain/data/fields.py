"""Fields of the catalog as labels of drawn tiles: classes and numbers that a head can learn to tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pretrain.data.columns import TileNumbers, slide_texts
from pretrain.data.index import Index
from pretrain.data.sampler import Draw, Sampler
from wsi_prep.errors import BadOption
from wsi_prep.format.magnifications import MAGNIFICATIONS
from wsi_prep.format.strata import STRATUM_LEVELS

CLASSES = ("institution", "scanner", "vendor", "stain", "tissue", "magnification")
"""Fields whose values are classes."""
NUMBERS = ("mpp", "focus", "saturation", "od_haematoxylin", "od_eosin", "od_dab")
"""Fields whose values are numbers; all but mpp are of each tile."""

LabelArray = NDArray[np.int64] | NDArray[np.float32]
_ABSENT = {"", "unknown", "none"}  # whatever their case
_SHOWN = 60
_LEAST_SPREAD = 1e-6  # of a number, of its mean


@dataclass(frozen=True)
class Field:
    """A field over what a sampler draws.

    `classes`: the values that can be drawn, in order; none of a number. `shares`: of the draws that have a value, by
    class. `known`: the share of all draws that have one. `mean`, `spread`: of a number, over draws (spread: standard
    deviation).
    """

    name: str
    classes: tuple[str, ...]
    shares: tuple[float, ...]
    known: float
    mean: float = 0.0
    spread: float = 1.0
    _read: Callable[[Draw], LabelArray] = field(repr=False, default=lambda draw: draw.wanted)

    def labels(self, draw: Draw) -> LabelArray:
        """(B,) int64, the number of each tile's class, -1 where it is not known; or float32, standardised, NaN then."""
        values = self._read(draw)
        return values if self.classes else ((values - self.mean) / self.spread).astype(np.float32)


def fields(sampler: Sampler, names: Iterable[str]) -> list[Field]:
    """These fields, over what the sampler draws. Raises BadOption where one cannot be told, or there is no such one."""
    return [_checked(sampler, name) for name in names]


def unknown_field(name: str) -> str:
    """What to tell somebody who names a field that cannot be learnt."""
    known = ", ".join(CLASSES + NUMBERS)
    return f"no field {name[:_SHOWN]!r} can guide a training; these fields of the catalog can: {known}"


def association(sampler: Sampler, one: Field, other: Field) -> float:
    """Cramer's V of two fields of classes over what is drawn and known in both: 1 where either tells the other."""
    cells = sampler.cells
    every = Draw(0, np.arange(len(cells.slide)), cells.start, cells.slide, cells.stratum, cells.mpp)
    a, b = (field.labels(every).astype(np.int64) for field in (one, other))
    known = (a >= 0) & (b >= 0)
    joint = np.zeros((len(one.classes), len(other.classes)))
    np.add.at(joint, (a[known], b[known]), cells.chance[known])
    joint = joint[joint.sum(1) > 0][:, joint.sum(0) > 0]
    if min(joint.shape) < 2:
        return 0.0
    joint /= joint.sum()
    independent = np.outer(joint.sum(1), joint.sum(0))
    return float(np.sqrt((((joint - independent) ** 2) / independent).sum() / (min(joint.shape) - 1)))


def _checked(sampler: Sampler, name: str) -> Field:
    if name in CLASSES:
        found = class_field(sampler, name)
        if len(found.classes) > 1:
            return found
        has = f"all have {found.classes[0]!r}, or none" if found.classes else "none has any"
    elif name in NUMBERS:
        found = _number(sampler, name)
        if found.spread > _LEAST_SPREAD * max(1.0, abs(found.mean)):
            return found
        has = f"all have {found.mean:.4g}, or none" if found.known else "none has any"
    else:
        raise BadOption(unknown_field(name))
    counts = {other: len(class_field(sampler, other).classes) for other in CLASSES}
    several = ", ".join(f"{other} ({count})" for other, count in counts.items() if count > 1) or "none"
    raise BadOption(
        f"guide.{name} has nothing to tell apart: of the tiles that can be drawn {has}; leave it out, or widen SHARDS, "
        f"WHERE or the mix (fields with several values here: {several})"
    )


def class_field(sampler: Sampler, name: str) -> Field:
    """A field of classes, of however many."""
    cells = sampler.cells
    if name == "magnification":
        names, codes = [m.name for m in MAGNIFICATIONS], sampler.magnification_of(cells.stratum)
        of_row = np.arange(len(names))
    else:
        names, of_row = _of_slides(sampler.index, name)
        codes = of_row[cells.slide]
    weight = np.bincount(codes[codes >= 0], cells.chance[codes >= 0], len(names))
    there = np.flatnonzero(weight > 0)
    renumbered = np.full(len(names) + 1, -1)  # the last is that of -1
    renumbered[there] = np.arange(len(there))
    known = float(weight.sum())
    shares = tuple((weight[there] / known).tolist()) if known else ()
    read = partial(_class_of, sampler, renumbered[of_row], name == "magnification")
    return Field(name, tuple(names[n] for n in there), shares, known, _read=read)


def _class_of(sampler: Sampler, codes: NDArray[np.int64], by_magnification: bool, draw: Draw) -> NDArray[np.int64]:
    """Of drawn tiles, by `codes` of slides, or of magnifications."""
    return codes[sampler.magnification_of(draw.stratum) if by_magnification else draw.slide]


def _of_slides(index: Index, name: str) -> tuple[list[str], NDArray[np.int64]]:
    """The values of a field of slides, and for each slide the number of its own, -1 where it is not known."""
    if name in STRATUM_LEVELS:
        names, codes = index.names[name], index.slides[name].astype(np.int64)
    else:
        texts = [text or "" for text in slide_texts(index, name)]
        names = sorted(set(texts))
        codes = np.searchsorted(names, texts) if texts else np.empty(0, np.int64)
    absent = np.array([value.strip().casefold() in _ABSENT for value in names], bool)
    return list(names), np.where(absent[codes], -1, codes)


def _number(sampler: Sampler, name: str) -> Field:
    cells = sampler.cells
    if name == "mpp":
        mpp = cells.mpp.astype(np.float64)
        sums = np.stack([cells.count, cells.count * mpp, cells.count * mpp**2], 1)
        read: Callable[[Draw], NDArray[np.float32]] = _mpp
    else:
        values = TileNumbers(sampler.index, name)
        sums = values.sums(cells.start, cells.count)
        read = partial(_value, values)
    known, first, second = (cells.chance[:, None] * sums / cells.count[:, None]).sum(0).tolist()
    if name == "mpp" and (moments := sampler.mpp_moments):
        return Field(name, (), (), 1.0, *moments, read)
    if not known:
        return Field(name, (), (), 0.0, 0.0, 0.0, read)
    mean = first / known
    return Field(name, (), (), known, mean, math.sqrt(max(second / known - mean**2, 0.0)), read)


def _mpp(draw: Draw) -> NDArray[np.float32]:
    return draw.wanted


def _value(values: TileNumbers, draw: Draw) -> NDArray[np.float32]:
    """Of each tile, or the mean over its block."""
    found = values[draw.tile]
    if draw.any_mpp is not None:
        beside = draw.any_mpp.beside
        whole = beside[:, 0] >= 0
        others = values[beside[whole].ravel()].reshape(-1, beside.shape[1])
        found[whole] = (found[whole] + others.sum(1)) / (1 + beside.shape[1])
    return found
