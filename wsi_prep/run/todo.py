"""What a call has to do: tasks of slides, less those that are done or forgotten."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import chain, repeat
from operator import itemgetter
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from wsi_prep.errors import BadOutput, Forgotten, counted
from wsi_prep.format.magnifications import MAGNIFICATIONS
from wsi_prep.format.records import SlideRow
from wsi_prep.output.catalog import Catalog
from wsi_prep.output.tombstone import TOMBSTONE, Tombstone, read_tombstone
from wsi_prep.run.request import RunRequest, RunSummary
from wsi_prep.run.row import manifest_columns
from wsi_prep.run.task import TOLD, Asked, Marks, SlideTask, Told, Words
from wsi_prep.slides.find.fingerprint import Unseen
from wsi_prep.slides.find.folders import found_notes
from wsi_prep.slides.find.found import Found, Sources
from wsi_prep.slides.find.institution import UNKNOWN, find_origin
from wsi_prep.slides.find.manifest import EMPTY_ROW, ManifestRow, read_manifest
from wsi_prep.slides.find.naming import one_form, told_apart
from wsi_prep.slides.find.sources import paths_below
from wsi_prep.slides.private import keyed_patient
from wsi_prep.stain.classify import DISAGREEMENT
from wsi_prep.storage.base import Storage
from wsi_prep.storage.select import local_folder
from wsi_prep.tissue.masks import MaskFile, find_masks

_LOOKED_AT = (
    *("slide_id", "file", "status", "error_type", "error", "warning", "fingerprint", "config_hash", "patient_key"),
    *("file_folder", "manifest", "source_seen"),
    *("institution", "institution_source", "tissue", "stain", "stain_confidence", "stain_source"),
    *("stain_pixels", "stain_pixels_confidence"),
    *("tiles_5x", "tiles_10x", "tiles_20x", "tiles_40x"),
)
"""The columns of earlier rows that a run needs; of millions of slides all would not fit."""

_NO_ROWS = pa.table({"slide_id": pa.array([], pa.string()), "error_type": pa.array([], pa.string())})
_AT_ONCE, _TOGETHER, _QUICK_SECONDS = 16, 1_000, 1e-4

T = TypeVar("T")


def leave_forgotten(tombstone: Tombstone, tasks: Asked, catalog: Catalog) -> tuple[Asked, Asked]:
    """The tasks that are not forgotten, and those that are; the rows that earlier versions wrote of such slides go."""
    kept, forgotten = by_tombstone(tombstone, tasks)
    if len(tombstone):
        rows = catalog.table(["slide_id", "error_type"])
        known = rows["slide_id"].filter(pc.equal(rows["error_type"], Forgotten.__name__)).to_pylist()
        gone = set(forgotten.ids.to_pylist())
        catalog.drop({slide_id for slide_id in known if slide_id in gone or tombstone.has(slide_id)})
    return kept, forgotten


def without_forgotten(texts: Sequence[str], forgotten: Sequence[SlideTask]) -> list[str]:
    """The texts that name the file of none of these slides."""
    names = "|".join(re.escape(task.source.name) for task in forgotten)
    named = re.compile(rf"(?<!\w)(?:{names})(?!\w)")
    return [text for text in texts if not (forgotten and named.search(text))]


def forgotten_note(slides: int) -> list[str]:
    """What a user should know of so many slides in SLIDES that are forgotten: their names are written nowhere."""
    if not slides:
        return []
    files = counted(slides, "slide in SLIDES is", "slides in SLIDES are")
    return [f"{files} forgotten: skipped without a name or a row; take the files out of SLIDES"]


def by_tombstone(tombstone: Tombstone, tasks: Asked) -> tuple[Asked, Asked]:
    """The tasks that are not forgotten, and those that are."""
    forgotten = _all(tombstone.among(tasks.table["slide_id"], tasks.table["patient_key"].cast(pa.string())))
    return tasks.where(~forgotten), tasks.where(forgotten)


def known_before(storage: Storage, tasks: Asked, catalog: Catalog) -> Asked:
    """The tasks, those that OUT knows by an earlier version's id under that: none is made twice or though forgotten."""
    renamed = tasks.sources.renamed()
    if not renamed:
        return tasks
    tombstone = read_tombstone(storage)
    known = catalog.among(renamed.values())
    was = tasks.formerly(lambda former_id: former_id in known or tombstone.has(former_id))
    return tasks.called(pc.coalesce(was, tasks.ids))


