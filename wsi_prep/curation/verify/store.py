"""A whole store looked at, file by file and slide by slide, and what is broken taken out, to be done again."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from wsi_prep.compute.cluster.options import ClusterOptions
from wsi_prep.compute.jobs import cluster, run_tasks
from wsi_prep.curation.verify.catalog import CatalogFile, Fault, check_catalog_file, slide_rows, twice
from wsi_prep.curation.verify.slide import SlideCheck, SlideReport, check_slide
from wsi_prep.errors import BadCatalog, Forgotten, StoreFailed, counted, one_line
from wsi_prep.format.layout import PART_NAME, PLACES
from wsi_prep.format.records import is_table_file
from wsi_prep.output.catalog import Catalog
from wsi_prep.output.folder import CALL, RUN, catalog_counts, not_remembered, read_run, sweep, write_run, writing
from wsi_prep.output.sealed_json import SealedFile, unseal
from wsi_prep.output.tombstone import TOMBSTONE, Tombstone, told_by
from wsi_prep.storage.base import LOCK, STAGING, Storage
from wsi_prep.storage.locking.marked import HOLDER
from wsi_prep.storage.select import open_storage

OWN_NAMES = frozenset(
    (
        RUN,
        f".{RUN}",
        CALL,
        TOMBSTONE,
        f".{TOMBSTONE}",
        LOCK,
        HOLDER,
        STAGING,
        "catalog",
        *(folder for folder, _ in PLACES.values()),
    )
)
"""What an output has at its top."""

Progress = Callable[[int, int, int], None]
"""Called with slides done, slides in all, and bytes of tiles read so far."""


@dataclass
class Verified:
    """What was found in one output folder, or object-store URL, and what a repair did to it.

    `strays` are paths relative to OUT. `undigested` counts slides, and `unsealed` files of the catalog, that were made
    before digests were kept. `undone` counts slides taken out of the catalog, `removed` files of no slide; `restored`
    and `lost` are files of JSON that were damaged. `beside`: what lies in OUT and is none of its files; no fault.
    """

    out: str
    slides: int = 0
    tiles: int = 0
    bytes: int = 0
    faults: list[Fault] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    files: list[CatalogFile] = field(default_factory=list)
    sealed: list[SealedFile] = field(default_factory=list)
    undigested: int = 0
    unsealed: int = 0
    restored: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    undone: int | None = None
    removed: int = 0


def verify(
    out: str,
    *,
    repair: bool = False,
    take_over: bool = False,
    workers: int | None = None,
    progress: Progress = lambda *_: None,
) -> Verified:
    """Look at every file of `out`, a path or an object store's URL; with `repair`, undo broken slides, remove strays.

    Holds the output's lock meanwhile, so that no run changes what is looked at; in an object store only to repair, and
    else sees to it that none was at work. Raises BadCatalog where there is no catalog, BadOutput where a run is working
    there (unless `take_over`: it is gone for good), StoreFailed where a store does not answer, which is no fault.

    >>> found = verify("shards")
    >>> found.slides, found.faults
    (1, [])
    """
    storage = open_storage(out)
    names = Catalog(storage).names()
    lock = storage.locked(uuid.uuid4().hex, take_over=take_over) if repair else storage.undisturbed(take_over=take_over)
    with lock:
        if repair:
            _finish_what_was_interrupted(storage)
            names = Catalog(storage).names()
        found = Verified(storage.where)
        _look_at_json(storage, found)
        with cluster(ClusterOptions(workers=workers)) as client:
            tasks = [(found.out, name) for name in names]
            for task, outcome in run_tasks(client, check_catalog_file, tasks, lambda task: f"catalog-{task[1]}"):
                found.files.append(_file_outcome(task[1], outcome))
            _sum_up_files(storage, found)
            checks = _checks(storage, found)
            for check, report in run_tasks(client, check_slide, checks, lambda check: check.slide_id):
                _add(found, _slide_outcome(check, report))
                progress(found.slides, _sound_slides(found), found.bytes)
        _find_strays(storage, found)
        _look_beside(storage, found)
        if repair and found.faults:
            with writing(storage):
                _repair(storage, found)
    return found


def _finish_what_was_interrupted(storage: Storage) -> None:
    with writing(storage), contextlib.suppress(BadCatalog):  # a damaged file is found again, by its name
        Catalog(storage).recover()


def _file_outcome(name: str, outcome: CatalogFile | BaseException) -> CatalogFile:
    if isinstance(outcome, CatalogFile):
        return outcome
    _raise_if_store_failed(outcome)
    fault = Fault("catalog", f"catalog/slides/{name}", f"it cannot be looked at ({type(outcome).__name__})")
    return CatalogFile(name, damaged=True, faults=[fault])


def _look_at_json(storage: Storage, found: Verified) -> None:
    run, tombstone = (SealedFile.look_at(storage, name) for name in (RUN, TOMBSTONE))
    if run.is_gone:
        run = run.lost(
            "it and its copy are missing: the settings of its slides are lost, and make shards does nothing here "
            "until you restore it"
        )
    if what := _forgotten_less(storage, run, tombstone):
        tombstone = tombstone.lost(f"{what}: put it back, or make shards would make again what is forgotten")
    for file in (run, tombstone):
        found.sealed.append(file)
        found.faults += [Fault("run", path, what) for path, what in file.wrong.items()]


def _forgotten_less(storage: Storage, run: SealedFile, tombstone: SealedFile) -> str:
    """In which way forgotten.json says less than run.json and the catalog do, or an empty text."""
    if tombstone.wrong and tombstone.sound is None:
        return ""
    try:
        known = told_by(unseal(tombstone.sound)) if tombstone.sound is not None else Tombstone()
        if what := not_remembered(unseal(run.sound) if run.sound is not None else {}, known):
            return what
    except (KeyError, TypeError):
        return "it is no list of what is forgotten"
    rows = []
    with contextlib.suppress(BadCatalog):  # which is found again, by its name
        rows = Catalog(storage).slides(["error_type"]) if not len(known) else []
    count = sum(row["error_type"] == Forgotten.__name__ for row in rows)
    return f"it is missing, and the catalog has {counted(count, 'forgotten slide')}" if count else ""


def _raise_if_store_failed(outcome: BaseException) -> None:
    """What a store does not give today is not broken: nothing is to be repaired for that."""
    if isinstance(outcome, StoreFailed):
        raise outcome


def _sum_up_files(storage: Storage, found: Verified) -> None:
    if storage.exists("catalog/.journal.json"):
        what = "a merge was interrupted; the next make shards, or REPAIR=1, finishes it"
        found.faults.append(Fault("catalog", "catalog/.journal.json", what))
    for file in found.files:
        found.faults += file.faults
        found.unsealed += file.unsealed
        found.broken.update(file.broken)
    for slide_id, count in twice([file for file in found.files if not file.damaged]).items():
        found.broken.add(slide_id)
        found.faults.append(Fault("rows", slide_id, f"it has rows in {count} files of catalog/slides"))


def _checks(storage: Storage, found: Verified) -> Iterator[SlideCheck]:
    """A task for each slide whose row can be trusted, part by part."""
    for file in found.files:
        if not file.damaged:
            bad = {*file.orphans, *found.broken}
            for row in slide_rows(storage, file.name):
                if row["slide_id"] not in bad:
                    yield SlideCheck(found.out, row, file.name)


def _sound_slides(found: Verified) -> int:
    return sum(len(file.statuses) for file in found.files if not file.damaged)


def _slide_outcome(check: SlideCheck, outcome: SlideReport | BaseException) -> SlideReport:
    if isinstance(outcome, SlideReport):
        return outcome
    _raise_if_store_failed(outcome)
    what = f"it cannot be looked at ({type(outcome).__name__}: {one_line(outcome, 120)})"
    return SlideReport(check.slide_id, (Fault("rows", check.slide_id, what),))


def _add(found: Verified, report: SlideReport) -> None:
    found.slides += 1
    found.tiles += report.tiles
    found.bytes += report.bytes
    found.undigested += not report.digests
    found.faults += report.faults
    if report.faults:
        found.broken.add(report.slide_id)
    found.strays += report.strays
    found.faults += [Fault("strays", path, "a file that is not its store's") for path in report.strays]


def _find_strays(storage: Storage, found: Verified) -> None:
    """Files beside the slides' own: in stores, tissue and overlays those of no slide, in the catalog any but tables."""
    statuses = {i: status for file in found.files if not file.damaged for i, status in file.statuses.items()}
    damaged = any(file.damaged for file in found.files)
    for folder, ending in PLACES.values():
        for name in storage.names(folder):
            slide_id = name.removesuffix(ending)
            kept = ending != ".zarr" and statuses.get(slide_id) not in (None, "failed")
            ours = name.endswith(ending) and (kept or statuses.get(slide_id) == "ok")
            if not ours and not (damaged and name.endswith(ending)):  # it may be of a slide now unknown
                _stray(found, f"{folder}/{name}")
    for folder in ("catalog", "catalog/slides", "catalog/tiles"):
        for name in storage.names(folder):
            table = folder == "catalog" and name in ("slides", "tiles", ".journal.json")
            rows = folder != "catalog" and is_table_file(name)
            if not table and not rows:
                _stray(found, f"{folder}/{name}")


