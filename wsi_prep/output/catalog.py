"""The catalog: two folders of Parquet files, and the rules that keep them true while runs come, go and are killed.

A worker commits a slide with two small files named by the slide's id, tiles first, the slide's row last: without that
row the slide does not exist. The small files are merged into parts, some thousand while a run
lasts and the rest at its end. A merge, or the removal of rows
from a part, is written aside, then announced by a journal, then carried out by renames; what a crash interrupts is
finished at the next start. Each file holds a digest of itself (`sealed_parquet`); a file whose digest is wrong is
never rewritten. All of it goes through a `Storage`, so it holds on a disk and in an object store alike.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TypedDict

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wsi_prep.compute.memory import give_back_freed_memory
from wsi_prep.errors import BadCatalog, BadOutput, one_line
from wsi_prep.format.layout import is_part, is_slide_file, require_slide_ids
from wsi_prep.format.records import SLIDE_SCHEMA, TILE_SCHEMA, SlideRow, is_table_file, tile_counts
from wsi_prep.output.sealed_parquet import check_seal, sealed_writer
from wsi_prep.storage.base import Storage
from wsi_prep.storage.patience import patient
from wsi_prep.storage.select import open_storage
from wsi_prep.untrusted.small_json import read_object
from wsi_prep.untrusted.tables import of_today, open_table, refusing, require_columns

_PART_SLIDES = 50_000
_PART_TILES = 4_000_000
_GROUP_ROWS = 100_000
_LAST_PART = 99_999
_SINGLES = 200
_TABLES = {"slides": SLIDE_SCHEMA, "tiles": TILE_SCHEMA}
_FOLDERS = {table: f"catalog/{table}" for table in _TABLES}
_JOURNAL = "catalog/.journal.json"
_JOURNAL_BYTES = 16 * 2**20
"""Three times the names of all slides that one merge takes."""
_FORMAT: dict[str, object] = {"compression": "zstd", "write_page_checksum": True}
_OWN_TEXTS = frozenset(("slide_id", "file", "fingerprint", "digests", "source_seen"))
_COUNTS = ("tiles_5x", "tiles_10x", "tiles_20x", "tiles_40x")


def written_as(schema: pa.Schema) -> dict[str, object]:
    """How pyarrow writes a table's files. Texts that no two slides share get no dictionary: without one, the headers
    of a file's pages tell how long all of them are, and `untrusted.tables` need not read them to know it.
    """
    if "fingerprint" not in schema.names:
        return _FORMAT
    return {**_FORMAT, "use_dictionary": [name for name in schema.names if name not in _OWN_TEXTS]}


class _Change(TypedDict):
    """What the journal announces: the new `part`, and the files of single slides that are in it from now on."""

    part: str
    singles: list[str]


class Catalog:
    """The catalog of one output folder. One client at a time may call anything but `commit`, which workers call."""

    def __init__(self, out: Storage | Path) -> None:
        self.storage = open_storage(out) if isinstance(out, Path) else out

    def names(self) -> list[str]:
        """Names of the files of both tables, sorted, each once; BadCatalog where there are none of slides."""
        names = {
            table: {name for parts in (True, False) for name in self._names(table, parts=parts)} for table in _TABLES
        }
        require_catalog(self.storage.where, bool(names["slides"]))
        return sorted(names["slides"] | names["tiles"])

    def create(self) -> None:
        """Make the folders where they are missing."""
        self.storage.make_folders(*_FOLDERS.values())

    @staticmethod
    def no_tiles() -> pa.Table:
        """The tiles of a slide that has none."""
        return TILE_SCHEMA.empty_table()

    def commit(self, slide: SlideRow, tiles: pa.Table) -> None:
        """Add one slide: from the return of this call on, it exists."""
        name = f"{slide['slide_id']}.parquet"
        if len(tiles):
            self._write("tiles", tiles.cast(TILE_SCHEMA), name)
        else:  # an earlier try may have got this far
            self.storage.delete([f"{_FOLDERS['tiles']}/{name}"])
        self._write("slides", pa.Table.from_pylist([slide], SLIDE_SCHEMA), name)

    def slides(self, columns: list[str] | None = None) -> list[SlideRow]:
        """Committed slides' rows, sorted by slide_id; raises as `table`, whose rows take a tenth of the memory."""
        rows: list[SlideRow] = self.table(columns).to_pylist()
        return sorted(rows, key=lambda row: str(row.get("slide_id")))

    def table(self, columns: list[str] | None = None) -> pa.Table:
        """Committed slides' rows, as the files have them; BadCatalog where one cannot be read or names no slide."""
        with self._readable("slides"):
            rows = self.storage.rows(_FOLDERS["slides"], SLIDE_SCHEMA, columns)
        if columns is None or "slide_id" in columns:
            require_slide_ids(rows["slide_id"])
        return rows

    def ids(self) -> pa.ChunkedArray:
        """Committed slides' ids, as the files have them."""
        return self.table(["slide_id"])["slide_id"]

    def among(self, slide_ids: Iterable[str]) -> set[str]:
        """Those of these slides that are committed."""
        wanted = _ids_in(slide_ids)
        ids = self.ids() if len(wanted) else wanted
        return set(ids.filter(pc.is_in(ids, wanted)).to_pylist())

    def count_tiles(self) -> dict[str, int]:
        """Tiles of all committed slides by magnification."""
        rows = self.table(list(_COUNTS))
        return {name.removeprefix("tiles_"): pc.sum(rows[name], min_count=0).as_py() for name in _COUNTS}

    def count_statuses(self) -> dict[str, int]:
        """Committed slides by status, sorted."""
        counts = pc.value_counts(self.table(["status"])["status"]).to_pylist()
        return dict(sorted((str(each["values"]), each["counts"]) for each in counts))

    def drop(self, slide_ids: Iterable[str]) -> None:
        """Take slides out of the catalog; their other files are left to `sweep`."""
        gone = slide_ids if isinstance(slide_ids, pa.Array) else pa.array(sorted(slide_ids), pa.string())
        if not len(gone):
            return
        for table in ("slides", "tiles"):
            singles = _ids_in(name.removesuffix(".parquet") for name in self._names(table, parts=False))
            self._delete(
                table, (f"{slide_id}.parquet" for slide_id in singles.filter(pc.is_in(singles, gone)).to_pylist())
            )
        for part in self._names("slides", parts=True):
            if pc.any(pc.is_in(self._ids(part), gone)).as_py():
                self._rewrite_part(part, gone)

    def drop_from(self, part: str, slide_ids: Collection[str]) -> None:
        """Take rows of these slides out of one part, whichever of its two tables has them."""
        self._rewrite_part(part, pa.array(sorted(slide_ids), pa.string()))

    def discard(self, name: str) -> None:
        """Remove the files of one name, readable or not; the slides in them exist no more."""
        for table in _TABLES:
            self._delete(table, [name])

    def pieces(self, columns: Sequence[str]) -> Iterator[tuple[list[str], pa.Table]]:
        """Committed slides' rows in the order of their files' names, a part or some hundred small files at a time: the
        files, and their rows.
        """
        schema = pa.schema([SLIDE_SCHEMA.field(name) for name in columns])
        every = filter(is_table_file, self.storage.names(_FOLDERS["slides"]))
        for parts, together in groupby(every, is_part):
            yield from self._pieces(list(together), 1 if parts else _SINGLES, schema)

    def _pieces(self, files: list[str], at_once: int, schema: pa.Schema) -> Iterator[tuple[list[str], pa.Table]]:
        for first in range(0, len(files), at_once):
            names = files[first : first + at_once]
            with self._readable("slides"):
                paths = [f"{_FOLDERS['slides']}/{name}" for name in names]
                rows = pa.concat_tables([schema.empty_table(), *self.storage.tables(paths, schema)])
            require_slide_ids(rows["slide_id"])
            yield names, rows

    def replace_slides(self, rows: Iterable[SlideRow], names: Sequence[str] | None = None) -> None:
        """Change those columns of slides that `rows` have beside the slide_id; their tiles are untouched.

        `names` are the files to look in, where it is not all.
        """
        changed = {row["slide_id"]: row for row in rows}
        if names is None and changed:
            names = self._names("slides", parts=True) + self._names("slides", parts=False)
        ids = _ids_in(changed)
        for name in names if names and changed else ():
            with self._readable("slides"):
                file = self._open("slides", name)
                if not pc.any(pc.is_in(file.read(["slide_id"])["slide_id"], ids)).as_py():
                    continue
                self._require_undamaged("slides", name)
                old = of_today(file.read(), SLIDE_SCHEMA)
            self._write("slides", _changed(old, changed), name)

    def merge(self, slide_ids: Collection[str] | None = None) -> None:
        """Merge the small files of these slides, or of all, into parts; may run while workers commit other slides."""
        if slide_ids is None:
            self._forget_merged()
        with_tiles = set(self._names("tiles", parts=False))
        singles = self._names("slides", parts=False)
        if slide_ids is not None:
            singles = [name for name in singles if name.removesuffix(".parquet") in slide_ids]
        counts = self._tile_counts(singles)
        batch: list[str] = []
        tiles = 0
        for name in singles:
            tiles += counts[name]
            batch.append(name)
            if len(batch) >= _PART_SLIDES or tiles >= _PART_TILES:
                self._merge(batch, with_tiles)
                batch, tiles = [], 0
        if batch:
            self._merge(batch, with_tiles)
        give_back_freed_memory()

    def recover(self) -> None:
        """Finish what a killed run had announced, and forget what it had not."""
        if self.storage.exists(_JOURNAL):
            self._carry_out(self._journal())
        for folder in ("catalog", *_FOLDERS.values()):
            self.storage.delete([f"{folder}/{name}" for name in self.storage.names(folder) if name.startswith(".")])
        singles = self._names("tiles", parts=False)
        committed = self.among(name.removesuffix(".parquet") for name in singles) if singles else set()
        self._delete("tiles", [name for name in singles if name.removesuffix(".parquet") not in committed])

    def _names(self, table: str, *, parts: bool) -> list[str]:
        """A table's files, sorted: the parts, or those of single slides."""
        return [name for name in self.storage.names(_FOLDERS[table]) if is_table_file(name) and is_part(name) == parts]

    def _journal(self) -> _Change:
        """What the journal announces; BadOutput unless it is of a part and of slides' own files."""
        data = self.storage.read(_JOURNAL, _JOURNAL_BYTES)
        why = "it names what is no file of a catalog"
        try:
            change = read_object(data)
        except ValueError as error:
            change, why = {}, one_line(error, 100)
        part, singles = change.get("part"), change.get("singles")
        if not (is_part(part) and isinstance(singles, list) and all(map(is_slide_file, singles))):
            where = f"{self.storage.where}/{_JOURNAL}"
            raise BadOutput(f"{where} is no journal of make shards ({why}); remove it and run again")
        return {"part": part, "singles": singles}

    def _tile_counts(self, names: list[str]) -> dict[str, int]:
        """How many tiles the slide of each of these files has; BadCatalog where a file is of another slide."""
        paths = [f"{_FOLDERS['slides']}/{name}" for name in names]
        rows = (row for table in self.storage.tables(paths, SLIDE_SCHEMA) for row in table.to_pylist())
        counts = {f"{row['slide_id']}.parquet": sum(tile_counts(row).values()) for row in rows}
        for name in names:
            if name not in counts:
                raise self._damaged("slides", f"{name} holds no row of the slide that it is named after")
        return counts

    def _damaged(self, table: str, what: str) -> BadCatalog:
        where = f"{self.storage.where}/{_FOLDERS[table]}"
        return BadCatalog(f"{where}: {what}; make verify with REPAIR=1 drops it")

    def _require_undamaged(self, table: str, name: str) -> None:
        """Raise BadCatalog where the digest of a file is wrong that is to be written anew."""
        if check_seal(self._source(table, name)) == "broken":
            raise self._damaged(table, f"{name} is damaged")

    @contextlib.contextmanager
    def _readable(self, table: str) -> Iterator[None]:
        """Around the reading of a table's files: what pyarrow cannot decode becomes BadCatalog."""
        try:
            yield
        except (BadOutput, BadCatalog):
            raise
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # what pyarrow cannot decode has no number
                raise
            where = f"{self.storage.where}/{_FOLDERS[table]}"
            raise BadCatalog(
                f"a file of {where} is damaged; make verify with REPAIR=1 says which and drops it"
            ) from error

    def _source(self, table: str, name: str) -> Path | pa.BufferReader:
        """What pyarrow reads a file from."""
        return next(iter(self.storage.sources([f"{_FOLDERS[table]}/{name}"])))

    def _open(self, table: str, name: str) -> pq.ParquetFile:
        """A file of a table; BadCatalog where it is none."""
        schema = _TABLES[table]
        with refusing(f"{self.storage.where}/{_FOLDERS[table]}/{name}"):
            file = open_table(self._source(table, name), schema, page_checksum_verification=True)
            require_columns(file.schema_arrow, schema, {"slide_id"})
            return file

    def _ids(self, part: str) -> pa.ChunkedArray:
        """The slides that a part has rows of."""
        with self._readable("slides"):
            return self._open("slides", part).read(["slide_id"])["slide_id"]

    def _delete(self, table: str, names: Iterable[str]) -> None:
        self.storage.delete([f"{_FOLDERS[table]}/{name}" for name in names])

    def _forget_merged(self) -> None:
        """Remove files of slides that a part has: a worker that left the cluster had finished them once more."""
        singles = {name.removesuffix(".parquet") for table in _TABLES for name in self._names(table, parts=False)}
        for part in self._names("slides", parts=True) if singles else []:
            ids = self._ids(part).to_pylist()
            merged = [f"{slide_id}.parquet" for slide_id in sorted(singles.intersection(ids))]
            for table in _TABLES:
                self._delete(table, merged)

    def _merge(self, names: list[str], with_tiles: Collection[str]) -> None:
        last = self._names("slides", parts=True)[-1:]
        number = sum(int(name.removesuffix(".parquet")[-5:]) + 1 for name in last)
        if number > _LAST_PART:
            raise self._damaged("slides", f"{last[0]} has the last number that a part can have")
        part = f"part-{number:05d}.parquet"
        self._write_part(part, names, with_tiles)
        self._announce({"part": part, "singles": names})

    @patient
    def _write_part(self, part: str, names: list[str], with_tiles: Collection[str]) -> None:
        for table, folder in _FOLDERS.items():
            present = [f"{folder}/{name}" for name in names if table == "slides" or name in with_tiles]
            with (
                self.storage.making(f"{folder}/.{part}") as unfinished,
                unfinished.open("w+b") as file,
                sealed_writer(file, _TABLES[table], **written_as(_TABLES[table])) as writer,
                self._readable(table),
            ):
                for rows in _together(self.storage.tables(present, _TABLES[table])):
                    writer.write_table(rows, row_group_size=_GROUP_ROWS)

    def _rewrite_part(self, part: str, gone: pa.Array) -> None:
        self._write_without(part, gone)
        self._announce({"part": part, "singles": []})

    @patient
    def _write_without(self, part: str, gone: pa.Array) -> None:
        for table, folder in _FOLDERS.items():
            with (
                self.storage.making(f"{folder}/.{part}") as unfinished,
                unfinished.open("w+b") as file,
                sealed_writer(file, _TABLES[table], **written_as(_TABLES[table])) as writer,
                self._readable(table),
            ):
                self._require_undamaged(table, part)
                for batch in self._open(table, part).iter_batches():
                    rows = of_today(pa.Table.from_batches([batch]), _TABLES[table])
                    writer.write_table(rows.filter(pc.invert(pc.is_in(rows["slide_id"], gone))))

    def _announce(self, change: _Change) -> None:
        self.storage.write(_JOURNAL, json.dumps(change).encode())
        self._carry_out(change)

    def _carry_out(self, change: _Change) -> None:
        for folder in _FOLDERS.values():
            self.storage.rename(f"{folder}/.{change['part']}", f"{folder}/{change['part']}")
        for table in _FOLDERS:
            self._delete(table, change["singles"])
        self.storage.delete([_JOURNAL])

    def _write(self, table: str, rows: pa.Table, name: str) -> None:
        data = io.BytesIO()
        with sealed_writer(data, rows.schema, **written_as(rows.schema)) as writer:
            writer.write_table(rows)
        self.storage.write(f"{_FOLDERS[table]}/{name}", data.getvalue())


def _changed(rows: pa.Table, by_id: Mapping[str, SlideRow]) -> pa.Table:
    """The rows of slides with the columns that `by_id` has of some of them in place of theirs."""
    here: list[Mapping[str, object]] = [by_id.get(slide_id) or {} for slide_id in rows["slide_id"].to_pylist()]
    for name in sorted({name for row in here for name in row}):
        told = pa.array([name in row for row in here])
        values = pa.array([row[name] for row in here if name in row], SLIDE_SCHEMA.field(name).type)
        column = pc.replace_with_mask(rows[name].combine_chunks(), told, values)
        rows = rows.set_column(rows.column_names.index(name), SLIDE_SCHEMA.field(name), column)
    return rows


def _ids_in(names: Iterable[str]) -> pa.Array:
    """Those of the names that may be ids; other ones need be no text."""
    return pa.array((name for name in names if name.isascii()), pa.string())


def require_catalog(where: str, there: bool) -> None:
    """Raise BadCatalog unless it is there."""
    if not there:
        raise BadCatalog(f"{where} holds no catalog/slides; name a folder that make shards has filled")


def _together(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in large tables: a row group a slide would make a part's footer larger than its rows."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(map(len, held)) >= _GROUP_ROWS:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)
