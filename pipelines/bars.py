"""Progress bars that Ctrl-C leaves whole, and Ctrl-C told from what it breaks."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from rich.progress import Progress

_shown: set[Bar] = set()


class Bar(Progress):
    """rich's; Ctrl-C comes before or after it starts, draws and stops, and never between."""

    def start(self) -> None:
        """Show the bar."""
        with ctrl_c_held():
            _shown.add(self)
            super().start()

    def stop(self) -> None:
        """Leave the bar as it is now, and the terminal to others."""
        with ctrl_c_held():
            _shown.discard(self)
            super().stop()

    def refresh(self) -> None:
        """Draw the bar anew."""
        with ctrl_c_held():
            super().refresh()


def stop_bars() -> None:
    """Stop those that a call has left, which Ctrl-C ended just after it started them."""
    for bar in [*_shown]:
        bar.stop()


@contextlib.contextmanager
def ctrl_c_held() -> Iterator[None]:
    """Ctrl-C that comes meanwhile does afterwards what it always does."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield  # no other thread is interrupted
        return
    came = False

    def remember(*_: object) -> None:
        nonlocal came
        came = True

    signal.signal(signal.SIGINT, remember)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def ctrl_c_as_itself() -> Iterator[None]:
    """Ctrl-C that comes while Python's own code takes or gives back a lock ends as RuntimeError; here it is itself."""
    try:
        yield
    except RuntimeError as error:
        behind = error.__context__
        while behind is not None:
            if isinstance(behind, KeyboardInterrupt):
                raise behind from None
            behind = behind.__context__
        raise
