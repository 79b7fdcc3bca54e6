"""What would keep a run from ending well, before it begins: slides that do not open, room, rights, clocks."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wsi_prep.errors import StoreFailed, counted
from wsi_prep.format.records import SLIDE_SCHEMA
from wsi_prep.output.catalog import Catalog
from wsi_prep.output.folder import read_run
from wsi_prep.output.tombstone import read_tombstone
from wsi_prep.run.call import terms_of
from wsi_prep.run.request import RunRequest
from wsi_prep.run.row import failure
from wsi_prep.run.task import SlideTask
from wsi_prep.run.todo import asked_for, by_tombstone, forgotten_note, without_forgotten
from wsi_prep.slides.fetch.cache import Lease
from wsi_prep.slides.find.endings import ending
from wsi_prep.slides.find.found import require_files, source_bytes
from wsi_prep.slides.find.sources import look_for_slides
from wsi_prep.slides.pyramid.trusted import TrustedLevels
from wsi_prep.slides.readers.select import opened
from wsi_prep.slides.scale import resolve_scale
from wsi_prep.storage.base import Storage
from wsi_prep.storage.select import local_folder, open_storage
from wsi_prep.tiles.grid import Grid
from wsi_prep.tiles.plan import plan_tiles
from wsi_prep.tissue.find import find_tissue
from wsi_prep.untrusted.locks import CannotLock, try_lock

TILE_BYTES = 30_000
"""Of a tile, where the output holds none to go by: a 392 px JPEG of quality 90 of tissue."""

_TILES = ("tiles_5x", "tiles_10x", "tiles_20x", "tiles_40x")
_SIZES = 200  # slides whose files are asked for their size
_OPENED = 12
_SECONDS, _LEAST_SECONDS = 50.0, 10.0  # in all, and for opening slides however long the rest took
_AT_ONCE = 16
_CLOCK = 60.0  # s that clocks may differ
_FREE_SHARE = 0.9  # of the room that is there: other things are written too


@dataclass(frozen=True)
class Tried:
    """A slide that was opened, not cut: its `vendor`, um/px, and `tiles` to make; or the `error` that it will have."""

    name: str
    vendor: str = ""
    mpp: float | None = None
    tiles: int | None = None
    error: str = ""


@dataclass
class Before:
    """`to_do` of the `found` slides, less forgotten ones, are not in the output. `faults` keep the run from ending
    well; `notes` are to know.

    `read_bytes` of slides, and `needed` bytes of output, are what a sample of them says; None where it says nothing.
    """

    found: int
    to_do: int
    tried: list[Tried] = field(default_factory=list)
    read_bytes: int | None = None
    needed: int | None = None
    free: int | None = None
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def look_before(request: RunRequest, seed: int = 0, seconds: float = _SECONDS) -> Before:
    """What a run of `request` would meet, by listing its slides and opening some; nothing that it makes stays.

    `seconds` in all, of which opening slides takes what the rest leaves; `seed` chooses them, one of each ending first.
    Raises UsageError as a run would.
    """
    began = time.monotonic()
    found = look_for_slides(request.slides, id_root=request.id_root, id_key=request.id_key)
    storage = open_storage(request.out)
    terms_of(request).require_kept(storage.where, read_run(storage))
    every, notes = asked_for(request, found, storage, ("", 0.0))
    tasks, forgotten = by_tombstone(read_tombstone(storage), every)
    known = _known(storage)
    ids = known["slide_id"].combine_chunks()
    former = set(ids.filter(pc.is_in(ids, pa.array(found.sources.renamed().values(), pa.string()))).to_pylist())
    there = pc.or_(pc.is_in(tasks.ids, ids), pc.is_valid(tasks.formerly(former.__contains__)))
    todo = tasks.where(~there.to_numpy(zero_copy_only=False))
    notes = [*without_forgotten(notes, forgotten), *forgotten_note(len(forgotten))]
    before = Before(len(tasks), len(todo), notes=notes)
    before.faults += _of_output(request.out)
    order = np.random.default_rng(seed).permutation(len(todo))[:_SIZES]
    drawn = [todo[int(number)] for number in order]
    with ThreadPoolExecutor(_AT_ONCE) as pool:  # each may be some waits on a slow file system
        told = pool.map(lambda task: source_bytes(task.source), drawn)
        sizes = [size for size in told if size is not None]
    if sizes:
        before.read_bytes = round(sum(sizes) / len(sizes) * len(todo))
    left = max(seconds - (time.monotonic() - began), min(seconds, _LEAST_SECONDS))
    before.tried = _tried(_each_ending_first(drawn), left)
    _add_room(before, request.out, known)
    for each in before.tried:
        if each.error:
            before.notes.append(f"{each.name} makes no tiles: {each.error}")
    if before.tried and all(each.error for each in before.tried):
        opened_slides = counted(len(before.tried), "slide was", "slides were")
        before.faults.append(f"{opened_slides} opened, and none of them makes tiles")
    return before


def _known(storage: Storage) -> pa.Table:
    """The rows of slides that the output holds, but for those that failed."""
    columns = ["slide_id", "status", "bytes", *_TILES]
    if not read_run(storage):
        return pa.schema([SLIDE_SCHEMA.field(name) for name in columns]).empty_table()
    rows = Catalog(storage).table(columns)
    return rows.filter(pc.not_equal(rows["status"], "failed").fill_null(True))


def _each_ending_first(tasks: Iterable[SlideTask]) -> list[SlideTask]:
    first: dict[str, SlideTask] = {}
    others = [task for task in tasks if first.setdefault(ending(task.source.path), task) is not task]
    return [*first.values(), *others][:_OPENED]


def _tried(tasks: Iterable[SlideTask], seconds: float) -> list[Tried]:
    """The slides as far as there is time; one that takes all of it is the last, and is left to itself."""
    done: list[Tried] = []
    until = time.monotonic() + seconds
    for task in tasks:
        if time.monotonic() >= until:
            break
        told: list[Tried] = []
        work = threading.Thread(target=lambda: told.append(_open(task)), daemon=True)  # noqa: B023
        work.start()
        work.join(max(0.0, until - time.monotonic()))
        done.append(told[0] if told else Tried(task.source.name, error=f"it is not open after {seconds:.0f} s"))
    return done


def _open(task: SlideTask) -> Tried:
    source, settings = task.source, task.settings
    tried = Tried(source.name)
    try:
        require_files(source)
        with Lease(task.cache) as lease, opened(source, settings.reader, lease) as reader:
            tried = replace(tried, vendor=reader.info.vendor)
            scale = resolve_scale(reader.info, task.manifest.mpp, settings.assume_mpp)
            tried = replace(tried, mpp=scale.mpp_x)
            grid = Grid.of_slide(reader.info.width0, reader.info.height0, scale.mpp_x, scale.mpp_y)
            found = find_tissue(TrustedLevels(reader), scale, settings.tissue)
            steps = found.thumbnail.step_x0, found.thumbnail.step_y0
            return replace(tried, tiles=len(plan_tiles(grid, found.tissue, *steps, settings.plan, source.slide_id)))
    except Exception as error:  # as a run makes it the slide's row
        return replace(tried, error=failure(error, source)["error"] or "")


def _of_output(out: str) -> list[str]:
    """What is wrong with the place that is written to: it is written to, locked, renamed in, and its clock is asked."""
    folder = local_folder(out)
    if folder is None:
        return _of_store(open_storage(out))
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    probe = there / f".check-{uuid.uuid4().hex[:8]}"
    try:
        with probe.open("wb") as file:
            file.write(b"\0" * 4096)
            os.fsync(file.fileno())
            _require_lock(file)
        probe.rename(renamed := probe.with_name(f"{probe.name}.renamed"))
        away = renamed.stat().st_mtime - time.time()
    except CannotLock as error:
        return [f"{there} cannot be locked: {error}"]
    except OSError as error:
        return [f"{there} cannot be written to: {error.strerror or error}"]
    finally:
        for path in (probe, probe.with_name(f"{probe.name}.renamed")):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    if abs(away) > _CLOCK:
        return [
            f"the clock of {there} is {away:+,.0f} s from this machine's; set them alike, or hung slides are not ended"
        ]
    return []


def _require_lock(file: IO[bytes]) -> None:
    """Raise CannotLock where a lock is refused; one that a file system does not have is done without."""
    try:
        try_lock(file)
    except CannotLock as error:
        if not error.for_all:
            raise


def _of_store(storage: Storage) -> list[str]:
    name = f".check-{uuid.uuid4().hex[:8]}"
    try:
        storage.write(name, b"")
        storage.remove(name)
    except (OSError, StoreFailed) as error:
        return [f"{storage.where} cannot be written to: {error}"]
    return []


def _add_room(before: Before, out: str, known: pa.Table) -> None:
    """What the output needs by the plans of the slides that were opened, against what is free."""
    tiles = [each.tiles for each in before.tried if each.tiles is not None]
    made = sum(pc.sum(known[name], min_count=0).as_py() for name in _TILES)
    a_tile = pc.sum(known["bytes"], min_count=0).as_py() / made if made else TILE_BYTES
    if tiles:
        before.needed = round(sum(tiles) / len(tiles) * before.to_do * a_tile)
    folder = local_folder(out)
    if folder is not None:
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        before.free = shutil.disk_usage(there).free
        if before.needed is not None and before.needed > _FREE_SHARE * before.free:
            what = f"{before.needed / 1e9:,.1f} GB, and {before.free / 1e9:,.1f} GB are free"
            before.faults.append(f"the shards need about {what} in {there}; name an OUT with more room, or fewer MAGS")
