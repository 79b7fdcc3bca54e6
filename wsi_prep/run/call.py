"""One call of `make shards`: find the slides, do what is not done yet on a cluster, close the catalog."""

from __future__ import annotations

import contextlib
import platform
import time
import uuid
from collections.abc import Callable
from dataclasses import replace

from wsi_prep import __version__
from wsi_prep.compute.jobs import cluster, dashboard_link, run_tasks, threads_a_task
from wsi_prep.compute.memory import uncollected
from wsi_prep.compute.versions import told_versions
from wsi_prep.errors import StoreFailed
from wsi_prep.format.records import SlideRow
from wsi_prep.output.catalog import Catalog
from wsi_prep.output.folder import (
    WORKING,
    begin,
    catalog_counts,
    held_output,
    read_run,
    remember,
    require_held,
    require_remembered,
    say_working,
    sweep,
    write_call,
    write_run,
    writing,
)
from wsi_prep.output.merging import Merger
from wsi_prep.output.terms import Terms
from wsi_prep.output.tombstone import read_tombstone
from wsi_prep.run.log import RunLog
from wsi_prep.run.request import Nobody, RunRequest, RunSummary, Watcher
from wsi_prep.run.row import blank_row, failure
from wsi_prep.run.slide import prepare_slide
from wsi_prep.run.task import Asked, SlideTask
from wsi_prep.run.todo import (
    asked_for,
    by_tombstone,
    forgotten_note,
    known_before,
    leave_forgotten,
    not_done,
    without_forgotten,
)
from wsi_prep.slides.find.sources import look_for_slides
from wsi_prep.slides.private import add_names, check_names_file, key_check
from wsi_prep.slides.urls import bare_url
from wsi_prep.storage.base import Storage
from wsi_prep.storage.select import local_folder, open_storage
from wsi_prep.storage.times import settled
from wsi_prep.tiles.filters import where_of

_MOST_WARNINGS = 50_000


def run_shards(request: RunRequest, watcher: Watcher | None = None) -> RunSummary:
    """Do one call of `make shards`; raises UsageError before anything is touched, never for a slide's own error.

    Dask starts processes of Python, so a script calls this below `if __name__ == "__main__":`.

    >>> summary = run_shards(RunRequest("slide.svs", "shards"))
    >>> summary.found, summary.failed
    (1, 0)
    """
    watcher = watcher or Nobody()
    started, began_at = time.perf_counter(), time.time() // 1
    with uncollected():
        found = look_for_slides(request.slides, id_root=request.id_root, id_key=request.id_key)
    storage = open_storage(request.out)
    terms = terms_of(request)
    terms.require_kept(storage.where, read_run(storage))
    if request.names is not None:
        check_names_file(request.names, local_folder(request.out))
    token = uuid.uuid4().hex
    with uncollected():
        tasks, notes = asked_for(request, found, storage, (token, began_at))
    summary = RunSummary(len(tasks), request.settings.plan.magnifications, warnings=notes)
    with (
        held_output(storage, terms, token, take_over=request.take_over),
        settled(request.out, began_at if request.id_key is not None else None),
        RunLog(request.log, token[:8]) as log,
    ):
        if not request.forgotten_lost:
            require_remembered(storage)
        _add_names(request, storage, tasks)
        catalog = begin(storage, terms, patients=tasks.patients)
        with writing(storage), uncollected():
            tasks = _not_forgotten(request, tasks, storage, catalog, summary)
            tasks = not_done(request, tasks, catalog, summary)
        if tasks:
            _work(request, tasks, catalog, summary, watcher, log)
        with writing(storage):
            require_held(storage, token)
            storage.dismiss_workers()
            if tasks:
                sweep(storage, catalog)  # what workers that died left
            catalog.merge()
            summary.seconds = time.perf_counter() - started
            _record(storage, catalog, summary, worked=bool(tasks))
        log.run_ended(summary.statuses, summary.seconds)
    return summary


def _not_forgotten(request: RunRequest, tasks: Asked, storage: Storage, catalog: Catalog, summary: RunSummary) -> Asked:
    """The tasks of slides that nobody had deleted for good; the others are named nowhere, not even in the summary."""
    tombstone = read_tombstone(storage)
    remember(storage, tombstone)
    tasks = known_before(storage, tasks, catalog)
    tasks, forgotten = leave_forgotten(tombstone, tasks, catalog)
    summary.found = len(tasks)
    summary.warnings = [*without_forgotten(summary.warnings, forgotten), *forgotten_note(len(forgotten))]
    script = request.script if without_forgotten([request.slides], forgotten) else None
    if script is not None and request.id_key is None:
        write_call(storage, script)
    return tasks


def terms_of(request: RunRequest) -> Terms:
    """What the output must have been made with."""
    settings = {**request.settings.as_dict(), "ids_below_root": request.id_root is not None}
    if request.id_key is not None:
        settings["private"] = key_check(request.id_key)
    named = {
        "manifest": request.manifest_path is not None,
        "masks": request.masks is not None,
        "institution_pattern": request.institution_pattern is not None,
    }
    patient_key = key_check(request.patient_key) if request.patient_key is not None else None
    return Terms(settings, named, request.redo, where_of(request.settings.filters), patient_key)


def _add_names(request: RunRequest, storage: Storage, tasks: Asked) -> None:
    """Before OUT holds an id, the names file leads back from it: a run that is killed leaves none without its name."""
    if request.names is not None:
        kept, _ = by_tombstone(read_tombstone(storage), tasks)
        add_names(request.names, {task.source.slide_id: bare_url(task.source.path) for task in kept})


def _work(
    request: RunRequest,
    tasks: Asked,
    catalog: Catalog,
    summary: RunSummary,
    watcher: Watcher,
    log: RunLog,
) -> None:
    storage = catalog.storage
    with cluster(request.cluster, watcher.noted) as client, Merger(catalog) as merger:
        with writing(storage):
            catalog.drop(tasks.ids)
            sweep(storage, catalog)
            say_working(catalog, len(tasks), times=request.id_key is None)
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


def _failed_row(task: SlideTask, error: BaseException, catalog: Catalog) -> SlideRow:
    """The row of a slide whose worker could not write one itself."""
    row: SlideRow = {**blank_row(task), "fingerprint": "", **failure(error, task.source)}
    with contextlib.suppress(OSError, StoreFailed):  # the summary still names it, and the next run tries it again
        catalog.commit(row, catalog.no_tiles())
    return row


def _record(storage: Storage, catalog: Catalog, summary: RunSummary, *, worked: bool) -> None:
    """Bring run.json up to date: settings, versions and counts, and of the last call that worked its timings and rates.

    A call that finds nothing to do still writes what a killed one could not.
    """
    before = read_run(storage)
    run = {**{name: value for name, value in before.items() if name != WORKING}, **catalog_counts(catalog)}
    if worked or "last_call" not in before:
        run["versions"] = {"wsi_prep": __version__, "python": platform.python_version(), **told_versions()}
        run["last_call"] = _last_call(summary)
    if run != before:
        write_run(storage, run)


def _last_call(summary: RunSummary) -> dict[str, object]:
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
