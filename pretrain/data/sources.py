"""Folders of shards as `make shards` leaves them, on a disk or in an object store: catalog files and byte ranges."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pretrain.errors import BadShards
from wsi_prep.errors import UsageError
from wsi_prep.format.copies import Copies, which_count
from wsi_prep.format.layout import is_slide_id
from wsi_prep.format.magnifications import MAGNIFICATIONS
from wsi_prep.format.records import SLIDE_SCHEMA, TILE_SCHEMA, is_table_file
from wsi_prep.storage.patience import patiently
from wsi_prep.untrusted.below import file_below, folder_below, open_below, require_size
from wsi_prep.untrusted.pages import BadTable
from wsi_prep.untrusted.tables import open_table, require_columns

_SCHEMAS = {"slides": SLIDE_SCHEMA, "tiles": TILE_SCHEMA}
_NEEDED = {
    "slides": ("slide_id", "status", *(f"tiles_{m.name}" for m in MAGNIFICATIONS)),
    "tiles": (
        *("slide_id", "magnification", "mpp", "x0", "y0", "span0", "row", "col"),
        *("shard", "index", "offset", "nbytes", "crc32"),
    ),
}
_OPEN_FILES = 512
_TABLE_BYTES = 4 * 2**30  # of a catalog's file in a store, which is read whole
_SCHEMES = ("s3://", "s3a://", "gs://", "az://", "abfs://", "abfss://", "http://", "https://", "memory://")


@dataclass(frozen=True)
class CatalogFile:
    """A Parquet file: `name`, in a catalog the same for its slides and its tiles; what changes when it does; bytes."""

    name: str
    stamp: str
    size: int


class TileSource(Protocol):
    """What the loader needs of a folder."""

    where: str
    remote: bool

    def read(self, path: str, offset: int, nbytes: int) -> bytes:
        """`nbytes` bytes from `offset` of the file at `path`, relative to the folder; OSError if they are not there."""

    def read_into(self, memory: bytearray, path: str, offset: int, nbytes: int) -> memoryview | bytes:
        """The same, in `memory` where that saves something (new memory for each tile costs as much as reading it)."""


class ShardSource(TileSource, Protocol):
    """What the index needs of one OUT folder."""

    def files(self, table: str) -> list[CatalogFile]:
        """The Parquet files of catalog/<table>, sorted by name; BadShards if there is no catalog."""

    def parquet(self, table: str, name: str) -> pq.ParquetFile:
        """One of them, open; BadShards where it is no table of a catalog."""


def folders_of(shards: str | Path | Sequence[str | Path]) -> list[str]:
    """The folders or URLs that are meant: several, or one alone."""
    return [str(shards)] if isinstance(shards, (str, Path)) else [str(where) for where in shards]


def open_folder(where: str) -> LocalFolder | ObjectStore:
    """The folder or object-store URL `where`, whatever it holds."""
    return ObjectStore(where) if where.startswith(_SCHEMES) else LocalFolder(where.removeprefix("file://"))


def open_source(where: str) -> ShardSource:
    """The folder or object-store URL `where`; BadShards if it holds no catalog."""
    source = open_folder(where)
    if not source.files("slides"):
        tables = ", but Parquet tables, which only training and peek take" if source.tables("") else ""
        raise BadShards(f"{where} holds no catalog/slides{tables}; name a folder that make shards has filled")
    return source


def is_parquet(name: str) -> bool:
    """Whether a file of that name is a table, and neither hidden nor about other ones."""
    return name.endswith(".parquet") and not name.startswith((".", "_"))


def check_ids(source: ShardSource, name: str, ids: pa.ChunkedArray) -> None:
    """Raise BadShards where a file of slides names what is no slide's id, and would lead elsewhere as a path."""
    for slide_id in ids.to_pylist():
        if not is_slide_id(slide_id):
            raise BadShards(
                f"{source.where}/catalog: {name} names a slide {str(slide_id)[:60]!r}, which is no slide id"
            )


def copies_of(sources: Sequence[ShardSource]) -> tuple[list[dict[str, pa.BooleanArray]], Copies]:
    """For each source, by file of its slides, which rows are ok and count; and what is to be said of the others."""
    files = [(number, file.name) for number, source in enumerate(sources) for file in source.files("slides")]
    tables = [sources[n].parquet("slides", name).read(columns=["slide_id", "status"]) for n, name in files]
    for (number, name), table in zip(files, tables, strict=True):
        check_ids(sources[number], name, table.filter(pc.equal(table["status"], "ok"))["slide_id"])
    rows = pa.concat_tables(tables)
    rows = rows.append_column("row", pa.array(np.arange(len(rows)))).filter(pc.equal(rows["status"], "ok"))
    copies = which_count(rows["slide_id"].combine_chunks(), pa.array(np.ones(len(rows), bool)))
    counted = rows["row"].filter(copies.counts)
    found: list[dict[str, pa.BooleanArray]] = [{} for _ in sources]
    begin = 0
    for (number, name), table in zip(files, tables, strict=True):
        found[number][name] = pc.is_in(pa.array(np.arange(begin, begin + len(table))), counted.combine_chunks())
        begin += len(table)
    return found, copies