def _look_beside(storage: Storage, found: Verified) -> None:
    """What else lies in OUT: nothing that a repair deletes, since it may be somebody's."""
    found.beside += [name for name in storage.names("") if name not in OWN_NAMES]
    found.beside += [f"{STAGING}/{name}" for name in storage.names(STAGING)]


def _stray(found: Verified, path: str) -> None:
    found.strays.append(path)
    found.faults.append(Fault("strays", path, "no row is of it"))


def _repair(storage: Storage, found: Verified) -> None:
    """Through the catalog's own steps, so that a repair that is killed is finished by the next."""
    catalog = Catalog(storage)
    before = frozenset[str]().union(*(file.ids for file in found.files))
    for file in found.files:
        if file.damaged:
            catalog.discard(file.name)
        elif file.orphans and PART_NAME.fullmatch(file.name):
            catalog.drop_from(file.name, file.orphans)
        elif file.orphans:
            catalog.discard(file.name)
    catalog.recover()
    catalog.drop(found.broken)
    for path in found.strays:
        storage.remove(path)
    sweep(storage, catalog)
    for sealed in found.sealed:
        if sealed.wrong:
            (found.restored if sealed.restore(storage) else found.lost).append(sealed.name)
    if RUN not in found.lost and (run := read_run(storage)):
        write_run(storage, {**run, **catalog_counts(catalog)})
    found.removed = len(found.strays)
    found.undone = len(before - {str(row["slide_id"]) for row in catalog.slides(["slide_id"])})