def manifest_rows(request: RunRequest, found: Found, tombstone: Tombstone) -> tuple[dict[str, ManifestRow], list[str]]:
    """The manifest's rows by slide id, and what a user should know of what was found, and of rows that fit no slide.

    By lines, not by names, where a name may be that of a forgotten slide whose file is gone, too.
    """
    bare = (private := request.id_key is not None) or len(tombstone) > 0
    notes = found_notes(found, private=bare)
    if request.manifest_path is None:
        return {}, notes
    manifest = read_manifest(request.manifest_path)
    matched = manifest.match(found.sources, found.left_out)
    return dict(matched.rows), [*notes, *manifest.notes(private=private), *matched.notes(private=bare)]


def asked_for(request: RunRequest, found: Found, storage: Storage, run: tuple[str, float]) -> tuple[Asked, list[str]]:
    """A task for each slide that was found, whether it is done or forgotten; and what a user should know of them.

    `run` is its token, and when it began: in private output the time of all files. There the order of work tells
    nothing of names either.
    """
    sources, private = found.sources, request.id_key is not None
    manifest, warnings = manifest_rows(request, found, read_tombstone(storage))
    masks, mask_notes = find_masks(request.masks, local_folder(request.out), sources, private=private)
    told, notes = _told(request, sources, manifest, masks)
    tasks = Asked(told, _maker(request, sources, manifest, masks, run), sources, private)
    return tasks.by_id() if private else tasks, [*warnings, *mask_notes, *notes]


def _told(
    request: RunRequest, sources: Sources, manifest: Mapping[str, ManifestRow], masks: Mapping[str, MaskFile]
) -> tuple[pa.Table, list[str]]:
    """The table of `Asked`, and what a user should know of institutions and patients."""
    private, pattern = request.id_key is not None, request.institution_pattern
    below = paths_below(sources.paths, request.slides, request.id_root) if pattern is not None else repeat("")
    columns = {name: Words() for name in TOLD}
    marks, keys = Marks(request.settings), dict[str, str]()
    unknown, patients = 0, False
    add_institution, add_source, add_key = (
        columns[n].add for n in ("institution", "institution_source", "patient_key")
    )
    for (slide_id, name, _), path in zip(sources.named(), below, strict=False):
        row = manifest.get(slide_id, EMPTY_ROW)
        origin = find_origin(row.institution, row.patient, name, path, pattern)
        unknown += origin.source == UNKNOWN
        key, patient = None, origin.patient
        if patient:
            patients = True
            if request.patient_key is not None:
                key = keys.get(patient) or keys.setdefault(patient, keyed_patient(request.patient_key, patient))
        add_institution(origin.institution or UNKNOWN)
        add_source(origin.source)
        add_key(key)
        if manifest or masks:
            mask = masks.get(slide_id)
            columns["config_hash"].add(marks.mark(row.mpp, mask.digest if mask else None, row.stain))
            columns["tissue"].add(row.tissue or "unknown")
            columns["stain"].add(row.stain)
            columns["manifest"].add(None if private else row.more)
    if not manifest and not masks:
        columns["config_hash"].all(marks.mark(None, None, None), len(sources))
        columns["tissue"].all("unknown", len(sources))
    if not private:
        folders = folders_of(request, sources)
        for slide_id in sources.ids.to_pylist() if folders else ():
            columns["file_folder"].add(folders.get(slide_id))
    table = {"number": np.arange(len(sources), dtype=np.int32), "slide_id": sources.ids}
    table |= {name: column.column(len(sources)) for name, column in columns.items()}
    return pa.table(table), _origin_notes(request, unknown, len(sources), patients=patients)


