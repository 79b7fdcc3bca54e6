"""What a call has to do: tasks of slides, less those that are done or forgotten."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from wsi_prep.errors import BadOutput, FileServerFailed, Forgotten, counted
from wsi_prep.format.records import SlideRow
from wsi_prep.output.catalog import Catalog
from wsi_prep.output.tombstone import TOMBSTONE, Tombstone, read_tombstone
from wsi_prep.run.request import RunRequest, RunSummary
from wsi_prep.run.row import manifest_columns
from wsi_prep.run.task import SlideTask
from wsi_prep.slides.find.fingerprint import fingerprint
from wsi_prep.slides.find.institution import UNKNOWN, Origin, find_origin
from wsi_prep.slides.find.manifest import EMPTY_ROW, ManifestRow, read_manifest
from wsi_prep.slides.find.naming import told_apart
from wsi_prep.slides.find.sources import Found, SlideSource, paths_below
from wsi_prep.slides.private import keyed_patient
from wsi_prep.storage.base import Storage
from wsi_prep.tissue.masks import MaskFile

_MOST_UNSEEN = 20
"""Of slides that are done, the file server may fail for so many before the call ends."""

_LOOKED_AT = (
    *("slide_id", "file", "status", "error_type", "error", "warning", "fingerprint", "config_hash", "patient_key"),
    *("file_folder", "manifest"),
    *("institution", "institution_source", "tissue", "stain", "stain_confidence", "stain_source"),
    *("stain_pixels", "stain_pixels_confidence"),
    *("tiles_5x", "tiles_10x", "tiles_20x", "tiles_40x"),
)
"""The columns of earlier rows that a run needs; of millions of slides all would not fit."""


def leave_forgotten(
    tombstone: Tombstone, tasks: Sequence[SlideTask], catalog: Catalog
) -> tuple[list[SlideTask], list[SlideTask]]:
    """The tasks that are not forgotten, and those that are; the rows that earlier versions wrote of such slides go."""
    kept = not_forgotten(tombstone, tasks)
    ids = {task.source.slide_id for task in kept}
    forgotten = [task for task in tasks if task.source.slide_id not in ids]
    if len(tombstone):
        known = {row["slide_id"] for row in catalog.slides(["slide_id", "error_type"]) if _is_forgotten(row)}
        gone = {task.source.slide_id for task in forgotten}
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
    return [f"{files} forgotten: nothing is made or written of them; take their files out of SLIDES"]


def _is_forgotten(row: SlideRow) -> bool:
    return bool(row["error_type"] == Forgotten.__name__)


def not_forgotten(tombstone: Tombstone, tasks: Sequence[SlideTask]) -> list[SlideTask]:
    """The tasks that are not forgotten."""
    return [task for task in tasks if not tombstone.has(task.source.slide_id, task.patient_key)]


def known_before(storage: Storage, tasks: Sequence[SlideTask], catalog: Catalog) -> list[SlideTask]:
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


def manifest_rows(request: RunRequest, found: Found, tombstone: Tombstone) -> tuple[dict[str, ManifestRow], list[str]]:
    """The manifest's rows by slide id, and what a user should know of those that fit no slide.

    By their lines, not by names, where a name may be that of a forgotten slide whose file is gone, too.
    """
    if request.manifest_path is None:
        return {}, []
    manifest, private = read_manifest(request.manifest_path), request.id_key is not None
    matched = manifest.match(found.sources, found.left_out)
    of_slides = matched.notes(private=private or len(tombstone) > 0)
    return dict(matched.rows), [*manifest.notes(private=private), *of_slides]


def origins_of(
    request: RunRequest, sources: Sequence[SlideSource], manifest: Mapping[str, ManifestRow]
) -> list[Origin]:
    """Where each slide comes from, in the order of `sources`."""
    pattern = request.institution_pattern
    below = paths_below(sources, request.slides, request.id_root) if pattern is not None else [""] * len(sources)
    origins = []
    for source, path in zip(sources, below, strict=True):
        row = manifest.get(source.slide_id, EMPTY_ROW)
        origins.append(find_origin(row.institution, row.patient, source.name, path, pattern))
    return origins


def origin_notes(request: RunRequest, origins: Sequence[Origin]) -> list[str]:
    """What a user should know of institutions and patients."""
    notes = []
    if request.patient_key is None and any(origin.patient for origin in origins):
        notes.append("patient ids are not written; PATIENT_KEY=file with a secret of yours writes them as keyed hashes")
    unknown = sum(origin.source == UNKNOWN for origin in origins)
    if request.institution_pattern is not None and unknown:
        notes.append(
            f"INSTITUTION_PATTERN does not fit {unknown} of {len(origins)} slides, and nothing else names theirs"
        )
    return notes


def folders_of(request: RunRequest, sources: Sequence[SlideSource]) -> dict[str, str]:
    """Folders' names that tell slides of one name apart, by slide id."""
    paths = paths_below(sources, request.slides, request.id_root)
    return told_apart((source.slide_id, source.name, path) for source, path in zip(sources, paths, strict=True))


