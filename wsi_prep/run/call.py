"""One call of `make shards`: find the slides, do what is not done yet on a cluster, close the catalog."""

from __future__ import annotations

import contextlib
import platform
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from wsi_prep import __version__
from wsi_prep.compute.cluster.options import ClusterOptions
from wsi_prep.compute.jobs import cluster, dashboard_link, run_tasks, threads_a_task
from wsi_prep.compute.versions import told_versions
from wsi_prep.curation.forget import leave_forgotten, read_tombstone
from wsi_prep.errors import StoreFailed
from wsi_prep.format.magnifications import MAGNIFICATIONS
from wsi_prep.output.catalog import Catalog
from wsi_prep.output.folder import begin, catalog_counts, held_output, read_run, require_held, sweep, write_run, writing
from wsi_prep.output.merging import Merger
from wsi_prep.output.terms import Terms
from wsi_prep.run.log import RunLog
from wsi_prep.run.slide import (
    DEFAULT_TIME_LIMIT,
    PrepareSettings,
    SlideTask,
    blank_row,
    failure,
    manifest_columns,
    prepare_slide,
)
from wsi_prep.slides.fetch.cache import CacheSettings
from wsi_prep.slides.find.endings import left_out_note
from wsi_prep.slides.find.institution import UNKNOWN, InstitutionPattern, Origin, find_origin
from wsi_prep.slides.find.manifest import EMPTY_ROW, ManifestRow, read_manifest
from wsi_prep.slides.find.sources import Found, SlideSource, fingerprint, look_for_slides, paths_below
from wsi_prep.slides.private import add_names, check_names_file, key_check, keyed_patient
from wsi_prep.slides.urls import bare_url
from wsi_prep.storage.base import Storage
from wsi_prep.storage.select import local_folder, open_storage
from wsi_prep.storage.times import settled
from wsi_prep.tissue.masks import MaskFile, find_masks

_LOOKED_AT = (
    *("slide_id", "file", "status", "error_type", "error", "warning", "fingerprint", "config_hash", "patient_key"),
    *("institution", "institution_source", "tissue", "stain", "stain_confidence", "stain_source"),
    *("stain_pixels", "stain_pixels_confidence"),
)
"""The columns of earlier rows that a run needs; of millions of slides all would not fit."""

_MOST_WARNINGS = 50_000


@dataclass(frozen=True)
class RunRequest:
    """What the user asked for.

    `out` is a folder or an object store's URL; `take_over` is for one that a run on another machine left locked.
    `patient_key` turns patient ids into keyed hashes; without it none are written. `id_key` does the same to slides'
    names, everywhere in the output, and `names` is the file outside of it that leads back.
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
    log: Path | None = None

    @property
    def manifest_path(self) -> str | None:
        """The manifest; a .csv list of slides is its own unless another is named."""
        return self.manifest or (self.slides if bare_url(self.slides).lower().endswith(".csv") else None)


@dataclass
class RunSummary:
    """What a call did: `rows` of its slides that are not ok, counts by status, tiles made now, and warnings.

    `tiles_filtered` are those that were not made now because of a filter.
    """

    found: int = 0
    done_before: int = 0
    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    tiles_made: Counter[str] = field(default_factory=Counter)
    tiles_filtered: int = 0
    bytes_made: int = 0
    worker_seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Slides of this call that failed."""
        return self.statuses["failed"]

    def add(self, row: dict[str, Any], *, now: bool) -> None:
        """Count one slide, done now or before."""
        self.statuses[row["status"]] += 1
        if row["status"] != "ok":
            self.rows.append(row)
        elif row.get("warning"):
            self.warnings.append(f"{row['file']}: {row['warning']}")
        if now:
            self.tiles_made.update({m.name: row[f"tiles_{m.name}"] or 0 for m in MAGNIFICATIONS})
            self.tiles_filtered += row["tiles_filtered"] or 0
            self.bytes_made += row["bytes"] or 0
            self.worker_seconds += row["seconds"] or 0.0


class Watcher(Protocol):
    """Somebody who looks on."""

    def started(self, todo: int, done_before: int, dashboard: str) -> None:
        """The cluster is up and work begins."""
        ...

    def finished(self, row: dict[str, Any]) -> None:
        """One slide is through."""
        ...


