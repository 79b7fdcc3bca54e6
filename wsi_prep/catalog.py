"""The catalog: two folders of Parquet files, and the rules that keep them true while runs come, go and are killed.

A worker commits a slide with two small files named by the slide's id, tiles first, the slide's row last: without that
row the slide does not exist. When a run ends, the small files are merged into parts. A merge, or the removal of rows
from a part, is written aside, then announced by a journal, then carried out by renames; what a crash interrupts is
finished at the next start. All of it goes through a `Place`, so it holds on a disk and in an object store alike.
"""

from __future__ import annotations

import functools
import io
import json
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wsi_prep.place import Place, open_place
from wsi_prep.records import SLIDE_SCHEMA, TILE_SCHEMA

_PART_NAME = re.compile(r"part-(\d{5})\.parquet")
"""No slide's own file has such a name: its id ends in more digits, whatever its stem."""

_PART_SLIDES = 50_000
_PART_TILES = 4_000_000
_TABLES = {"slides": SLIDE_SCHEMA, "tiles": TILE_SCHEMA}
_FOLDERS = {table: f"catalog/{table}" for table in _TABLES}
_JOURNAL = "catalog/.journal.json"
_COUNTS = ("tiles_5x", "tiles_10x", "tiles_20x", "tiles_40x")


