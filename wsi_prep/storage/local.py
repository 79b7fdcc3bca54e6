"""An output in a folder of this machine, or of a file system that all machines see."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.dataset as ds

from wsi_prep.errors import BadCatalog, BadOutput, OutputInUse, one_line, refusal
from wsi_prep.format.records import is_table_file
from wsi_prep.storage.atomic import aside, put_in_place, remove_tree, sync, write_atomically
from wsi_prep.storage.base import LOCK, STAGING, Span
from wsi_prep.storage.locking.marked import MarkedLock
from wsi_prep.storage.locking.mounts import locks_here_alone
from wsi_prep.storage.patience import passes, patient, patiently
from wsi_prep.untrusted.below import MOST_BYTES, file_below, folder_below, open_below, path_below, read_below
from wsi_prep.untrusted.locks import CannotLock, try_lock
from wsi_prep.untrusted.tables import require_table

_FILES_AT_ONCE = 200
_LOOK_AT_ONCE = 4
_PARQUET = ds.ParquetFileFormat(
    default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
)
_LOCK_BYTES = 1024
_TOKEN = re.compile(rb"[\w -]{0,64}")
"""What a lock holds: a token, or dashes in its place."""


class LocalStorage:
    """A folder on a file system that all workers see; what is written survives a power cut."""

    def __init__(self, folder: Path) -> None:
        self.where = str(folder)
        self.staging: Path | None = folder / STAGING
        self._folder = folder
        self._by_mark = False
        self._looked_at: set[tuple[object, ...]] = set()

    def create(self) -> None:
        """See Storage."""
        out = self._folder
        if out.exists() and not out.is_dir():
            raise BadOutput(f"OUT {out} is a file; name a folder")
        try:
            out.mkdir(parents=True, exist_ok=True)
            probe = out / f".probe.{uuid.uuid4().hex}"
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            probe.unlink()
        except OSError as error:
            raise BadOutput(f"OUT {out} cannot be written ({refusal(error)}); name a folder that can") from error

    @patient
    def make_folders(self, *paths: str) -> None:
        """See Storage."""
        for path in paths:
            folder_below(self._folder, path).mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self, token: str, *, take_over: bool) -> Iterator[None]:
        """See Storage. The lock ends with the process that holds it, however that ends.

        Where the file system locks no files, or for this machine alone, a mark says who holds it, as in an object
        store; `take_over` is for one of another machine.
        """
        marked = MarkedLock(self._folder, self.where)
        with self._lock_file(os.O_RDWR | os.O_APPEND | os.O_CREAT) as lock, contextlib.ExitStack() as held:
            if not self._try(lock):
                raise BadOutput(f"another run is writing to {self.where}; wait for it, or name another OUT")
            before = lock.read(_LOCK_BYTES)
            if not _TOKEN.fullmatch(before):  # another name of a file that is somebody's, or no lock
                raise BadOutput(f"{self._folder / LOCK} is no lock of a run; remove it and repeat the command")
            if self._by_mark:
                self._require_ended(before.decode(), marked, take_over=take_over)
                held.enter_context(marked.hold(token, take_over=take_over))
            else:
                marked.require_free(take_over=take_over)
            try:
                lock.truncate(0)
                lock.write(token.encode())
            except OSError as error:
                why = refusal(error)
                raise BadOutput(f"OUT {self.where} cannot be written ({why}); fix this and try again") from error
            yield

    @contextlib.contextmanager
    def undisturbed(self, *, take_over: bool) -> Iterator[None]:
        """See Storage; shared with others who look. No run can begin meanwhile, so `take_over` makes no difference,
        except where a mark says who holds it.
        """
        if not self.exists(LOCK):  # a copy may come without it
            yield
            return
        marked = MarkedLock(self._folder, self.where)
        with self._lock_file(os.O_RDONLY) as lock, marked.unchanged(take_over=take_over):
            if not self._try(lock, shared=True):
                raise OutputInUse(f"a run is writing to {self.where}; try again when it has ended")
            yield

    def _lock_file(self, flags: int) -> IO[bytes]:
        try:
            opened = open_below(self._folder, LOCK, flags)
        except BadOutput:
            raise
        except OSError as error:
            raise BadOutput(f"{self._folder / LOCK} cannot be opened ({error.strerror}); fix this") from error
        if flags & os.O_RDWR and os.fstat(opened).st_nlink > 1:  # what is written here, that other file has too
            os.close(opened)
            raise BadOutput(
                f"{self._folder / LOCK} is a hard link, another name of a file elsewhere, as in copies by cp -al; "
                "remove it and run again"
            )
        return os.fdopen(opened, "r+b" if flags & os.O_RDWR else "rb", buffering=0)

    def _try(self, lock: IO[bytes], *, shared: bool = False) -> bool:
        """Lock it against others; where that cannot be, or is not enough, a mark is what counts from here on."""
        try:
            self._by_mark = locks_here_alone(self._folder)
            return try_lock(lock, shared=shared)
        except CannotLock as error:
            if not error.for_all:
                raise BadOutput(f"{self.where} cannot be locked: {error}, or name a folder on another disk") from error
            self._by_mark = True
            return True

    def _require_ended(self, token: str, marked: MarkedLock, *, take_over: bool) -> None:
        """Raise BadOutput where a run that made no mark, on a machine with locks, did not end by itself."""
        if token.strip("-") and token != marked.read().get("token") and not take_over:
            raise BadOutput(
                f"a run on another machine is writing to {self.where}, or was killed; wait for it, name another OUT, "
                "or add TAKE_OVER=1 if that run is gone for good"
            )

    def dismiss_workers(self) -> None:
        """See Storage."""
        with self._lock_file(os.O_RDWR) as lock:  # as long as the token: a full disk takes it too
            lock.write(b"-" * os.fstat(lock.fileno()).st_size)

    @patient
    def holder(self) -> str:
        """See Storage."""
        return read_below(self._folder, LOCK, _LOCK_BYTES).decode(errors="replace")

    @patient
    def read(self, path: str, most: int = MOST_BYTES) -> bytes:
        """See Storage."""
        return read_below(self._folder, path, most)

    def spans(self, path: str, spans: Iterable[Span]) -> Iterator[bytes]:
        """See Storage."""
        with contextlib.ExitStack() as files:

            def opened() -> int:
                return files.enter_context(os.fdopen(open_below(self._folder, path), "rb")).fileno()

            where = f"{self.where}/{path}"
            file = patiently(opened, where=where)
            size = os.fstat(file).st_size
            for offset, count in spans:  # as much memory as is asked for is taken before it is read
                most = max(0, min(count, size - offset))
                try:
                    data = os.pread(file, most, offset)
                except OSError as error:
                    if not passes(error):
                        raise
                    data = patiently(lambda: os.pread(opened(), most, offset), where=where)  # noqa: B023 - done at once
                yield data

    @patient
    def exists(self, path: str) -> bool:
        """See Storage."""
        return _is_there(path_below(self._folder, path))

    @patient
    def version(self, path: str) -> str:
        """See Storage."""
        _, now = file_below(self._folder, path)
        return f"{now.st_ino} {now.st_mtime_ns} {now.st_size}"

    @patient
    def sizes(self, path: str) -> dict[str, int]:
        """See Storage. A link is a file, and as long as what it says."""
        at = path_below(self._folder, path)
        if at.is_symlink() or not at.is_dir():
            return {path: at.lstat().st_size} if _is_there(at) else {}
        try:
            found = [
                Path(folder, name)
                for folder, inner, files in os.walk(at, onerror=_unless_gone)
                for name in (*inner, *files)
            ]
        except RecursionError as error:
            raise BadOutput(f"{at} holds folders within folders without end; remove it") from error
        files = (each for each in found if each.is_symlink() or not each.is_dir())
        return {str(file.relative_to(self._folder)): file.lstat().st_size for file in files}

    @patient
    def names(self, folder: str) -> list[str]:
        """See Storage."""
        try:
            return sorted(os.listdir(folder_below(self._folder, folder)))  # noqa: PTH208 - millions of them
        except (FileNotFoundError, NotADirectoryError):
            return []
        except PermissionError as error:
            raise BadOutput(f"{self.where}/{folder} cannot be listed ({error.strerror}); fix this") from error

    @patient
    def rows(self, folder: str, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
        """See Storage."""
        paths = [f"{folder}/{name}" for name in self.names(folder) if is_table_file(name)]
        with ThreadPoolExecutor(_LOOK_AT_ONCE) as pool:
            files = list(pool.map(lambda path: self._table(path, schema), paths))
        rows = ds.dataset(files, schema=schema, format=_PARQUET) if files else ds.dataset(schema.empty_table())
        return rows.to_table(columns=columns)

    def tables(self, paths: Sequence[str], schema: pa.Schema) -> Iterator[pa.Table]:
        """See Storage."""
        for first in range(0, len(paths), _FILES_AT_ONCE):
            some = [self._table(path, schema) for path in paths[first : first + _FILES_AT_ONCE]]
            try:
                yield ds.dataset(some, schema=schema, format=_PARQUET).to_table(use_threads=False)
            except pa.ArrowException as error:
                where = f"{self.where}/{paths[first].rpartition('/')[0]}"
                why = one_line(error, 200)
                raise BadCatalog(f"a file of {where} is damaged; make verify with REPAIR=1 drops it ({why})") from error

    def sources(self, paths: Iterable[str]) -> Iterator[Path]:
        """See Storage."""
        return (file_below(self._folder, path)[0] for path in paths)

    @patient
    def _table(self, path: str, schema: pa.Schema) -> str:
        file, now = file_below(self._folder, path)
        as_it_is = path, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns
        if as_it_is not in self._looked_at:  # a run reads the same parts many times
            require_table(file, schema, str(file))
            self._looked_at.add(as_it_is)
        return str(file)

    @patient
    def write(self, path: str, data: bytes) -> None:
        """See Storage."""
        write_atomically(path_below(self._folder, path), data)

    def making(self, path: str) -> AbstractContextManager[Path]:
        """See Storage."""
        return aside(path_below(self._folder, path))

    @patient
    def rename(self, old: str, new: str) -> None:
        """See Storage."""
        before, after = path_below(self._folder, old), path_below(self._folder, new)
        if _is_there(before):
            before.rename(after)
        sync(after.parent)

    def publish(self, staged: Path, path: str) -> None:
        """See Storage."""
        target = path_below(self._folder, path)
        target.parent.mkdir(exist_ok=True)
        put_in_place(staged, target)

    @patient
    def delete(self, paths: Iterable[str]) -> None:
        """See Storage."""
        for path in paths:
            try:
                path_below(self._folder, path).unlink(missing_ok=True)
            except IsADirectoryError as error:
                raise BadOutput(f"{self.where}/{path} is a folder in place of a file; remove it") from error

    @patient
    def remove(self, path: str) -> None:
        """See Storage."""
        remove_tree(path_below(self._folder, path))


def _is_there(path: Path) -> bool:
    """Whether there is such a file, link or folder; OSError where the system does not say, as lexists would not."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _unless_gone(error: OSError) -> None:
    if passes(error):
        raise error
