"""What shards hold, as one HTML page and on the terminal: strata, what training draws, diversity, quality, pictures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.table import Table
from rich.text import Text

from pipelines.command import EXIT_NOT_ALL, EXIT_OK, Terminal, printable, require_apart, run_command, shards_option
from pipelines.options import Options
from wsi_prep.curation.audit.count import count, open_catalogs
from wsi_prep.curation.audit.numbers import Audit, balance
from wsi_prep.curation.audit.page import extent, render_page, significant
from wsi_prep.curation.audit.pictures import Gallery, Picture, TilePicture, overlays, tiles
from wsi_prep.storage.atomic import write_atomically

EPILOG = """exit codes: 0 the page is written; 2 the call is wrong; 3 the page is written, but tiles or overlays that
the catalog names cannot be read."""

_ROWS = 20
_NAMED = 10


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(build_parser(), _work, arguments)


def _work(options: argparse.Namespace, terminal: Terminal) -> int:
    require_apart("TO", options.to, options.shards)
    with open_catalogs(options.shards) as connection:
        audited = count(connection, options.shards, options.alpha)
        shown = overlays(audited, options.gallery, options.seed)
        drawn = tiles(audited, connection, options.tiles, options.seed)
    page = render_page(audited, shown, drawn).encode()
    options.to.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.to, page)
    show_audit(terminal, audited)
    lost = lost_pictures(audited, shown, drawn)
    for line in extent(audited, shown, drawn):
        terminal.say(line)
    for line in [*audited.notes, *lost]:
        terminal.warn(line)
    terminal.say(f"{options.to}: {len(page) / 1e6:.1f} MB")
    return EXIT_NOT_ALL if lost else EXIT_OK


def build_parser() -> Options:
    """The command line."""
    parser = Options(prog="python -m pipelines.audit", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    shards_option(parser)
    add("--to", type=Path, default=Path("audit.html"), metavar="HTML", help="the page (default: %(default)s)")
    add("--alpha", type=float, default=0.5, help="0 draws strata evenly, 1 as found (default: %(default)s)")
    add("--gallery", type=_whole, default=60, metavar="N", help="most overlays on the page (default: %(default)s)")
    add("--tiles", type=_whole, default=4, metavar="N", help="tiles of each stratum (default: %(default)s)")
    add("--seed", type=_whole, default=0, help="other overlays and tiles (default: %(default)s)")
    return parser


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 0")
    return int(text)


def lost_pictures(audited: Audit, shown: Gallery[Picture], drawn: Gallery[TilePicture]) -> list[str]:
    """A line for each picture that should be there and is not."""
    lost = [p for p in shown.pictures if p.missing and audited.slides[p.slide].status != "excluded"]
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
    terminal.say(f"{len(audited.slides):,} slides: {statuses}")
    tissue = f"{significant(audited.tissue_mm2)} mm2 of tissue"
    terminal.say(f"{sum(audited.tiles.values()):,} tiles ({by_magnification}), {tissue}")
    _show_balance(terminal, audited)
    _show_strata(terminal, audited)
    _show_diversity(terminal, audited)
    for status, kind, slides in audited.reasons:
        _show_named(terminal, f"{len(slides):,} {status}  {kind}", [(s.file, s.error) for s in slides])
    if warned := [(s.file, s.warning) for s in audited.slides if s.warning]:
        _show_named(terminal, f"{len(warned):,} with a warning", warned)


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
        terminal.say(f"and {len(audited.strata) - _ROWS:,} strata of fewer tiles")


def _show_diversity(terminal: Terminal, audited: Audit) -> None:
    table = _table("groups by", "at", "are", "by slides", "by tiles", "by tissue", "as drawn")
    for row in audited.diversity:
        measures = (row.slides, row.tiles, row.tissue_mm2, row.drawn)
        shown = (f"{significant(m.shannon)} ({significant(m.simpson)})" for m in measures)
        _add(table, row.what, row.magnification, f"{row.groups:,}", *shown)
    terminal.out.print(table)
    terminal.say("effective numbers: exp of Shannon's entropy (inverse of Simpson's index)")


def _show_named(terminal: Terminal, title: str, rows: list[tuple[str, str]]) -> None:
    terminal.say(title)
    for file, why in rows[:_NAMED]:
        terminal.say(f"  {file}  {why}")
    if len(rows) > _NAMED:
        terminal.say(f"  and {len(rows) - _NAMED:,} more")


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name)
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*(Text(printable(cell)) for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
