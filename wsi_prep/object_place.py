"""Object stores: S3, Google's and Azure's, through obstore. The output in one, and a file system for reading slides.

Credentials and endpoint come from the environment (AWS_ENDPOINT_URL, ...). A request that is refused or cut off is
tried again by obstore a few times, after longer and longer pauses; then StoreFailed says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import re
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import obstore
import obstore.store
import pyarrow as pa
import pyarrow.parquet as pq
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, PreconditionError
from obstore.fsspec import FsspecStore

from wsi_prep.errors import BadOutput, StoreFailed
from wsi_prep.place import LOCK
from wsi_prep.process import ProcessMark

_RETRIES: Any = {"max_retries": 7, "retry_timeout": timedelta(seconds=60)}  # after 0.1 s, then twice as long each time
_PAUSES = (0.1, 0.4, 1.6)  # s, likewise, for what obstore itself does not try again
_IN_FLIGHT = 16
_FILES_AT_ONCE, _PIECES_AT_ONCE = 4, 4  # of uploads: pieces of 5 MB, each of which has its minute
_LOCK_TRIES = 3

Result = TypeVar("Result")


def open_store(url: str) -> Any:
    """The store behind a URL, its paths relative to the URL's own; StoreFailed where the URL names none."""
    try:
        return obstore.store.from_url(url, client_options=_client_options(), retry_config=_RETRIES)
    except (BaseError, ValueError) as error:
        raise StoreFailed(f"{url} cannot be opened ({_first_line(error)})") from error


def _client_options() -> Any:
    return {"connect_timeout": "5s", "timeout": "60s", "allow_http": _s3_endpoint().startswith("http://")}


def _s3_endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL", ""))


def _first_line(error: BaseException) -> str:
    """What obstore says before it shows the details, in one line; of the URL its server, since the rest has names."""
    if "NoSuchBucket" in str(error):
        return "there is no such bucket"
    line = next(iter(str(error).strip().splitlines()), type(error).__name__).partition(": <")[0]
    return " ".join(re.sub(r"(https?://[^/\s]+)\S*", r"\1", line).split())[:300]


def _failed(where: str, error: BaseError) -> StoreFailed:
    return StoreFailed(
        f"{where} cannot be used ({_first_line(error)}); what is done is kept, so mend that and run again"
    )


def _is_cut_off(error: BaseError) -> bool:
    """Whether an answer broke off where obstore does not ask again by itself: in a listing, or an error's details."""
    return isinstance(error, GenericError) and "body" in _first_line(error)


def _ask(where: str, work: Callable[..., Result], *arguments: Any) -> Result:
    """Do what may be done twice; what the store refuses for good becomes StoreFailed."""
    for pause in (*_PAUSES, None):
        try:
            return work(*arguments)
        except BaseError as error:
            if pause is None or not _is_cut_off(error):
                raise _failed(where, error) from error
            time.sleep(pause)
    raise AssertionError


