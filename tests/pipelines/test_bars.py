"""Ctrl-C at every point of a bar's start and end: one line, the exit code, and a terminal as it was."""

import io
import itertools
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import pytest
import rich
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipelines.bars import Bar
from pipelines.command import progress, run_command
from pipelines.console import SlideProgress
from tests.support.paths import ROOT

WATCHED = (str(Path(rich.__file__).parent / "live.py"), str(ROOT / "pipelines"))
SHOW, HIDE = "\x1b[?25h", "\x1b[?25l"


@dataclass
class BarsCall:
    """Show a bar."""


def slides(terminal):
    with SlideProgress(terminal) as bar:
        bar.started(3, 0, "")


def counted(terminal):
    with progress(terminal.out, "index") as show:
        show(1, 3)


def shown(bar, interrupt_at):
    """What a call leaves that shows this bar, with a true SIGINT before that line of rich's and our code."""
    drawn, lines = io.StringIO(), 0

    def trace(frame, event, _):
        nonlocal lines
        if not frame.f_code.co_filename.startswith(WATCHED):
            return None
        if event == "line":
            lines += 1
            if lines == interrupt_at:
                signal.raise_signal(signal.SIGINT)
        return trace

    def work(_, terminal):
        terminal.out = Console(file=drawn, force_terminal=True, highlight=False)
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            bar(terminal)
        finally:
            sys.settrace(before)
        return 0

    streams, handler = (sys.stdout, sys.stderr), signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = run_command(BarsCall, work, [])
    finally:
        signal.signal(signal.SIGINT, handler)
    assert (sys.stdout, sys.stderr) == streams
    assert not [t for t in threading.enumerate() if "_RefreshThread" in type(t).__name__ and not t.done.is_set()]
    assert drawn.getvalue().count(HIDE) == drawn.getvalue().count(SHOW)
    return code, lines


@pytest.mark.parametrize(("bar", "every"), [(slides, 2), (counted, 3)])
@pytest.mark.slow
def test_ctrl_c_at_the_lines_of_a_bars_start_and_end_is_one_line(bar, every, capsys):
    code, lines = shown(bar, 0)
    assert (code, capsys.readouterr().err) == (0, "")
    assert lines > 50
    for line in range(1, lines + 1, every):
        code, _ = shown(bar, line)
        assert (code, capsys.readouterr().err) == (130, "bars: interrupted\n"), line


def test_ctrl_c_inside_a_lock_of_pythons_is_ctrl_c(capsys):
    """As in threading.Condition.wait, which every wait for a tile or a slide comes to: it gives back a lock twice."""

    def wait(*_):
        lock = threading.Lock()
        with lock:
            lock.release()
            signal.raise_signal(signal.SIGINT)

    def wrong(*_):
        raise RuntimeError("release unlocked lock")

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run_command(BarsCall, wait, []) == 130
    finally:
        signal.signal(signal.SIGINT, handler)
    assert capsys.readouterr().err == "bars: interrupted\n"
    with pytest.raises(RuntimeError, match="release unlocked lock"):
        run_command(BarsCall, wrong, [])


def test_where_nothing_is_drawn_lines_say_how_far_it_is_ever_more_rarely(capsys):
    clock = [0.0]
    columns = TextColumn("slides"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[failed]} failed")
    times = TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
    told = []
    with Bar(*columns, *times, console=Console(file=io.StringIO()), disable=True, get_time=lambda: clock[0]) as bar:
        task = bar.add_task("", total=20_000, failed=0)
        for done in range(1, 10_001):
            clock[0] = done * 1.0
            bar.update(task, advance=1, failed=done // 1000)
            told += [(done, line) for line in capsys.readouterr().err.splitlines()]
    assert told[0] == (20, "slides 20 of 20,000 0 failed after 0:00:20 left 5:33:00")
    pauses = [b[0] - a[0] for a, b in itertools.pairwise(told)]
    assert pauses[0] == 30
    assert pauses == sorted(pauses)
    assert pauses[-1] == 1800


def test_a_bar_whose_command_says_more_itself_is_silent(capsys):
    clock = [0.0]
    bar = Bar(console=Console(file=io.StringIO()), disable=True, lines=False, get_time=lambda: clock[0])
    task = bar.add_task("", total=3)
    clock[0] = 100.0
    bar.advance(task)
    assert capsys.readouterr().err == ""
