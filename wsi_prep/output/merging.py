"""Merging slides' small catalog files while the run lasts, so that no folder ever holds millions of them."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from wsi_prep.output.catalog import Catalog

MERGE_EVERY = 4_000
"""Slides that are through before their files are merged; with their tiles they make about one full part."""


class Merger:
    """Merges in a thread of its own, a batch of slides at a time; use as a context, whose end waits for the last one.

    What a merge raises is raised by the next call. Slides short of a batch are left to the end of the run.
    """

    def __init__(self, catalog: Catalog, every: int = MERGE_EVERY) -> None:
        self._catalog, self._every = catalog, every
        self._thread = ThreadPoolExecutor(1)
        self._merge: Future[None] | None = None
        self._waiting: set[str] = set()

    def add(self, slide_id: str) -> None:
        """A slide is through: no worker touches its files any more."""
        self._waiting.add(slide_id)
        if len(self._waiting) >= self._every:
            self._end_merge()  # never more than one at once, and so never more than two batches of files
            self._merge = self._thread.submit(self._catalog.merge, self._waiting)
            self._waiting = set()

    def __enter__(self) -> Merger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        if kind is None:
            self._end_merge()

    def _end_merge(self) -> None:
        if self._merge is not None:
            self._merge.result()
            self._merge = None
