"""Progress bars that Ctrl-C leaves whole, or lines where nothing is drawn; and Ctrl-C told from what it breaks."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_FIRST_LINE_SECONDS, _MOST_SECONDS, _RARER = 20.0, 1800.0, 1.5
"""After how long a disabled bar says something, how long it is silent at most, and how pauses grow until then."""

_shown: set[Bar] = set()


class Bar(Progress):
    """rich's; Ctrl-C comes before or after it starts, draws and stops, and never between.

    Where it is disabled, since the output is no terminal, it writes what it would show to standard error, a line now
    and then; not without `lines`.
    """

    def __init__(self, *columns: ProgressColumn, lines: bool = True, **options: Any) -> None:
        super().__init__(*columns, **options)
        self._told = Console(stderr=True, highlight=False) if lines and self.disable else None
        self._pause = _FIRST_LINE_SECONDS
        self._next = self.get_time() + self._pause

    def update(self, task_id: TaskID, **changed: Any) -> None:
        """See rich."""
        super().update(task_id, **changed)
        self._tell(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """See rich."""
        super().advance(task_id, advance)
        self._tell(task_id)

    def _tell(self, task_id: TaskID) -> None:
        if self._told is None or self.get_time() < self._next:
            return
        self._pause = min(self._pause * _RARER, _MOST_SECONDS)
        self._next = self.get_time() + self._pause
        words = filter(None, (_in_words(column, self._tasks[task_id]) for column in self.columns))
        with contextlib.suppress(OSError):  # nobody reads it
            self._told.print(" ".join(words), markup=False, soft_wrap=True)

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


def _in_words(column: object, task: Task) -> str:
    """What a column shows, as text; nothing for one that draws."""
    if isinstance(column, TextColumn):
        return column.text_format.format(task=task)
    if isinstance(column, MofNCompleteColumn):
        return f"{task.completed:,.0f}" if task.total is None else f"{task.completed:,.0f} of {task.total:,.0f}"
    elapsed = task.elapsed or 0.0
    if isinstance(column, TimeElapsedColumn):
        return f"after {timedelta(seconds=round(elapsed))}"
    if isinstance(column, TimeRemainingColumn):
        if task.total is None or not task.completed:
            return "unknown"
        return str(timedelta(seconds=round(elapsed * (task.total / task.completed - 1))))
    return ""


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
