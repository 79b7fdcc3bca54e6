"""Where a slide's time goes: wall seconds of each stage of its work on a worker."""

from __future__ import annotations

import time

from wsi_prep.format.records import SlideRow

STAGES = ("open", "tissue", "tiles", "publish")
"""open: content's mark, opening, scale; tissue: thumbnail, tissue, stain, plan, overlay; tiles: pixels read, measured,
encoded and written; publish: renaming into place. Each is a column `seconds_<stage>` of the catalog's slides.
"""


class StageClock:
    """Stages follow each other; of a slide that fails, the last one says where."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._now: str | None = None
        self._since = 0.0

    def enter(self, stage: str) -> None:
        """The stage before, if any, is over."""
        assert stage in STAGES
        self.stop()
        self._now, self._since = stage, time.perf_counter()

    def stop(self) -> None:
        """No stage is under way any more."""
        if self._now is not None:
            self._seconds[self._now] = self._seconds.get(self._now, 0.0) + time.perf_counter() - self._since
            self._now = None

    def columns(self) -> SlideRow:
        """The catalog's columns; None for a stage that was not reached."""
        seconds = self._seconds.get
        return {
            "seconds_open": seconds("open"),
            "seconds_tissue": seconds("tissue"),
            "seconds_tiles": seconds("tiles"),
            "seconds_publish": seconds("publish"),
        }
