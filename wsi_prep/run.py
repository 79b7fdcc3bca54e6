"""One call of `make shards`: find the slides, do what is not done yet on a cluster, close the catalog."""

from __future__ import annotations

import contextlib
import hmac
import platform
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from wsi_prep import __version__
from wsi_prep.catalog import Catalog
from wsi_prep.errors import OtherConfiguration
from wsi_prep.geometry import MAGNIFICATIONS
from wsi_prep.jobs import cluster, dashboard_link, run_tasks
from wsi_prep.manifest import EMPTY_ROW, ManifestRow, read_manifest
from wsi_prep.masks import MaskFile, find_masks
from wsi_prep.output import open_output, read_run, sweep, write_run, writing
from wsi_prep.prepare import (
    DEFAULT_TIME_LIMIT,
    PrepareSettings,
    SlideTask,
    blank_row,
    failure,
    manifest_columns,
    prepare_slide,
)
from wsi_prep.sources import SlideSource, find_slides, fingerprint

_PACKAGES = ("openslide-python", "openslide-bin", "tiffslide", "tifffile", "imagecodecs", "opencv-python", "zarr")


@dataclass(frozen=True)
class RunRequest:
    """What the user asked for. `patient_key` turns patient ids into keyed hashes; without it none are written."""

    slides: str
    out: Path
    manifest: str | None = None
    masks: str | None = None
    settings: PrepareSettings = field(default_factory=PrepareSettings)
    workers: int | None = None
    scheduler: str | None = None
    redo: bool = False
    id_root: str | None = None
    patient_key: bytes | None = None
    time_limit: float = DEFAULT_TIME_LIMIT

    @property
    def manifest_path(self) -> str | None:
        """The manifest; a .csv list of slides is its own unless another is named."""
        return self.manifest or (self.slides if self.slides.lower().endswith(".csv") else None)


@dataclass
class RunSummary:
    """What a call did: `rows` of its slides that are not ok, counts by status, tiles made now, and warnings."""

    found: int = 0
    done_before: int = 0
    seconds: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    tiles_made: Counter[str] = field(default_factory=Counter)
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
    started = time.perf_counter()
    sources = find_slides(request.slides, id_root=request.id_root)
    _require_given_before(request)
    manifest, warnings = _manifest_rows(request, sources)
    masks, more_warnings = find_masks(request.masks, request.out, sources)
    summary = RunSummary(found=len(sources), warnings=warnings + more_warnings)
    token = uuid.uuid4().hex
    settings = {**request.settings.as_dict(), "ids_below_root": request.id_root is not None}
    with open_output(request.out, settings, token, redo=request.redo) as catalog:
        with writing(request.out):
            given = {"manifest": request.manifest_path is not None, "masks": request.masks is not None}
            write_run(request.out, {**read_run(request.out), **given})
            tasks = [
                _task(request, source, manifest.get(source.slide_id, EMPTY_ROW), masks.get(source.slide_id), token)
                for source in sources
            ]
            tasks = _not_done(tasks, catalog, summary, keyed=request.patient_key is not None)
        if tasks:
            _work(request, tasks, catalog, summary, watcher)
        with writing(request.out):
            sweep(request.out, catalog)  # what workers that died left
            catalog.merge()
            summary.seconds = time.perf_counter() - started
            _record(request, catalog, summary, worked=bool(tasks))
    return summary


def _require_given_before(request: RunRequest) -> None:
    """A manifest, or masks, given once and forgotten now would undo what was said of every slide."""
    before = {} if request.redo else read_run(request.out)
    for what, name, now in (("a manifest", "manifest", request.manifest_path), ("masks", "masks", request.masks)):
        if now is None and before.get(name):
            raise OtherConfiguration(
                f"OUT {request.out} was made with {what}; name it again with {name.upper()}=, "
                "or add REDO=1 to go by the files alone"
            )


def _manifest_rows(request: RunRequest, sources: Sequence[SlideSource]) -> tuple[dict[str, ManifestRow], list[str]]:
    if request.manifest_path is None:
        return {}, []
    matched = read_manifest(request.manifest_path).match(sources)
    warnings = []
    if matched.unknown:
        shown = ", ".join(matched.unknown[:5]) + (", ..." if len(matched.unknown) > 5 else "")
        warnings.append(f"the manifest names {len(matched.unknown)} slides that were not found: {shown}")
    if request.patient_key is None and any(row.patient for row in matched.rows.values()):
        warnings.append(
            "patient ids were left out; PATIENT_KEY=file with a secret of yours turns them into keyed hashes"
        )
    return dict(matched.rows), warnings


