"""What a run shows on the terminal."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from wsi_prep.errors import BadOption
from wsi_prep.format.magnifications import MAGNIFICATIONS
from wsi_prep.run.request import RunSummary

_SHOWN = 50


def agreed(what: str, yes: bool) -> bool:
    """Whether to go on with what cannot be undone: with `yes`, or as the person at the terminal says.

    `what` is said in the question. Raises BadOption where there is no terminal to ask at.
    """
    if yes:
        return True
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        raise BadOption(f"nothing was done: to {what} takes YES=1 (--yes) where there is no terminal to ask at")
    sys.stderr.write(f"{what}? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


class SlideProgress:
    """A bar with slides done and failed, tiles, rate and time left; nothing where the output is no terminal."""

    def __init__(self, console: Console, *, link: bool = False) -> None:
        """With `link`, the dashboard's is shown even there."""
        self._console, self._link = console, link
        self._bar = Progress(
            TextColumn("slides"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]} failed"),
            TextColumn("{task.fields[tiles]:,} tiles"),
            TextColumn("{task.fields[rate]:.0f} tiles/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._failed = self._tiles = 0

    def __enter__(self) -> SlideProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def started(self, todo: int, done_before: int, dashboard: str) -> None:
        """Show the bar, and where Dask's dashboard is, if there is one."""
        if self._console.is_terminal or self._link:
            before = f", {done_before} were done before" if done_before else ""
            link = f"; dashboard: {dashboard}" if dashboard else ""
            self._console.print(f"{todo} slides to do{before}{link}", soft_wrap=True, markup=False)
        self._task = self._bar.add_task("", total=todo, failed=0, tiles=0, rate=0.0)
        self._bar.start()

    def finished(self, row: dict[str, Any]) -> None:
        """Count one slide."""
        self._failed += row["status"] == "failed"
        self._tiles += sum(row[f"tiles_{m.name}"] or 0 for m in MAGNIFICATIONS)
        elapsed = self._bar.tasks[0].elapsed or 0.0
        rate = self._tiles / elapsed if elapsed > 0 else 0.0
        self._bar.update(self._task, advance=1, failed=self._failed, tiles=self._tiles, rate=rate)


def show_summary(console: Console, out: str, summary: RunSummary) -> None:
    """The end of a run: what was made, where it is, and each slide that is not ok with its reason."""
    if summary.done_before == summary.found and not summary.failed:
        console.print(f"nothing to do: all {summary.found} slides are done in {out}", soft_wrap=True, markup=False)
    else:
        _show_made(console, out, summary)
    _show_rows(console, summary.rows)
    for warning in summary.warnings:
        console.print(f"note: {printable(warning)}", soft_wrap=True, markup=False)


def _show_made(console: Console, out: str, summary: RunSummary) -> None:
    counts = ", ".join(f"{n} {status}" for status, n in sorted(summary.statuses.items()))
    before = f" ({summary.done_before} done before)" if summary.done_before else ""
    tiles = sum(summary.tiles_made.values())
    by_mag = ", ".join(f"{m.name} {summary.tiles_made[m.name]:,}" for m in reversed(MAGNIFICATIONS))
    rate = tiles / max(summary.worker_seconds, 1e-9)
    filtered = f", {summary.tiles_filtered:,} more left out by the filter" if summary.tiles_filtered else ""
    lines = (
        f"{summary.found} slides{before}: {counts}",
        f"{tiles:,} tiles ({by_mag}){filtered}, {summary.bytes_made / 1e6:,.1f} MB",
        f"{summary.seconds:.1f} s in all, {rate:,.0f} tiles a second and worker",
        f"look at {out}/overlays",
    )
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def _show_rows(console: Console, rows: list[dict[str, Any]]) -> None:
    """One line for each slide that is not ok, failures first."""
    order = {"failed": 0, "excluded": 1, "empty": 2}
    for row in sorted(rows, key=lambda row: (order.get(row["status"], 3), str(row["file"])))[:_SHOWN]:
        reason = f"{row['error_type']}: {row['error']}" if row["error_type"] else str(row["error"])
        reason += f" ({row['warning']})" if row.get("warning") else ""
        line = f"{row['status']:<8}  {row['file']}  {reason}"
        console.print(printable(line), soft_wrap=True, markup=False)
    if len(rows) > _SHOWN:
        console.print(f"... and {len(rows) - _SHOWN} more: see status and error in the catalog's slides")


def printable(text: str) -> str:
    """Text with what could steer a terminal made visible."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