class ObjectPlace:
    """A prefix of a bucket, see Place. Objects appear whole by themselves; a folder is what its objects' names say."""

    def __init__(self, where: str) -> None:
        self.where = where.rstrip("/")
        self.staging: Path | None = None
        self._store = open_store(self.where)
        self._held: tuple[dict[str, Any], dict[str, str]] | None = None

    def create(self) -> None:
        """See Place; the lock will tell whether objects can be written."""

    def make_folders(self, *paths: str) -> None:
        """See Place; object stores know none."""

    @contextlib.contextmanager
    def locked(self, token: str, *, take_over: bool) -> Iterator[None]:
        """Hold the object `.lock`, written on the condition that nobody else did meanwhile; no clock is asked.

        A lock whose process is known to be gone (it was one of this machine, as its mark shows) is taken; one of
        another machine only with `take_over`. At the end the object stays and says that it is free.
        """
        mark = {"token": token, **ProcessMark.own().as_dict()}
        try:
            self._held = mark, self._take(mark, take_over=take_over)
        except BaseError as error:
            raise _failed(self.where, error) from error
        try:
            yield
        finally:
            mark, version = self._held
            self._held = None
            with contextlib.suppress(BaseError):  # then the mark says it: this process is gone
                self._put_lock({**mark, "free": True}, version)

    def dismiss_workers(self) -> None:
        """See Place."""
        assert self._held is not None
        mark, version = {**self._held[0], "token": ""}, self._held[1]
        try:
            self._held = mark, self._put_lock(mark, version)
        except PreconditionError as error:
            says, version = self._lock()
            if says != mark:  # else only the answer was lost on its way
                raise BadOutput(f"another run has taken {self.where} over; what this one had done is kept") from error
            self._held = mark, version
        except BaseError as error:
            raise _failed(self.where, error) from error

    def holder(self) -> str:
        """See Place."""
        return str(self._lock()[0].get("token"))

    def read(self, path: str) -> bytes:
        """See Place."""
        return _ask(f"{self.where}/{path}", lambda: bytes(self._store.get(path).bytes()))

    def exists(self, path: str) -> bool:
        """See Place."""
        try:
            _ask(f"{self.where}/{path}", self._store.head, path)
        except FileNotFoundError:
            return False
        return True

    def names(self, folder: str) -> list[str]:
        """See Place."""
        found = _ask(self.where, self._store.list_with_delimiter, folder or None)
        paths = [meta["path"] for meta in found["objects"]] + list(found["common_prefixes"])
        inside = (path.rstrip("/") for path in paths)
        return sorted(
            path.rpartition("/")[2] for path in inside if path != folder
        )  # a console's mark of a folder is it

    def rows(self, folder: str, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
        """See Place."""
        names = [n for n in self.names(folder) if n.endswith(".parquet") and not n.startswith(".")]
        sources = self.sources(f"{folder}/{name}" for name in names)
        tables = [pq.read_table(source, schema=schema, columns=columns) for source in sources]
        empty = schema.empty_table()
        return pa.concat_tables([empty if columns is None else empty.select(columns), *tables])

    def tables(self, paths: Sequence[str], schema: pa.Schema) -> Iterator[pa.Table]:
        """See Place."""
        for source in self.sources(paths):
            yield pq.read_table(source, schema=schema)

    def sources(self, paths: Iterable[str]) -> Iterator[pa.BufferReader]:
        """See Place; whole objects, of which the largest, a part of the catalog, has some hundred MB."""
        for data in _ahead(self.read, paths):
            yield pa.BufferReader(pa.py_buffer(data))

    def write(self, path: str, data: bytes) -> None:
        """See Place."""
        self._put(path, data)

    @contextlib.contextmanager
    def making(self, path: str) -> Iterator[Path]:
        """See Place."""
        with tempfile.TemporaryDirectory(prefix="wsi-prep-") as folder:
            local = Path(folder) / "file"
            yield local
            self._put(path, local)

    def rename(self, old: str, new: str) -> None:
        """See Place. A copy inside the store, then a deletion: to be done again where it was cut off between."""
        with contextlib.suppress(FileNotFoundError):
            _ask(self.where, self._store.copy, old, new)
            _ask(self.where, self._store.delete, old)

    def publish(self, staged: Path, path: str) -> None:
        """See Place. A folder's own metadata comes last, so that nobody opens half a store."""
        if staged.is_file():
            self._put(path, staged)
            return
        local = {str(file.relative_to(staged)): file for file in sorted(staged.rglob("*")) if file.is_file()}
        before = {key.removeprefix(f"{path}/") for key in self._below(path)}
        last = [name for name in local if "/" not in name]
        for names in ([name for name in local if name not in last], last):
            deque(_ahead(lambda name: self._put(f"{path}/{name}", local[name]), names, _FILES_AT_ONCE), maxlen=0)
        self.delete(f"{path}/{name}" for name in sorted(before - local.keys()))

    def delete(self, paths: Iterable[str]) -> None:
        """See Place."""
        waiting = iter(paths)
        while batch := list(islice(waiting, 1000)):
            try:
                _ask(self.where, self._store.delete, batch)
            except FileNotFoundError:  # stores that delete one by one stop at what is not there
                for path in batch:
                    with contextlib.suppress(FileNotFoundError):
                        _ask(self.where, self._store.delete, path)

    def remove(self, path: str) -> None:
        """See Place."""
        self.delete([path, *self._below(path)])

    def _below(self, path: str) -> list[str]:
        return _ask(self.where, lambda: [meta["path"] for page in self._store.list(f"{path}/") for meta in page])

    def _put(self, path: str, data: bytes | Path) -> None:
        put = functools.partial(self._store.put, max_concurrency=_PIECES_AT_ONCE)
        _ask(f"{self.where}/{path}", put, path, data)

    def _take(self, mark: dict[str, Any], *, take_over: bool) -> dict[str, str]:
        """Write the lock for this run; returns its version."""
        lost: BaseError | None = None
        for _ in range(_LOCK_TRIES):  # others may take it, or let it go, between reading and writing
            try:
                before, version = self._lock()
            except FileNotFoundError:
                before, version = {"free": True}, None
            if version is not None and before == mark:
                return version  # it was written, and the answer lost on its way
            if not (before.get("free") or take_over or ProcessMark.of(before).is_gone()):
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
            "or add TAKE_OVER=1 where that run is gone for good"
        )

    def _lock(self) -> tuple[dict[str, Any], dict[str, str]]:
        """What the lock says, and its version; FileNotFoundError where there is none."""

        def get() -> tuple[bytes, Any]:
            found = self._store.get(LOCK)
            return bytes(found.bytes()), found.meta

        data, meta = _ask(f"{self.where}/{LOCK}", get)
        try:
            says: dict[str, Any] = json.loads(data)
        except ValueError as error:
            raise BadOutput(f"{self.where}/{LOCK} is no lock of a run; remove it and run again") from error
        return says, _version(meta)

    def _put_lock(self, mark: dict[str, Any], version: dict[str, str] | None) -> dict[str, str]:
        """Write the lock if it is still of that version (or still missing); AlreadyExistsError, PreconditionError."""
        mode: Any = version or "create"
        return _version(self._store.put(LOCK, json.dumps(mark).encode(), mode=mode))