def _task(
    request: RunRequest, source: SlideSource, manifest: ManifestRow, mask: MaskFile | None, token: str
) -> SlideTask:
    key = None
    if manifest.patient and request.patient_key is not None:
        key = hmac.new(request.patient_key, manifest.patient.encode(), "sha256").hexdigest()[:32]
    stripped = ManifestRow(manifest.mpp, manifest.stain, manifest.institution, manifest.tissue, None)
    return SlideTask(source, stripped, key, request.settings, str(request.out), token, request.time_limit, mask)


def _not_done(tasks: Sequence[SlideTask], catalog: Catalog, summary: RunSummary, *, keyed: bool) -> list[SlideTask]:
    """The tasks whose slide is not in the catalog as it would be made now; failed ones are tried again.

    Where only the manifest's description of a slide changed, its row is written anew and nothing is redone; patients'
    keys stay unless the call is `keyed` anew.
    """
    rows = {row["slide_id"]: row for row in catalog.slides()}
    known = [task for task in tasks if task.source.slide_id in rows]
    with ThreadPoolExecutor(16) as pool:
        marks = dict(zip((t.source.slide_id for t in known), pool.map(_fingerprint, known), strict=True))
    todo, described_anew = [], []
    for task in tasks:
        row = rows.get(task.source.slide_id)
        mark = marks.get(task.source.slide_id), task.config_hash
        same = row is not None and (row["fingerprint"], row["config_hash"]) == mark
        lost_stain = row is not None and row["stain_source"] == "manifest" and task.manifest.stain is None
        if row is None or not same or row["status"] == "failed" or lost_stain:
            todo.append(task)
            continue
        patient_key = task.patient_key if keyed else row["patient_key"]
        described = {**row, **manifest_columns(task.manifest, patient_key)}
        if described != row:
            described_anew.append(described)
        summary.done_before += 1
        summary.add(described, now=False)
    catalog.replace_slides(described_anew)
    return todo


def _fingerprint(task: SlideTask) -> str:
    try:
        return fingerprint(task.source)
    except OSError:
        return ""


def _work(
    request: RunRequest, tasks: Sequence[SlideTask], catalog: Catalog, summary: RunSummary, watcher: Watcher
) -> None:
    with cluster(request.scheduler, request.workers) as client:
        with writing(request.out):
            catalog.drop({task.source.slide_id for task in tasks})
            sweep(request.out, catalog)
        watcher.started(len(tasks), summary.done_before, dashboard_link(client))
        for task, outcome in run_tasks(client, prepare_slide, tasks, _task_key):
            row = _failed_row(task, outcome, catalog) if isinstance(outcome, BaseException) else outcome
            summary.add(row, now=True)
            watcher.finished(row)


def _task_key(task: SlideTask) -> str:
    """Names a task on the scheduler; another run of the same slide is another task."""
    return f"{task.source.slide_id}-{task.run_token[:8]}"


def _failed_row(task: SlideTask, error: BaseException, catalog: Catalog) -> dict[str, Any]:
    """The row of a slide whose worker could not write one itself."""
    row = {**blank_row(task), "fingerprint": "", **failure(error)}
    with contextlib.suppress(OSError):  # the summary still names it, and the next run tries it again
        catalog.commit(row, catalog.no_tiles())
    return row


def _record(request: RunRequest, catalog: Catalog, summary: RunSummary, *, worked: bool) -> None:
    """Bring run.json up to date: settings, versions and counts, and of the last call that worked its timings and rates.

    A call that finds nothing to do still writes what a killed one could not.
    """
    before = read_run(request.out)
    run = {
        **before,
        "slides": dict(sorted(Counter(row["status"] for row in catalog.slides(["status"])).items())),
        "tiles": catalog.count_tiles(),
    }
    if worked or "last_call" not in before:
        run["versions"] = {"wsi_prep": __version__, "python": platform.python_version(), **_versions()}
        run["last_call"] = _last_call(summary)
    if run != before:
        write_run(request.out, run)


def _last_call(summary: RunSummary) -> dict[str, Any]:
    made = sum(summary.tiles_made.values())
    return {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "slides": {"found": summary.found, "done_before": summary.done_before, **summary.statuses},
        "tiles_made": dict(summary.tiles_made),
        "bytes_made": summary.bytes_made,
        "seconds": round(summary.seconds, 3),
        "worker_seconds": round(summary.worker_seconds, 3),
        "tiles_per_second": round(made / max(summary.seconds, 1e-9), 2),
        "tiles_per_worker_second": round(made / max(summary.worker_seconds, 1e-9), 2),
        "warnings": summary.warnings,
    }


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
