"""The catalog: two folders of Parquet files, and the rules that keep them true while runs come, go and are killed.

A worker commits a slide with two small files named by the slide's id, tiles first, the slide's row last: without that
row the slide does not exist. When a run ends, the small files are merged into parts. A merge, or the removal of rows
from a part, is written aside, then announced by a journal, then carried out by renames; what a crash interrupts is
finished at the next start.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from wsi_prep.memory import give_back_freed_memory
from wsi_prep.records import SLIDE_SCHEMA, TILE_SCHEMA
from wsi_prep.shards import sync_folder

_PART_NAME = re.compile(r"part-(\d{5})\.parquet")
"""No slide's own file has such a name: its id ends in more digits, whatever its stem."""

_PART_SLIDES = 50_000
_PART_TILES = 4_000_000
_GROUP_ROWS, _FILES_AT_ONCE = 100_000, 200
_TABLES = {"slides": SLIDE_SCHEMA, "tiles": TILE_SCHEMA}


class Catalog:
    """The catalog of one output folder. One client at a time may call anything but `commit`, which workers call."""

    def __init__(self, out: Path) -> None:
        self._folders = {name: out / "catalog" / name for name in _TABLES}
        self._journal = out / "catalog" / ".journal.json"

    def create(self) -> None:
        """Make the folders where they are missing."""
        for folder in self._folders.values():
            folder.mkdir(parents=True, exist_ok=True)

    @staticmethod
    def no_tiles() -> pa.Table:
        """The tiles of a slide that has none."""
        return TILE_SCHEMA.empty_table()

    def commit(self, slide: dict[str, Any], tiles: pa.Table) -> None:
        """Add one slide: from the return of this call on, it exists."""
        name = f"{slide['slide_id']}.parquet"
        if len(tiles):
            self._write("tiles", tiles.cast(TILE_SCHEMA), name)
        else:  # an earlier try may have got this far
            (self._folders["tiles"] / name).unlink(missing_ok=True)
        self._write("slides", pa.Table.from_pylist([slide], SLIDE_SCHEMA), name)

    def slides(self, columns: list[str] | None = None) -> list[dict[str, Any]]:
        """Committed slides' rows, sorted by slide_id."""
        rows = self._dataset("slides").to_table(columns=columns).to_pylist()
        return sorted(rows, key=lambda row: str(row.get("slide_id")))

    def count_tiles(self) -> dict[str, int]:
        """Tiles of all committed slides by magnification."""
        totals = dict.fromkeys(("5x", "10x", "20x", "40x"), 0)
        for row in self.slides([f"tiles_{name}" for name in totals]):
            for name in totals:
                totals[name] += row[f"tiles_{name}"] or 0
        return totals

    def drop(self, slide_ids: Collection[str]) -> None:
        """Take slides out of the catalog; their other files are left to `sweep`."""
        if not slide_ids:
            return
        for slide_id in slide_ids:
            for table in ("slides", "tiles"):
                (self._folders[table] / f"{slide_id}.parquet").unlink(missing_ok=True)
        gone = pa.array(sorted(slide_ids), pa.string())
        for part in self._files("slides", parts=True):
            ids = pq.read_table(part, columns=["slide_id"])["slide_id"]
            if pc.any(pc.is_in(ids, gone)).as_py():
                self._rewrite_part(part.name, gone)

    def replace_slides(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write slides' rows anew, their tiles untouched."""
        changed = {row["slide_id"]: row for row in rows}
        for file in sorted(self._folders["slides"].glob("*.parquet")) if changed else []:
            old = pq.read_table(file, schema=SLIDE_SCHEMA).to_pylist()
            if any(row["slide_id"] in changed for row in old):
                table = pa.Table.from_pylist([changed.get(row["slide_id"], row) for row in old], SLIDE_SCHEMA)
                self._write("slides", table, file.name)

    def merge(self, slide_ids: Collection[str] | None = None) -> None:
        """Merge the small files of these slides, or of all, into parts; may run while workers commit other slides."""
        if slide_ids is None:
            self._forget_merged()
            singles = [file.name for file in self._files("slides", parts=False)]
        else:
            names = (f"{slide_id}.parquet" for slide_id in sorted(slide_ids))
            singles = [name for name in names if (self._folders["slides"] / name).exists()]
        batch: list[str] = []
        tiles = 0
        for name in singles:
            path = self._folders["tiles"] / name
            tiles += pq.read_metadata(path).num_rows if path.exists() else 0
            batch.append(name)
            if len(batch) >= _PART_SLIDES or tiles >= _PART_TILES:
                self._merge(batch)
                batch, tiles = [], 0
        if batch:
            self._merge(batch)
        give_back_freed_memory()

    def recover(self) -> None:
        """Finish what a killed run had announced, and forget what it had not."""
        if self._journal.exists():
            self._carry_out(json.loads(self._journal.read_text()))
        for folder in (self._journal.parent, *self._folders.values()):
            for leftover in folder.glob(".*"):
                leftover.unlink()
        committed = {row["slide_id"] for row in self.slides(["slide_id"])}
        for single in self._files("tiles", parts=False):
            if single.stem not in committed:
                single.unlink()

    def _files(self, table: str, *, parts: bool) -> list[Path]:
        """A table's files, sorted: the parts, or those of single slides."""
        files = sorted(self._folders[table].glob("[!.]*.parquet"), key=lambda file: file.name)
        return [file for file in files if (_PART_NAME.fullmatch(file.name) is not None) == parts]

    def _dataset(self, table: str) -> ds.Dataset:
        return ds.dataset(self._folders[table], schema=_TABLES[table], format="parquet")

    def _forget_merged(self) -> None:
        """Remove files of slides that a part has: a worker that left the cluster had finished them once more."""
        singles = {file.stem for table in _TABLES for file in self._files(table, parts=False)}
        for part in self._files("slides", parts=True) if singles else []:
            ids = pq.read_table(part, columns=["slide_id"])["slide_id"]
            for slide_id in singles.intersection(ids.to_pylist()):
                for folder in self._folders.values():
                    (folder / f"{slide_id}.parquet").unlink(missing_ok=True)

    def _merge(self, names: list[str]) -> None:
        last = self._files("slides", parts=True)[-1:]
        part = f"part-{sum(int(file.stem[-5:]) + 1 for file in last):05d}.parquet"
        for table, folder in self._folders.items():
            files = [folder / name for name in names if (folder / name).exists()]
            with pq.ParquetWriter(folder / f".{part}", _TABLES[table], compression="zstd") as writer:
                for rows in _together(files, _TABLES[table]):
                    writer.write_table(rows, row_group_size=_GROUP_ROWS)
            _sync_file(folder / f".{part}")
        self._announce({"part": part, "singles": names})

    def _rewrite_part(self, part: str, gone: pa.Array) -> None:
        for table, folder in self._folders.items():
            with pq.ParquetWriter(folder / f".{part}", _TABLES[table], compression="zstd") as writer:
                rows = ds.dataset(
                    folder / part, schema=_TABLES[table], format="parquet"
                )  # columns that joined are null
                for batch in rows.to_batches(batch_readahead=1):
                    kept = batch.filter(pc.invert(pc.is_in(batch["slide_id"], gone)))
                    writer.write_batch(kept)
            _sync_file(folder / f".{part}")
        self._announce({"part": part, "singles": []})

    def _announce(self, change: dict[str, Any]) -> None:
        write_atomically(self._journal, json.dumps(change).encode())
        self._carry_out(change)

    def _carry_out(self, change: dict[str, Any]) -> None:
        for folder in self._folders.values():
            aside = folder / f".{change['part']}"
            if aside.exists():
                aside.rename(folder / change["part"])
            sync_folder(folder)
        for name in change["singles"]:
            for folder in self._folders.values():
                (folder / name).unlink(missing_ok=True)
        self._journal.unlink()

    def _write(self, table: str, rows: pa.Table, name: str) -> None:
        folder = self._folders[table]
        with aside(folder / name) as unfinished:
            pq.write_table(rows, unfinished, compression="zstd")


def _together(files: list[Path], schema: pa.Schema) -> Iterator[pa.Table]:
    """The files' rows in their order, in large tables: a row group a slide would make a footer larger than its rows."""
    held: list[pa.Table] = []
    for first in range(0, len(files), _FILES_AT_ONCE):
        some = [str(file) for file in files[first : first + _FILES_AT_ONCE]]
        held.append(ds.dataset(some, schema=schema, format="parquet").to_table(use_threads=False))
        if sum(map(len, held)) >= _GROUP_ROWS:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file aside, make it durable, and rename it into place."""
    with aside(path) as unfinished:
        unfinished.write_bytes(data)


@contextlib.contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A hidden name to write to; what is there at the end is made durable and renamed to `path`."""
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield unfinished
        _sync_file(unfinished)
    except BaseException:
        unfinished.unlink(missing_ok=True)  # on a full disk even this counts
        raise
    unfinished.rename(path)
    sync_folder(path.parent)


def remove_tree(path: Path) -> None:
    """Remove a file or a folder with all it holds; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def put_in_place(made: Path, place: Path) -> None:
    """Rename a file or folder to `place`, in place of what is there, even while another worker does the same.

    A worker that leaves the cluster in the middle of a slide may still finish it beside the one that took it over.
    """
    before = made.with_name(f"{made.name}.before")
    while True:
        with contextlib.suppress(FileNotFoundError):
            place.rename(before)
            remove_tree(before)
        try:
            made.rename(place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