def _maker(
    request: RunRequest,
    sources: Sources,
    manifest: Mapping[str, ManifestRow],
    masks: Mapping[str, MaskFile],
    run: tuple[str, float],
) -> Callable[[Told], SlideTask]:
    """What makes a slide's task. In private output the id stands for the name, wherever a worker would write it."""
    token, made_at = run[0], run[1] if request.id_key is not None else None

    def make(told: Told) -> SlideTask:
        found = sources[told["number"]]
        source, row = replace(found, slide_id=told["slide_id"]), manifest.get(found.slide_id, EMPTY_ROW)
        if request.id_key is not None:
            source, row = replace(source, name=found.slide_id), replace(row, more=None)
        stripped = replace(row, institution=told["institution"], patient=None)
        of_run = (request.settings, request.out, token, request.time_limit)
        made = (told["institution_source"], masks.get(found.slide_id), request.cache)
        return SlideTask(
            source, stripped, told["patient_key"], *of_run, *made, made_at=made_at, file_folder=told["file_folder"]
        )

    return make


def _origin_notes(request: RunRequest, unknown: int, slides: int, *, patients: bool) -> list[str]:
    """What a user should know of institutions and patients."""
    notes = []
    if request.patient_key is None and patients:
        notes.append("patient ids are not written; PATIENT_KEY=file with a secret of yours writes them as keyed hashes")
    if request.institution_pattern is not None and unknown:
        notes.append(f"INSTITUTION_PATTERN does not fit {unknown} of {slides} slides, and nothing else names theirs")
    return notes


def folders_of(request: RunRequest, sources: Sources) -> dict[str, str]:
    """Folders' names that tell slides of one name apart, by slide id."""
    alike = _names_of_several(name for _, name, _ in sources.named())
    if not alike:
        return {}
    slides = ((slide_id, name, path) for slide_id, name, path in sources.named() if hash(one_form(name)) in alike)
    ids, names, paths = zip(*slides, strict=True)
    return told_apart(zip(ids, names, paths_below(paths, request.slides, request.id_root), strict=True))


def _names_of_several(names: Iterable[str]) -> set[int]:
    """Hashes of the names that occur more than once."""
    hashes = np.fromiter((hash(one_form(name)) for name in names), np.int64)
    ordered = np.sort(hashes)
    return set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())


def not_done(request: RunRequest, tasks: Asked, catalog: Catalog, summary: RunSummary) -> Asked:
    """The tasks whose slide is not in the catalog as it would be made now; failed ones are tried again.

    Where only the description of a slide changed, its row is written anew and nothing is redone.
    """
    at, doubled = _numbers_of_rows(request, tasks, catalog)
    todo = np.ones(len(tasks), bool)
    todo[at[at >= 0]] = False
    done, unseen, begin = _Done(), Unseen(), 0
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for names, rows in catalog.pieces(_LOOKED_AT):
            here = at[begin : begin + len(rows)]
            begin += len(rows)
            if not (here >= 0).any():
                continue
            known = _Known(tasks, here[here >= 0], rows.filter(pa.array(here >= 0)), pool)
            settled, changed = known.look(done, unseen, marks=not doubled and not tasks.private)
            todo[known.at[~settled]] = True
            catalog.replace_slides(changed, None if doubled else names)
    summary.warnings += unseen.note()
    done.tell(summary)
    return tasks.where(todo)


