"""An end to slides that hang, even in a library's C code: the process ends itself, and the next try is told why."""

from __future__ import annotations

import contextlib
import faulthandler
from collections.abc import Callable, Iterator
from pathlib import Path

from wsi_prep.errors import TimedOut
from wsi_prep.untrusted.locks import CannotLock, wait_for_lock

HUNG = ".hung"
"""Ending of the files that say where a slide hung; empty, and locked, while it is worked on."""


@contextlib.contextmanager
def time_limit(trace: Path, seconds: float) -> Iterator[Callable[[], None]]:
    """End this process if the block takes longer; raise TimedOut if an earlier try was ended so, as `trace` shows.

    Yields what lets the time begin anew. The watchdog is faulthandler's, which works where no Python does; where the
    block hung is written to the file `trace`, and that file is what the next try finds.
    """
    if trace.exists() and trace.stat().st_size:
        trace.unlink()
        raise TimedOut(f"took longer than {seconds:g} s; look at the slide, or give it more with TIME_LIMIT")
    trace.parent.mkdir(exist_ok=True)
    with trace.open("w") as file:
        with contextlib.suppress(CannotLock):  # who sees by it that the file is in use could not lock it either
            wait_for_lock(file)

        def start() -> None:
            faulthandler.dump_traceback_later(seconds, exit=True, file=file)

        start()
        try:
            yield start
        finally:
            faulthandler.cancel_dump_traceback_later()
            trace.unlink(missing_ok=True)
