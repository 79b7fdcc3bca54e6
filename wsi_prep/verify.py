"""A whole store looked at, file by file and slide by slide, and what is broken taken out, to be done again."""

from __future__ import annotations

import contextlib
import fcntl
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from wsi_prep.catalog import PART_NAME, Catalog
from wsi_prep.cluster_options import ClusterOptions
from wsi_prep.errors import BadCatalog, BadOutput
from wsi_prep.jobs import cluster, run_tasks
from wsi_prep.output import catalog_counts, read_run, sweep, write_run, writing
from wsi_prep.place import LOCK, open_place
from wsi_prep.prepare import output_places
from wsi_prep.query import local_files
from wsi_prep.verify_catalog import CatalogFile, Fault, check_catalog_file, slide_rows, twice
from wsi_prep.verify_slide import SlideCheck, SlideReport, check_slide

Progress = Callable[[int, int, int], None]
"""Called with slides done, slides in all, and bytes of tiles read so far."""


@dataclass
class Verified:
    """What was found in one output folder, and what a repair did to it.

    `strays` are paths relative to OUT. `undone` counts slides taken out of the catalog, `removed` files of no slide.
    """

    out: Path
    slides: int = 0
    tiles: int = 0
    bytes: int = 0
    faults: list[Fault] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    files: list[CatalogFile] = field(default_factory=list)
    undone: int | None = None
    removed: int = 0


def verify(
    out: Path, *, repair: bool = False, workers: int | None = None, progress: Progress = lambda *_: None
) -> Verified:
    """Look at every file of `out`; with `repair`, take broken slides out of its catalog and remove strays.

    Holds the output's lock meanwhile, so that no run changes what is looked at. Raises BadCatalog where there is no
    catalog, BadOutput where a run is working there.
    """
    names = _names(out)
    with _held(out, writes=repair):
        if repair:
            _finish_what_was_interrupted(out)
            names = _names(out)
        found = Verified(out)
        with cluster(ClusterOptions(workers=workers)) as client:
            tasks = [(str(out), name) for name in names]
            for task, outcome in run_tasks(client, check_catalog_file, tasks, lambda task: f"catalog-{task[1]}"):
                found.files.append(_file_outcome(task[1], outcome))
            _sum_up_files(found)
            checks = _checks(found)
            for check, report in run_tasks(client, check_slide, checks, lambda check: check.slide_id):
                _add(found, _slide_outcome(check, report))
                progress(found.slides, _sound_slides(found), found.bytes)
        _find_strays(found)
        if repair and found.faults:
            with writing(open_place(out)):
                _repair(found)
    return found


def _names(out: Path) -> list[str]:
    """Names of the catalog's files, those of tiles alone included."""
    slides = local_files(str(out), "slides")
    return sorted({file.name for file in (*slides, *local_files(str(out), "tiles"))})


@contextlib.contextmanager
def _held(out: Path, *, writes: bool) -> Iterator[None]:
    """The output's lock: to write, or shared with others who only look."""
    if writes:
        with open_place(out).locked(uuid.uuid4().hex, take_over=False):
            yield
        return
    if not (out / LOCK).exists():  # a copy may come without it
        yield
        return
    with (out / LOCK).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            raise BadOutput(f"a run is writing to {out}; verify it when that is through") from error
        yield


def _finish_what_was_interrupted(out: Path) -> None:
    with writing(open_place(out)), contextlib.suppress(BadCatalog):  # a damaged file is found again, by its name
        Catalog(out).recover()


def _file_outcome(name: str, outcome: CatalogFile | BaseException) -> CatalogFile:
    if isinstance(outcome, CatalogFile):
        return outcome
    fault = Fault("catalog", f"catalog/slides/{name}", f"it cannot be looked at ({type(outcome).__name__})")
    return CatalogFile(name, damaged=True, faults=[fault])


def _sum_up_files(found: Verified) -> None:
    if (found.out / "catalog/.journal.json").exists():
        what = "a merge was interrupted; the next make shards, or REPAIR=1, finishes it"
        found.faults.append(Fault("catalog", "catalog/.journal.json", what))
    for file in found.files:
        found.faults += file.faults
        found.broken.update(file.broken)
    for slide_id, count in twice([file for file in found.files if not file.damaged]).items():
        found.broken.add(slide_id)
        found.faults.append(Fault("rows", slide_id, f"it has rows in {count} files of catalog/slides"))


def _checks(found: Verified) -> Iterator[SlideCheck]:
    """A task for each slide whose row can be trusted, part by part."""
    for file in found.files:
        if not file.damaged:
            bad = {*file.orphans, *found.broken}
            for row in slide_rows(found.out, file.name):
                if row["slide_id"] not in bad:
                    yield SlideCheck(str(found.out), row, file.name)


def _sound_slides(found: Verified) -> int:
    return sum(len(file.statuses) for file in found.files if not file.damaged)


def _slide_outcome(check: SlideCheck, outcome: SlideReport | BaseException) -> SlideReport:
    if isinstance(outcome, SlideReport):
        return outcome
    what = f"it cannot be looked at ({type(outcome).__name__}: {' '.join(str(outcome).split())[:120]})"
    return SlideReport(check.slide_id, (Fault("rows", check.slide_id, what),))


def _add(found: Verified, report: SlideReport) -> None:
    found.slides += 1
    found.tiles += report.tiles
    found.bytes += report.bytes
    found.faults += report.faults
    if report.faults:
        found.broken.add(report.slide_id)
    found.strays += report.strays
    found.faults += [Fault("strays", path, "a file that is not its store's") for path in report.strays]


def _find_strays(found: Verified) -> None:
    """Files beside the slides' own: in stores, tissue and overlays those of no slide, in the catalog any but tables."""
    statuses = {i: status for file in found.files if not file.damaged for i, status in file.statuses.items()}
    damaged = any(file.damaged for file in found.files)
    for anyones in (found.out / relative for relative in output_places("*").values()):
        ending = anyones.suffix
        for path in sorted(anyones.parent.iterdir()) if anyones.parent.is_dir() else []:
            slide_id = path.name.removesuffix(ending)
            kept = ending != ".zarr" and statuses.get(slide_id) not in (None, "failed")
            ours = path.name.endswith(ending) and (kept or statuses.get(slide_id) == "ok")
            if not ours and not (damaged and path.name.endswith(ending)):  # it may be of a slide now unknown
                _stray(found, path)
    for folder in (found.out / "catalog", found.out / "catalog/slides", found.out / "catalog/tiles"):
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            table = folder.name == "catalog" and path.name in ("slides", "tiles", ".journal.json")
            rows = folder.name != "catalog" and path.suffix == ".parquet" and not path.name.startswith(".")
            if not table and not rows:
                _stray(found, path)


def _stray(found: Verified, path: Path) -> None:
    where = str(path.relative_to(found.out))
    found.strays.append(where)
    found.faults.append(Fault("strays", where, "no row is of it"))


def _repair(found: Verified) -> None:
    """Through the catalog's own steps, so that a repair that is killed is finished by the next."""
    place = open_place(found.out)
    catalog = Catalog(place)
    before = sum(len(file.statuses) for file in found.files)
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
        place.remove(path)
    sweep(place, catalog)
    run = read_run(place)
    if run:
        write_run(place, {**run, **catalog_counts(catalog)})
    found.removed = len(found.strays)
    found.undone = before - len(catalog.slides(["slide_id"]))
