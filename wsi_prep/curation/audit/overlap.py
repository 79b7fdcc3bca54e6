"""What shards share with tables of labelled tiles, by the catalogs and, where it is asked for, by the tiles' pixels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import duckdb
import numpy as np
from numpy.typing import NDArray

from wsi_prep.compute.ahead import ahead
from wsi_prep.curation.audit.numbers import Audit
from wsi_prep.errors import BadCatalog, StoreFailed
from wsi_prep.format.records import TileRow
from wsi_prep.format.stored_tiles import TilePlace, place_of, require_whole
from wsi_prep.storage.overlap.likeness import LIKENESS, Likenesses, likeness_of_image
from wsi_prep.storage.overlap.near import NearCopies, near_copies
from wsi_prep.storage.overlap.shared import KnownSlide, Overlap, both_sides, likenesses_of_table, shared_with
from wsi_prep.storage.select import open_storage

Progress = Callable[[int, int], None]
_KNOWN = """
SELECT slide_id, coalesce(file, ''), coalesce(patient_key, ''), coalesce(fingerprint, '') FROM slides
WHERE status = 'ok'
"""
_ROWS = 1 << 14  # of the catalog that are read at once
_TOGETHER = 64  # tiles of one shard that are read at once
_NAMES = ("slide_id", "magnification", "index", "shard", "offset", "nbytes", "crc32")


@dataclass(frozen=True)
class TaskOverlap:
    """What the table `name` shares with the shards; `copies` where tiles were compared."""

    name: str
    shared: Overlap
    copies: NearCopies | None

    @property
    def lines(self) -> list[str]:
        """For people."""
        copies = [self.copies.line] if self.copies else []
        return [line for line in (self.shared.line, *copies, both_sides(self.shared)) if line]


def overlaps(
    tables: Sequence[Path],
    audited: Audit,
    connection: duckdb.DuckDBPyConnection,
    *,
    near: bool = False,
    progress: Progress = lambda done, of: None,
) -> tuple[TaskOverlap, ...]:
    """Of each table, with the catalogs that open_catalogs has opened; `near`: every tile is read and compared.

    Raises BadTask and StoreFailed.
    """
    known = [KnownSlide(*row) for row in connection.execute(_KNOWN).fetchall()] if tables else []
    shared = [shared_with(table, lambda: known) for table in tables]
    copies: list[NearCopies | None] = [None] * len(tables)
    if near and tables:
        threads = len(os.sched_getaffinity(0))
        wanted = [likenesses_of_table(table, threads) for table in tables]
        every = _joined(list(_blocks(audited, connection, threads, progress)))
        copies = [near_copies(each, [every]) for each in wanted]
    return tuple(TaskOverlap(str(t), s, c) for t, s, c in zip(tables, shared, copies, strict=True))


Block = tuple[Likenesses, NDArray[np.int64]]


def _joined(blocks: Sequence[Block]) -> Block:
    """All as one; 41 bytes a tile."""
    nothing: Block = (Likenesses.of(np.empty(0, LIKENESS)), np.empty(0, np.int64))
    likeness, slides = zip(nothing, *blocks, strict=True)
    words, state = (np.concatenate([getattr(each, name) for each in likeness]) for name in ("words", "state"))
    return Likenesses(words, state), np.concatenate(slides)


def _blocks(audited: Audit, connection: duckdb.DuckDBPyConnection, threads: int, progress: Progress) -> Iterator[Block]:
    """The likenesses of all tiles, and the number of each one's slide."""
    places = [open_storage(folder) for folder in audited.folders]
    ids, folders = (audited.slides.table[name].to_pylist() for name in ("slide_id", "folder"))
    numbers = {slide_id: number for number, slide_id in enumerate(ids)}
    total = sum(audited.tiles.values())

    def read(rows: Sequence[TileRow]) -> NDArray[np.void]:
        storage = places[folders[numbers[rows[0]["slide_id"]]]]
        sound = [(n, at) for n, row in enumerate(rows) if (at := _place(row)) is not None]
        found = np.array([likeness_of_image(None)] * len(rows), LIKENESS)
        try:
            spans = [(at.offset, at.nbytes) for _, at in sound]
            jpegs = storage.spans(sound[0][1].shard, spans) if sound else iter(())
            for (n, at), jpeg in zip(sound, jpegs, strict=False):
                found[n] = likeness_of_image(_whole(jpeg, at))
        except StoreFailed:
            raise
        except OSError:
            pass  # what was not read stays unreadable
        return found

    done = 0
    runs = _runs(connection)
    with closing(ahead(lambda rows: (rows, read(rows)), runs, threads, most=2 * threads)) as found:
        for rows, likeness in found:
            yield Likenesses.of(likeness), np.array([numbers[row["slide_id"]] for row in rows], np.int64)
            done += len(rows)
            progress(done, total)


def _runs(connection: duckdb.DuckDBPyConnection) -> Iterator[list[TileRow]]:
    """The catalog's tiles, so many of one shard at once."""
    columns = ", ".join(f'"{name}"' for name in _NAMES)
    asked = connection.execute(f"SELECT {columns} FROM tiles")  # noqa: S608
    run: list[TileRow] = []
    while some := asked.fetchmany(_ROWS):
        for values in some:
            row = cast("TileRow", dict(zip(_NAMES, values, strict=True)))
            if run and (len(run) == _TOGETHER or (run[0]["slide_id"], run[0]["shard"]) != (values[0], values[3])):
                yield run
                run = []
            run.append(row)
    if run:
        yield run


def _place(row: TileRow) -> TilePlace | None:
    try:
        at = place_of(row)
    except BadCatalog:
        return None
    return at if at.shard == row["shard"] else None


def _whole(jpeg: bytes, at: TilePlace) -> bytes | None:
    try:
        require_whole(jpeg, at.crc32)
    except ValueError:
        return None
    return jpeg
