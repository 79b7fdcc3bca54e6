"""Threads of one worker that share the work on a slide, where there are fewer slides than cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from types import TracebackType
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class ThreadPool:
    """So many threads; use as a context manager. A pool of one works in whoever asks, and starts no thread."""

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def share(self, work: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item]) -> list[Result]:
        """What `work` gives for all items in order, each thread having an even run of them; raises what it raises.

        `work` must not ask the pool for more: a pool that waits for itself never ends.
        """
        if self._pool is None or len(items) < 2:
            return work(items)
        count = min(self._threads, len(items))
        ends = [len(items) * number // count for number in range(count + 1)]
        runs = [items[first:last] for first, last in pairwise(ends)]
        return [result for some in self._pool.map(work, runs) for result in some]

    def __enter__(self) -> ThreadPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
