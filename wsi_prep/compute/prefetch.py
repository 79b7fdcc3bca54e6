"""Work that is begun before its result is asked for."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")


def prefetch(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items; while one is used, a thread makes the next, so that waiting for bytes costs no time of its own.

    What `items` raises is raised here. Closing waits for the item under way.
    """
    end: Any = object()
    with ThreadPoolExecutor(1) as maker:
        begun = maker.submit(next, items, end)
        while (item := begun.result()) is not end:
            begun = maker.submit(next, items, end)
            yield item