def run_shards(request: RunRequest, watcher: Watcher) -> RunSummary:
    """Do one call of `make shards`; raises UsageError before anything is touched, never for a slide's own error."""
    started, began_at = time.perf_counter(), time.time() // 1
    found = look_for_slides(request.slides, id_root=request.id_root, id_key=request.id_key)
    sources = found.sources
    storage = open_storage(request.out)
    terms = _terms(request)
    terms.require_kept(storage.where, read_run(storage))
    if request.names is not None:
        check_names_file(request.names, local_folder(request.out))
    manifest, warnings = _manifest_rows(request, found)
    masks, mask_notes = find_masks(
        request.masks, local_folder(request.out), sources, private=request.id_key is not None
    )
    origins = _origins(request, sources, manifest)
    notes = [*left_out_note(found.left_out), *warnings, *mask_notes, *_origin_notes(request, origins)]
    summary = RunSummary(found=len(sources), warnings=notes)
    token = uuid.uuid4().hex
    tasks = [
        _task(request, source, manifest.get(source.slide_id, EMPTY_ROW), origin, masks, token)
        for source, origin in zip(sources, origins, strict=True)
    ]
    made_at = None
    if request.id_key is not None:  # the order of work tells nothing of names, nor do times
        made_at = began_at
        tasks = sorted((replace(task, made_at=made_at) for task in tasks), key=lambda task: task.source.slide_id)
    with (
        held_output(storage, terms, token, take_over=request.take_over),
        settled(request.out, made_at),
        RunLog(request.log, token[:8]) as log,
    ):
        _add_names(request, storage, tasks)
        catalog = begin(storage, terms)
        with writing(storage):
            tasks = _known_before(storage, tasks, catalog)
            tasks, forgotten = leave_forgotten(storage, tasks, catalog)
            for row in forgotten:
                summary.done_before += 1
                summary.add(row, now=False)
            tasks = _not_done(request, tasks, catalog, summary)
        if tasks:
            _work(request, tasks, storage, catalog, summary, watcher, log)
        with writing(storage):
            require_held(storage, token)
            storage.dismiss_workers()
            sweep(storage, catalog)  # what workers that died left
            catalog.merge()
            summary.seconds = time.perf_counter() - started
            _record(storage, catalog, summary, worked=bool(tasks))
        log.run_ended(summary.statuses, summary.seconds)
    return summary


def _terms(request: RunRequest) -> Terms:
    settings = {**request.settings.as_dict(), "ids_below_root": request.id_root is not None}
    if request.id_key is not None:
        settings["private"] = key_check(request.id_key)
    named = {
        "manifest": request.manifest_path is not None,
        "masks": request.masks is not None,
        "institution_pattern": request.institution_pattern is not None,
    }
    return Terms(settings, named, request.redo)


def _add_names(request: RunRequest, storage: Storage, tasks: Sequence[SlideTask]) -> None:
    """Before OUT holds an id, the names file leads back from it: a run that is killed leaves none without its name."""
    kept = read_tombstone(storage).without(tasks)
    if request.names is not None:
        add_names(request.names, {task.source.slide_id: bare_url(task.source.path) for task in kept})


def _known_before(storage: Storage, tasks: Sequence[SlideTask], catalog: Catalog) -> list[SlideTask]:
    """The tasks, those that OUT knows by an earlier version's id under that: none is made twice or though forgotten."""
    other = {task.source.former_id for task in tasks if task.source.former_id != task.source.slide_id}
    if not other:
        return list(tasks)
    tombstone = read_tombstone(storage)
    known = other.intersection(row["slide_id"] for row in catalog.slides(["slide_id"]))
    known |= {former_id for former_id in other if tombstone.has(former_id)}
    return [
        replace(task, source=replace(task.source, slide_id=task.source.former_id))
        if task.source.former_id in known
        else task
        for task in tasks
    ]


def _manifest_rows(request: RunRequest, found: Found) -> tuple[dict[str, ManifestRow], list[str]]:
    if request.manifest_path is None:
        return {}, []
    matched = read_manifest(request.manifest_path).match(found.sources, found.left_out)
    return dict(matched.rows), matched.notes(private=request.id_key is not None)


def _origins(request: RunRequest, sources: Sequence[SlideSource], manifest: Mapping[str, ManifestRow]) -> list[Origin]:
    pattern = request.institution_pattern
    below = paths_below(sources, request.slides, request.id_root) if pattern is not None else [""] * len(sources)
    origins = []
    for source, path in zip(sources, below, strict=True):
        row = manifest.get(source.slide_id, EMPTY_ROW)
        origins.append(find_origin(row.institution, row.patient, source.name, path, pattern))
    return origins


def _origin_notes(request: RunRequest, origins: Sequence[Origin]) -> list[str]:
    notes = []
    if request.patient_key is None and any(origin.patient for origin in origins):
        notes.append("patient ids were left out; PATIENT_KEY=file with a secret of yours turns them into keyed hashes")
    unknown = sum(origin.source == UNKNOWN for origin in origins)
    if request.institution_pattern is not None and unknown:
        notes.append(
            f"INSTITUTION_PATTERN does not fit {unknown} of {len(origins)} slides, and nothing else names theirs"
        )
    return notes


def _task(
    request: RunRequest,
    source: SlideSource,
    row: ManifestRow,
    origin: Origin,
    masks: Mapping[str, MaskFile],
    token: str,
) -> SlideTask:
    """A slide's work. In private output the id stands for the name, wherever a worker would write it."""
    key = None
    if origin.patient and request.patient_key is not None:
        key = keyed_patient(request.patient_key, origin.patient)
    if request.id_key is not None:
        source = replace(source, name=source.slide_id)
    stripped = replace(row, institution=origin.institution, patient=None)
    run = (request.settings, request.out, token, request.time_limit)
    return SlideTask(source, stripped, key, *run, origin.source, masks.get(source.slide_id), request.cache)


