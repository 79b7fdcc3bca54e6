"""What a run shows on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipelines.bars import Bar
from pipelines.command import Terminal
from wsi_prep.errors import counted
from wsi_prep.format.magnifications import MAGNIFICATIONS
from wsi_prep.format.records import SlideRow, shown_name, tile_counts
from wsi_prep.run.before import Before
from wsi_prep.run.request import RunSummary

_SHOWN = 50
_ALIKE, _MOST_NOTES = 3, 100
"""Of how many slides the same is said one by one; and how many notes are shown."""

_ALL_NOTES = "see warning in the catalog's slides"


class SlideProgress:
    """A bar with slides done and failed, tiles, rate and time left; lines now and then where there is no terminal."""

    def __init__(self, terminal: Terminal, *, link: bool = False) -> None:
        """With `link`, the dashboard's is shown even there."""
        self._terminal, self._link = terminal, link
        self._bar = Bar(
            TextColumn("slides"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]} failed"),
            TextColumn("{task.fields[tiles]:,} tiles"),
            TextColumn("{task.fields[rate]:.0f} tiles/s"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=terminal.out,
            disable=not terminal.out.is_terminal,
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
        if self._terminal.out.is_terminal or self._link:
            before = f"; {done_before:,} done before" if done_before else ""
            link = f"; dashboard: {dashboard}" if dashboard else ""
            self._terminal.say(f"{counted(todo, 'slide')} to do{before}{link}")
        self._task = self._bar.add_task("", total=todo, failed=0, tiles=0, rate=0.0)
        self._bar.start()

    def finished(self, row: SlideRow) -> None:
        """Count one slide."""
        self._failed += row["status"] == "failed"
        self._tiles += sum(tile_counts(row).values())
        elapsed = self._bar.tasks[0].elapsed or 0.0
        rate = self._tiles / elapsed if elapsed > 0 else 0.0
        self._bar.update(self._task, advance=1, failed=self._failed, tiles=self._tiles, rate=rate)

    def noted(self, line: str) -> None:
        """Say it at once, above the bar."""
        self._terminal.note(f"note: {line}")


def told_bytes(number: int) -> str:
    """So many bytes, for people."""
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"


def show_before(terminal: Terminal, before: Before) -> None:
    """What a look before a run has found: slides opened, sizes, then what is to know, and what has to be mended."""
    terminal.say(f"{counted(before.found, 'slide')}, {before.to_do:,} to do")
    for each in before.tried:
        if not each.error:
            what = f"{each.vendor or 'no vendor'}, {each.mpp:.4g} um/px, {counted(each.tiles or 0, 'tile')} to make"
            terminal.say(f"opens     {each.name}  {what}")
    sizes = {"to read": before.read_bytes, "to write": before.needed, "free": before.free}
    told = [f"{told_bytes(size)} {what}" for what, size in sizes.items() if size is not None]
    terminal.say(f"about {', '.join(told)}" if told else "the slides do not tell their sizes")
    for note in before.notes:
        terminal.note(f"note: {note}")
    for fault in before.faults:
        terminal.warn(fault)
    if not before.faults:
        without = sum(bool(each.error or not each.tiles) for each in before.tried)
        but = f"; of {counted(len(before.tried), 'slide')} opened, {without:,} will have no tiles" if without else ""
        terminal.say(f"nothing was found that would keep the run from ending{but}; nothing was made")


def show_summary(terminal: Terminal, out: str, summary: RunSummary) -> None:
    """The end of a run: what was made, where it is, and each slide that is not ok with its reason."""
    if summary.done_before == summary.found and not summary.failed:
        done = counted(summary.found, "slide is", "slides are")
        statuses = _statuses(summary)
        terminal.say(f"nothing to do: {done} already done in {out}{statuses and ': '}{statuses}")
    else:
        _show_made(terminal, out, summary)
    _show_rows(terminal, summary.rows)
    notes = list(_each_once(summary.warnings))
    for warning in notes[:_MOST_NOTES]:
        terminal.note(f"note: {warning}")
    if len(notes) > _MOST_NOTES:
        terminal.note(f"note: and {len(notes) - _MOST_NOTES:,} more: {_ALL_NOTES}")


def _each_once(warnings: Sequence[str]) -> Iterator[str]:
    """The warnings; what many slides have in the same words is said of the first, with how many more there are."""
    slides = Counter(text for name, colon, text in (warning.partition(": ") for warning in warnings) if colon)
    told = set()
    for warning in warnings:
        text = warning.partition(": ")[2]
        if slides[text] <= _ALIKE:
            yield warning
        elif text not in told:
            told.add(text)
            yield f"{warning} (and so {slides[text] - 1:,} more slides: {_ALL_NOTES})"


def _statuses(summary: RunSummary) -> str:
    return ", ".join(f"{n:,} {status}" for status, n in sorted(summary.statuses.items()))


def _show_made(terminal: Terminal, out: str, summary: RunSummary) -> None:
    before, new, of_all = "", "", ""
    if summary.done_before:
        before = f", {summary.done_before:,} of them done before"
        new, of_all = "new ", f", with those from before {counted(summary.tiles, 'tile')}"
    tiles = sum(summary.tiles_made.values())
    asked = [m.name for m in reversed(MAGNIFICATIONS) if m.name in summary.magnifications]
    by_mag = ", ".join(f"{name} {summary.tiles_made[name]:,}" for name in asked)
    rate = tiles / max(summary.worker_seconds, 1e-9)
    filtered = f", {summary.tiles_filtered:,} more skipped by FILTER" if summary.tiles_filtered else ""
    lines = (
        f"{counted(summary.found, 'slide')}{before}: {_statuses(summary)}",
        f"{counted(tiles, f'{new}tile')} ({by_mag}){filtered}, {summary.bytes_made / 1e6:,.1f} MB{of_all}",
        f"{summary.seconds:.1f} s in all, {rate:,.0f} tiles per second and worker",
        f"look at {out}/overlays",
    )
    for line in lines:
        terminal.note(line)


def _show_rows(terminal: Terminal, rows: list[SlideRow]) -> None:
    """One line for each slide that is not ok, failures first."""
    order = {"failed": 0, "excluded": 1, "empty": 2}
    for row in sorted(rows, key=lambda row: (order.get(row["status"], 3), shown_name(row)))[:_SHOWN]:
        reason = f"{row['error_type']}: {row['error']}" if row["error_type"] else str(row["error"])
        reason += f" ({row['warning']})" if row.get("warning") else ""
        terminal.note(f"{row['status']:<8}  {shown_name(row)}  {reason}")
    if len(rows) > _SHOWN:
        terminal.say(f"... and {len(rows) - _SHOWN} more: see status and error in the catalog's slides")
