"""What shards hold, as numbers: strata, what a balanced sampler would draw of them, diversity, quality.

Records and pure functions on them; audit_catalog fills them from the catalogs of shards folders.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from wsi_prep.curation.audit.slides import NAMES, Slides
from wsi_prep.format.records import STATUSES
from wsi_prep.format.strata import STRATUM_LEVELS, check_alpha, draw_probabilities

BINS = 24
MPP_BINS_AN_OCTAVE = 8
"""So a bin around a magnification's scale reaches 4.4 % to either side: about what counts as that scale."""

NOT_STATED = "not stated"


@dataclass(frozen=True)
class Stratum:
    """Tiles of one stain, institution and tissue at a magnification.

    `tissue_mm2` is the tissue of its slides, `drawn` its share of what the balanced sampler draws, in [0, 1].
    """

    magnification: str
    stain: str
    institution: str
    tissue: str
    slides: int
    tiles: int
    tissue_mm2: float
    drawn: float

    @property
    def name(self) -> tuple[str, str, str]:
        """stain, institution, tissue."""
        return self.stain, self.institution, self.tissue


@dataclass(frozen=True)
class Effective:
    """Effective numbers of groups: exp of Shannon's entropy, and the inverse of Simpson's index."""

    shannon: float
    simpson: float


@dataclass(frozen=True)
class Diversity:
    """How many `groups` there are of `what` at `magnification` ("all": any), and how many by each measure."""

    what: str
    magnification: str
    groups: int
    slides: Effective
    tiles: Effective
    tissue_mm2: Effective
    drawn: Effective


@dataclass(frozen=True)
class Distribution:
    """A quantity of tiles (or of their slides: stain_confidence): BINS `counts` from 0 to `top`, and quantiles."""

    quantity: str
    magnification: str
    top: float
    counts: tuple[int, ...]
    median: float
    upper: float
    most: float


@dataclass(frozen=True)
class Audit:
    """All numbers. `strata` are by magnification, then name; `mpp` counts slides by bin (0 is 0.25 um/px)."""

    folders: tuple[str, ...]
    alpha: float
    slides: Slides
    strata: tuple[Stratum, ...]
    diversity: tuple[Diversity, ...]
    mpp: Mapping[int, int]
    mpp_sources: Mapping[str, int]
    scanners: Mapping[str, int]
    distributions: tuple[Distribution, ...]
    notes: tuple[str, ...]

    @property
    def statuses(self) -> dict[str, int]:
        """Slides by status, in the order of STATUSES."""
        found = {each["values"]: each["counts"] for each in pc.value_counts(self.slides.table["status"]).to_pylist()}
        return {status: found.get(status, 0) for status in (*STATUSES, *sorted(found.keys() - set(STATUSES)))}

    @property
    def tiles(self) -> dict[str, int]:
        """Tiles by magnification."""
        return {name: sum(s.tiles for s in self.strata if s.magnification == name) for name in NAMES}

    @property
    def tissue_mm2(self) -> float:
        """Tissue of the slides that are ok."""
        rows = self.slides.table
        return float(pc.sum(rows["tissue_mm2"].filter(pc.equal(rows["status"], "ok")), min_count=0).as_py())

    @cached_property
    def reasons(self) -> list[tuple[str, str, NDArray[np.int64]]]:
        """status, error_type and the numbers of the slides that are not ok, the most frequent first."""
        rows, found = self.slides.table, defaultdict(list)
        numbers = self.slides.where(pc.not_equal(rows["status"], "ok"))
        these = rows.select(["status", "error_type"]).take(pa.array(numbers))
        for number, *key in zip(numbers.tolist(), *(column.to_pylist() for column in these.columns), strict=True):
            found[tuple(key)].append(number)
        ranked = sorted(found.items(), key=lambda item: (-len(item[1]), item[0]))
        return [(status, kind, np.array(numbers)) for (status, kind), numbers in ranked]

    @cached_property
    def warned(self) -> NDArray[np.int64]:
        """The numbers of the slides that have a warning."""
        return self.slides.where(pc.not_equal(self.slides.table["warning"], ""))


