"""One slide, from its file to committed tiles: what a worker does."""

from __future__ import annotations

import contextlib
import json
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import pyarrow as pa

from wsi_prep.compute.memory import give_back_freed_memory, keep_freed_memory
from wsi_prep.compute.threads import ThreadPool
from wsi_prep.compute.time_limit import HUNG, time_limit
from wsi_prep.errors import (
    DamagedSlide,
    NotBrightField,
    RunReplaced,
    SlideChanged,
    TooCoarse,
    UnreadableSlide,
    WriteFailed,
)
from wsi_prep.format.layout import output_places
from wsi_prep.format.records import TILE_SCHEMA, SlideRow, warned
from wsi_prep.output.catalog import Catalog
from wsi_prep.run.row import blank_row, facts, failure, tile_columns, verdict
from wsi_prep.run.stages import StageClock, StagedSlide
from wsi_prep.run.task import SlideTask
from wsi_prep.slides.base import SlideReader
from wsi_prep.slides.fetch.cache import Lease
from wsi_prep.slides.find.fingerprint import fingerprint
from wsi_prep.slides.find.found import seen, source_bytes
from wsi_prep.slides.pyramid.thumbnail import Thumbnail
from wsi_prep.slides.pyramid.trusted import TrustedLevels
from wsi_prep.slides.readers.select import opened
from wsi_prep.slides.scale import Scale, resolve_scale
from wsi_prep.stain.classify import classify_glow, classify_stain, colour_warning, stain_columns
from wsi_prep.storage.atomic import remove_tree
from wsi_prep.storage.base import Storage
from wsi_prep.storage.digests import to_column
from wsi_prep.storage.patience import PAUSES, passes
from wsi_prep.storage.select import open_storage
from wsi_prep.storage.times import set_times, set_times_in
from wsi_prep.tiles.filters import say_lost
from wsi_prep.tiles.grid import Grid
from wsi_prep.tiles.overlay import draw_overlay
from wsi_prep.tiles.plan import plan_tiles
from wsi_prep.tiles.writer import TileSettings, write_tiles
from wsi_prep.tissue.background_model import BackgroundModel
from wsi_prep.tissue.detect import check_bright_field
from wsi_prep.tissue.find import FoundTissue, find_tissue
from wsi_prep.tissue.geojson import FILE_FRAME, feature_collection
from wsi_prep.tissue.masks import read_mask
from wsi_prep.tissue.polygons import tissue_polygons

_INK_MM2 = 0.1
"""Less of what looks like ink is no reason why a slide has no tissue."""

_BESIDE = "the given mask lies on bare glass, and tissue beside it: is it this slide's, in px of level 0?"


def prepare_slide(task: SlideTask) -> SlideRow:
    """Make and commit one slide; returns its catalog row, whose status says how it went.

    Raises only where the row itself cannot be written, or RunReplaced where it must not be.
    """
    started = time.perf_counter()
    cv2.setNumThreads(1)  # a worker is one core
    keep_freed_memory()
    storage = open_storage(task.out)
    _require_current(task, storage)
    for pause in (*PAUSES, None):
        row, tiles, error = _made(task, storage)
        if pause is None or error is None or not passes(error):
            break
        time.sleep(pause)  # then all of it again, with files opened anew
    row["seconds"] = time.perf_counter() - started
    _require_current(task, storage)
    Catalog(storage).commit(row, tiles)
    name = f"{task.source.slide_id}.parquet"
    set_times_in(task.out, (f"catalog/slides/{name}", f"catalog/tiles/{name}"), task.made_at)
    return row


