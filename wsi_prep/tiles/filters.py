"""Which tiles are worth keeping, by their measures; nothing is left out unless somebody asks for it."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_prep.errors import BadOption
from wsi_prep.format.magnifications import MAGNIFICATIONS, magnification
from wsi_prep.format.records import STAINS
from wsi_prep.tiles.quality import MEASURES

_COMPARE = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_CONDITION = re.compile(
    r"(?P<measure>\w+)(?:@(?P<magnification>\w+))?(?::(?P<stain>\w+))?(?P<sign>[<>]=?)(?P<limit>[^<>=]+)"
)


@dataclass(frozen=True)
class TileFilter:
    """What a tile's `measure` must be: at least, at most, above or below (`sign`) `limit`.

    `magnification` names the one that it is about, `stain` the stain of its slides; None means each.
    """

    measure: str
    sign: str
    limit: float
    magnification: str | None = None
    stain: str | None = None

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise BadOption(f"filter names {self.measure!r}, which is not measured; choose from {' '.join(MEASURES)}")
        if self.sign not in _COMPARE:
            raise BadOption(f"filter compares by {self.sign!r}; choose from {' '.join(_COMPARE)}")
        if not math.isfinite(self.limit):
            raise BadOption(f"filter compares {self.measure} with {self.limit:g}; name a finite number")
        if self.magnification is not None:
            magnification(self.magnification)
        if self.stain not in (None, *STAINS):
            raise BadOption(f"filter names the stain {self.stain!r}; choose from {' '.join(STAINS)}")

    def __str__(self) -> str:
        at = f"@{self.magnification}" if self.magnification else ""
        of = f":{self.stain}" if self.stain else ""
        return f"{self.measure}{at}{of}{self.sign}{self.limit!r}"

    def is_for(self, stain: str | None) -> bool:
        """Whether it is about slides of that stain."""
        return self.stain in (None, stain)

    @property
    def where(self) -> str:
        """The same as a condition in SQL on the catalog's columns."""
        others = [f"magnification <> '{self.magnification}'"] if self.magnification else []
        others += [f"stain <> '{self.stain}'"] if self.stain else []
        return " OR ".join([*others, f"{self.measure} {self.sign} {self.limit!r}"])

    def passes(self, measures: Sequence[float], name: str) -> bool:
        """Whether a tile of the magnification `name` with these MEASURES is kept."""
        if self.magnification not in (None, name):
            return True
        return bool(_COMPARE[self.sign](measures[MEASURES.index(self.measure)], self.limit))

    def failures(self, measures: NDArray[np.float32], mag: NDArray[np.int8]) -> int:
        """How many tiles are not kept, of (n, m) MEASURES and (n,) places in MAGNIFICATIONS."""
        values = measures[:, MEASURES.index(self.measure)].astype(np.float64)  # the limit is not rounded to float32
        passing: NDArray[np.bool_] = _COMPARE[self.sign](values, self.limit)
        if self.magnification is not None:
            passing |= mag != MAGNIFICATIONS.index(magnification(self.magnification))
        return int((~passing).sum())


def say_lost(filters: Sequence[TileFilter], failures: Sequence[int], lost: int, tiles: int) -> str:
    """Why `lost` of a slide's `tiles` are left out; `failures` are how many fail each condition, one or several."""
    by_count = sorted(zip(failures, map(str, filters), strict=True), key=lambda said: -said[0])
    each = ", ".join(f"{count:,} fail {condition}" for count, condition in by_count if count)
    if lost < tiles:
        said = f"{lost:,} of {tiles:,} tiles with tissue do not pass the filter {' '.join(map(str, filters))}"
        return said if len(filters) == 1 else f"{said}: {each}"
    if by_count[0][0] == lost:
        return f"all {lost:,} tiles with tissue fail {by_count[0][1]}" + "".join(
            f", {count:,} fail {condition} too" for count, condition in by_count[1:] if count
        )
    return f"all {lost:,} tiles with tissue fail the filter: {each}"


def where_of(filters: Sequence[TileFilter]) -> str:
    """What passes all of them, as one condition in SQL on the catalog's columns."""
    return " AND ".join(
        f"({each.where})" if " OR " in each.where and len(filters) > 1 else each.where for each in filters
    )


def parse_filters(text: str) -> tuple[TileFilter, ...]:
    """Conditions from text such as "focus@40x>=0.2 focus:IHC>=0.1 pen<=0.02"; BadOption for anything else."""
    found = []
    for word in re.sub(r"\s*([<>]=?)\s*", r"\1", text).replace(",", " ").split():
        match = _CONDITION.fullmatch(word)
        try:
            limit = float(match["limit"]) if match else math.nan
        except ValueError:
            match = None
        if match is None:
            raise BadOption(f"filter {word!r} is not understood; write conditions as in focus>=0.1 pen<=0.02")
        stain = match["stain"] and match["stain"].upper()
        found.append(TileFilter(match["measure"], match["sign"], limit, match["magnification"], stain))
    return tuple(found)