def with_shares(strata: Sequence[Stratum], alpha: float) -> tuple[Stratum, ...]:
    """The strata with what the sampler draws of each. Raises BadOption for an `alpha` outside 0 to 1."""
    check_alpha(alpha)
    magnification = np.array([NAMES.index(stratum.magnification) for stratum in strata], np.int64)
    drawn = draw_probabilities(magnification, np.array([stratum.tiles for stratum in strata]), alpha)
    return tuple(Stratum(**{**vars(s), "drawn": share}) for s, share in zip(strata, drawn.tolist(), strict=True))


def merged(slides: Slides, strata: Sequence[Stratum]) -> tuple[Stratum, ...]:
    """Strata of all magnifications together: a slide, and its tissue, counts once."""
    rows = slides.table.append_column("tiles", pa.array(sum(slides.tiles(name) for name in NAMES), pa.int64()))
    rows = rows.filter(pa.array(slides.any_tiles)).select([*STRATUM_LEVELS, "tiles", "tissue_mm2"])
    of = rows.group_by(list(STRATUM_LEVELS)).aggregate([("tiles", "count"), ("tiles", "sum"), ("tissue_mm2", "sum")])
    drawn: dict[tuple[str, ...], float] = defaultdict(float)
    for stratum in strata:
        drawn[stratum.name] += stratum.drawn
    found = [
        Stratum(
            "all",
            **{level: row[level] for level in STRATUM_LEVELS},
            slides=row["tiles_count"],
            tiles=row["tiles_sum"],
            tissue_mm2=row["tissue_mm2_sum"] or 0.0,
            drawn=0.0,
        )
        for row in of.to_pylist()
    ]
    return tuple(replace(each, drawn=drawn[each.name]) for each in sorted(found, key=attrgetter("name")))


def diversity(strata: Sequence[Stratum], together: Sequence[Stratum]) -> tuple[Diversity, ...]:
    """Of each level and of the strata over all magnifications, then of the strata at each."""
    found = [_diversity(level, "all", together, (level,)) for level in STRATUM_LEVELS]
    found.append(_diversity("stratum", "all", together, STRATUM_LEVELS))
    at = {name: [s for s in strata if s.magnification == name] for name in NAMES}
    return (*found, *(_diversity("stratum", name, these, STRATUM_LEVELS) for name, these in at.items() if these))


def effective(amounts: Sequence[float]) -> Effective:
    """Effective number of groups of these sizes (Hill numbers of order 1 and 2); 0 where all are empty."""
    total = math.fsum(amounts)
    if not total > 0:
        return Effective(0.0, 0.0)
    shares = [amount / total for amount in amounts if amount > 0]
    return Effective(
        math.exp(-math.fsum(p * math.log(p) for p in shares)), 1 / math.fsum(share * share for share in shares)
    )


def balance(audited: Audit) -> dict[str, list[tuple[str, float, float]]]:
    """For magnification and each level: name, share of the tiles that are there, share drawn; the largest first."""
    total = max(sum(stratum.tiles for stratum in audited.strata), 1)
    found = {}
    for level in ("magnification", *STRATUM_LEVELS):
        there: dict[str, float] = defaultdict(float)
        drawn: dict[str, float] = defaultdict(float)
        for stratum in audited.strata:
            there[getattr(stratum, level)] += stratum.tiles / total
            drawn[getattr(stratum, level)] += stratum.drawn
        names = sorted(there, key=lambda name: (-there[name], name))
        found[level] = [(name, there[name], drawn[name]) for name in names]
    return found


def significant(value: float | None, digits: int = 3) -> str:
    """A number for people: `digits` significant, without an exponent; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(float(f"{value:.{digits}g}"))))
    decimals = max(0, min(digits + 3, digits - 1 - exponent))
    return f"{value:,.{decimals}f}"


def _diversity(what: str, magnification: str, strata: Sequence[Stratum], levels: Sequence[str]) -> Diversity:
    amounts: dict[str, dict[tuple[str, ...], float]] = {}
    for measure in ("slides", "tiles", "tissue_mm2", "drawn"):
        sums: dict[tuple[str, ...], float] = defaultdict(float)
        for stratum in strata:
            sums[tuple(getattr(stratum, level) for level in levels)] += getattr(stratum, measure)
        amounts[measure] = sums
    measures = {measure: effective(list(sums.values())) for measure, sums in amounts.items()}
    return Diversity(what, magnification, len(amounts["tiles"]), **measures)
