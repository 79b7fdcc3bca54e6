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
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import obstore
import obstore.store
import pyarrow as pa
import pyarrow.parquet as pq
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.fsspec import FsspecStore

from wsi_prep.errors import BadOutput, StoreFailed
from wsi_prep.place import LOCK
from wsi_prep.process import ProcessMark

_RETRIES: Any = {"max_retries": 5, "retry_timeout": timedelta(seconds=60)}  # after 0.1 s, then twice as long each time
_IN_FLIGHT = 16


def open_store(url: str) -> Any:
    """The store behind a URL, its paths relative to the URL's own; StoreFailed where the URL names none."""
    try:
        return obstore.store.from_url(url, client_options=_client_options(), retry_config=_RETRIES)
    except (BaseError, ValueError) as error:
        raise StoreFailed(f"{url} cannot be opened ({first_line(error)})") from error


def _client_options() -> Any:
    return {"connect_timeout": "5s", "timeout": "30s", "allow_http": _s3_endpoint().startswith("http://")}


def _s3_endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL", ""))


def first_line(error: BaseException) -> str:
    """What obstore says before it shows the details, in one line."""
    return " ".join(next(iter(str(error).strip().splitlines()), type(error).__name__).split())[:300]


@contextlib.contextmanager
def _answering(where: str) -> Iterator[None]:
    """Around requests: what the store refuses for good becomes StoreFailed."""
    try:
        yield
    except BaseError as error:
        raise StoreFailed(
            f"{where} cannot be used ({first_line(error)}); what is done is kept, so mend that and run again"
        ) from error


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
        with _answering(self.where):
            self._held = mark, self._take(mark, take_over=take_over)
        try:
            yield
        finally:
            mark, version = self._held
            self._held = None
            with contextlib.suppress(BaseError, StoreFailed):  # then the mark says it: this process is gone
                self._put_lock({**mark, "free": True}, version)

    def dismiss_workers(self) -> None:
        """See Place."""
        assert self._held is not None
        mark, version = {**self._held[0], "token": ""}, self._held[1]
        with _answering(self.where):
            self._held = mark, self._put_lock(mark, version)

    def holder(self) -> str:
        """See Place."""
        return str(self._lock()[0].get("token"))

    def read(self, path: str) -> bytes:
        """See Place."""
        with _answering(self.where):
            return bytes(self._store.get(path).bytes())

    def exists(self, path: str) -> bool:
        """See Place."""
        with _answering(self.where):
            try:
                self._store.head(path)
            except FileNotFoundError:
                return False
            return True

    def names(self, folder: str) -> list[str]:
        """See Place."""
        with _answering(self.where):
            found = self._store.list_with_delimiter(folder or None)
        paths = [meta["path"] for meta in found["objects"]] + list(found["common_prefixes"])
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)

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
        with _answering(self.where), contextlib.suppress(FileNotFoundError):
            self._store.copy(old, new)
            self._store.delete(old)

    def publish(self, staged: Path, path: str) -> None:
        """See Place. A folder's own metadata comes last, so that nobody opens half a store."""
        if staged.is_file():
            self._put(path, staged)
            return
        local = {str(file.relative_to(staged)): file for file in sorted(staged.rglob("*")) if file.is_file()}
        before = {key.removeprefix(f"{path}/") for key in self._below(path)}
        last = [name for name in local if "/" not in name]
        for names in ([name for name in local if name not in last], last):
            deque(_ahead(lambda name: self._put(f"{path}/{name}", local[name]), names), maxlen=0)
        self.delete(f"{path}/{name}" for name in sorted(before - local.keys()))

    def delete(self, paths: Iterable[str]) -> None:
        """See Place."""
        waiting = iter(paths)
        while batch := list(islice(waiting, 1000)):
            with _answering(self.where):
                try:
                    self._store.delete(batch)
                except FileNotFoundError:  # stores that delete one by one stop at what is not there
                    for path in batch:
                        with contextlib.suppress(FileNotFoundError):
                            self._store.delete(path)

    def remove(self, path: str) -> None:
        """See Place."""
        self.delete([path, *self._below(path)])

    def _below(self, path: str) -> list[str]:
        with _answering(self.where):
            return [meta["path"] for page in self._store.list(f"{path}/") for meta in page]

    def _put(self, path: str, data: bytes | Path) -> None:
        with _answering(f"{self.where}/{path}"):
            self._store.put(path, data)

    def _take(self, mark: dict[str, Any], *, take_over: bool) -> dict[str, str]:
        """Write the lock for this run; returns its version."""
        for _ in range(3):  # others may take it, or let it go, between reading and writing
            try:
                before, version = self._lock()
            except FileNotFoundError:
                before, version = {"free": True}, None
            if before.get("token") == mark["token"] and version is not None:
                return version  # an answer that was lost on its way
            if not (before.get("free") or take_over or ProcessMark.of(before).is_gone()):
                break
            with contextlib.suppress(AlreadyExistsError, PreconditionError):
                return self._put_lock(mark, version)
        raise BadOutput(
            f"another run ({ProcessMark.of(before)}) is writing to {self.where}; wait for it, name another OUT, "
            "or add TAKE_OVER=1 where that run is gone for good"
        )

    def _lock(self) -> tuple[dict[str, Any], dict[str, str]]:
        """What the lock says, and its version; FileNotFoundError where there is none."""
        found = self._store.get(LOCK)
        try:
            says: dict[str, Any] = json.loads(bytes(found.bytes()))
        except ValueError as error:
            raise BadOutput(f"{self.where}/{LOCK} is no lock of a run; remove it and run again") from error
        return says, _version(found.meta)

    def _put_lock(self, mark: dict[str, Any], version: dict[str, str] | None) -> dict[str, str]:
        """Write the lock if it is still of that version (or still missing); AlreadyExistsError, PreconditionError."""
        mode: Any = version or "create"
        return _version(self._store.put(LOCK, json.dumps(mark).encode(), mode=mode))


