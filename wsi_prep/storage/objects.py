"""The output in an object store: objects below a prefix, and the lock that is one of them."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, PreconditionError

from wsi_prep.compute.ahead import ahead
from wsi_prep.errors import BadOutput, OutputInUse
from wsi_prep.format.records import is_table_file
from wsi_prep.storage.base import LOCK, Span
from wsi_prep.storage.locking.holder import ProcessMark
from wsi_prep.storage.object_client import IN_FLIGHT, ask, failed, is_outside, open_store, require_length
from wsi_prep.untrusted.below import MOST_BYTES, require_size
from wsi_prep.untrusted.small_json import read_object
from wsi_prep.untrusted.tables import require_table

_FILES_AT_ONCE, _PIECES_AT_ONCE = 4, 4  # of uploads: pieces of 5 MB, each of which has its minute
_REQUEST_BYTES = 8 * 2**20
_LOCK_TRIES = 3
_LOCK_BYTES = 64 * 2**10
_NO_VERSION = "1"
"""Of no object: neither an ETag nor one of Google's generations, which are times."""

_NO_CONDITIONS = (
    "cannot be an OUT: its store does not heed conditions of writes (If-Match, If-None-Match), by which two runs keep "
    "out of each other's way; name an OUT in another store or on a disk"
)
_TABLE_BYTES = 4 * 2**30
"""Of a catalog's file: ours have some hundred MB."""