class LocalFolder:
    """An OUT folder on a file system. Reads by offset share no state, so threads and forks may read at once."""

    remote = False

    def __init__(self, where: str) -> None:
        self.where = where
        self._folder = Path(where).absolute()
        self._open = functools.lru_cache(maxsize=_OPEN_FILES)(functools.partial(_OpenFile, self._folder))

    def files(self, table: str) -> list[CatalogFile]:
        """See ShardSource."""
        return self._listed(f"catalog/{table}", is_table_file)

    def tables(self, path: str) -> list[CatalogFile]:
        """Parquet files in the folder at the relative `path`, sorted by name."""
        return self._listed(path, is_parquet)

    def _listed(self, path: str, wanted: Callable[[str], bool]) -> list[CatalogFile]:
        try:
            folder = folder_below(self._folder, path)
            found = sorted(file.name for file in folder.iterdir() if wanted(file.name))
            stats = [(name, file_below(self._folder, f"{path}/{name}".lstrip("/"))[1]) for name in found]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise BadShards(f"{self.where} cannot be read: {error.strerror or error}") from error
        return [CatalogFile(name, f"{s.st_size} {s.st_mtime_ns} {s.st_ino}", s.st_size) for name, s in stats]

    def parquet(self, table: str, name: str) -> pq.ParquetFile:
        """See ShardSource."""
        path = f"catalog/{table}/{name}"
        with _reading(self.where, path):
            return _opened(file_below(self._folder, path)[0], table)

    def read(self, path: str, offset: int, nbytes: int) -> bytes:
        """See TileSource."""
        return bytes(self.read_into(bytearray(), path, offset, nbytes))

    def read_into(self, memory: bytearray, path: str, offset: int, nbytes: int) -> memoryview:
        """See ShardSource."""
        if len(memory) < nbytes:
            memory.extend(bytes(nbytes - len(memory)))
        wanted = memoryview(memory)[:nbytes]
        if (found := patiently(lambda: self._fill(wanted, path, offset), self._open.cache_clear)) != nbytes:
            raise OSError(f"{found} of {nbytes} bytes")
        return wanted

    def _fill(self, memory: memoryview, path: str, offset: int) -> int:
        file = self._open(path)  # kept alive by this name while it is read, even if it is evicted
        return os.preadv(file.descriptor, [memory], offset)


class _OpenFile:
    """A file descriptor that closes when nobody holds it any more."""

    def __init__(self, folder: Path, path: str) -> None:
        self.descriptor = -1
        self.descriptor = open_below(folder, path)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


class ObjectStore:
    """An OUT folder in an object store; credentials and endpoint come from the environment (AWS_ENDPOINT_URL, ...)."""

    remote = True

    def __init__(self, where: str) -> None:
        from wsi_prep.storage.object_client import open_store, reason_of  # noqa: PLC0415 - only those who read object stores need it

        self.where = where.rstrip("/")
        self._reason = functools.partial(reason_of, self.where)
        self._store = open_store(self.where, timeout_s=30, retries=5)  # a tile that does not come is replaced

    def files(self, table: str) -> list[CatalogFile]:
        """See ShardSource."""
        return self._listed(f"catalog/{table}/", is_table_file)

    def tables(self, path: str) -> list[CatalogFile]:
        """Parquet files in the folder at the relative `path`, sorted by name."""
        return self._listed(f"{path}/".lstrip("/"), is_parquet)

    def _listed(self, prefix: str, wanted: Callable[[str], bool]) -> list[CatalogFile]:
        try:
            found = self._store.list_with_delimiter(prefix or None)["objects"]
        except Exception as error:
            raise BadShards(f"{self.where} cannot be listed: {self._reason(error)}") from error
        named = ((meta["path"].rpartition("/")[2], meta) for meta in found)
        return sorted(
            (
                CatalogFile(name, f"{meta['size']} {meta['e_tag']} {meta['last_modified']}", meta["size"])
                for name, meta in named
                if wanted(name)
            ),
            key=lambda file: file.name,
        )

    def parquet(self, table: str, name: str) -> pq.ParquetFile:
        """See ShardSource. The file (at most some 4 million rows) is fetched whole."""
        path = f"catalog/{table}/{name}"
        with _reading(self.where, path):
            return _opened(pa.BufferReader(pa.py_buffer(self._whole(path))), table)

    def _whole(self, path: str) -> object:
        try:
            found = self._store.get(path)
            require_size(path, found.meta["size"], _TABLE_BYTES)
            return found.bytes()
        except (OSError, UsageError):
            raise
        except Exception as error:  # object stores raise errors of their own
            raise BadShards(f"{self.where}/{path} cannot be read: {self._reason(error)}") from error

    def read(self, path: str, offset: int, nbytes: int) -> bytes:
        """See ShardSource."""
        data = bytes(self._store.get_range(path, start=offset, length=nbytes))
        if len(data) != nbytes:
            raise OSError(f"{len(data)} of {nbytes} bytes")
        return data

    def read_into(self, memory: bytearray, path: str, offset: int, nbytes: int) -> bytes:
        """See ShardSource."""
        return self.read(path, offset, nbytes)


def _opened(source: Path | pa.BufferReader, table: str) -> pq.ParquetFile:
    file = open_table(source, _SCHEMAS[table])
    require_columns(file.schema_arrow, _SCHEMAS[table], _NEEDED[table])
    return file


@contextlib.contextmanager
def _reading(where: str, path: str) -> Iterator[None]:
    """What is wrong with a file of a catalog is BadShards."""
    try:
        yield
    except (BadTable, pa.ArrowException, OSError) as error:
        why = " ".join(str(error).split())
        raise BadShards(f"{where}/{path} cannot be read ({why}); run make verify on it") from error


def digest(*words: str) -> str:
    """A short name for these words: 32 hexadecimal digits."""
    return hashlib.blake2b("\0".join(words).encode(), digest_size=16).hexdigest()
