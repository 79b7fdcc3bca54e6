"""What shards hold, as one HTML page and on the terminal: strata, what training draws, diversity, quality, pictures."""

from __future__ import annotations

import contextlib
import sys

from rich.table import Table
from rich.text import Text

from pipelines.calls.slides import AuditCall
from pipelines.command import EXIT_NOT_ALL, EXIT_OK, Terminal, printable, progress, require_apart, run_command
from wsi_prep.curation.audit.concerns import Concerns, concerns
from wsi_prep.curation.audit.count import count, open_catalogs
from wsi_prep.curation.audit.numbers import Audit, balance, significant
from wsi_prep.curation.audit.overlap import overlaps
from wsi_prep.curation.audit.page import extent, render_page
from wsi_prep.curation.audit.pictures import Gallery, Overlay, TilePicture, overlays, tiles
from wsi_prep.errors import BadOption, counted
from wsi_prep.storage.atomic import write_atomically

_ROWS = 20
_NAMED = 10


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(AuditCall, _work, arguments)


def _work(call: AuditCall, terminal: Terminal) -> int:
    require_apart("TO", call.to, call.shards)
    for name in ("gallery", "tiles", "seed"):
        if getattr(call, name) < 0:
            raise BadOption(f"--{name} {getattr(call, name)} is no whole number of at least 0")
    if call.near and not call.tasks:
        raise BadOption("NEAR needs TASKS, the tables whose tiles are looked for in SHARDS")
    with open_catalogs(call.shards) as connection:
        audited = count(connection, call.shards, call.alpha)
        first = concerns(audited.slides, connection)
        with progress(terminal.out, "tiles compared") if call.near else contextlib.nullcontext(_silent) as bar:
            shared = overlaps(call.tasks, audited, connection, near=call.near, progress=bar)
        shown = overlays(audited, call.gallery, call.seed, [concern.slide for concern in first.shown])
        drawn = tiles(audited, connection, call.tiles, call.seed)
    page = render_page(audited, first, shown, drawn, shared).encode()
    call.to.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(call.to, page)
    show_audit(terminal, audited)
    _show_first(terminal, audited, first)
    lost = lost_pictures(audited, shown, drawn)
    for task in shared:
        for line in task.lines:
            terminal.say(f"{task.name}: {line}")
    for line in extent(audited, shown, drawn):
        terminal.say(line)
    for line in [*audited.notes, *lost]:
        terminal.warn(line)
    terminal.say(f"{call.to}: {len(page) / 1e6:.1f} MB")
    return EXIT_NOT_ALL if lost else EXIT_OK


def _silent(done: int, of: int | None = None) -> None:
    del done, of


def lost_pictures(audited: Audit, shown: Gallery[Overlay], drawn: Gallery[TilePicture]) -> list[str]:
    """A line for each picture that should be there and is not."""
    lost = [p for p in shown.pictures if p.missing and audited.slides[p.slide].status not in ("excluded", "failed")]
    lines = [f"{audited.slides[p.slide].slide_id}: {p.missing}" for p in lost]
    lines += [
        f"{audited.slides[p.slide].slide_id}, {p.magnification} tile {p.index}: {p.missing}"
        for p in drawn.pictures
        if p.missing
    ]
    return [*lines[:_ROWS], f"and {len(lines) - _ROWS} more"] if len(lines) > _ROWS else lines


def show_audit(terminal: Terminal, audited: Audit) -> None:
    """The page's numbers: sums, what is there and drawn, strata, diversity, and what was left out."""
    statuses = ", ".join(f"{n:,} {status}" for status, n in audited.statuses.items() if n)
    by_magnification = ", ".join(f"{name} {n:,}" for name, n in audited.tiles.items())
    terminal.say(f"{counted(len(audited.slides), 'slide')}: {statuses}")
    tissue = f"{significant(audited.tissue_mm2)} mm2 of tissue"
    with_tiles = counted(int(audited.slides.any_tiles.sum()), "slide")
    strata = counted(len(audited.strata), "stratum", "strata")
    terminal.say(
        f"{counted(sum(audited.tiles.values()), 'tile')} of {with_tiles} in {strata}, each of one magnification"
    )
    terminal.say(f"{by_magnification} tiles, {tissue}")
    _show_balance(terminal, audited)
    _show_strata(terminal, audited)
    _show_diversity(terminal, audited)
    for status, kind, numbers in audited.reasons:
        named = [(s.file, s.error) for s in audited.slides.some(numbers[:_NAMED])]
        _show_named(terminal, f"{len(numbers):,} {status}  {kind}", named, len(numbers))
    if of := len(audited.warned):
        warned = [(s.file, s.warning) for s in audited.slides.some(audited.warned[:_NAMED])]
        _show_named(terminal, f"{of:,} with a warning", warned, of)


def _show_first(terminal: Terminal, audited: Audit, found: Concerns) -> None:
    if found.shown:
        named = [(audited.slides[c.slide].file, "; ".join(c.reasons)) for c in found.shown]
        title = f"look at these first, of {counted(found.slides, 'slide')} with something to check"
        _show_named(terminal, title, named, len(named))


def _show_balance(terminal: Terminal, audited: Audit) -> None:
    table = _table("there and drawn", "", "tiles there", "drawn")
    for level, rows in balance(audited).items():
        for name, there, drawn in rows[:_ROWS]:
            _add(table, level, name, f"{100 * there:.2f} %", f"{100 * drawn:.2f} %")
    terminal.out.print(table)


def _show_strata(terminal: Terminal, audited: Audit) -> None:
    table = _table("at", "stain", "institution", "tissue", "slides", "tiles", "mm2", "drawn")
    for s in sorted(audited.strata, key=lambda stratum: -stratum.tiles)[:_ROWS]:
        counts = f"{s.slides:,}", f"{s.tiles:,}", significant(s.tissue_mm2), f"{100 * s.drawn:.2f} %"
        _add(table, s.magnification, *s.name, *counts)
    terminal.out.print(table)
    if len(audited.strata) > _ROWS:
        terminal.say(f"and {counted(len(audited.strata) - _ROWS, 'stratum', 'strata')} of fewer tiles")


def _show_diversity(terminal: Terminal, audited: Audit) -> None:
    table = _table("groups by", "at", "are", "by slides", "by tiles", "by tissue", "as drawn")
    for row in audited.diversity:
        measures = (row.slides, row.tiles, row.tissue_mm2, row.drawn)
        shown = (f"{significant(m.shannon)} ({significant(m.simpson)})" for m in measures)
        _add(table, row.what, row.magnification, f"{row.groups:,}", *shown)
    terminal.out.print(table)
    terminal.say("effective numbers: exp of Shannon's entropy (inverse of Simpson's index)")


def _show_named(terminal: Terminal, title: str, rows: list[tuple[str, str]], of: int) -> None:
    """At most _NAMED files and why, of so many."""
    terminal.say(title)
    for file, why in rows[:_NAMED]:
        terminal.say(f"  {file}  {why}")
    if of > _NAMED:
        terminal.say(f"  and {of - _NAMED:,} more")


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name)
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*(Text(printable(cell)) for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