class Catalog:
    """The catalog of one output folder. One client at a time may call anything but `commit`, which workers call."""

    def __init__(self, out: Place | Path) -> None:
        self._place = open_place(out) if isinstance(out, Path) else out

    def create(self) -> None:
        """Make the folders where they are missing."""
        self._place.make_folders(*_FOLDERS.values())

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
            self._place.delete([f"{_FOLDERS['tiles']}/{name}"])
        self._write("slides", pa.Table.from_pylist([slide], SLIDE_SCHEMA), name)

    def slides(self, columns: list[str] | None = None) -> list[dict[str, Any]]:
        """Committed slides' rows, sorted by slide_id."""
        rows = self._place.rows(_FOLDERS["slides"], SLIDE_SCHEMA, columns).to_pylist()
        return sorted(rows, key=lambda row: str(row.get("slide_id")))

    def count_tiles(self) -> dict[str, int]:
        """Tiles of all committed slides by magnification."""
        rows = self.slides(list(_COUNTS))
        return {name.removeprefix("tiles_"): sum(row[name] or 0 for row in rows) for name in _COUNTS}

    def drop(self, slide_ids: Collection[str]) -> None:
        """Take slides out of the catalog; their other files are left to `sweep`."""
        if not slide_ids:
            return
        for table in ("slides", "tiles"):
            present = set(self._names(table, parts=False))
            self._delete(table, [name for name in (f"{i}.parquet" for i in sorted(slide_ids)) if name in present])
        gone = pa.array(sorted(slide_ids), pa.string())
        for part in self._names("slides", parts=True):
            ids = pq.read_table(self._source("slides", part), columns=["slide_id"])["slide_id"]
            if pc.any(pc.is_in(ids, gone)).as_py():
                self._rewrite_part(part, gone)

    def replace_slides(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write slides' rows anew, their tiles untouched."""
        changed = {row["slide_id"]: row for row in rows}
        names = self._names("slides", parts=True) + self._names("slides", parts=False) if changed else []
        for name, rows_there in zip(names, self._tables("slides", names), strict=True):
            old = rows_there.to_pylist()
            if any(row["slide_id"] in changed for row in old):
                table = pa.Table.from_pylist([changed.get(row["slide_id"], row) for row in old], SLIDE_SCHEMA)
                self._write("slides", table, name)

    def merge(self) -> None:
        """Merge the small files of single slides into parts."""
        with_tiles = set(self._names("tiles", parts=False))
        singles = self._names("slides", parts=False)
        counts = self._tile_counts() if singles else {}
        batch: list[str] = []
        tiles = 0
        for name in singles:
            tiles += counts.get(name.removesuffix(".parquet"), 0)
            batch.append(name)
            if len(batch) >= _PART_SLIDES or tiles >= _PART_TILES:
                self._merge(batch, with_tiles)
                batch, tiles = [], 0
        if batch:
            self._merge(batch, with_tiles)

    def recover(self) -> None:
        """Finish what a killed run had announced, and forget what it had not."""
        if self._place.exists(_JOURNAL):
            self._carry_out(json.loads(self._place.read(_JOURNAL)))
        for folder in ("catalog", *_FOLDERS.values()):
            self._place.delete([f"{folder}/{name}" for name in self._place.names(folder) if name.startswith(".")])
        committed = {row["slide_id"] for row in self.slides(["slide_id"])}
        singles = self._names("tiles", parts=False)
        self._delete("tiles", [name for name in singles if name.removesuffix(".parquet") not in committed])

    def _names(self, table: str, *, parts: bool) -> list[str]:
        """A table's files, sorted: the parts, or those of single slides."""
        names = [name for name in self._place.names(_FOLDERS[table]) if name.endswith(".parquet")]
        return [n for n in names if not n.startswith(".") and (_PART_NAME.fullmatch(n) is not None) == parts]

    def _tile_counts(self) -> dict[str, int]:
        """How many tiles each slide has."""
        rows = self._place.rows(_FOLDERS["slides"], SLIDE_SCHEMA, ["slide_id", *_COUNTS])
        totals = functools.reduce(pc.add, (pc.fill_null(rows[name], 0) for name in _COUNTS))
        return dict(zip(rows["slide_id"].to_pylist(), totals.to_pylist(), strict=True))

    def _source(self, table: str, name: str) -> Any:
        return next(self._place.sources([f"{_FOLDERS[table]}/{name}"]))

    def _tables(self, table: str, names: Iterable[str]) -> Iterator[pa.Table]:
        """The rows of a table's files, one after another; columns that an older version did not write are null."""
        for source in self._place.sources(f"{_FOLDERS[table]}/{name}" for name in names):
            yield pq.read_table(source, schema=_TABLES[table])

    def _delete(self, table: str, names: Iterable[str]) -> None:
        self._place.delete([f"{_FOLDERS[table]}/{name}" for name in names])

    def _merge(self, names: list[str], with_tiles: Collection[str]) -> None:
        last = self._names("slides", parts=True)[-1:]
        part = f"part-{sum(int(name.removesuffix('.parquet')[-5:]) + 1 for name in last):05d}.parquet"
        for table, folder in _FOLDERS.items():
            present = [name for name in names if table == "slides" or name in with_tiles]
            with (
                self._place.making(f"{folder}/.{part}") as unfinished,
                pq.ParquetWriter(unfinished, _TABLES[table], compression="zstd") as writer,
            ):
                for rows in self._tables(table, present):
                    writer.write_table(rows)
        self._announce({"part": part, "singles": names})

    def _rewrite_part(self, part: str, gone: pa.Array) -> None:
        for table, folder in _FOLDERS.items():
            with (
                self._place.making(f"{folder}/.{part}") as unfinished,
                pq.ParquetWriter(unfinished, _TABLES[table], compression="zstd") as writer,
            ):
                for batch in pq.ParquetFile(self._source(table, part)).iter_batches():
                    kept = batch.filter(pc.invert(pc.is_in(batch["slide_id"], gone)))
                    writer.write_batch(kept)
        self._announce({"part": part, "singles": []})

    def _announce(self, change: dict[str, Any]) -> None:
        self._place.write(_JOURNAL, json.dumps(change).encode())
        self._carry_out(change)

    def _carry_out(self, change: dict[str, Any]) -> None:
        for folder in _FOLDERS.values():
            self._place.rename(f"{folder}/.{change['part']}", f"{folder}/{change['part']}")
        for table in _FOLDERS:
            self._delete(table, change["singles"])
        self._place.delete([_JOURNAL])

    def _write(self, table: str, rows: pa.Table, name: str) -> None:
        data = io.BytesIO()
        pq.write_table(rows, data, compression="zstd")
        self._place.write(f"{_FOLDERS[table]}/{name}", data.getvalue())