def _numbers_of_rows(request: RunRequest, tasks: Asked, catalog: Catalog) -> tuple[NDArray[np.int64], bool]:
    """Which of the tasks each row of the catalog is of, as `Catalog.pieces` has them; -1 where it is of none, or
    another row of the slide counts; and whether any slide has several.

    Raises BadOutput where a row is of a slide that is forgotten, and no tombstone says so.
    """
    rows = pa.concat_tables([piece for _, piece in catalog.pieces(["slide_id", "error_type"])] or [_NO_ROWS])
    found = pc.index_in(rows["slide_id"], value_set=tasks.ids).fill_null(-1).to_numpy().astype(np.int64)
    counts = np.full(len(tasks), -1)
    counts[found[found >= 0]] = np.flatnonzero(found >= 0)  # of several rows the last
    at = np.full(len(rows), -1)
    at[counts[counts >= 0]] = np.flatnonzero(counts >= 0)
    forgotten = pc.equal(rows["error_type"], Forgotten.__name__).fill_null(False).to_numpy()
    lost = int(np.count_nonzero(forgotten & (at >= 0)))
    if lost and not request.forgotten_lost:  # of those that forgotten.json knows no task is left
        raise BadOutput(
            f"{request.out}/{TOMBSTONE} is missing or outdated: it lacks {counted(lost, 'slide')} that the catalog "
            "has as forgotten; restore it, or they would be made again. FORGOTTEN_LOST=1 continues without it"
        )
    return at, bool(np.count_nonzero(found >= 0) > np.count_nonzero(at >= 0))


@dataclass
class _Done:
    """What is to be told of slides that are done, in the order of their tasks at the end."""

    slides: int = 0
    tiles: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    rows: list[tuple[int, SlideRow]] = field(default_factory=list)
    warnings: list[tuple[int, str]] = field(default_factory=list)

    def add(self, at: int, row: SlideRow) -> None:
        """The slide of that task."""
        one = RunSummary()
        one.add(row, now=False)
        self.slides += 1
        self.tiles += one.tiles
        self.statuses.update(one.statuses)
        self.rows += [(at, each) for each in one.rows]
        self.warnings += [(at, each) for each in one.warnings]

    def add_plain(self, rows: pa.Table) -> None:
        """Slides that are ok, of which there is nothing else to tell."""
        self.slides += len(rows)
        self.statuses["ok"] += len(rows)
        self.tiles += sum(pc.sum(rows[f"tiles_{m.name}"], min_count=0).as_py() for m in MAGNIFICATIONS)

    def tell(self, summary: RunSummary) -> None:
        """Add all of it to a call's summary."""
        summary.done_before += self.slides
        summary.tiles += self.tiles
        summary.statuses.update({status: n for status, n in self.statuses.items() if n})
        summary.rows += [row for _, row in sorted(self.rows, key=itemgetter(0))]
        summary.warnings += [text for _, text in sorted(self.warnings, key=itemgetter(0))]


