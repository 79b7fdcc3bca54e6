"""What shards of a cohort will take, from what a sample of it took: time, storage, objects, network and money.

A cohort of n slides is n times the mean slide of the sample. How far that mean can be off is asked of the sample
itself, by drawing its slides again with replacement (Efron's bootstrap, percentile intervals).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsi_prep.curation.assumptions import Assumptions
from wsi_prep.errors import BadCatalog, BadOption, Forgotten, counted
from wsi_prep.format.magnifications import MAGNIFICATIONS
from wsi_prep.format.records import TILES_PER_SHARD
from wsi_prep.output.folder import read_run
from wsi_prep.output.query import open_catalog
from wsi_prep.storage.select import open_storage

NAMES = tuple(m.name for m in MAGNIFICATIONS)
QUANTITIES = ("tiles", "core_hours", "storage_tb", "objects")
"""What is attributed to a magnification; network and money follow from them."""

REST = "beside tiles"
"""Slides without tiles, outlines, overlays, the stores' own metadata."""

_DRAWS = 2000
_SLIDES_A_PART, _FILES_A_PART = 50_000, 2
_FEW = 30
_GUESSED_GB = 1.0

_SAMPLE = """SELECT s.slide_id, seconds, source_bytes, coalesce(bytes, 0) AS bytes, coalesce(files, 0) AS files,
{columns} FROM slides s LEFT JOIN (
  SELECT slide_id, {sums} FROM tiles GROUP BY slide_id
) t USING (slide_id) WHERE seconds > 0 AND coalesce(error_type, '') != '{forgotten}' ORDER BY s.slide_id"""


@dataclass(frozen=True)
class Sample:
    """What a run left, a slide a row. `of`: QUANTITIES by (slide, magnification and REST, quantity).

    `source_bytes` are those of the slides' own files, of the slides whose rows say them.
    """

    where: str
    of: NDArray[np.float64]
    tiles_per_core_second: float
    settings: Mapping[str, object]
    source_bytes: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def __len__(self) -> int:
        return len(self.of)

    @property
    def asked(self) -> tuple[str, ...]:
        """The magnifications that the run was asked for; all where run.json does not say."""
        plan = self.settings.get("plan")
        names = plan.get("magnifications") if isinstance(plan, dict) else None
        return tuple(name for name in NAMES if not isinstance(names, list) or name in names)


@dataclass(frozen=True)
class Interval:
    """An estimate and the 95 % interval around it."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Estimate:
    """Of a whole cohort: `total` and `by_magnification` (REST included), intervals by quantity, cost included.

    `slide_gb_from` says where the assumed size of a slide comes from.
    """

    slides: int
    sample: Sample
    assumptions: Assumptions
    total: Mapping[str, Interval]
    by_magnification: Mapping[str, Mapping[str, Interval]]
    slide_gb_from: str

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        intervals = {name: asdict(value) for name, value in self.total.items()}
        parts = {n: {q: asdict(v) for q, v in of.items()} for n, of in self.by_magnification.items()}
        about = {"where": self.sample.where, "slides": len(self.sample), "settings": dict(self.sample.settings)}
        about["tiles_per_core_second"] = self.sample.tiles_per_core_second
        return {
            "slides": self.slides,
            "sample": about,
            "assumptions": {**asdict(self.assumptions), "slide_gb_from": self.slide_gb_from},
            "total": intervals,
            "by_magnification": parts,
        }

    @property
    def notes(self) -> list[str]:
        """What to think of before believing it."""
        found = ["the sample must be a random choice of the cohort; otherwise the intervals mean nothing"]
        if len(self.sample) < _FEW:
            slides = counted(len(self.sample), "slide")
            found.append(f"a sample of {slides} is small: intervals of fewer than {_FEW} are too narrow")
        return found


def read_sample(out: str | Path) -> Sample:
    """What the run in `out`, a path or a store's URL, took, slide by slide; BadCatalog where that is too little."""
    columns = ", ".join(f"coalesce(n_{n}, 0) AS n_{n}, coalesce(b_{n}, 0) AS b_{n}" for n in NAMES)
    sums = ", ".join(
        f"count(*) FILTER (magnification = '{n}') AS n_{n}, sum(nbytes) FILTER (magnification = '{n}') AS b_{n}"
        for n in NAMES
    )
    with open_catalog([str(out)]) as catalog:
        sql = _SAMPLE.format(columns=columns, sums=sums, forgotten=Forgotten.__name__)
        table = catalog.ask(sql).read_all()
    if len(table) < 2:
        raise BadCatalog(f"{out} holds {len(table)} slides with their time; a sample needs at least 2, and better 100")

    def column(name: str) -> NDArray[np.float64]:
        return np.asarray(table[name].to_numpy(), dtype=np.float64)

    tiles = np.stack([column(f"n_{n}") for n in NAMES], axis=1)
    jpegs = np.stack([column(f"b_{n}") for n in NAMES], axis=1)
    seconds = column("seconds")
    share = tiles / np.maximum(tiles.sum(axis=1, keepdims=True), 1)
    objects = np.where(tiles > 0, 1 + np.ceil(tiles / TILES_PER_SHARD), 0)
    of = np.zeros((len(table), len(NAMES) + 1, len(QUANTITIES)))
    of[:, :-1, 0] = tiles
    of[:, :-1, 1] = share * seconds[:, None] / 3600
    of[:, -1, 1] = np.where(tiles.sum(axis=1) > 0, 0, seconds / 3600)
    of[:, :-1, 2] = jpegs / 1e12
    of[:, -1, 2] = np.maximum(column("bytes") - jpegs.sum(axis=1), 0) / 1e12
    of[:, :-1, 3] = objects
    of[:, -1, 3] = np.maximum(column("files") - objects.sum(axis=1), 0)
    rate = float(tiles.sum() / max(seconds.sum(), 1e-9))
    known = table["source_bytes"].drop_null().to_numpy().astype(np.float64)
    return Sample(str(out), of, rate, read_run(open_storage(out)).get("settings", {}), known)


