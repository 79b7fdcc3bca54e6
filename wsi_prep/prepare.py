"""One slide, from its file to committed tiles: what a worker does."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
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
from wsi_prep.ahead import one_ahead
from wsi_prep.catalog import Catalog, remove_tree
from wsi_prep.errors import (
    BadOption,
    NotBrightField,
    RunReplaced,
    SlideError,
    SlideExcluded,
    TimedOut,
    TooCoarse,
    WriteFailed,
)
from wsi_prep.geometry import MAGNIFICATIONS, TILE_PX, Grid
from wsi_prep.institution import UNKNOWN
from wsi_prep.jpeg import JpegSettings, encode_tile
from wsi_prep.manifest import ManifestRow
from wsi_prep.masks import MaskFile, read_mask
from wsi_prep.memory import keep_freed_memory
from wsi_prep.overlay import draw_overlay
from wsi_prep.pixels import read_groups
from wsi_prep.plan import PlanSettings, TilePlan, plan_tiles
from wsi_prep.polygons import FILE_FRAME, feature_collection, tissue_polygons
from wsi_prep.private import bare_text
from wsi_prep.quality import MEASURES, Measurer
from wsi_prep.readers.base import SlideInfo, SlideReader
from wsi_prep.readers.select import READERS, open_slide
from wsi_prep.records import FORMAT_VERSION, SLIDE_SCHEMA, TILE_SCHEMA
from wsi_prep.scale import Scale, check_assumed_mpp, resolve_scale
from wsi_prep.shards import StoreWriter, TileLocation
from wsi_prep.sources import SlideSource, fingerprint
from wsi_prep.stain import StainCall, classify_glow, classify_stain, stain_columns
from wsi_prep.thumbnail import Thumbnail, read_thumbnail
from wsi_prep.tissue import MASK_MPP, Glass, TissueSettings, check_bright_field, detect_tissue

STAGING = ".staging"
"""Folder of the output in which slides are made before they are renamed into place."""

DEFAULT_TIME_LIMIT = 3600.0
"""Seconds on one worker after which a slide is taken to hang."""

LOCK = ".lock"
"""File of the output that the running client holds locked; it contains the run's token."""


