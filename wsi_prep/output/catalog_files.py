"""The catalogs of some folders of shards as Parquet files to read, on disks and in object stores alike.

What reads them is DuckDB (see `query`). A file in an object store is asked for the spans that it needs, by the client
that `make shards` writes with.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from wsi_prep.errors import BadCatalog, StoreFailed, UsageError
from wsi_prep.format.copies import Copies, which_count
from wsi_prep.format.records import SLIDE_SCHEMA, TILE_SCHEMA, is_table_file
from wsi_prep.output.catalog import require_catalog
from wsi_prep.storage.base import Storage
from wsi_prep.storage.select import local_folder, open_storage
from wsi_prep.untrusted.pages import BadTable
from wsi_prep.untrusted.tables import open_table

TABLES = {"slides": SLIDE_SCHEMA, "tiles": TILE_SCHEMA}
_PIECE_BYTES = 8 * 2**20
_LOOK_AT_ONCE = 4


@dataclass(frozen=True)
class TableFile:
    """A file of one table. Rows of the slides `others` do not count: another file's do.

    `source` is its path on a disk, or else the rows as pyarrow reads them, a row group at a time.
    """

    name: str
    source: Path | ds.Dataset
    others: pa.StringArray


@dataclass
class CatalogFiles:
    """Of the folders `shards`, the files of both tables, each slide's `folders` (slide_id, and the number of the folder
    whose copy counts), and what is to be said of copies. `failures`: of object stores, while rows are read.
    """

    shards: Sequence[str]
    tables: dict[str, list[TableFile]]
    folders: pa.Table
    copies: Copies
    failures: list[StoreFailed] = field(default_factory=list)

    def require(self, table: str) -> None:
        """Raise BadCatalog where a file of the table on a disk is none, or unpacks without end: before it is read.

        That takes a look at every file, so tiles are looked at only where somebody asks for tiles.
        """
        _require_tables([file.source for file in self.tables[table] if isinstance(file.source, Path)], table)


def catalog_files(shards: Sequence[str]) -> CatalogFiles:
    """The catalogs of the OUT folders, or object stores' URLs, `shards` as one, each slide counted once.

    Raises BadCatalog where there is none, or slides' files cannot be read, or unpack without end (see
    tables.open_table; tiles' files are for `CatalogFiles.require`); BadOption for a URL of no store that is known;
    StoreFailed where one does not answer.
    """
    failures: list[StoreFailed] = []
    files = [(n, name, sources) for n, where in enumerate(shards) for name, sources in _named(where, failures)]
    rows = [_ids(shards[n], name, sources["slides"]) for n, name, sources in files]
    ids = pa.concat_tables([pa.table({"slide_id": pa.array([], pa.string()), "ok": pa.array([], pa.bool_())}), *rows])
    copies = _copies(ids)
    tables: dict[str, list[TableFile]] = {table: [] for table in TABLES}
    folders = [pa.table({"slide_id": pa.array([], pa.string()), "folder": pa.array([], pa.int64())})]
    begin = 0
    for (number, name, sources), own in zip(files, rows, strict=True):
        counts = copies.counts.slice(begin, len(own))
        begin += len(own)
        kept = own["slide_id"].filter(counts)
        lost = own["slide_id"].filter(pc.invert(counts))
        others = lost.filter(pc.invert(pc.is_in(lost, kept))).unique()
        folders.append(pa.table({"slide_id": kept, "folder": np.full(len(kept), number)}))
        if len(kept) or not len(own):
            for table, source in sources.items():
                tables[table].append(TableFile(name, source, others))
    return CatalogFiles(shards, tables, pa.concat_tables(folders), copies, failures)


def _named(where: str, failures: list[StoreFailed]) -> Iterator[tuple[str, dict[str, Path | ds.Dataset]]]:
    """The names of a catalog's files of slides, sorted, each with its files by table. Tiles of no slide are none."""
    place, folder = open_storage(where), local_folder(where)
    found = {table: _sizes(place, f"catalog/{table}", near=folder is not None) for table in TABLES}
    require_catalog(place.where, bool(found["slides"]))
    if folder is not None:
        _require_tables([folder / "catalog/slides" / name for name in found["slides"]], "slides")
    for name in sorted(found["slides"]):
        sources: dict[str, Path | ds.Dataset] = {}
        for table in (table for table in TABLES if name in found[table]):
            path, size = f"catalog/{table}/{name}", found[table][name]
            if folder is None:
                sources[table] = _rows(place, path, size, table, failures)
            else:
                sources[table] = folder / path
        yield name, sources


