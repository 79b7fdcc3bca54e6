"""Work that is begun before its result is asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import chain, islice, repeat, takewhile
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    work: Callable[[Item], Result], items: Iterable[Item], threads: int, most: int | None = None
) -> Generator[Result, None, None]:
    """`work` on each item, by so many threads, results in order.

    At most `most` items (else one a thread) are begun and not taken; the next begin when a result is asked for. What
    `work` raises is raised here, in its turn. Closing begins nothing more, and waits for the items under way.
    """
    waiting, begun = iter(items), deque[Future[Result]]()
    pool = ThreadPoolExecutor(threads, "ahead")
    try:
        while True:
            begun.extend(pool.submit(work, item) for item in islice(waiting, (most or threads) - len(begun)))
            if not begun:
                return
            yield begun.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def prefetch(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The same items; while one is used, a thread makes the next, so that waiting for bytes costs no time of its own.

    Otherwise as `ahead`.
    """
    with closing(ahead(lambda _: list(islice(items, 1)), repeat(None), threads=1, most=2)) as made:
        yield from chain.from_iterable(takewhile(bool, made))
