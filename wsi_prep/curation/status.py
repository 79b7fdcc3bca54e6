"""How far an output is, read from its files alone: from another terminal, or where the run's own is gone."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wsi_prep.compute.time_limit import HUNG
from wsi_prep.errors import BadCatalog, BadOutput, OutputInUse
from wsi_prep.format.magnifications import MAGNIFICATIONS
from wsi_prep.format.records import SlideRow
from wsi_prep.output.catalog import Catalog
from wsi_prep.output.catalog_files import all_differ
from wsi_prep.output.folder import WORKING, read_run
from wsi_prep.storage.base import Storage
from wsi_prep.storage.select import local_folder, open_storage
from wsi_prep.untrusted.locks import CannotLock, try_lock

_COLUMNS = ["slide_id", "status", "error_type", "error", "bytes", "seconds"]
_STAGES = ("open", "tissue", "tiles", "publish")
_COLUMNS += [f"seconds_{stage}" for stage in _STAGES]
_COLUMNS += [f"tiles_{magnification.name}" for magnification in MAGNIFICATIONS]
_TRIES = 5
_TOKEN = 9
"""Characters behind a slide's id in the names of `.staging`: a dash, and eight of a token."""


@dataclass(frozen=True)
class Running:
    """A slide that is worked on: since how many `seconds`, and in which stage of `seconds_<stage>`."""

    slide_id: str
    seconds: float
    stage: str


@dataclass(frozen=True)
class Failure:
    """Slides that failed for one reason, and the first of them."""

    error_type: str
    slides: int
    slide_id: str
    error: str


@dataclass(frozen=True)
class Slow:
    """A slide that is done: its `seconds`, and the stage that took most of them."""

    slide_id: str
    seconds: float
    stage: str


@dataclass(frozen=True)
class Status:
    """`statuses`: slides in the catalog by their status; `tiles`: their tiles by magnification; `stage_seconds`: what
    each stage took of the workers. Of the last call, while it works or where it was stopped: `to_do` slides, of which
    `left` are not done, and how it goes. None is what the output does not tell.
    """

    out: str
    at_work: bool
    statuses: Mapping[str, int]
    tiles: Mapping[str, int]
    stage_seconds: Mapping[str, float]
    failures: tuple[Failure, ...]
    slowest: tuple[Slow, ...]
    running: tuple[Running, ...] | None
    to_do: int | None = None
    left: int | None = None
    slides_per_hour: float | None = None
    seconds_left: float | None = None
    bytes_made: int = 0
    bytes_to_come: int | None = None
    bytes_free: int | None = None


def read_status(out: str, most: int = 5, now: float | None = None) -> Status:
    """What there is to know of an output, with `most` slides in each list; `now` in seconds since 1970.

    Nothing is locked or written for longer than a look. Raises BadOutput where `out` is none.
    """
    storage, now = open_storage(out), time.time() if now is None else now
    run, rows = read_run(storage), _rows(storage)
    if not run:
        raise BadOutput(f"{storage.where} is no output of make shards: it has no run.json")
    working = _working(run)
    at_work = _at_work(storage)
    folder = local_folder(out)
    running = _running(storage.staging, now, most) if storage.staging is not None and at_work else None
    made = _sum(rows["bytes"])
    status: dict[str, Any] = {"bytes_made": made, "bytes_free": shutil.disk_usage(folder).free if folder else None}
    if working is not None:
        done = max(0, len(rows) - working.known)
        status |= {"to_do": working.slides, "left": max(0, working.slides - done)}
        if len(rows):
            status["bytes_to_come"] = round(made / len(rows) * status["left"])
        if working.since is not None and done and at_work:
            rate = done / max(now - working.since, 1e-3)
            status |= {"slides_per_hour": rate * 3600, "seconds_left": status["left"] / rate}
    return Status(
        storage.where,
        at_work,
        _counts(rows["status"]),
        {m.name: _sum(rows[f"tiles_{m.name}"]) for m in reversed(MAGNIFICATIONS)},
        {stage: _sum(rows[f"seconds_{stage}"].cast(pa.float64())) for stage in _STAGES},
        _failures(rows, most),
        _slowest(rows, most),
        running,
        **status,
    )