def _version(meta: Any) -> dict[str, str]:
    return {name: meta[name] for name in ("e_tag", "version") if meta[name] is not None}


def _ahead(work: Callable[[str], Any], paths: Iterable[str]) -> Iterator[Any]:
    """`work` on each path, several at a time, results in order; not more of them wait than are in flight."""
    waiting = iter(paths)
    with ThreadPoolExecutor(_IN_FLIGHT) as pool:
        running: deque[Future[Any]] = deque(pool.submit(work, path) for path in islice(waiting, _IN_FLIGHT))
        try:
            while running:
                yield running.popleft().result()
                running.extend(pool.submit(work, path) for path in islice(waiting, 1))
        finally:
            for future in running:
                future.cancel()


class _ObjectFiles(FsspecStore):  # type: ignore[misc] # mypy does not follow obstore
    """obstore's own file system for fsspec, with errors that fsspec does not take for missing files."""

    async def _info(self, path: str, **options: Any) -> dict[str, Any]:
        with _answering(str(self.unstrip_protocol(path))):
            found: dict[str, Any] = await super()._info(path, **options)
        return found

    async def _ls(self, path: str, detail: bool = False, **options: Any) -> Any:
        with _answering(str(self.unstrip_protocol(path))):
            return await super()._ls(path, detail=detail, **options)

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        with _answering(str(self.unstrip_protocol(path))):
            data: bytes = await super()._cat_file(path, start, end, **options)
        return data

    async def _cat_ranges(self, paths: list[str], starts: Any, ends: Any, **_: Any) -> list[bytes]:
        """Every range by a request of its own, several at a time: who asks has joined what lies close together."""
        gate = asyncio.Semaphore(_IN_FLIGHT)

        async def one(path: str, start: int, end: int) -> bytes:
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