def _sizes(storage: Storage, folder: str, *, near: bool) -> dict[str, int]:
    """Bytes of a table's files by name; files on a disk know theirs."""
    if near:
        return dict.fromkeys(filter(is_table_file, storage.names(folder)), 0)
    sizes = {path.removeprefix(f"{folder}/"): size for path, size in storage.sizes(folder).items()}
    return {name: size for name, size in sizes.items() if "/" not in name and is_table_file(name)}


def _require_tables(files: Sequence[Path], table: str) -> None:
    with ThreadPoolExecutor(_LOOK_AT_ONCE) as pool:
        list(pool.map(lambda file: _require_table(file, table), files))


def _require_table(file: Path, table: str) -> None:
    """Raise BadCatalog where a file on a disk is no table, or claims more rows or texts than it can hold."""
    where, path = file.parents[2], "/".join(file.parts[-3:])
    try:
        for source in open_storage(str(where)).sources([path]):
            open_table(source, TABLES[table]).close()
    except UsageError:
        raise
    except (BadTable, pa.ArrowException, OSError) as error:
        raise BadCatalog(f"the catalog of {where} cannot be read ({path}: {first_line(error)})") from error


def _copies(rows: pa.Table) -> Copies:
    """Of rows of slides in the order in which they count, each slide once."""
    if all_differ(rows["slide_id"]):
        return Copies(pa.repeat(pa.scalar(True), len(rows)), 0)
    return which_count(rows["slide_id"].combine_chunks(), rows["ok"].combine_chunks())


def all_differ(texts: pa.ChunkedArray) -> bool:
    """Whether no text is there twice, by hashes: ten times as fast as counting the texts. Yes is always true; no may be
    said of texts that differ, one time in millions for millions of texts.
    """
    with duckdb.connect(":memory:") as connection:
        connection.register("rows", pa.table({"text": texts}))
        hashes = connection.sql("SELECT hash(text) AS hash FROM rows").to_arrow_table()["hash"].to_numpy()
    ordered = np.sort(hashes)
    return not (ordered[1:] == ordered[:-1]).any()


def _rows(storage: Storage, path: str, size: int, table: str, failures: list[StoreFailed]) -> ds.Dataset:
    """The rows of one file in an object store, with the table's columns."""
    file_format = ds.ParquetFileFormat()
    try:
        fragment = file_format.make_fragment(pa.PythonFile(_FarFile(storage, path, size, failures), mode="r"))
        return ds.FileSystemDataset([fragment], TABLES[table], file_format)
    except (pa.ArrowException, OSError) as error:
        raise BadCatalog(f"{storage.where}/{path} cannot be read ({first_line(error)})") from error


def _ids(where: str, name: str, source: Path | ds.Dataset) -> pa.Table:
    """slide_id, and whether it is `ok`, of each row of a file of slides."""
    try:
        columns = ["slide_id", "status"]
        if isinstance(source, Path):
            rows = pq.read_table(source, columns=columns, partitioning=None)
        else:
            rows = source.to_table(columns=columns)
        ids, statuses = rows["slide_id"].cast(pa.string()), rows["status"].cast(pa.string())
    except StoreFailed:
        raise
    except (pa.ArrowException, OSError, KeyError) as error:
        raise BadCatalog(f"the catalog of {where} cannot be read ({name}: {first_line(error)})") from error
    return pa.table({"slide_id": ids, "ok": pc.equal(statuses, "ok")})


def first_line(error: Exception) -> str:
    """What DuckDB or Arrow says before it shows where, in one line."""
    return " ".join(str(error).split("\n\n", 1)[0].split())


class _FarFile(io.RawIOBase):
    """A file of a place that is read by spans. Arrow passes no exception of ours on, so `failures` keeps them."""

    def __init__(self, storage: Storage, path: str, size: int, failures: list[StoreFailed]) -> None:
        self._storage, self._path, self._size, self._failures = storage, path, size, failures
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._size if size < 0 else min(self._size, self._at + size)
        pieces = [(at, min(_PIECE_BYTES, end - at)) for at in range(self._at, end, _PIECE_BYTES)]
        try:
            data = b"".join(self._storage.spans(self._path, pieces))
        except StoreFailed as error:
            self._failures.append(error)
            raise
        self._at += len(data)
        return data

    def readinto(self, memory: Any) -> int:
        data = self.read(len(memory))
        memory[: len(data)] = data
        return len(data)