def _not_done(
    request: RunRequest, tasks: Sequence[SlideTask], catalog: Catalog, summary: RunSummary
) -> list[SlideTask]:
    """The tasks whose slide is not in the catalog as it would be made now; failed ones are tried again.

    Where only the description of a slide changed, its row is written anew and nothing is redone.
    """
    rows = {row["slide_id"]: row for row in catalog.slides(list(_LOOKED_AT))}
    known = [task for task in tasks if task.source.slide_id in rows]
    with ThreadPoolExecutor(16) as pool:
        marks = dict(zip((t.source.slide_id for t in known), pool.map(_fingerprint, known), strict=True))
    todo, described_anew = [], []
    for task in tasks:
        row = rows.get(task.source.slide_id)
        mark = marks.get(task.source.slide_id), task.config_hash
        same = row is not None and (row["fingerprint"], row["config_hash"]) == mark
        if row is None or not same or row["status"] not in ("ok", "empty", "excluded") or _lost_stain(task, row):
            todo.append(task)
            continue
        described = {**row, **manifest_columns(task, row)}
        if request.patient_key is None:  # a key that is forgotten undoes nothing
            described["patient_key"] = row["patient_key"]
        if described != row:
            described_anew.append(described)
        summary.done_before += 1
        summary.add(described, now=False)
    catalog.replace_slides(described_anew)
    return todo


def _lost_stain(task: SlideTask, row: dict[str, Any]) -> bool:
    """Whether the stain was the manifest's, which says it no more, and nobody has looked at the pixels."""
    return row["stain_source"] == "manifest" and task.manifest.stain is None and row["stain_pixels"] is None


def _fingerprint(task: SlideTask) -> str:
    try:
        return fingerprint(task.source)
    except OSError:
        return ""


def _work(
    request: RunRequest,
    tasks: Sequence[SlideTask],
    storage: Storage,
    catalog: Catalog,
    summary: RunSummary,
    watcher: Watcher,
    log: RunLog,
) -> None:
    with cluster(request.cluster) as client, Merger(catalog) as merger:
        with writing(storage):
            catalog.drop({task.source.slide_id for task in tasks})
            sweep(storage, catalog)
        watcher.started(len(tasks), summary.done_before, dashboard_link(client))
        log.run_started(len(tasks), summary.done_before)
        began = _began(log) if log.wanted else None
        threads = threads_a_task(request.cluster, len(tasks))
        shared = (replace(task, threads=threads) for task in tasks)
        for task, outcome in run_tasks(client, prepare_slide, shared, _task_key, began):
            row = _failed_row(task, outcome, catalog) if isinstance(outcome, BaseException) else outcome
            summary.add(row, now=True)
            watcher.finished(row)
            log.slide_finished(row)
            with writing(storage):
                merger.add(row["slide_id"])


def _began(log: RunLog) -> Callable[[str, str], None]:
    return lambda key, worker: log.slide_started(key.rpartition("-")[0], worker)


def _task_key(task: SlideTask) -> str:
    """Names a task on the scheduler; another run of the same slide is another task."""
    return f"{task.source.slide_id}-{task.run_token[:8]}"


def _failed_row(task: SlideTask, error: BaseException, catalog: Catalog) -> dict[str, Any]:
    """The row of a slide whose worker could not write one itself."""
    row = {**blank_row(task), "fingerprint": "", **failure(error, task.source)}
    with contextlib.suppress(OSError, StoreFailed):  # the summary still names it, and the next run tries it again
        catalog.commit(row, catalog.no_tiles())
    return row


def _record(storage: Storage, catalog: Catalog, summary: RunSummary, *, worked: bool) -> None:
    """Bring run.json up to date: settings, versions and counts, and of the last call that worked its timings and rates.

    A call that finds nothing to do still writes what a killed one could not.
    """
    before = read_run(storage)
    run = {**before, **catalog_counts(catalog)}
    if worked or "last_call" not in before:
        run["versions"] = {"wsi_prep": __version__, "python": platform.python_version(), **told_versions()}
        run["last_call"] = _last_call(summary)
    if run != before:
        write_run(storage, run)


def _last_call(summary: RunSummary) -> dict[str, Any]:
    made = sum(summary.tiles_made.values())
    return {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "slides": {"found": summary.found, "done_before": summary.done_before, **summary.statuses},
        "tiles_made": dict(summary.tiles_made),
        "tiles_filtered": summary.tiles_filtered,
        "bytes_made": summary.bytes_made,
        "seconds": round(summary.seconds, 3),
        "worker_seconds": round(summary.worker_seconds, 3),
        "tiles_per_second": round(made / max(summary.seconds, 1e-9), 2),
        "tiles_per_worker_second": round(made / max(summary.worker_seconds, 1e-9), 2),
        "warnings": _some(summary.warnings),
    }


def _some(warnings: list[str]) -> list[str]:
    """So many that run.json stays a file that is read whole."""
    more = len(warnings) - _MOST_WARNINGS
    said = f"and {more:,} more; the column warning of catalog/slides has those of slides"
    return [*warnings[:_MOST_WARNINGS], said] if more > 0 else warnings