@dataclass(frozen=True)
class _Working:
    slides: int
    known: int
    since: float | None


def _working(run: Mapping[str, Any]) -> _Working | None:
    """What run.json says of a call that has not ended; None where there is none, or it was written by somebody else."""
    told = run.get(WORKING)
    if not isinstance(told, dict) or not all(type(told.get(name)) is int for name in ("slides", "known")):
        return None
    try:
        since = datetime.fromisoformat(told["since"]).replace(tzinfo=UTC).timestamp()
    except (KeyError, TypeError, ValueError):
        since = None
    return _Working(told["slides"], told["known"], since)


def _rows(storage: Storage) -> pa.Table:
    """The catalog's slides, each once; a merge may move files while they are read."""
    for tried in range(_TRIES):
        try:
            rows = Catalog(storage).table(_COLUMNS)
            break
        except (BadCatalog, FileNotFoundError):
            if tried == _TRIES - 1:
                raise
    if all_differ(rows["slide_id"]):
        return rows
    numbered = pa.table({"slide_id": rows["slide_id"], "number": np.arange(len(rows))})
    return rows.take(numbered.group_by("slide_id").aggregate([("number", "max")])["number_max"])


def _sum(values: pa.ChunkedArray) -> Any:
    return pc.sum(values, min_count=0).as_py()


def _counts(values: pa.ChunkedArray) -> dict[str, int]:
    """How often each is there, the most frequent first."""
    counts = {each["values"]: each["counts"] for each in pc.value_counts(values).to_pylist()}
    return dict(sorted(counts.items(), key=lambda each: -each[1]))


def _at_work(storage: Storage) -> bool:
    try:
        with storage.undisturbed(take_over=False):
            return False
    except OutputInUse:
        return True


def _running(staging: Path, now: float, most: int) -> tuple[Running, ...]:
    """The slides that have a locked file there, longest first."""
    found = []
    for file in staging.glob(f"*{HUNG}") if staging.is_dir() else ():
        try:
            with file.open("rb") as held:
                if try_lock(held, shared=True):  # its worker has died
                    continue
                began = file.stat().st_mtime
        except (OSError, CannotLock):  # done meanwhile; or nobody can tell
            continue
        slide_id = file.name.removesuffix(HUNG)[:-_TOKEN]
        found.append(Running(slide_id, max(0.0, now - began), _stage(staging, slide_id)))
    return tuple(sorted(found, key=lambda each: -each.seconds)[:most])


def _stage(staging: Path, slide_id: str) -> str:
    """By what it has written so far."""
    names = (each for each in staging.iterdir() if each.name.startswith(f"{slide_id}-"))
    folders = [each for each in names if len(each.name) == len(slide_id) + _TOKEN and each.is_dir()]
    if not folders:
        return "open"
    return "tiles" if any((each / "store.zarr").exists() for each in folders) else "tissue"


def _failures(rows: pa.Table, most: int) -> tuple[Failure, ...]:
    failed = rows.filter(pc.equal(rows["status"], "failed")).sort_by("slide_id")
    kinds = failed.set_column(failed.column_names.index("error_type"), "error_type", failed["error_type"].fill_null(""))
    found = kinds.group_by("error_type", use_threads=False).aggregate(
        [("slide_id", "count"), ("slide_id", "first"), ("error", "first")]
    )
    ranked = sorted(found.to_pylist(), key=lambda each: -each["slide_id_count"])
    return tuple(
        Failure(each["error_type"], each["slide_id_count"], each["slide_id_first"], each["error_first"] or "")
        for each in ranked[:most]
    )


def _slowest(rows: pa.Table, most: int) -> tuple[Slow, ...]:
    timed = rows.filter(pc.greater(rows["seconds"], 0))
    keys = [("seconds", "descending"), ("slide_id", "ascending")]
    first: list[SlideRow] = timed.take(pc.select_k_unstable(timed, most, keys)).to_pylist() if len(timed) else []
    return tuple(Slow(row["slide_id"], row["seconds"] or 0.0, _longest_stage(row)) for row in first)


def _longest_stage(row: Mapping[str, Any]) -> str:
    return max(_STAGES, key=lambda stage: row[f"seconds_{stage}"] or 0.0)
