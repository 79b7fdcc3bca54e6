"""One slide, from its file to committed tiles: what a worker does."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wsi_prep import __version__
from wsi_prep.compute.memory import give_back_freed_memory, keep_freed_memory
from wsi_prep.compute.threads import Crew
from wsi_prep.compute.time_limit import HUNG, time_limit
from wsi_prep.errors import (
    BadOption,
    NotBrightField,
    RunReplaced,
    SlideError,
    SlideExcluded,
    TooCoarse,
    WriteFailed,
)
from wsi_prep.format.jpeg import JpegSettings
from wsi_prep.format.layout import output_places
from wsi_prep.format.magnifications import MAGNIFICATIONS
from wsi_prep.format.records import FORMAT_VERSION, SLIDE_SCHEMA, TILE_SCHEMA
from wsi_prep.format.warning import warned
from wsi_prep.output.catalog import Catalog
from wsi_prep.run.stages import StageClock
from wsi_prep.run.staging import StagedSlide
from wsi_prep.slides.base import SlideInfo, SlideReader
from wsi_prep.slides.fetch.cache import CacheSettings, Room
from wsi_prep.slides.find.institution import UNKNOWN
from wsi_prep.slides.find.manifest import ManifestRow
from wsi_prep.slides.find.sources import SlideSource, fingerprint
from wsi_prep.slides.private import bare_text
from wsi_prep.slides.pyramid.thumbnail import Thumbnail, read_thumbnail
from wsi_prep.slides.pyramid.trusted import TrustedLevels
from wsi_prep.slides.readers.select import READERS, opened
from wsi_prep.slides.scale import Scale, check_assumed_mpp, resolve_scale
from wsi_prep.slides.urls import without_secrets
from wsi_prep.stain.classify import StainCall, classify_glow, classify_stain, colour_warning, stain_columns
from wsi_prep.storage.atomic import remove_tree
from wsi_prep.storage.base import Storage
from wsi_prep.storage.digests import NO_DIGESTS, to_column
from wsi_prep.storage.select import open_storage
from wsi_prep.storage.times import set_times, set_times_in
from wsi_prep.tiles.filters import TileFilter, say_lost
from wsi_prep.tiles.grid import Grid
from wsi_prep.tiles.overlay import draw_overlay
from wsi_prep.tiles.plan import PlanSettings, TilePlan, plan_tiles
from wsi_prep.tiles.writer import write_tiles
from wsi_prep.tissue.detect import MASK_MPP, TissueSettings, check_bright_field, detect_tissue
from wsi_prep.tissue.glass import Glass
from wsi_prep.tissue.masks import MaskFile, read_mask
from wsi_prep.tissue.polygons import FILE_FRAME, feature_collection, tissue_polygons

DEFAULT_TIME_LIMIT = 3600.0
"""Seconds on one worker after which a slide is taken to hang."""


@dataclass(frozen=True)
class PrepareSettings:
    """Every setting that a slide's tiles depend on.

    A tile is made when it passes all `filters`; `assume_mpp` is for slides of which nothing states one.
    """

    plan: PlanSettings = field(default_factory=PlanSettings)
    tissue: TissueSettings = field(default_factory=TissueSettings)
    jpeg: JpegSettings = field(default_factory=JpegSettings)
    filters: tuple[TileFilter, ...] = ()
    reader: str = "auto"
    assume_mpp: float | None = None

    def __post_init__(self) -> None:
        if self.reader not in READERS:
            raise BadOption(f"reader {self.reader!r} is not known; choose from {' '.join(READERS)}")
        if self.assume_mpp is not None:
            check_assumed_mpp(self.assume_mpp)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON gives them back; without filters they are not mentioned."""
        settings = {"format": FORMAT_VERSION, **asdict(self)}
        del settings["filters"]
        if self.filters:
            settings["filters"] = " ".join(sorted(map(str, self.filters)))
        plain: dict[str, Any] = json.loads(json.dumps(settings))
        return plain

    def config_hash(self, manifest_mpp: float | None, mask_digest: str | None = None) -> str:
        """Mark of the settings, and of the manifest's value and the given mask, that the tiles depend on."""
        given = [repr(manifest_mpp)] if mask_digest is None else [repr(manifest_mpp), mask_digest]
        text = json.dumps([self.as_dict(), *given], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


@dataclass(frozen=True)
class SlideTask:
    """One slide's work: where it is, what the manifest says of it, where the result goes, and a mask if one is given.

    `run_token` names the run: when the output folder's lock holds another, this work is nobody's any more. After
    `time_limit` seconds the worker process ends itself, and the slide fails when it is tried again. `out` is a path or
    an object store's URL; `cache` is where the worker may copy the slide to. `made_at` is the time that all its files
    get, or None for their own.
    """

    source: SlideSource
    manifest: ManifestRow
    patient_key: str | None
    settings: PrepareSettings
    out: str
    run_token: str
    time_limit: float = DEFAULT_TIME_LIMIT
    institution_source: str = UNKNOWN
    mask: MaskFile | None = None
    cache: CacheSettings = field(default_factory=CacheSettings)
    threads: int = 1
    made_at: float | None = None

    @property
    def config_hash(self) -> str:
        """What the slide's row must bear for its tiles to stand."""
        return self.settings.config_hash(self.manifest.mpp, self.mask.digest if self.mask else None)


def prepare_slide(task: SlideTask) -> dict[str, Any]:
    """Make and commit one slide; returns its catalog row, whose status says how it went.

    Raises only where the row itself cannot be written, or RunReplaced where it must not be.
    """
    started = time.perf_counter()
    cv2.setNumThreads(1)  # a worker is one core
    keep_freed_memory()
    storage = open_storage(task.out)
    _require_current(task, storage)
    row = blank_row(task)
    clock = StageClock()
    tiles = TILE_SCHEMA.empty_table()
    try:
        with time_limit(_trace(task, storage), task.time_limit) as begin_anew, Room(task.cache, begin_anew) as room:
            clock.enter("open")
            row["fingerprint"] = fingerprint(task.source)
            with _staged(task, storage, room) as stage:
                tiles = _prepare(task, row, storage, stage, room, clock)
    except RunReplaced:
        raise
    except Exception as error:  # whatever happens to one slide becomes its row
        row.update(failure(error, task.source))
    clock.stop()
    row.update(clock.columns(), seconds=time.perf_counter() - started)
    _require_current(task, storage)
    Catalog(storage).commit(row, tiles)
    name = f"{task.source.slide_id}.parquet"
    set_times_in(task.out, (f"catalog/slides/{name}", f"catalog/tiles/{name}"), task.made_at)
    return row


@contextlib.contextmanager
def _staged(task: SlideTask, storage: Storage, room: Room) -> Iterator[StagedSlide]:
    """A folder to make the slide in, which is gone afterwards."""
    stage = (storage.staging or room.folder) / f"{task.source.slide_id}-{uuid.uuid4().hex[:8]}"
    try:
        stage.mkdir(parents=True)
        yield StagedSlide(stage)
    finally:
        remove_tree(stage)


def _trace(task: SlideTask, storage: Storage) -> Path:
    """Where it is written where the slide hung. Workers share the staging folder; where there is none, each machine has
    a file of its own: the slide is ended on several then, and fails as WorkerDied.
    """
    return (storage.staging or task.cache.root()) / f"{task.source.slide_id}-{task.run_token[:8]}{HUNG}"


def _require_current(task: SlideTask, storage: Storage) -> None:
    """A worker may outlive its client, and must then not write into the next run's folder.

    Raises RunReplaced then, and WriteFailed where the folder is not there at all.
    """
    try:
        token = storage.holder()
    except FileNotFoundError as error:
        raise WriteFailed(
            f"the worker on {socket.gethostname()} does not see {task.out}; OUT must be on a disk that all share"
        ) from error
    if token != task.run_token:
        raise RunReplaced(f"another run works in {task.out} now")


def blank_row(task: SlideTask) -> dict[str, Any]:
    """A slide's row as far as it is known before the file is opened."""
    row: dict[str, Any] = dict.fromkeys(SLIDE_SCHEMA.names)
    row.update(dict.fromkeys([f"tiles_{m.name}" for m in MAGNIFICATIONS] + ["tiles_filtered"], 0))
    row.update(
        slide_id=task.source.slide_id,
        file=task.source.name,
        config_hash=task.config_hash,
        version=__version__,
        seconds=0.0,
        bytes=0,
        files=0,
        digests=NO_DIGESTS,
    )
    row.update(manifest_columns(task, row))
    return row


def manifest_columns(task: SlideTask, row: dict[str, Any]) -> dict[str, Any]:
    """What the manifest and the slide's name decide of its `row`; changing it redoes no tile."""
    manifest = task.manifest
    seen = StainCall(row["stain_pixels"], row["stain_pixels_confidence"]) if row["stain_pixels"] else None
    return {
        "institution": manifest.institution or UNKNOWN,
        "institution_source": task.institution_source,
        "tissue": manifest.tissue or "unknown",
        "patient_key": task.patient_key,
        **stain_columns(manifest.stain, seen, row["warning"]),
    }


def failure(error: BaseException, source: SlideSource) -> dict[str, Any]:
    """The columns that say how a slide failed or why it is excluded, in one line."""
    if isinstance(error, SlideError):
        status, kind, text = (
            error.status,
            type(error).__name__,
            without_secrets(" ".join(str(error).split()), source.path),
        )
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        status, kind = "failed", "WriteFailed"
        text = "the disk of the output folder is full; make room and run again"
    else:
        status, kind, text = "failed", type(error).__name__, bare_text(error, source.path)
    columns = {"status": status, "error_type": kind, "error": text[:500] or "no reason given"}
    return {**columns, "digests": NO_DIGESTS} if status == "failed" else columns  # what it left is swept


def _prepare(
    task: SlideTask, row: dict[str, Any], storage: Storage, stage: StagedSlide, room: Room, clock: StageClock
) -> pa.Table:
    """All of the work on one slide; fills `row` as facts become known, so that they survive a failure."""
    with Crew(task.threads) as crew, opened(task.source, task.settings.reader, room, crew) as opened_reader:
        reader = TrustedLevels(opened_reader)
        try:
            return _prepare_open(task, row, storage, stage, clock, crew, reader)
        finally:  # a slide that fails may fail for what was noted before
            row["warning"] = warned(row["warning"], *reader.info.notes, *reader.warnings)


def _prepare_open(
    task: SlideTask,
    row: dict[str, Any],
    storage: Storage,
    stage: StagedSlide,
    clock: StageClock,
    crew: Crew,
    reader: TrustedLevels,
) -> pa.Table:
    """All of the work on one slide that is open."""
    row.update(_facts(reader.info))
    scale = resolve_scale(reader.info, task.manifest.mpp, task.settings.assume_mpp)
    row.update(mpp_x=scale.mpp_x, mpp_y=scale.mpp_y, mpp_source=scale.source, warning=warned(scale.warning))
    clock.enter("tissue")
    row["tissue_source"] = "mask" if task.mask else "detected"
    while True:
        thumbnail = reader.thumbnail = read_thumbnail(reader, scale.mpp_x, scale.mpp_y, MASK_MPP)
        if not reader.confirms():
            continue
        _check_bright_field(task, row, thumbnail)
        glass = Glass.of(thumbnail.pixels, filling=reader.info.filling)
        if task.mask:
            tissue = read_mask(task.mask, reader.info, thumbnail)
        else:
            tissue = detect_tissue(thumbnail.pixels, thumbnail.mpp, task.settings.tissue, glass)
        if reader.confirms(tissue):
            break
    row["tissue_mm2"] = float(tissue.sum()) * _mask_pixel_mm2(thumbnail, scale)
    seen = classify_stain(thumbnail.pixels, tissue, glass)
    no_colour = colour_warning(thumbnail.pixels, tissue, glass)
    row["warning"] = warned(row["warning"], None if task.mask else glass.warning, no_colour)
    row.update(stain_columns(task.manifest.stain, seen, row["warning"]))
    return _make_tiles(task, row, storage, stage, clock, crew, reader, scale, thumbnail, tissue)


def _check_bright_field(task: SlideTask, row: dict[str, Any], thumbnail: Thumbnail) -> None:
    """Raise NotBrightField for fluorescence and the like, whose row still says what the pixels look like."""
    try:
        check_bright_field(thumbnail.pixels)
    except NotBrightField:
        row.update(stain_columns(task.manifest.stain, classify_glow(thumbnail.pixels), row["warning"]))
        raise


def _make_tiles(
    task: SlideTask,
    row: dict[str, Any],
    storage: Storage,
    stage: StagedSlide,
    clock: StageClock,
    crew: Crew,
    reader: SlideReader,
    scale: Scale,
    thumbnail: Thumbnail,
    tissue: NDArray[np.bool_],
) -> pa.Table:
    slide_id = task.source.slide_id
    polygons = tissue_polygons(tissue, thumbnail.step_x0, thumbnail.step_y0)
    stage.write("tissue.geojson", json.dumps(feature_collection(polygons, FILE_FRAME)).encode())
    try:
        grid = Grid.of_slide(reader.info.width0, reader.info.height0, scale.mpp_x, scale.mpp_y)
    except TooCoarse:
        stage.write("overlay.jpg", draw_overlay(thumbnail, tissue, None, task.source.name))
        row.update(_publish(task, storage, stage))
        raise
    wanted = plan_tiles(grid, tissue, thumbnail.step_x0, thumbnail.step_y0, task.settings.plan, slide_id)
    settings = task.settings
    give_back_freed_memory()  # of a large slide's mask and what it was made of
    clock.enter("tiles")
    store, jpeg, filters = stage.folder / "store.zarr", settings.jpeg, settings.filters
    plan, tiles, failures, digests = write_tiles(store, slide_id, reader, wanted, jpeg, filters, crew)
    stage.digests.update(digests)
    clock.enter("tissue")
    stage.write("overlay.jpg", draw_overlay(thumbnail, tissue, plan, task.source.name))
    clock.enter("publish")
    row.update(_publish(task, storage, stage))
    row.update({f"tiles_{m.name}": plan.count(m) for m in MAGNIFICATIONS})
    row["tiles_filtered"] = len(wanted) - len(plan)
    lost = say_lost(filters, failures, len(wanted) - len(plan), len(wanted)) if len(wanted) > len(plan) else ""
    no_tissue = f"the given mask {task.mask.called} is empty" if task.mask else "no tissue was found"
    row.update(_verdict(row, plan, settings.plan, lost, no_tissue))
    return tiles


def _verdict(row: dict[str, Any], plan: TilePlan, settings: PlanSettings, lost: str, no_tissue: str) -> dict[str, Any]:
    """How the slide went; `lost` says what the filter left out, where it did, and `no_tissue` why there may be none."""
    if lost and not len(plan):
        return {"status": "empty", "error": lost}
    if row["tiles_filtered"] > len(plan):
        row["warning"] = warned(row["warning"], lost)
    if len(plan):
        return {"status": "ok"}
    wanted = set(settings.magnifications) & {m.name for m in plan.grid.magnifications}
    if not wanted:
        finest = plan.grid.base.name
        reason = f"none of {' '.join(settings.magnifications)} can be made: the slide's finest is {finest}"
        return {"status": SlideExcluded.status, "error_type": "TooCoarse", "error": reason}
    if not row["tissue_mm2"]:
        return {"status": "empty", "error": no_tissue}
    return {"status": "empty", "error": f"no tile inside the slide has {settings.tissue_threshold:.0%} tissue"}


def _publish(task: SlideTask, storage: Storage, staged: StagedSlide) -> dict[str, Any]:
    """Bring what was staged into place; returns the count of files, the store's bytes, and all files' digests."""
    stage = staged.folder
    _require_current(task, storage)
    files = [p for p in stage.rglob("*") if p.is_file()]
    store_bytes = sum(p.stat().st_size for p in files if p.is_relative_to(stage / "store.zarr"))
    set_times(stage, task.made_at)
    for name, path in output_places(task.source.slide_id).items():
        if (stage / name).exists():
            storage.publish(stage / name, path)
    return {"files": len(files), "bytes": store_bytes, "digests": to_column(staged.digests)}


def _facts(info: SlideInfo) -> dict[str, Any]:
    return {
        "reader": info.reader,
        "vendor": info.vendor,
        "scanner": info.scanner,
        "mpp_x": info.mpp_x,
        "mpp_y": info.mpp_y,
        "mpp_source": info.mpp_source,
        "objective": info.objective,
        "width": info.width0,
        "height": info.height0,
        "bounds_x0": info.bounds_x0,
        "bounds_y0": info.bounds_y0,
        "icc_profile": info.icc_profile,
    }


def _mask_pixel_mm2(thumbnail: Thumbnail, scale: Scale) -> float:
    return thumbnail.step_x0 * scale.mpp_x * thumbnail.step_y0 * scale.mpp_y * 1e-6
