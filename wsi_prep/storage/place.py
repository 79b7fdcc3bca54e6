"""Where a run writes: a folder of files by relative path, on a disk here or, in `object_place`, in an object store."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any, Protocol

import pyarrow as pa
import pyarrow.dataset as ds

from wsi_prep.errors import BadCatalog, BadOption, BadOutput
from wsi_prep.format.records import is_table_file
from wsi_prep.storage.locks import CannotLock, try_lock
from wsi_prep.tiles.store import sync_folder
from wsi_prep.untrusted.below import MOST_BYTES, file_below, folder_below, open_below, path_below, read_below
from wsi_prep.untrusted.tables import require_table

LOCK = ".lock"
"""File of the output that the running client holds locked; it contains the run's token."""

STAGING = ".staging"
"""Folder of an output on a disk in which slides are made before they are renamed into place."""

_FILES_AT_ONCE = 200
_PARQUET = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)
_LOCK_BYTES = 1024
_TOKEN = re.compile(rb"[\w -]{0,64}")
"""What a lock holds: a token, or dashes in its place."""

OBJECT_STORES = ("s3://", "s3a://", "gs://", "az://", "abfs://", "abfss://")


Span = tuple[int, int]
"""Offset and count of bytes."""


class Place(Protocol):
    """Files by relative path, which appear whole or not at all. One client changes them at a time, and its workers.

    `where` is what errors call it. `staging` is a folder from which `publish` can move; None where it copies, from any.
    Reading what is not there raises FileNotFoundError. What the system refuses is an OSError, or StoreFailed.
    Nothing is reached through a link below the folder, or opened that is no file: BadOutput.
    """

    where: str
    staging: Path | None

    def create(self) -> None:
        """Make the folder where it is missing; BadOutput where nothing can be written."""

    def make_folders(self, *paths: str) -> None:
        """Make folders, where there is such a thing."""

    def locked(self, token: str, *, take_over: bool) -> AbstractContextManager[None]:
        """Held against every other run while the block lasts; BadOutput where one is at work."""

    def undisturbed(self, *, take_over: bool) -> AbstractContextManager[None]:
        """For those who only look: BadOutput where a run is at work, or begins if it cannot be kept from that."""

    def dismiss_workers(self) -> None:
        """While `locked`: from here on a worker that still finishes a slide finds another token, and writes nothing."""

    def holder(self) -> str:
        """The token of the run that holds the lock, or was the last to hold it."""

    def read(self, path: str, most: int = MOST_BYTES) -> bytes:
        """What a file holds; BadOutput where that is more than `most` bytes."""

    def spans(self, path: str, spans: Iterable[Span]) -> Iterator[bytes]:
        """The bytes of each of these spans of one file, in order, fewer where it ends; not all are held at once."""

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""

    def version(self, path: str) -> str:
        """A text that changes with the file."""

    def sizes(self, path: str) -> dict[str, int]:
        """Bytes of the file `path`, or of every file below that folder, by path; none where there is neither."""

    def names(self, folder: str) -> list[str]:
        """Names of the files and folders in a folder, sorted, hidden ones too; none where there is no folder."""

    def rows(self, folder: str, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
        """The rows of all of a folder's files that records.is_table_file takes; BadCatalog as tables.require_table."""

    def tables(self, paths: Sequence[str], schema: pa.Schema) -> Iterator[pa.Table]:
        """The rows of these Parquet files in order, of some files at once; columns that a file lacks are null."""

    def sources(self, paths: Iterable[str]) -> Iterator[Any]:
        """What pyarrow reads each file from, in order; got ahead of need where that takes time."""

    def write(self, path: str, data: bytes) -> None:
        """Write a file, in place of the one that is there."""

    def making(self, path: str) -> AbstractContextManager[Path]:
        """A local name to write to; what is there at the end becomes the file `path`."""

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, in place of what has it; nothing happens where there is no `old`."""

    def publish(self, staged: Path, path: str) -> None:
        """Bring a staged file or folder to `path`, in place of what is there."""

    def delete(self, paths: Iterable[str]) -> None:
        """Delete files; those that are not there are passed by."""

    def remove(self, path: str) -> None:
        """Remove a file, or a folder with all it holds; nothing happens where there is none."""


def open_place(where: str | Path) -> Place:
    """The folder, or object-store URL, `where`."""
    folder = local_folder(where)
    if folder is not None:
        return LocalPlace(folder)
    from wsi_prep.storage.object_place import ObjectPlace  # noqa: PLC0415 - only those who name object stores load its library

    return ObjectPlace(str(where))


def local_folder(where: str | Path) -> Path | None:
    """The folder that a path or a file:// URL names; None for an object store, BadOption for another URL."""
    text = str(where)
    if text.startswith(OBJECT_STORES):
        return None
    path = text.removeprefix("file://")
    if "://" in path:
        raise BadOption(f"{text} is no folder, and of no object store that is known: {' '.join(OBJECT_STORES)}")
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the user's links


class LocalPlace:
    """A folder on a file system that all workers see; what is written survives a power cut."""

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        self.staging: Path | None = folder / STAGING
        self._folder = folder

    def create(self) -> None:
        """See Place."""
        out = self._folder
        if out.exists() and not out.is_dir():
            raise BadOutput(f"OUT {out} is a file; name a folder")
        try:
            out.mkdir(parents=True, exist_ok=True)
            probe = out / f".probe.{uuid.uuid4().hex}"
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            probe.unlink()
        except OSError as error:
            raise BadOutput(f"OUT {out} cannot be written ({error.strerror}); name a folder that can") from error

    def make_folders(self, *paths: str) -> None:
        """See Place."""
        for path in paths:
            folder_below(self._folder, path).mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self, token: str, *, take_over: bool) -> Iterator[None]:
        """See Place. The lock ends with the process that holds it, however that ends."""
        with self._lock_file(os.O_RDWR | os.O_APPEND | os.O_CREAT) as lock:
            if not self._try(lock):
                raise BadOutput(f"another run is writing to {self.where}; wait for it, or name another OUT")
            if not _TOKEN.fullmatch(lock.read(_LOCK_BYTES)):  # another name of a file that is somebody's, or no lock
                raise BadOutput(f"{self._folder / LOCK} is no lock of a run; remove it and run again")
            try:
                lock.truncate(0)
                lock.write(token.encode())
            except OSError as error:
                why = error.strerror
                raise BadOutput(f"OUT {self.where} cannot be written ({why}); mend that and run again") from error
            yield

    @contextlib.contextmanager
    def undisturbed(self, *, take_over: bool) -> Iterator[None]:
        """See Place; shared with others who look. A run cannot begin meanwhile, so `take_over` makes no difference."""
        if not self.exists(LOCK):  # a copy may come without it
            yield
            return
        with self._lock_file(os.O_RDONLY) as lock:
            if not self._try(lock, shared=True):
                raise BadOutput(f"a run is writing to {self.where}; look at it when that is through")
            yield

    def _lock_file(self, flags: int) -> IO[bytes]:
        try:
            opened = open_below(self._folder, LOCK, flags)
        except BadOutput:
            raise
        except OSError as error:
            raise BadOutput(f"{self._folder / LOCK} cannot be opened ({error.strerror}); mend that") from error
        return os.fdopen(opened, "r+b" if flags & os.O_RDWR else "rb", buffering=0)

    def _try(self, lock: IO[bytes], *, shared: bool = False) -> bool:
        try:
            return try_lock(lock, shared=shared)
        except CannotLock as error:
            raise BadOutput(f"{self.where} cannot be locked: {error}, or name a folder on another disk") from error

    def dismiss_workers(self) -> None:
        """See Place."""
        with self._lock_file(os.O_RDWR) as lock:  # as long as the token: a full disk takes it too
            lock.write(b"-" * os.fstat(lock.fileno()).st_size)

    def holder(self) -> str:
        """See Place."""
        return read_below(self._folder, LOCK, _LOCK_BYTES).decode(errors="replace")

    def read(self, path: str, most: int = MOST_BYTES) -> bytes:
        """See Place."""
        return read_below(self._folder, path, most)

    def spans(self, path: str, spans: Iterable[Span]) -> Iterator[bytes]:
        """See Place."""
        with os.fdopen(open_below(self._folder, path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            for offset, count in spans:  # as much memory as is asked for is taken before it is read
                yield os.pread(file.fileno(), max(0, min(count, size - offset)), offset)

    def exists(self, path: str) -> bool:
        """See Place."""
        return os.path.lexists(path_below(self._folder, path))

    def version(self, path: str) -> str:
        """See Place."""
        _, now = file_below(self._folder, path)
        return f"{now.st_ino} {now.st_mtime_ns} {now.st_size}"

    def sizes(self, path: str) -> dict[str, int]:
        """See Place. A link is a file, and as long as what it says."""
        at = path_below(self._folder, path)
        if at.is_symlink() or not at.is_dir():
            return {path: at.lstat().st_size} if os.path.lexists(at) else {}
        try:
            found = [Path(folder, name) for folder, inner, files in os.walk(at) for name in (*inner, *files)]
        except RecursionError as error:
            raise BadOutput(f"{at} holds folders within folders without end; remove it") from error
        files = (each for each in found if each.is_symlink() or not each.is_dir())
        return {str(file.relative_to(self._folder)): file.lstat().st_size for file in files}

    def names(self, folder: str) -> list[str]:
        """See Place."""
        try:
            return sorted(path.name for path in folder_below(self._folder, folder).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except PermissionError as error:
            raise BadOutput(f"{self.where}/{folder} cannot be listed ({error.strerror}); mend that") from error

    def rows(self, folder: str, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
        """See Place."""
        files = [self._table(f"{folder}/{name}", schema) for name in self.names(folder) if is_table_file(name)]
        rows = ds.dataset(files, schema=schema, format=_PARQUET) if files else ds.dataset(schema.empty_table())
        return rows.to_table(columns=columns)

    def tables(self, paths: Sequence[str], schema: pa.Schema) -> Iterator[pa.Table]:
        """See Place."""
        for first in range(0, len(paths), _FILES_AT_ONCE):
            some = [self._table(path, schema) for path in paths[first : first + _FILES_AT_ONCE]]
            try:
                yield ds.dataset(some, schema=schema, format=_PARQUET).to_table(use_threads=False)
            except pa.ArrowException as error:
                where = f"{self.where}/{paths[first].rpartition('/')[0]}"
                why = " ".join(str(error).split())[:200]
                raise BadCatalog(f"a file of {where} is damaged; make verify with REPAIR=1 drops it ({why})") from error

    def sources(self, paths: Iterable[str]) -> Iterator[Path]:
        """See Place."""
        return (file_below(self._folder, path)[0] for path in paths)

    def _table(self, path: str, schema: pa.Schema) -> str:
        file, _ = file_below(self._folder, path)
        require_table(file, schema, str(file))
        return str(file)

    def write(self, path: str, data: bytes) -> None:
        """See Place."""
        write_atomically(path_below(self._folder, path), data)

    def making(self, path: str) -> AbstractContextManager[Path]:
        """See Place."""
        return aside(path_below(self._folder, path))

    def rename(self, old: str, new: str) -> None:
        """See Place."""
        before, after = path_below(self._folder, old), path_below(self._folder, new)
        if os.path.lexists(before):
            before.rename(after)
        sync_folder(after.parent)

    def publish(self, staged: Path, path: str) -> None:
        """See Place."""
        target = path_below(self._folder, path)
        target.parent.mkdir(exist_ok=True)
        put_in_place(staged, target)

    def delete(self, paths: Iterable[str]) -> None:
        """See Place."""
        for path in paths:
            try:
                path_below(self._folder, path).unlink(missing_ok=True)
            except IsADirectoryError as error:
                raise BadOutput(f"{self.where}/{path} is a folder in place of a file; remove it") from error

    def remove(self, path: str) -> None:
        """See Place."""
        remove_tree(path_below(self._folder, path))


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
    """Remove a file, a link, or a folder with all it holds; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        try:
            shutil.rmtree(path)
        except RecursionError as error:
            raise BadOutput(f"{path} holds folders within folders without end; remove it") from error
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
