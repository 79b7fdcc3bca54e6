"""Where labelled tiles are from: hospitals, scanners or sites, by a column of their table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
SITES = ("institution", "scanner", "site")
"""Columns that say where a tile is from."""
GROUPS = ("group", "slide_id", "slide")
"""Columns that say which slide or case it is of; the first that there is counts."""
PATIENTS = ("patient", "patient_id", "patient_key")
"""Columns that say whose it is; the first that there is counts."""


@dataclass(frozen=True)
class Site:
    """Where n tiles are from, by one column.

    `numbers`: (n,) int64 into `names`, -1 where it is not known. `within`: the rows (m,) of tiles that are compared
    with each other and with no others, several times perhaps; None where all are compared. `k`: the number of
    neighbours that counts, 0 for one that the data allow.
    """

    column: str
    names: tuple[str, ...]
    numbers: Ints
    within: tuple[Ints, ...] | None = None
    k: int = 0

    @staticmethod
    def of(column: str, values: Sequence[object]) -> Site:
        """By the values of the column; None, NaN and blanks are not known."""
        said = ["" if is_missing(value) else str(value).strip() for value in values]
        names = sorted({name for name in said if name})
        place = {name: number for number, name in enumerate(names)}
        return Site(column, tuple(names), np.array([place.get(name, -1) for name in said], np.int64))

    def take(self, rows: Ints) -> Site:
        """Of these tiles alone, in this order; names that none of them has go."""
        there = np.unique(self.numbers[rows])
        there = there[there >= 0]
        place = np.full(len(self.names) + 1, -1, np.int64)  # the last for what is not known
        place[there] = np.arange(len(there))
        row_of = np.full(len(self.numbers), -1, np.int64)
        row_of[rows] = np.arange(len(rows))
        within = self.within and tuple(
            part for part in (kept[kept >= 0] for kept in (row_of[part] for part in self.within)) if len(part) > 1
        )
        names = tuple(self.names[number] for number in there)
        return replace(self, names=names, numbers=place[self.numbers[rows]], within=within)


def is_missing(value: object) -> bool:
    """Whether a value of a table says nothing."""
    return value is None or value != value or not str(value).strip()  # noqa: PLR0124 - NaN
