"""A log of a run for machines: one JSON object a line, with slides by their ids and no name of a file."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from wsi_prep.errors import BadOption
from wsi_prep.format.records import SlideRow, tile_counts

_OF_A_SLIDE = ("slide_id", "status", "error_type", "error", "warning", "stain", "bytes", "seconds")


class RunLog:
    """Appends to `path`; nothing where it is None. Any thread may call. Raises BadOption if it cannot be opened.

    Events: run_started, slide_started, slide_finished, slide_failed, run_ended, each with `time` (this machine's, UTC)
    and `run`. A log that cannot grow any more, as on a full disk, stops no run.
    """

    def __init__(self, path: Path | None, run: str) -> None:
        self._run, self._lock = run, threading.Lock()
        try:
            self._file = path.open("a", encoding="utf-8", buffering=1) if path is not None else None
        except OSError as error:
            raise BadOption(f"LOG={path} cannot be written ({error.strerror})") from error

    @property
    def wanted(self) -> bool:
        """Whether anybody reads it."""
        return self._file is not None

    def run_started(self, todo: int, done_before: int) -> None:
        """Work begins."""
        self._write("run_started", {"slides_to_do": todo, "slides_done_before": done_before})

    def slide_started(self, slide_id: str, worker: str) -> None:
        """A worker takes a slide, perhaps not for the first time."""
        self._write("slide_started", {"slide_id": slide_id, "worker": worker})

    def slide_finished(self, row: SlideRow) -> None:
        """A slide is through: what became of it, and the seconds of each stage that it reached."""
        facts: Mapping[str, object] = row
        known = {name: facts[name] for name in _OF_A_SLIDE if facts.get(name) is not None}
        stages = ((name, value) for name, value in facts.items() if name.startswith("seconds_"))
        timings = {name: round(value, 4) for name, value in stages if isinstance(value, float)}
        tiles = sum(tile_counts(row).values())
        event = "slide_failed" if row["status"] == "failed" else "slide_finished"
        self._write(event, {**known, **timings, "tiles": tiles})

    def run_ended(self, statuses: Mapping[str, int], seconds: float) -> None:
        """The catalog is closed."""
        self._write("run_ended", {"slides": dict(statuses), "seconds": round(seconds, 3)})

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        if error is not None:
            self._write("run_broken_off", {"error_type": type(error).__name__})
        with contextlib.suppress(OSError):
            self._file.close()

    def _write(self, event: str, facts: Mapping[str, object]) -> None:
        if self._file is None:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "run": self._run, "event": event, **facts})
        with self._lock, contextlib.suppress(OSError, ValueError):  # an event may come late, after the end
            self._file.write(line + "\n")