def _made(task: SlideTask, storage: Storage) -> tuple[SlideRow, pa.Table, Exception | None]:
    """The slide's row and its tiles' rows; and what it failed for, which the row says too."""
    row = blank_row(task)
    clock = StageClock()
    tiles, failed = TILE_SCHEMA.empty_table(), None
    try:
        with time_limit(_trace(task, storage), task.time_limit) as begin_anew, Lease(task.cache, begin_anew) as lease:
            clock.enter("open")
            before = seen(task.source, settled=True) if task.made_at is None else None
            row["fingerprint"] = fingerprint(task.source)
            row["source_seen"] = before if before == seen(task.source) else None
            row["source_bytes"] = source_bytes(task.source)
            with _staged(task, storage, lease) as stage, ThreadPool(task.threads) as pool:
                tiles = _prepare(_Bench(task, row, storage, stage, clock, pool), lease)
    except RunReplaced:
        raise
    except Exception as error:  # whatever happens to one slide becomes its row
        failed = _why(error, task, row)
        row.update(failure(failed, task.source))
    clock.stop()
    row.update(clock.columns())
    return row, tiles, failed


@contextlib.contextmanager
def _staged(task: SlideTask, storage: Storage, lease: Lease) -> Iterator[StagedSlide]:
    """A folder to make the slide in, which is gone afterwards."""
    stage = (storage.staging or lease.folder) / f"{task.source.slide_id}-{uuid.uuid4().hex[:8]}"
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


def _require_unchanged(task: SlideTask, row: SlideRow) -> None:
    """Raise SlideChanged where the files are not those that `row` has the fingerprint of: tiles may be of both."""
    if fingerprint(task.source) != row["fingerprint"]:
        raise SlideChanged("the file was changed while it was read, as by a copy under way; repeat the command")


def _why(error: Exception, task: SlideTask, row: SlideRow) -> Exception:
    """The error, or SlideChanged where a file that changes is the reason: it is not damaged then."""
    if row["fingerprint"] and isinstance(error, (DamagedSlide, UnreadableSlide)):
        try:
            _require_unchanged(task, row)
        except SlideChanged as changed:
            return changed
        except Exception:  # the slide has its reason already
            return error
    return error


@dataclass
class _Bench:
    """One slide's work on a worker: its task and row, where it is made and where it goes, and who helps."""

    task: SlideTask
    row: SlideRow
    storage: Storage
    stage: StagedSlide
    clock: StageClock
    pool: ThreadPool

    def publish(self) -> None:
        """Bring what was staged into place; the row says how many files, the store's bytes, and all files' digests."""
        task, stage = self.task, self.stage.folder
        _require_unchanged(task, self.row)
        _require_current(task, self.storage)
        files = [p for p in stage.rglob("*") if p.is_file()]
        store_bytes = sum(p.stat().st_size for p in files if p.is_relative_to(stage / "store.zarr"))
        set_times(stage, task.made_at)
        for name, path in output_places(task.source.slide_id).items():
            if (stage / name).exists():
                self.storage.publish(stage / name, path)
        self.row.update({"files": len(files), "bytes": store_bytes, "digests": to_column(self.stage.digests)})


def _prepare(bench: _Bench, lease: Lease) -> pa.Table:
    """All of the work on one slide; fills the row as facts become known, so that they survive a failure."""
    task, row = bench.task, bench.row
    with opened(task.source, task.settings.reader, lease, bench.pool) as opened_reader:
        reader = TrustedLevels(opened_reader)
        try:
            return _prepare_open(bench, reader)
        finally:  # a slide that fails may fail for what was noted before
            row["warning"] = warned(row["warning"], *reader.info.notes, *reader.warnings)


