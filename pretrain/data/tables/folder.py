"""Folders of Parquet tables with image bytes, one row a tile: as hubs share them, and `interchange KIND=parquet` makes.

A tile is found by its offset where its row group holds the JPEGs in one page as they are, as ours do; else its whole
row group is read, and the last ones are kept.
"""

from __future__ import annotations

import functools
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pretrain.data.sources import (
    CatalogFile,
    LocalFolder,
    ObjectStore,
    ShardSource,
    is_parquet,
    open_folder,
    open_source,
)
from pretrain.errors import BadShards
from wsi_prep.untrusted.pages import BadTable, one_plain_page
from wsi_prep.untrusted.tables import open_table

PICTURES = ("image", "jpeg")
"""Names that the column of JPEGs may have: a struct with `bytes`, or bytes."""

PACKED = 1 << 61
"""Added to the row of a tile, this stands for the offset of one that has none."""

_KEPT_GROUPS = 8
_BLOCK = 1 << 17  # bytes that are read at once, of what is not JPEGs
_TAIL = 8  # length of the footer, and Parquet's mark


@dataclass(frozen=True)
class RowGroup:
    """Rows `begin` to `begin + rows` of a file, their JPEGs in its bytes `start` to `end`.

    `plain`: they lie there one after another, each behind its length in 4 bytes, the last at the end.
    """

    number: int
    begin: int
    rows: int
    start: int
    end: int
    plain: bool


@dataclass(frozen=True)
class _Opened:
    """A table, its column of JPEGs as Parquet names it, and where each row group ends, in rows."""

    file: pq.ParquetFile
    picture: str
    ends: NDArray[np.int64]


class TableFolder:
    """A folder of tables, on a disk or in an object store. Reads by offset share no state; others take turns."""

    def __init__(self, files: LocalFolder | ObjectStore, names: list[CatalogFile]) -> None:
        self.where, self.remote, self.names = files.where, files.remote, names
        self._files = files
        self._sizes = {file.name: file.size for file in names}
        self._turn = threading.RLock()
        self._open = functools.lru_cache(maxsize=64)(self._opened)
        self._group = functools.lru_cache(maxsize=_KEPT_GROUPS)(self._read_group)

    def read(self, path: str, offset: int, nbytes: int) -> bytes:
        """The JPEG of `nbytes` bytes at that offset of a file, or of the row that is in its place."""
        return bytes(self.read_into(bytearray(), path, offset, nbytes))

    def read_into(self, memory: bytearray, path: str, offset: int, nbytes: int) -> memoryview | bytes:
        """The same, in `memory` where that saves something."""
        if offset < PACKED:
            return self._files.read_into(memory, path, offset, nbytes)
        row = offset - PACKED
        with self._turn:
            number = int(np.searchsorted(self._open(path).ends, row, side="right"))
            first = int(self._open(path).ends[number - 1]) if number else 0
            return self._group(path, number)[row - first].as_py() or b""

    def table(self, name: str) -> pq.ParquetFile:
        """A file, open; BadShards where it is none, or could unpack to more than its bytes hold."""
        return self._open(name).file

    def groups(self, name: str) -> Iterator[RowGroup]:
        """The row groups of a file in order."""
        opened, size = self._open(name), self._sizes[name]
        metadata = opened.file.metadata
        column = next(n for n in range(metadata.num_columns) if metadata.schema.column(n).path == opened.picture)
        footer = size - int.from_bytes(self._files.read(name, size - _TAIL, 4), "little") - _TAIL
        for number, end in enumerate(opened.ends.tolist()):
            group = metadata.row_group(number)
            chunk = group.column(column)
            plain = one_plain_page(functools.partial(self._up_to, name, size), chunk, group.num_rows, footer)
            start = chunk.data_page_offset
            until = start + chunk.total_compressed_size
            yield RowGroup(number, end - group.num_rows, group.num_rows, start, until, plain)

    def _up_to(self, name: str, size: int, at: int, count: int) -> bytes:
        return self._files.read(name, at, min(count, size - at))

    def jpegs(self, name: str, group: RowGroup) -> Iterator[bytes | None]:
        """The JPEGs of a row group, read one after another."""
        with self._turn:
            opened = self._open(name)
            for batch in opened.file.iter_batches(16, [group.number], [opened.picture], use_threads=False):
                yield from _bytes_of(batch.column(0)).to_pylist()

    def _opened(self, name: str) -> _Opened:
        raw = io.BufferedReader(_Bytes(self._files, name, self._sizes[name]), _BLOCK)
        try:
            names = pq.read_schema(raw).names
            found = [column for column in names if column in PICTURES]
            if len(found) != 1:
                what = "more than one column" if found else "no column"
                raise BadTable(f"it has {what} {' or '.join(PICTURES)} of image bytes: {', '.join(names)[:200]}")
            raw.seek(0)
            file = open_table(pa.PythonFile(raw, "r"), pa.schema([]), struct=found[0])
            picture = _picture_path(file.schema_arrow.field(found[0]))
        except (ValueError, pa.ArrowException, OSError) as error:
            raise BadShards(f"{self.where}/{name} cannot be read: {' '.join(str(error).split())}") from error
        groups = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
        return _Opened(file, picture, np.cumsum(groups, dtype=np.int64))

    def _read_group(self, name: str, number: int) -> pa.Array:
        """The JPEGs of a row group, in order."""
        opened = self._open(name)
        column = opened.file.read_row_group(number, [opened.picture], use_threads=False).column(0)
        return _bytes_of(column.combine_chunks())


class _Bytes(io.RawIOBase):
    """A file of a folder or store, for a library that reads from files."""

    def __init__(self, files: LocalFolder | ObjectStore, name: str, size: int) -> None:
        self._files, self._name, self._size, self._at = files, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, memory: memoryview) -> int:  # type: ignore[override]
        count = max(0, min(len(memory), self._size - self._at))
        memory[:count] = self._files.read(self._name, self._at, count) if count else b""
        self._at += count
        return count


def holds_tiles(folder: Path) -> bool:
    """Whether a folder looks as if it held shards or tables."""
    return (folder / "catalog/slides").is_dir() or any(
        is_parquet(file.name)
        for place in ("", "data")
        if (folder / place).is_dir()
        for file in (folder / place).iterdir()
    )


def open_any(where: str) -> ShardSource | TableFolder:
    """A folder or URL of shards, or else of tables: those in it, or in its folder `data` as hubs have it.

    BadShards where it holds neither.
    """
    files = open_folder(where)
    if not files.files("slides"):
        for folder in ("", "data"):
            if names := files.tables(folder):
                return TableFolder(files, [replace(file, name=f"{folder}/{file.name}".lstrip("/")) for file in names])
    return open_source(where)


def _picture_path(field: pa.Field) -> str:
    """BadTable where the column holds no bytes."""
    kind, path = field.type, str(field.name)
    if isinstance(kind, pa.StructType) and kind.get_field_index("bytes") >= 0:
        kind, path = kind.field("bytes").type, f"{path}.bytes"
    if kind not in (pa.binary(), pa.large_binary()):
        raise BadTable(f"its column {field.name} is {str(field.type)[:80]}, and no bytes of images")
    return path


def _bytes_of(column: pa.Array) -> pa.Array:
    return column.field("bytes") if pa.types.is_struct(column.type) else column