def _version(meta: Any) -> dict[str, str]:
    return {name: meta[name] for name in ("e_tag", "version") if meta[name] is not None}


def _ahead(work: Callable[[str], Any], paths: Iterable[str], at_once: int = _IN_FLIGHT) -> Iterator[Any]:
    """`work` on each path, several at a time, results in order; not more of them wait than are in flight."""
    waiting = iter(paths)
    with ThreadPoolExecutor(at_once) as pool:
        running: deque[Future[Any]] = deque(pool.submit(work, path) for path in islice(waiting, at_once))
        try:
            while running:
                yield running.popleft().result()
                running.extend(pool.submit(work, path) for path in islice(waiting, 1))
        finally:
            for future in running:
                future.cancel()


class _ObjectFiles(FsspecStore):  # type: ignore[misc] # mypy does not follow obstore
    """obstore's own file system for fsspec, with errors that fsspec does not take for missing files."""

    async def _asked(self, path: str, work: Callable[[], Awaitable[Result]]) -> Result:
        """As `_ask` does."""
        for pause in (*_PAUSES, None):
            try:
                return await work()
            except BaseError as error:
                if pause is None or not _is_cut_off(error):
                    raise _failed(str(self.unstrip_protocol(path)), error) from error
                await asyncio.sleep(pause)
        raise AssertionError

    async def _info(self, path: str, **options: Any) -> Any:
        if "/" not in path.strip("/"):
            return {"name": path, "size": 0, "type": "directory"}
        return await self._asked(path, lambda: super(_ObjectFiles, self)._info(path, **options))

    async def _ls(self, path: str, detail: bool = False, **options: Any) -> Any:
        return await self._asked(path, lambda: super(_ObjectFiles, self)._ls(path, detail=detail, **options))

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> Any:
        return await self._asked(path, lambda: super(_ObjectFiles, self)._cat_file(path, start, end, **options))

    async def _cat_ranges(self, paths: list[str], starts: Any, ends: Any, **_: Any) -> list[bytes]:
        """Every range by a request of its own, several at a time: who asks has joined what lies close together."""
        gate = asyncio.Semaphore(_IN_FLIGHT)

        async def one(path: str, start: int, end: int) -> Any:
            async with gate:
                return await self._cat_file(path, start, end)

        wanted = zip(paths, starts, ends, strict=True)
        return list(await asyncio.gather(*(one(*span) for span in wanted)))


def file_system(url: str) -> tuple[Any, str]:
    """An fsspec file system for the URL of an object store, and the URL's path in it."""
    kind = _kind_of_files(url.partition("://")[0])
    endpoint = {"endpoint": _s3_endpoint()} if url.startswith("s3") and _s3_endpoint() else {}
    files = kind(client_options=_client_options(), retry_config=_RETRIES, **endpoint)
    return files, str(kind._strip_protocol(url))


@functools.cache
def _kind_of_files(protocol: str) -> type[_ObjectFiles]:
    return type(f"ObjectFiles_{protocol}", (_ObjectFiles,), {"protocol": protocol})
