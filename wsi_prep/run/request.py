"""What somebody asks of a call of `make shards`, and what it tells them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from wsi_prep.compute.cluster.options import ClusterOptions
from wsi_prep.format.magnifications import MAGNIFICATIONS
from wsi_prep.format.records import SlideRow, shown_name, tile_counts
from wsi_prep.run.task import DEFAULT_TIME_LIMIT, PrepareSettings
from wsi_prep.slides.fetch.cache import CacheSettings
from wsi_prep.slides.find.institution import InstitutionPattern
from wsi_prep.slides.urls import bare_url
from wsi_prep.storage.select import local_folder


@dataclass(frozen=True)
class RunRequest:
    """What the user asked for.

    `out` is a folder or an object store's URL; `take_over` is for one that a run on another machine left locked,
    `forgotten_lost` for one whose forgotten.json is gone for good.
    `patient_key` turns patient ids into keyed hashes; without it none are written. `id_key` does the same to slides'
    names, everywhere in the output, and `names` is the file outside of it that leads back. `script` repeats the call;
    it holds paths, and is kept in output that is not private.

    >>> RunRequest("slides", "shards", settings=PrepareSettings(PlanSettings(("20x",)))).settings.plan.magnifications
    ('20x',)
    """

    slides: str
    out: str
    manifest: str | None = None
    masks: str | None = None
    settings: PrepareSettings = field(default_factory=PrepareSettings)
    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    redo: bool = False
    id_root: str | None = None
    patient_key: bytes | None = None
    time_limit: float = DEFAULT_TIME_LIMIT
    id_key: bytes | None = None
    names: Path | None = None
    institution_pattern: InstitutionPattern | None = None
    cache: CacheSettings = field(default_factory=CacheSettings)
    take_over: bool = False
    forgotten_lost: bool = False
    log: Path | None = None
    script: bytes | None = None

    def __post_init__(self) -> None:
        # workers may stand elsewhere
        object.__setattr__(self, "out", str(local_folder(self.out) or self.out.rstrip("/")))

    @property
    def manifest_path(self) -> str | None:
        """The manifest; a .csv list of slides is its own unless another is named."""
        return self.manifest or (self.slides if bare_url(self.slides).lower().endswith(".csv") else None)


@dataclass
class RunSummary:
    """What a call did: `rows` of its slides that are not ok, counts by status, tiles made now, and warnings.

    `tiles` counts those of all its slides, made now or before.
    `magnifications` are those that were asked for.
    `tiles_filtered` are those that were not made now because of a filter.
    """

    found: int = 0
    magnifications: tuple[str, ...] = tuple(m.name for m in MAGNIFICATIONS)
    done_before: int = 0
    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    tiles: int = 0
    tiles_made: Counter[str] = field(default_factory=Counter)
    tiles_filtered: int = 0
    bytes_made: int = 0
    worker_seconds: float = 0.0
    rows: list[SlideRow] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Slides of this call that failed."""
        return self.statuses["failed"]

    def add(self, row: SlideRow, *, now: bool) -> None:
        """Count one slide, done now or before."""
        self.statuses[row["status"]] += 1
        self.tiles += sum(tile_counts(row).values())
        if row["status"] != "ok":
            self.rows.append(row)
        elif row.get("warning"):
            self.warnings.append(f"{shown_name(row)}: {row['warning']}")
        if now:
            self.tiles_made.update(tile_counts(row))
            self.tiles_filtered += row["tiles_filtered"] or 0
            self.bytes_made += row["bytes"] or 0
            self.worker_seconds += row["seconds"] or 0.0


class Watcher(Protocol):
    """Somebody who looks on."""

    def started(self, todo: int, done_before: int, dashboard: str) -> None:
        """The cluster is up and work begins."""
        ...

    def finished(self, row: SlideRow) -> None:
        """One slide is through."""
        ...

    def noted(self, line: str) -> None:
        """Something holds the work up; told in another thread, perhaps before `started`."""
        ...


class Nobody:
    """Nobody looks on."""

    def started(self, todo: int, done_before: int, dashboard: str) -> None:
        """See Watcher."""

    def finished(self, row: SlideRow) -> None:
        """See Watcher."""

    def noted(self, line: str) -> None:
        """See Watcher."""