class ObjectStorage:
    """A prefix of a bucket, see Storage. Objects appear whole by themselves; a folder is what objects' names say."""

    def __init__(self, where: str) -> None:
        self.where = where.rstrip("/")
        self.staging: Path | None = None
        self._store = open_store(self.where)
        self._held: tuple[dict[str, object], dict[str, str]] | None = None

    def create(self) -> None:
        """See Storage; the lock will tell whether objects can be written."""

    def make_folders(self, *paths: str) -> None:
        """See Storage; object stores know none."""

    @contextlib.contextmanager
    def locked(self, token: str, *, take_over: bool) -> Iterator[None]:
        """Hold the object `.lock`, written on the condition that nobody else did meanwhile; no clock is asked.

        A lock whose process is known to be gone (it was one of this machine, as its mark shows) is taken; one of
        another machine only with `take_over`. At the end the object stays and says that it is free.
        """
        mark = {"token": token, **ProcessMark.own().as_dict()}
        try:
            version = self._take(mark, take_over=take_over)
            self._require_conditions(mark, version)
        except (BaseError, FileNotFoundError, NotImplementedError) as error:
            if isinstance(error, NotImplementedError) or "501 Not Implemented" in str(error):
                raise BadOutput(f"{self.where} {_NO_CONDITIONS}") from error
            raise failed(self.where, error) from error
        self._held = mark, version
        try:
            yield
        finally:
            mark, version = self._held
            self._held = None
            with contextlib.suppress(BaseError):  # then the mark says it: this process is gone
                self._put_lock({**mark, "free": True}, version)

    @contextlib.contextmanager
    def undisturbed(self, *, take_over: bool) -> Iterator[None]:
        """See Storage. Nothing is written; that no run began is known at the end, by the lock that is as it was."""
        before = self._lock_if_any()
        if _is_held(before) and not take_over:
            raise OutputInUse(
                f"a run ({ProcessMark.of(before)}) is writing to {self.where}; try again when it has ended, "
                "or add TAKE_OVER=1 if that run is gone for good"
            )
        yield
        if self._lock_if_any() != before:
            raise OutputInUse(f"a run began to write to {self.where} meanwhile; try again when it has ended")

    def dismiss_workers(self) -> None:
        """See Storage."""
        assert self._held is not None
        mark, version = {**self._held[0], "token": ""}, self._held[1]
        try:
            self._held = mark, self._put_lock(mark, version)
        except PreconditionError as error:
            says, version = self._lock()
            if says != mark:  # else only the answer was lost on its way
                raise BadOutput(f"another run has taken over {self.where}; finished slides are kept") from error
            self._held = mark, version
        except BaseError as error:
            raise failed(self.where, error) from error

    def holder(self) -> str:
        """See Storage."""
        return str(self._lock()[0].get("token"))

    def read(self, path: str, most: int = MOST_BYTES) -> bytes:
        """See Storage."""
        return self._get(path, most)[0]

    def _get(self, path: str, most: int) -> tuple[bytes, object]:
        """What an object holds, and what the store says of it. An object is read only if it can be of its kind."""

        def get() -> tuple[bytes, object]:
            found = self._opened(path)
            require_size(f"{self.where}/{path}", found.meta["size"], most)
            data = bytes(found.bytes())
            require_length(data, found.meta["size"])
            return data, found.meta

        return ask(f"{self.where}/{path}", get)

    def _opened(self, path: str) -> Any:
        """An object from its first byte on; the answer to a range says the object's size, not only its own."""
        try:
            return self._store.get(path, options={"range": {"offset": 0}})
        except GenericError as error:
            if not is_outside(error):
                raise
            return self._store.get(path)  # it is empty

    def spans(self, path: str, spans: Iterable[Span]) -> Iterator[bytes]:
        """See Storage. Spans that follow one another are one request of 8 MB or less; 5 of these are held at most."""

        def get(run: list[Span]) -> tuple[list[Span], memoryview]:
            start, end = run[0][0], sum(run[-1])
            return run, memoryview(ask(f"{self.where}/{path}", self._get_range, path, start, end))

        for run, data in ahead(get, _runs(spans), _PIECES_AT_ONCE):
            for offset, count in run:
                yield bytes(data[offset - run[0][0] :][:count])

    def exists(self, path: str) -> bool:
        """See Storage."""
        try:
            self.version(path)
        except FileNotFoundError:
            return False
        return True

    def version(self, path: str) -> str:
        """See Storage."""
        return str(_version(ask(f"{self.where}/{path}", self._store.head, path)))

    def sizes(self, path: str) -> dict[str, int]:
        """See Storage."""
        below = self._below(path)
        if not below:
            try:
                return {path: ask(f"{self.where}/{path}", self._store.head, path)["size"]}
            except FileNotFoundError:
                return {}
        folders = {path, *(str(folder) for each in below for folder in PurePosixPath(each).parents)}
        return {each: size for each, size in below.items() if each not in folders}  # consoles' marks of folders are

    def names(self, folder: str) -> list[str]:
        """See Storage."""
        found = ask(self.where, self._store.list_with_delimiter, folder or None)
        paths = [meta["path"] for meta in found["objects"]] + list(found["common_prefixes"])
        inside = (path.rstrip("/") for path in paths)
        return sorted(
            path.rpartition("/")[2] for path in inside if path != folder
        )  # a console's mark of a folder is it

    def rows(self, folder: str, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
        """See Storage."""
        paths = [f"{folder}/{name}" for name in self.names(folder) if is_table_file(name)]
        checked = {"page_checksum_verification": True}
        tables = [
            pq.read_table(source, schema=schema, columns=columns, **checked) for source in self._sound(paths, schema)
        ]
        empty = schema.empty_table()
        return pa.concat_tables([empty if columns is None else empty.select(columns), *tables])

    def tables(self, paths: Sequence[str], schema: pa.Schema) -> Iterator[pa.Table]:
        """See Storage."""
        for source in self._sound(paths, schema):
            yield pq.read_table(source, schema=schema, page_checksum_verification=True)

    def _sound(self, paths: Sequence[str], schema: pa.Schema) -> Iterator[pa.BufferReader]:
        for path, source in zip(paths, self.sources(paths), strict=True):
            require_table(source, schema, f"{self.where}/{path}")
            yield source

    def sources(self, paths: Iterable[str]) -> Iterator[pa.BufferReader]:
        """See Storage; whole objects, of which the largest, a part of the catalog, has some hundred MB."""
        for data in ahead(functools.partial(self.read, most=_TABLE_BYTES), paths, IN_FLIGHT):
            yield pa.BufferReader(pa.py_buffer(data))

    def write(self, path: str, data: bytes) -> None:
        """See Storage."""
        self._put(path, data)

    @contextlib.contextmanager
    def making(self, path: str) -> Iterator[Path]:
        """See Storage."""
        with tempfile.TemporaryDirectory(prefix="wsi-prep-") as folder:
            local = Path(folder) / "file"
            yield local
            self._put(path, local)

    def rename(self, old: str, new: str) -> None:
        """See Storage. A copy inside the store, then a deletion: to be done again where it was cut off between."""
        with contextlib.suppress(FileNotFoundError):
            ask(self.where, self._store.copy, old, new)
            ask(self.where, self._store.delete, old)

    def publish(self, staged: Path, path: str) -> None:
        """See Storage. A folder's own metadata comes last, so that nobody opens half a store."""
        if staged.is_file():
            self._put(path, staged)
            return
        local = {str(file.relative_to(staged)): file for file in sorted(staged.rglob("*")) if file.is_file()}
        before = {key.removeprefix(f"{path}/") for key in self._below(path)}
        last = [name for name in local if "/" not in name]
        for names in ([name for name in local if name not in last], last):
            deque(ahead(lambda name: self._put(f"{path}/{name}", local[name]), names, _FILES_AT_ONCE), maxlen=0)
        self.delete(f"{path}/{name}" for name in sorted(before - local.keys()))

    def delete(self, paths: Iterable[str]) -> None:
        """See Storage."""
        waiting = iter(paths)
        while batch := list(islice(waiting, 1000)):
            try:
                ask(self.where, self._store.delete, batch)
            except FileNotFoundError:  # stores that delete one by one stop at what is not there
                for path in batch:
                    with contextlib.suppress(FileNotFoundError):
                        ask(self.where, self._store.delete, path)

    def remove(self, path: str) -> None:
        """See Storage."""
        self.delete([path, *self._below(path)])

    def _get_range(self, path: str, start: int, end: int) -> Any:
        try:
            data = self._store.get_range(path, start=start, end=end)
        except GenericError as error:
            if not is_outside(error):
                raise
            data = b""
        if len(data) != end - start:  # the object ends before, or the answer is not what was asked for
            size = self._store.head(path)["size"]
            require_length(data, max(0, min(end, size) - start))
        return data

    def _below(self, path: str) -> dict[str, int]:
        """Bytes of every object below a folder, by path."""
        pages = self._store.list
        return ask(self.where, lambda: {meta["path"]: meta["size"] for page in pages(f"{path}/") for meta in page})

    def _put(self, path: str, data: bytes | Path) -> None:
        put = functools.partial(self._store.put, max_concurrency=_PIECES_AT_ONCE)
        ask(f"{self.where}/{path}", put, path, data)

    def _take(self, mark: dict[str, object], *, take_over: bool) -> dict[str, str]:
        """Write the lock for this run; returns its version."""
        lost: BaseError | None = None
        for _ in range(_LOCK_TRIES):  # others may take it, or let it go, between reading and writing
            try:
                before, version = self._lock()
            except FileNotFoundError:
                before, version = {"free": True}, None
            if version is not None and before == mark:
                return version  # it was written, and the answer lost on its way
            if _is_held(before) and not take_over:
                break
            try:
                return self._put_lock(mark, version)
            except (AlreadyExistsError, PreconditionError):
                take_over = False  # which was said of the run that is gone, not of one that was quicker
            except BaseError as error:
                lost = error
        if lost is not None:
            raise lost
        raise BadOutput(
            f"another run ({ProcessMark.of(before)}) is writing to {self.where}; wait for it, name another OUT, "
            "or add TAKE_OVER=1 if that run is gone for good"
        )

    def _require_conditions(self, mark: dict[str, object], version: dict[str, str]) -> None:
        """Raise BadOutput where the store takes conditions and does not heed them: its locks would lock nobody out."""
        for never in (None, dict.fromkeys(version, _NO_VERSION)):
            with contextlib.suppress(AlreadyExistsError, PreconditionError):
                self._put_lock(mark, never)
                raise BadOutput(f"{self.where} {_NO_CONDITIONS}")

    def _lock_if_any(self) -> dict[str, object]:
        try:
            return self._lock()[0]
        except FileNotFoundError:
            return {"free": True}

    def _lock(self) -> tuple[dict[str, object], dict[str, str]]:
        """What the lock says, and its version; FileNotFoundError where there is none."""
        data, meta = self._get(LOCK, _LOCK_BYTES)
        try:
            says = read_object(data)
        except ValueError as error:
            raise BadOutput(f"{self.where}/{LOCK} is no lock of a run; remove it and repeat the command") from error
        return says, _version(meta)

    def _put_lock(self, mark: dict[str, object], version: dict[str, str] | None) -> dict[str, str]:
        """Write the lock if it is still of that version (or still missing); AlreadyExistsError, PreconditionError."""
        mode: object = version or "create"
        return _version(self._store.put(LOCK, json.dumps(mark).encode(), mode=mode))


def _is_held(lock: dict[str, object]) -> bool:
    return not (lock.get("free") or ProcessMark.of(lock).is_gone())


def _version(meta: Any) -> dict[str, str]:
    return {name: meta[name] for name in ("e_tag", "version") if meta[name] is not None}


def _runs(spans: Iterable[Span]) -> Iterator[list[Span]]:
    """The spans, those together that follow one another, up to a request's size."""
    run: list[Span] = []
    for span in spans:
        if run and (span[0] != sum(run[-1]) or sum(span) - run[0][0] > _REQUEST_BYTES):
            yield run
            run = []
        run.append(span)
    if run:
        yield run