def _prepare_open(bench: _Bench, reader: TrustedLevels) -> pa.Table:
    """All of the work on one slide that is open."""
    task, row = bench.task, bench.row
    row.update(facts(reader.info))
    scale = resolve_scale(reader.info, task.manifest.mpp, task.settings.assume_mpp)
    row.update(
        {"mpp_x": scale.mpp_x, "mpp_y": scale.mpp_y, "mpp_source": scale.source, "warning": warned(scale.warning)}
    )
    bench.clock.enter("tissue")
    row["tissue_source"] = "mask" if task.mask else "detected"
    mask = task.mask
    given = (lambda thumbnail: read_mask(mask, reader.info, thumbnail)) if mask else None
    found = find_tissue(
        reader, scale, task.settings.tissue, given, lambda seen, glass: _check_bright_field(task, row, seen, glass)
    )
    thumbnail, glass, tissue = found.thumbnail, found.glass, found.tissue
    row["tissue_mm2"] = float(tissue.sum()) * _mask_pixel_mm2(thumbnail, scale)
    row["tissue_certainty"] = found.certain
    seen = classify_stain(thumbnail.pixels, tissue, glass)
    no_colour = colour_warning(thumbnail.pixels, tissue, glass)
    doubt = _BESIDE if found.beside else no_colour
    row["warning"] = warned(row["warning"], None if task.mask else glass.warning, doubt)
    row.update(stain_columns(task.manifest.stain, seen, row["warning"]))
    return _make_tiles(bench, reader, scale, found)


def _check_bright_field(task: SlideTask, row: SlideRow, thumbnail: Thumbnail, glass: BackgroundModel) -> None:
    """Raise NotBrightField for fluorescence and the like, whose row still says what the pixels look like."""
    try:
        check_bright_field(thumbnail.pixels, glass)
    except NotBrightField:
        row.update(stain_columns(task.manifest.stain, classify_glow(thumbnail.pixels), row["warning"]))
        raise


def _make_tiles(bench: _Bench, reader: SlideReader, scale: Scale, found: FoundTissue) -> pa.Table:
    thumbnail, tissue = found.thumbnail, found.tissue
    task, row, stage, settings = bench.task, bench.row, bench.stage, bench.task.settings
    slide_id = task.source.slide_id
    polygons = tissue_polygons(tissue, thumbnail.step_x0, thumbnail.step_y0)
    stage.write("tissue.geojson", json.dumps(feature_collection(polygons, FILE_FRAME)).encode())
    try:
        grid = Grid.of_slide(reader.info.width0, reader.info.height0, scale.mpp_x, scale.mpp_y)
    except TooCoarse:
        stage.write("overlay.jpg", draw_overlay(thumbnail, tissue, None, task.source.name))
        bench.publish()
        raise
    steps = thumbnail.step_x0, thumbnail.step_y0
    wanted = plan_tiles(grid, tissue, *steps, settings.plan, slide_id).with_ink(found.ink, *steps)
    wanted = wanted.with_fat(found.fat, *steps)
    give_back_freed_memory()  # of a large slide's mask and what it was made of
    bench.clock.enter("tiles")
    filters = tuple(each for each in settings.filters if each.is_for(row["stain"]))
    store, how = stage.folder / "store.zarr", TileSettings(settings.jpeg, filters, settings.own_quality)
    plan, tiles, failures, digests = write_tiles(store, slide_id, reader, wanted, how, bench.pool)
    stage.digests.update(digests)
    bench.clock.enter("tissue")
    stage.write("overlay.jpg", draw_overlay(thumbnail, tissue, plan, task.source.name))
    bench.clock.enter("publish")
    bench.publish()
    row.update(tile_columns(plan, len(wanted) - len(plan)))
    lost = say_lost(filters, failures, len(wanted) - len(plan), len(wanted)) if len(wanted) > len(plan) else ""
    row.update(verdict(row, plan, settings.plan, lost, _why_none(task, found, scale)))
    return tiles


def _why_none(task: SlideTask, found: FoundTissue, scale: Scale) -> str:
    """Why there is no tissue, where there is none."""
    if task.mask:
        return f"the given mask {task.mask.called} is empty"
    inked = float(found.ink.sum()) * _mask_pixel_mm2(found.thumbnail, scale)
    like_ink = f"; some {inked:.2g} mm2 look like ink: where that is tissue, give a mask (MASKS=)"
    return f"no tissue was found{like_ink if inked >= _INK_MM2 else ''}"


def _mask_pixel_mm2(thumbnail: Thumbnail, scale: Scale) -> float:
    return thumbnail.step_x0 * scale.mpp_x * thumbnail.step_y0 * scale.mpp_y * 1e-6