@dataclass(frozen=True)
class PrepareSettings:
    """Every setting that a slide's tiles depend on. `assume_mpp` is for slides of which nothing states one."""

    plan: PlanSettings = field(default_factory=PlanSettings)
    tissue: TissueSettings = field(default_factory=TissueSettings)
    jpeg: JpegSettings = field(default_factory=JpegSettings)
    reader: str = "auto"
    assume_mpp: float | None = None

    def __post_init__(self) -> None:
        if self.reader not in READERS:
            raise BadOption(f"reader {self.reader!r} is not known; choose from {' '.join(READERS)}")
        if self.assume_mpp is not None:
            check_assumed_mpp(self.assume_mpp)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON gives them back."""
        plain: dict[str, Any] = json.loads(json.dumps({"format": FORMAT_VERSION, **asdict(self)}))
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
    `time_limit` seconds the worker process ends itself, and the slide fails when it is tried again.
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
    _require_current(task)
    row = blank_row(task)
    tiles = TILE_SCHEMA.empty_table()
    stage = Path(task.out) / STAGING / f"{task.source.slide_id}-{uuid.uuid4().hex[:8]}"
    try:
        with _time_limit(task):
            row["fingerprint"] = fingerprint(task.source)
            stage.mkdir(parents=True)
            tiles = _prepare(task, row, stage)
    except RunReplaced:
        raise
    except Exception as error:  # whatever happens to one slide becomes its row
        row.update(failure(error, task.source))
    finally:
        remove_tree(stage)
    row["seconds"] = time.perf_counter() - started
    _require_current(task)
    Catalog(Path(task.out)).commit(row, tiles)
    return row


@contextlib.contextmanager
def _time_limit(task: SlideTask) -> Iterator[None]:
    """End this process if the block takes too long; raise TimedOut if an earlier try was ended so.

    The watchdog is faulthandler's, which works even while a library hangs in C; where the slide hung is written to a
    file of the staging folder, and that file is what the next try finds.
    """
    trace = Path(task.out) / STAGING / f"{task.source.slide_id}.hung"
    if trace.exists() and trace.stat().st_size:
        raise TimedOut(f"took longer than {task.time_limit:g} s; look at the slide, or give it more with TIME_LIMIT")
    trace.parent.mkdir(exist_ok=True)
    with trace.open("w") as file:
        faulthandler.dump_traceback_later(task.time_limit, exit=True, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
    trace.unlink()


def _require_current(task: SlideTask) -> None:
    """A worker may outlive its client, and must then not write into the next run's folder.

    Raises RunReplaced then, and WriteFailed where the folder is not there at all.
    """
    try:
        token = (Path(task.out) / LOCK).read_text()
    except FileNotFoundError as error:
        raise WriteFailed(
            f"the worker on {socket.gethostname()} does not see {task.out}; OUT must be on a disk that all share"
        ) from error
    if token != task.run_token:
        raise RunReplaced(f"another run works in {task.out} now")


def blank_row(task: SlideTask) -> dict[str, Any]:
    """A slide's row as far as it is known before the file is opened."""
    row: dict[str, Any] = dict.fromkeys(SLIDE_SCHEMA.names)
    row.update(dict.fromkeys([f"tiles_{m.name}" for m in MAGNIFICATIONS], 0))
    row.update(
        slide_id=task.source.slide_id,
        file=task.source.name,
        config_hash=task.config_hash,
        version=__version__,
        seconds=0.0,
        bytes=0,
        files=0,
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
        status, kind, text = error.status, type(error).__name__, " ".join(str(error).split())
    elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        status, kind = "failed", "WriteFailed"
        text = "the disk of the output folder is full; make room and run again"
    else:
        status, kind, text = "failed", type(error).__name__, bare_text(error, source.path)
    return {"status": status, "error_type": kind, "error": text[:500] or "no reason given"}


def _prepare(task: SlideTask, row: dict[str, Any], stage: Path) -> pa.Table:
    """All of the work on one slide; fills `row` as facts become known, so that they survive a failure."""
    reader = open_slide(task.source.path, task.settings.reader)
    try:
        row.update(_facts(reader.info))
        scale = resolve_scale(reader.info, task.manifest.mpp, task.settings.assume_mpp)
        row.update(mpp_x=scale.mpp_x, mpp_y=scale.mpp_y, mpp_source=scale.source, warning=scale.warning or None)
        thumbnail = read_thumbnail(reader, scale.mpp_x, scale.mpp_y, MASK_MPP)
        _check_bright_field(task, row, thumbnail)
        glass = Glass.of(thumbnail.pixels)
        row["tissue_source"] = "mask" if task.mask else "detected"
        if task.mask:
            tissue = read_mask(task.mask, reader.info, thumbnail)
        else:
            tissue = detect_tissue(thumbnail.pixels, thumbnail.mpp, task.settings.tissue, glass)
        row["tissue_mm2"] = float(tissue.sum()) * _mask_pixel_mm2(thumbnail, scale)
        seen = classify_stain(thumbnail.pixels, tissue, glass)
        row.update(stain_columns(task.manifest.stain, seen, row["warning"]))
        return _make_tiles(task, row, stage, reader, scale, thumbnail, tissue)
    finally:
        reader.close()


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
    stage: Path,
    reader: SlideReader,
    scale: Scale,
    thumbnail: Thumbnail,
    tissue: NDArray[np.bool_],
) -> pa.Table:
    slide_id = task.source.slide_id
    polygons = tissue_polygons(tissue, thumbnail.step_x0, thumbnail.step_y0)
    (stage / "tissue.geojson").write_text(json.dumps(feature_collection(polygons, FILE_FRAME)))
    try:
        grid = Grid.of_slide(reader.info.width0, reader.info.height0, scale.mpp_x, scale.mpp_y)
    except TooCoarse:
        (stage / "overlay.jpg").write_bytes(draw_overlay(thumbnail, tissue, None, task.source.name))
        row.update(_publish(task, stage))
        raise
    plan = plan_tiles(grid, tissue, thumbnail.step_x0, thumbnail.step_y0, task.settings.plan, slide_id)
    (stage / "overlay.jpg").write_bytes(draw_overlay(thumbnail, tissue, plan, task.source.name))
    tiles = _write_store(task, stage, reader, plan) if len(plan) else TILE_SCHEMA.empty_table()
    row.update(_publish(task, stage))
    row.update({f"tiles_{m.name}": plan.count(m) for m in MAGNIFICATIONS})
    row.update(_verdict(row, plan, task.settings.plan))
    return tiles