def task_of(
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
        source, row = replace(source, name=source.slide_id), replace(row, more=None)
    stripped = replace(row, institution=origin.institution, patient=None)
    run = (request.settings, request.out, token, request.time_limit)
    return SlideTask(source, stripped, key, *run, origin.source, masks.get(source.slide_id), request.cache)


def not_done(request: RunRequest, tasks: Sequence[SlideTask], catalog: Catalog, summary: RunSummary) -> list[SlideTask]:
    """The tasks whose slide is not in the catalog as it would be made now; failed ones are tried again.

    Where only the description of a slide changed, its row is written anew and nothing is redone.
    """
    rows = {row["slide_id"]: row for row in catalog.slides(list(_LOOKED_AT))}
    known = [task for task in tasks if task.source.slide_id in rows]
    lost = sum(_is_forgotten(rows[task.source.slide_id]) for task in known)
    if lost and not request.forgotten_lost:  # of those that forgotten.json knows no task is left
        raise BadOutput(
            f"{request.out}/{TOMBSTONE} is missing or outdated: it lacks {counted(lost, 'slide')} that the catalog "
            "has as forgotten; restore it, or they would be made again. FORGOTTEN_LOST=1 continues without it"
        )
    marks, unseen = _fingerprints(known)
    summary.warnings += unseen
    todo, described_anew = [], []
    for task in tasks:
        row = rows.get(task.source.slide_id)
        mark = marks.get(task.source.slide_id)
        same = row is not None and mark in (row["fingerprint"], None) and row["config_hash"] == task.config_hash
        if row is None or not same or row["status"] not in ("ok", "empty", "excluded") or _lost_stain(task, row):
            todo.append(task)
            continue
        described: SlideRow = {**row, **manifest_columns(task, row)}
        if described != row:
            described_anew.append(described)
        summary.done_before += 1
        summary.add(described, now=False)
    catalog.replace_slides(described_anew)
    return todo


def _lost_stain(task: SlideTask, row: SlideRow) -> bool:
    """Whether the stain was the manifest's, which says it no more, and nobody has looked at the pixels."""
    return row["stain_source"] == "manifest" and task.manifest.stain is None and row["stain_pixels"] is None


def _fingerprints(tasks: Sequence[SlideTask]) -> tuple[dict[str, str | None], list[str]]:
    """By id each slide's fingerprint, None where its file server fails, and what to say of these.

    They count as unchanged: what is done stays. Raises FileServerFailed where it fails for many.
    """
    failed: list[FileServerFailed] = []

    def look(task: SlideTask) -> str | None:
        if len(failed) > _MOST_UNSEEN:  # it answers nobody, and each would wait for it
            raise failed[0]
        try:
            return fingerprint(task.source)
        except FileServerFailed as error:
            failed.append(error)
            return None
        except OSError:
            return ""

    with ThreadPoolExecutor(16) as pool:
        marks = dict(zip((task.source.slide_id for task in tasks), pool.map(look, tasks), strict=True))
    if not failed:
        return marks, []
    many = counted(len(failed), "slide", "slides")
    return marks, [f"whether {many} changed cannot be seen, so what is done of them stays: {failed[0]}"]