class _Known:
    """Rows of slides that are asked for again, and the tasks that they are of: `at` (n,) are these tasks' numbers.

    The threads of `pool` ask after files.
    """

    def __init__(self, tasks: Asked, at: NDArray[np.int64], rows: pa.Table, pool: Executor) -> None:
        self.at, self._tasks, self._rows, self._pool = at, tasks, rows, pool
        self._told = tasks.table.take(pa.array(at))

    def look(self, done: _Done, unseen: Unseen, *, marks: bool) -> tuple[NDArray[np.bool_], list[SlideRow]]:
        """Whether each of the slides is done (n,), and the rows, or columns of them, that are to be written anew; with
        `marks` also those of files that are known by none.
        """
        settled = self._settled()
        missing = self._unchanged(settled, unseen)
        as_told = self._as_told()
        plain = settled & as_told & _all(pc.equal(self._rows["status"], "ok"), pc.is_null(self._rows["warning"]))
        done.add_plain(self._rows.filter(pa.array(plain)))
        changed: dict[str, SlideRow] = {}
        others = pa.array(np.flatnonzero(settled & ~plain))
        rows: list[SlideRow] = self._rows.take(others).drop_columns(["source_seen"]).to_pylist()
        for at, row, told in zip(others.to_pylist(), rows, self._told.take(others).to_pylist(), strict=True):
            described = row if as_told[at] else {**row, **manifest_columns(self._tasks.make(told), row)}
            if described != row:
                changed[row["slide_id"]] = described
            done.add(int(self.at[at]), described)
        for at, mark in missing.items() if marks else ():
            slide_id = self._rows["slide_id"][at].as_py()
            changed[slide_id] = {**changed.get(slide_id, {"slide_id": slide_id}), "source_seen": mark}
        return settled, list(changed.values())

    def _settled(self) -> NDArray[np.bool_]:
        """Whether the row is of the same settings, and nothing but the slide's content could make it another one."""
        rows, told = self._rows, self._told
        same = _same(rows["config_hash"], told["config_hash"])
        ended = pc.is_in(rows["status"], pa.array(["ok", "empty", "excluded"]))
        # the stain was the manifest's, which says it no more, and nobody has looked at the pixels
        lost = _all(
            pc.equal(rows["stain_source"], "manifest"), pc.is_null(told["stain"]), pc.is_null(rows["stain_pixels"])
        )
        return same & _all(ended) & ~lost

    def _unchanged(self, settled: NDArray[np.bool_], unseen: Unseen) -> dict[int, str]:
        """Takes slides whose content is another one out of `settled`; the marks of others that lack one, by number."""
        numbers, before = self._told["number"].to_numpy(), self._rows["source_seen"].to_pylist()
        asked = np.flatnonzero(settled)
        sources = self._tasks.sources
        some = [numbers[asked[first : first + _TOGETHER]].tolist() for first in range(0, len(asked), _TOGETHER)]
        now = chain.from_iterable(_soonest(sources.seen, some, self._pool))
        unsure = [at for at, mark in zip(asked.tolist(), now, strict=True) if mark is None or mark != before[at]]
        looked = self._pool.map(lambda at: unseen.look_into(sources[int(numbers[at])]), unsure)
        marks = {}
        for at, (content, mark) in zip(unsure, looked, strict=True):
            settled[at] = content in (None, self._rows["fingerprint"][at].as_py())
            if settled[at] and mark is not None:
                marks[at] = mark
        return marks

    def _as_told(self) -> NDArray[np.bool_]:
        """Whether a row surely is as `manifest_columns` would make it now."""
        rows, told = self._rows, self._told
        same = [_same(rows[name], told[name]) for name in _DESCRIBED]
        folder = _all(pc.is_null(told["file_folder"])) | _same(rows["file_folder"], told["file_folder"])
        by_pixels = _same(rows["stain"], rows["stain_pixels"]) & _all(
            pc.equal(rows["stain_source"], "pixels"),
            pc.equal(rows["stain_confidence"], rows["stain_pixels_confidence"]),
        )
        stain = _all(pc.is_null(told["stain"])) & (by_pixels | _all(pc.is_null(rows["stain_pixels"])))
        several = pc.or_(pc.match_substring(rows["warning"], "; "), pc.starts_with(rows["warning"], DISAGREEMENT))
        said = _all(pc.invert(pc.or_(several, pc.equal(rows["warning"], "")))) | _all(pc.is_null(rows["warning"]))
        as_told: NDArray[np.bool_] = np.logical_and.reduce([*same, folder, stain, said])
        return as_told


def _soonest(ask: Callable[[list[int]], T], some: Sequence[list[int]], pool: Executor) -> Iterator[T]:
    """What `ask` answers to each of `some`, in order: by the threads of `pool` where answers take their time, as from a
    file server; else by this one alone, since threads that hardly wait stand in each other's way.
    """
    if not some:
        return
    began = time.perf_counter()
    yield ask(some[0])
    quick = time.perf_counter() - began < _QUICK_SECONDS * len(some[0])
    yield from map(ask, some[1:]) if quick else pool.map(ask, some[1:])


_DESCRIBED = ("institution", "institution_source", "tissue", "patient_key", "manifest")


def _same(one: pa.ChunkedArray, other: pa.ChunkedArray) -> NDArray[np.bool_]:
    other = other.cast(pa.string())
    return _all(pc.equal(one, other)) | _all(pc.is_null(one), pc.is_null(other))


def _all(*masks: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Whether all of them say so; null is no."""
    found: NDArray[np.bool_] = np.logical_and.reduce([mask.fill_null(False).to_numpy() for mask in masks])
    return found