def _verdict(row: dict[str, Any], plan: TilePlan, settings: PlanSettings) -> dict[str, Any]:
    if len(plan):
        return {"status": "ok"}
    wanted = set(settings.magnifications) & {m.name for m in plan.grid.magnifications}
    if not wanted:
        finest = plan.grid.base.name
        reason = f"none of {' '.join(settings.magnifications)} can be made: the slide's finest is {finest}"
        return {"status": SlideExcluded.status, "error_type": "TooCoarse", "error": reason}
    if not row["tissue_mm2"]:
        return {"status": "empty", "error": "no tissue was found"}
    return {"status": "empty", "error": f"no tile inside the slide has {settings.tissue_threshold:.0%} tissue"}


def _write_store(task: SlideTask, stage: Path, reader: SlideReader, plan: TilePlan) -> pa.Table:
    """Encode every tile into the staged store; returns the tiles' catalog rows."""
    counts = {m.name: plan.count(m) for m in MAGNIFICATIONS}
    attributes = {"slide_id": task.source.slide_id, "mpp": {m.name: plan.grid.mpp(m) for m in plan.grid.magnifications}}
    locations: list[TileLocation] = []
    measures = np.empty((len(plan), len(MEASURES)), np.float32)
    tile = np.empty((TILE_PX, TILE_PX, 3), np.uint8)  # read from the large image once, then close at hand
    with (
        contextlib.closing(one_ahead(read_groups(reader, plan))) as groups,
        StoreWriter(stage / "store.zarr", counts, task.settings.jpeg, attributes) as store,
    ):
        for group in groups:
            name = MAGNIFICATIONS[plan.mag[group.tiles.start]].name
            measurer = Measurer(group.corner, group.quarter)
            for number, index in enumerate(group.tiles):
                np.copyto(tile, group.pixels(number))
                measures[index] = measurer.measure(number, tile)
                locations.append(store.append(name, encode_tile(tile, task.settings.jpeg)))
    return _tile_rows(task.source.slide_id, plan, measures, locations)


def _tile_rows(slide_id: str, plan: TilePlan, measures: NDArray[np.float32], locations: list[TileLocation]) -> pa.Table:
    names = np.array([m.name for m in MAGNIFICATIONS])
    usable = plan.grid.magnifications
    mpp = np.array([plan.grid.mpp(m) if m in usable else np.nan for m in MAGNIFICATIONS])
    span0 = np.array([plan.grid.span_x0(m) if m in usable else np.nan for m in MAGNIFICATIONS])
    store = f"stores/{slide_id}.zarr"
    columns = {
        "slide_id": np.full(len(plan), slide_id),
        "magnification": names[plan.mag],
        "mpp": mpp[plan.mag],
        "x0": plan.x0,
        "y0": plan.y0,
        "span0": span0[plan.mag],
        "row": plan.row,
        "col": plan.col,
        "tissue_fraction": plan.tissue_fraction,
        **{name: measures[:, i] for i, name in enumerate(MEASURES)},
        "shard": [f"{store}/{place.shard}" for place in locations],
        "array": np.array([f"{store}/{name}" for name in names])[plan.mag],
        "index": [place.index for place in locations],
        "offset": [place.offset for place in locations],
        "nbytes": [place.nbytes for place in locations],
        "crc32": [place.crc32 for place in locations],
    }
    return pa.table([pa.array(columns[f.name], f.type) for f in TILE_SCHEMA], schema=TILE_SCHEMA)


def _publish(task: SlideTask, stage: Path) -> dict[str, Any]:
    """Rename what was staged into place; returns the count of files and the store's bytes."""
    _require_current(task)
    places = output_places(Path(task.out), task.source.slide_id)
    files = [p for p in stage.rglob("*") if p.is_file()]
    store_bytes = sum(p.stat().st_size for p in files if p.is_relative_to(stage / "store.zarr"))
    for name, place in places.items():
        if (stage / name).exists():
            place.parent.mkdir(exist_ok=True)
            remove_tree(place)
            (stage / name).rename(place)
    return {"files": len(files), "bytes": store_bytes}


def output_places(out: Path, slide_id: str) -> dict[str, Path]:
    """Where each staged thing of a slide ends up."""
    return {
        "store.zarr": out / "stores" / f"{slide_id}.zarr",
        "tissue.geojson": out / "tissue" / f"{slide_id}.geojson",
        "overlay.jpg": out / "overlays" / f"{slide_id}.jpg",
    }


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
    }


def _mask_pixel_mm2(thumbnail: Thumbnail, scale: Scale) -> float:
    return thumbnail.step_x0 * scale.mpp_x * thumbnail.step_y0 * scale.mpp_y * 1e-6
