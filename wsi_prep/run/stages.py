"""A slide that is being made: where its time goes, by stage of the work on it, and the folder that it is made in."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from wsi_prep.format.records import SlideRow
from wsi_prep.storage.digests import sha256

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


@dataclass
class StagedSlide:
    """The folder, and `digests` of its files by their names within the slide."""

    folder: Path
    digests: dict[str, str] = field(default_factory=dict)

    def write(self, name: str, data: bytes) -> None:
        """Write one file whole."""
        (self.folder / name).write_bytes(data)
        self.digests[name] = sha256(data)
