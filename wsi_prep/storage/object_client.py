"""Object stores: S3, Google's and Azure's, through obstore; and a file system over them for reading slides.

Credentials and endpoint come from the environment (AWS_ENDPOINT_URL, ...). A request that is refused or cut off is
tried again by obstore a few times, after longer and longer pauses; then StoreFailed says so.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import os
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import islice
from typing import Any, TypeVar

import obstore
import obstore.store
from obstore.exceptions import BaseError, GenericError
from obstore.fsspec import FsspecStore

from wsi_prep.errors import StoreFailed, first_line

_RETRIES, _RETRY_SECONDS = 7, 60  # after 0.1 s, then twice as long each time
_PAUSES = (0.1, 0.4, 1.6)  # s, likewise, for what obstore itself does not try again
_IN_FLIGHT = 16

Item = TypeVar("Item")
Result = TypeVar("Result")


def open_store(url: str, timeout_s: int = 60, retries: int | None = None) -> Any:
    """The store behind a URL, its paths relative to the URL's own; StoreFailed where the URL names none.

    An answer may take `timeout_s`, and is asked for again so many times.
    """
    again = _retries(retries)
    try:
        return obstore.store.from_url(url, client_options=_client_options(timeout_s), retry_config=again)
    except (BaseError, ValueError) as error:
        raise StoreFailed(f"{url} cannot be opened ({_first_line(error)})") from error


def _client_options(timeout_s: int = 60) -> Any:
    return {"connect_timeout": "5s", "timeout": f"{timeout_s}s", "allow_http": _s3_endpoint().startswith("http://")}


def _retries(most: int | None = None) -> Any:
    return {"max_retries": _RETRIES if most is None else most, "retry_timeout": timedelta(seconds=_RETRY_SECONDS)}


def _s3_endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL", ""))


def _first_line(error: BaseException) -> str:
    """What obstore says before it shows the details, in one line; of the URL its server, since the rest has names."""
    if "NoSuchBucket" in str(error):
        return "there is no such bucket"
    line = first_line(error).partition(": <")[0]
    return " ".join(re.sub(r"(https?://[^/\s]+)\S*", r"\1", line).split())[:300]


def failed(where: str, error: BaseError) -> StoreFailed:
    """What the store behind `where` refuses for good, as users are told."""
    return StoreFailed(
        f"{where} cannot be used ({_first_line(error)}); what is done is kept, so mend that and run again"
    )


def _is_cut_off(error: BaseError) -> bool:
    """Whether an answer broke off where obstore does not ask again by itself: in a listing, or an error's details."""
    return isinstance(error, GenericError) and "body" in _first_line(error)


def ask(where: str, work: Callable[..., Result], *arguments: Any) -> Result:
    """Do what may be done twice; raises StoreFailed for what is refused for good, FileNotFoundError as a disk does."""
    for pause in (*_PAUSES, None):
        try:
            return work(*arguments)
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), where) from error
        except BaseError as error:
            if pause is None or not _is_cut_off(error):
                raise failed(where, error) from error
            time.sleep(pause)
    raise AssertionError


def ahead(work: Callable[[Item], Result], items: Iterable[Item], at_once: int = _IN_FLIGHT) -> Iterator[Result]:
    """`work` on each item, several at a time, results in order; not more of them wait than are in flight."""
    waiting = iter(items)
    with ThreadPoolExecutor(at_once) as pool:
        running = deque(pool.submit(work, item) for item in islice(waiting, at_once))
        try:
            while running:
                yield running.popleft().result()
                running.extend(pool.submit(work, item) for item in islice(waiting, 1))
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
                    raise failed(str(self.unstrip_protocol(path)), error) from error
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
    files = kind(client_options=_client_options(), retry_config=_retries(), **endpoint)
    return files, str(kind._strip_protocol(url))


@functools.cache
def _kind_of_files(protocol: str) -> type[_ObjectFiles]:
    return type(f"ObjectFiles_{protocol}", (_ObjectFiles,), {"protocol": protocol})
