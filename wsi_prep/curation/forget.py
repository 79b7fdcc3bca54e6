"""Taking one patient's slides, or single slides, out of an output for good: what a later run finds again it leaves out.

A tombstone, forgotten.json in the output, remembers them by keyed hash of the patient and by hashes of slides' ids, so
it tells nobody whom it is about. It is written first: a deletion that is killed is completed by the same call.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wsi_prep.errors import BadOutput, Forgotten
from wsi_prep.format.layout import output_places
from wsi_prep.format.magnifications import MAGNIFICATIONS
from wsi_prep.output.catalog import Catalog
from wsi_prep.output.folder import catalog_counts, read_run, sweep, write_run, writing
from wsi_prep.output.sealed_json import read_sealed, write_sealed
from wsi_prep.run.slide import SlideTask, blank_row, failure
from wsi_prep.slides.find.institution import UNKNOWN
from wsi_prep.slides.find.manifest import EMPTY_ROW
from wsi_prep.slides.private import drop_names
from wsi_prep.storage.base import Storage
from wsi_prep.storage.select import open_storage

TOMBSTONE = "forgotten.json"
_COLUMNS = ["slide_id", "file", "status", "patient_key", *(f"tiles_{m.name}" for m in MAGNIFICATIONS)]


@dataclass(frozen=True)
class Tombstone:
    """Who and what is forgotten: `patients` are keyed hashes, `slides` hashes of ids."""

    patients: frozenset[str] = frozenset()
    slides: frozenset[str] = frozenset()

    def has(self, slide_id: str, patient_key: str | None = None) -> bool:
        """Whether a slide of that id, or of that patient, must not be made."""
        return patient_key in self.patients or id_hash(slide_id) in self.slides

    def without(self, tasks: Sequence[SlideTask]) -> list[SlideTask]:
        """The tasks that are not forgotten."""
        return [task for task in tasks if not self.has(task.source.slide_id, task.patient_key)]

    def with_more(self, patients: Collection[str], slides: Collection[str]) -> Tombstone:
        """The same with more `patients` (keyed hashes) and `slides` (ids)."""
        return Tombstone(self.patients.union(patients), self.slides.union(map(id_hash, slides)))


def id_hash(slide_id: str) -> str:
    """A slide's id as 32 hex digits: an id may hold a part of the file's name."""
    return hashlib.blake2b(slide_id.encode(), digest_size=16, person=b"forgotten").hexdigest()


def read_tombstone(storage: Storage) -> Tombstone:
    """What the output is to forget; BadOutput where the file cannot be understood, since it must not be lost."""
    try:
        told = read_sealed(storage, TOMBSTONE)
        return Tombstone(_hashes(told["patients"]), _hashes(told["slides"]))
    except (FileNotFoundError, NotADirectoryError):
        return Tombstone()
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = f" ({error})" if isinstance(error, BadOutput) else ""
        raise BadOutput(
            f"{storage.where}/{TOMBSTONE} cannot be read{why}; restore it: without it, forgotten slides would be made "
            "again (make verify with REPAIR=1 does, from its copy)"
        ) from error


def _hashes(told: Any) -> frozenset[str]:
    """The texts of a list; TypeError for anything else, which would forget nobody."""
    if not isinstance(told, list) or not all(isinstance(each, str) for each in told):
        raise TypeError("no list of hashes")
    return frozenset(told)


def write_tombstone(storage: Storage, tombstone: Tombstone) -> None:
    """Replace the tombstone."""
    plain = {"patients": sorted(tombstone.patients), "slides": sorted(tombstone.slides)}
    write_sealed(storage, TOMBSTONE, plain)


def leave_forgotten(
    storage: Storage, tasks: Sequence[SlideTask], catalog: Catalog
) -> tuple[list[SlideTask], list[dict[str, Any]]]:
    """The tasks that are not forgotten, and rows of those that are; a row that the catalog lacks is committed.

    Such a row says that the slide is excluded, and nothing of what the manifest knows of it.
    """
    kept = read_tombstone(storage).without(tasks)
    ids = {task.source.slide_id for task in kept}
    rows = [_forgotten_row(task) for task in tasks if task.source.slide_id not in ids]
    if rows:
        known = {row["slide_id"] for row in catalog.slides(["slide_id", "error_type"]) if _is_forgotten(row)}
        catalog.drop({row["slide_id"] for row in rows} - known)
        for row in rows:
            if row["slide_id"] not in known:
                catalog.commit(row, catalog.no_tiles())
    return kept, rows


def _is_forgotten(row: dict[str, Any]) -> bool:
    return bool(row["error_type"] == Forgotten.__name__)


def _forgotten_row(task: SlideTask) -> dict[str, Any]:
    error = Forgotten("it was forgotten on request (forgotten.json); take it out of SLIDES")
    bare = replace(task, manifest=EMPTY_ROW, patient_key=None, institution_source=UNKNOWN)
    return {**blank_row(bare), "fingerprint": "", **failure(error, task.source)}


@dataclass
class Forgetting:
    """What is, or was, deleted in one output: slides' rows, their files and bytes, and lines of the names file.

    `out` is a path or an object store's URL. `known_before`: the tombstone had all that was asked for, as after a call
    that was killed. `without_patient`: slides of which nothing says whose they are.
    """

    out: str
    patients: tuple[str, ...]
    slide_ids: frozenset[str]
    rows: list[dict[str, Any]]
    known_before: bool
    without_patient: int
    files: int = 0
    bytes: int = 0
    names: int = 0
    warnings: int = 0

    @property
    def tiles(self) -> int:
        """Tiles of the slides."""
        return sum(row[f"tiles_{m.name}"] or 0 for row in self.rows for m in MAGNIFICATIONS)


def look_up(out: str, patient_key: str | None, slide_ids: Collection[str]) -> Forgetting:
    """What `out` holds of the patient (a keyed hash) and of the slides; changes nothing. Raises BadCatalog."""
    storage = open_storage(out)
    catalog = Catalog(storage)
    catalog.names()  # raises where there is no catalog
    before = read_tombstone(storage)
    patients = (patient_key,) if patient_key is not None else ()
    rows = catalog.slides(_COLUMNS)
    mine = [row for row in rows if row["slide_id"] in slide_ids or row["patient_key"] in patients]
    ids = frozenset(row["slide_id"] for row in mine)
    known = before.patients.issuperset(patients) and before.slides.issuperset(map(id_hash, slide_ids))
    bare = sum(row["patient_key"] is None and row["status"] == "ok" for row in rows)
    found = Forgetting(storage.where, patients, ids, mine, known, bare)
    for path in (path for slide_id in ids for path in output_places(slide_id).values()):
        sizes = storage.sizes(path)
        found.files += len(sizes)
        found.bytes += sum(sizes.values())
    return found


def forget(found: Forgetting, names: Path | None, *, take_over: bool = False) -> None:
    """Delete what look_up found: the tombstone first, then rows, files, names, and what run.json says of them.

    Raises BadOutput where a run is working in the output (unless `take_over`: it is gone for good), or it cannot be
    written.
    """
    storage = open_storage(found.out)
    with storage.locked(uuid.uuid4().hex, take_over=take_over), writing(storage):
        tombstone = read_tombstone(storage).with_more(found.patients, found.slide_ids)
        write_tombstone(storage, tombstone)
        catalog = Catalog(storage)
        catalog.recover()
        found.warnings = _drop_warnings(storage, {row["file"] for row in found.rows})  # while rows still tell the names
        rows = catalog.slides(["slide_id", "patient_key"])
        catalog.drop({row["slide_id"] for row in rows if tombstone.has(row["slide_id"], row["patient_key"])})
        sweep(storage, catalog)
        if run := read_run(storage):
            write_run(storage, {**run, **catalog_counts(catalog)})
        if names is not None:
            found.names = drop_names(names, tombstone.has)


def _drop_warnings(storage: Storage, files: Collection[str]) -> int:
    """Take warnings that name these files out of what run.json says of the last call; returns how many."""
    run = read_run(storage)
    before = run.get("last_call", {}).get("warnings", [])
    after = [warning for warning in before if not any(file and file in warning for file in files)]
    if after != before:
        write_run(storage, {**run, "last_call": {**run["last_call"], "warnings": after}})
    return len(before) - len(after)