def estimate(sample: Sample, slides: int, assumptions: Assumptions, seed: int = 0) -> Estimate:
    """What `slides` slides like the sample's will take; BadOption for fewer than one."""
    if slides < 1:
        raise BadOption(f"SLIDES {slides} is not a number of slides")
    size_gb, size_from = _slide_gb(sample, assumptions)
    assumptions = replace(assumptions, slide_gb=size_gb)
    rng = np.random.default_rng(seed)
    flat = sample.of.reshape(len(sample), -1)
    even = np.full(len(sample), 1 / len(sample))
    weights = [even, *(rng.multinomial(len(sample), even) / len(sample) for _ in range(_DRAWS))]
    draws = np.stack([weight @ flat for weight in weights]).reshape(len(weights), *sample.of.shape[1:]) * slides
    draws[..., QUANTITIES.index("core_hours")] /= assumptions.speed
    parts = {name: _priced(draws[:, n], assumptions) for n, name in enumerate((*NAMES, REST))}
    total = _total(draws.sum(axis=1), slides, assumptions, slides * size_gb)
    return Estimate(
        slides,
        sample,
        assumptions,
        _intervals(total),
        {name: _intervals(values) for name, values in parts.items()},
        size_from,
    )


def _slide_gb(sample: Sample, assumptions: Assumptions) -> tuple[float, str]:
    """The mean size of a slide in GB, and where it comes from."""
    if assumptions.slide_gb is not None:
        return assumptions.slide_gb, "given"
    known = sample.source_bytes
    if len(known):
        return float(known.mean()) / 1e9, f"the mean of {len(known):,} slides of the sample"
    return _GUESSED_GB, "a guess: the sample's rows do not say how large its slides are"


_Draws = dict[str, NDArray[np.float64]]
"""By quantity: the estimate first, then what each drawing of the sample gives."""


def _priced(draws: NDArray[np.float64], assumptions: Assumptions) -> _Draws:
    """The quantities of (draws, quantity), and what they cost."""
    found: _Draws = {name: draws[:, n] for n, name in enumerate(QUANTITIES)}
    found["cost"] = (
        found["core_hours"] * assumptions.core_hour
        + found["storage_tb"] * assumptions.tb_month * assumptions.months
        + found["objects"] / 1000 * assumptions.puts_1000
    )
    return found


def _total(draws: NDArray[np.float64], slides: int, assumptions: Assumptions, read_gb: float) -> _Draws:
    """All magnifications together, and what only all together have."""
    whole = draws.copy()
    whole[:, QUANTITIES.index("objects")] += _FILES_A_PART * math.ceil(slides / _SLIDES_A_PART)
    found = _priced(whole, assumptions)
    found["wall_hours"] = found["core_hours"] / assumptions.workers / assumptions.busy
    found["wall_days"] = found["wall_hours"] / 24
    found["read_tb"] = np.full(len(draws), read_gb / 1000)
    seconds = np.maximum(found["wall_days"] * 86_400, 1e-9)
    found["network_gbit_s"] = (read_gb + found["storage_tb"] * 1000) * 8 / seconds
    found["cost_compute"] = found["core_hours"] * assumptions.core_hour
    found["cost_storage"] = found["storage_tb"] * assumptions.tb_month * assumptions.months
    found["cost_requests"] = found["objects"] / 1000 * assumptions.puts_1000
    found["cost_egress"] = np.full(len(draws), read_gb * assumptions.egress_gb)
    found["cost"] = found["cost"] + found["cost_egress"]
    return found


def _intervals(draws: _Draws) -> dict[str, Interval]:
    found = {}
    for name, values in draws.items():
        low, high = np.percentile(values[1:], (2.5, 97.5))
        found[name] = Interval(float(values[0]), float(low), float(high))
    return found
