"""A file system over object stores, for reading slides where they are."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

from obstore.exceptions import BaseError
from obstore.fsspec import FsspecStore

from wsi_prep.slides.urls import has_user
from wsi_prep.storage.object_client import (
    IN_FLIGHT,
    PAUSES,
    Result,
    client_options,
    endpoint_of,
    failed,
    is_cut_off,
    require_length,
    retries_of,
)


class _ObjectFiles(FsspecStore):  # type: ignore[misc] # mypy does not follow obstore
    """obstore's own file system for fsspec, with errors that fsspec does not take for missing files."""

    async def _asked(self, path: str, work: Callable[[], Awaitable[Result]]) -> Result:
        """As `_ask` does."""
        for pause in (*PAUSES, None):
            try:
                return await work()
            except BaseError as error:
                if pause is None or not is_cut_off(error):
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
        return await self._asked(path, lambda: self._span(path, start, end, **options))

    async def _span(self, path: str, start: int | None, end: int | None, **options: Any) -> bytes:
        data: bytes = await super()._cat_file(path, start, end, **options)
        if start is not None and end is not None and len(data) != end - start:
            info = await super()._info(path)
            require_length(data, max(0, min(end, info["size"]) - start))
        return data

    async def _cat_ranges(self, paths: list[str], starts: list[int], ends: list[int], **_: object) -> list[bytes]:
        """Every range by a request of its own, several at a time: who asks has joined what lies close together."""
        gate = asyncio.Semaphore(IN_FLIGHT)

        async def one(path: str, start: int, end: int) -> Any:
            async with gate:
                return await self._cat_file(path, start, end)

        wanted = zip(paths, starts, ends, strict=True)
        return list(await asyncio.gather(*(one(*span) for span in wanted)))


def file_system(url: str) -> tuple[FsspecStore, str]:
    """An fsspec file system for the URL of an object store, and the URL's path in it; ValueError for a user in it."""
    if has_user(url):
        raise ValueError("the URL of an object store has no user or password; credentials come from the environment")
    kind = _kind_of_files(url.partition("://")[0])
    endpoint = {"endpoint": endpoint_of(url)} if url.startswith("s3") and endpoint_of(url) else {}
    files = kind(client_options=client_options(url), retry_config=retries_of(), **endpoint)
    return files, str(kind._strip_protocol(url))


@functools.cache
def _kind_of_files(protocol: str) -> type[_ObjectFiles]:
    return type(f"ObjectFiles_{protocol}", (_ObjectFiles,), {"protocol": protocol})
