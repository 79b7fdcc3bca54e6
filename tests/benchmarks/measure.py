"""What every part of the benchmark measures with: alternating runs, medians, cores, memory and the table of figures."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from threadpoolctl import threadpool_limits

Run = Callable[[], int]
"""Does its work once and says how many tiles that was."""


@dataclass(frozen=True)
class Figure:
    """One line of the summary; `target` says what it must reach, and `ok` whether it did (None: no target)."""

    part: str
    what: str
    value: str
    target: str = ""
    ok: bool | None = None

    @property
    def verdict(self) -> str:
        return "" if self.ok is None else "ok" if self.ok else "MISSED"


@dataclass
class Rates:
    """Tiles/s of each contestant, one number a repeat."""

    part: str
    all: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        return statistics.median(self.all[name])

    def figures(self) -> list[Figure]:
        return [
            Figure(self.part, name, f"{self.median(name):,.0f} tiles/s ({min(r):,.0f} to {max(r):,.0f})")
            for name, r in self.all.items()
        ]

    def ratio(self, name: str, other: str, at_least: float | None = None) -> Figure:
        """The ratio of the medians, against a target if there is one."""
        value = self.median(name) / self.median(other)
        target, ok = ("", None) if at_least is None else (f">= {at_least:g}", value >= at_least)
        return Figure(self.part, f"{name} / {other}", f"{value:.3f}", target, ok)


def compare(
    part: str, contestants: dict[str, Run], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> Rates:
    """Run the contestants in turn, every other repeat backwards, after one round that is thrown away.

    `clock`: in seconds; time.process_time leaves out what others do on the same cores.
    """
    rates = Rates(part, {name: [] for name in contestants})
    for repeat in range(repeats + 1):
        for name in sorted(contestants, key=list(contestants).index, reverse=repeat % 2 == 0):
            began = clock()
            tiles = contestants[name]()
            if repeat:
                rates.all[name].append(tiles / (clock() - began))
    return rates


@contextlib.contextmanager
def on_cores(*cores: int) -> Iterator[None]:
    """Keep this thread, and those that it starts, on these cores (numbers among those that the process may use).

    A pool that starts its threads inside stays where it was started. BLAS has a thread for each of the cores, as Dask
    sees to it in workers: more of them only wait for each other, at a tenth of a core.
    """
    allowed = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {allowed[number] for number in cores})
    try:
        with threadpool_limits(len(cores), user_api="blas"):
            yield
    finally:
        os.sched_setaffinity(0, allowed)


def memory() -> dict[str, float]:
    """MB of this process: `anon` and `file` resident now, their sum `rss`, and `peak`."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    names = {"anon": "RssAnon", "file": "RssFile", "rss": "VmRSS", "peak": "VmHWM"}
    return {name: int(status[key].split()[0]) / 1000 for name, key in names.items()}


def table(figures: list[Figure]) -> str:
    """The figures as aligned text."""
    head = ("part", "what", "figure", "target", "")
    rows = [head, *((f.part, f.what, f.value, f.target, f.verdict) for f in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def markdown(figures: list[Figure], command: str) -> str:
    """The figures as a Markdown table, under the machine, the date and the command."""
    lines = [
        f"{machine()}; {time.strftime('%Y-%m-%d')}; `{command}`",
        "",
        "| part | what | figure | target | |",
        "|---|---|---|---|---|",
        *(f"| {f.part} | {f.what} | {f.value} | {f.target} | {f.verdict} |" for f in figures),
    ]
    return "\n".join(lines) + "\n"


def machine() -> str:
    """Processor, cores that may be used, and Python."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in info if line.startswith("model name")), "unknown CPU")
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} core{'s' if cores > 1 else ''}, Python {platform.python_version()}"
