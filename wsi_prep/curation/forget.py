"""Taking one patient's slides, or single slides, out of an output for good: what a later run finds again it leaves out.

A tombstone, forgotten.json in the output, remembers them by keyed hash of the patient and by hashes of slides' ids, so
it tells nobody whom it is about. It is written first: a deletion that is killed is completed by the same call.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from wsi_prep.format.layout import output_places
from wsi_prep.format.magnifications import MAGNIFICATIONS
from wsi_prep.format.records import SlideRow, tile_counts
from wsi_prep.output.catalog import Catalog
from wsi_prep.output.folder import CALL, catalog_counts, read_run, remember, sweep, write_run, writing
from wsi_prep.output.tombstone import id_hash, read_tombstone, write_tombstone
from wsi_prep.slides.private import drop_names
from wsi_prep.storage.base import Storage
from wsi_prep.storage.select import open_storage

_COLUMNS = ["slide_id", "file", "file_folder", "status", "patient_key", *(f"tiles_{m.name}" for m in MAGNIFICATIONS)]


@dataclass
class DeletionPlan:
    """What is, or was, deleted in one output: slides' rows, their files and bytes, and lines of the names file.

    `out` is a path or an object store's URL. `known_before`: the tombstone had all that was asked for, as after a call
    that was killed. `without_patient`: slides of which nothing says whose they are. `private`: slides have keyed ids,
    which a names file leads back from. `meant`: where a file's name was given for an id, the ids of such files.
    """

    out: str
    patients: tuple[str, ...]
    slide_ids: frozenset[str]
    rows: list[SlideRow]
    known_before: bool
    without_patient: int
    files: int = 0
    bytes: int = 0
    names: int = 0
    warnings: int = 0
    private: bool = False
    meant: tuple[str, ...] = ()

    @property
    def tiles(self) -> int:
        """Tiles of the slides."""
        return sum(sum(tile_counts(row).values()) for row in self.rows)


def look_up(out: str, patient_key: str | None, slide_ids: Collection[str]) -> DeletionPlan:
    """What `out` holds of the patient (a keyed hash) and of the slides; changes nothing. Raises BadCatalog."""
    storage = open_storage(out)
    catalog = Catalog(storage)
    catalog.names()  # raises where there is no catalog
    before = read_tombstone(storage)
    patients = (patient_key,) if patient_key is not None else ()
    rows = catalog.table(_COLUMNS)
    asked = pc.or_(
        pc.is_in(rows["slide_id"], pa.array(slide_ids, pa.string())),
        pc.is_in(rows["patient_key"], pa.array(patients, pa.string())),
    )
    mine: list[SlideRow] = rows.filter(asked).sort_by("slide_id").to_pylist()
    ids = frozenset(row["slide_id"] for row in mine)
    known = before.patients.issuperset(patients) and before.slides.issuperset(map(id_hash, slide_ids))
    bare = pc.sum(pc.and_(pc.is_null(rows["patient_key"]), pc.equal(rows["status"], "ok")), min_count=0).as_py()
    found = DeletionPlan(storage.where, patients, ids, mine, known, bare)
    found.meant = tuple(
        sorted(rows.filter(pc.is_in(rows["file"], pa.array(slide_ids, pa.string())))["slide_id"].to_pylist())
    )
    found.private = "private" in read_run(storage).get("settings", {})
    for path in (path for slide_id in ids for path in output_places(slide_id).values()):
        sizes = storage.sizes(path)
        found.files += len(sizes)
        found.bytes += sum(sizes.values())
    return found


def forget(found: DeletionPlan, names: Path | None, *, take_over: bool = False) -> None:
    """Delete what look_up found: the tombstone first, then rows, files, names, and what run.json says of them.

    Raises BadOutput where a run is working in the output (unless `take_over`: it is gone for good), or it cannot be
    written.
    """
    storage = open_storage(found.out)
    with storage.locked(uuid.uuid4().hex, take_over=take_over), writing(storage):
        tombstone = read_tombstone(storage).with_more(found.patients, found.slide_ids)
        write_tombstone(storage, tombstone)
        remember(storage, tombstone)
        catalog = Catalog(storage)
        catalog.recover()
        named = {file for row in found.rows if (file := row["file"])}
        found.warnings = _drop_warnings(storage, named)  # while rows still tell the names
        storage.delete([CALL])  # its paths may name the patient; the next run writes its own
        rows = catalog.table(["slide_id", "patient_key"])
        catalog.drop(rows["slide_id"].filter(tombstone.among(rows["slide_id"], rows["patient_key"])).combine_chunks())
        sweep(storage, catalog)
        if run := read_run(storage):
            write_run(storage, {**run, **catalog_counts(catalog)})
        if names is not None:
            found.names = drop_names(names, tombstone.has)


def _drop_warnings(storage: Storage, files: Collection[str]) -> int:
    """Take warnings that name these files out of what run.json says of the last call; returns how many."""
    run = read_run(storage)
    before = run.get("last_call", {}).get("warnings", [])
    after = [warning for warning in before if not any(file in warning for file in files)]
    if after != before:
        write_run(storage, {**run, "last_call": {**run["last_call"], "warnings": after}})
    return len(before) - len(after)
