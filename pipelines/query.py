"""Answers a question in SQL to the catalogs of some shards, as a table here or as a file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pyarrow as pa
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.command import (
    EXIT_OK,
    Terminal,
    printable,
    question_time_limit,
    require_apart,
    run_command,
    shards_option,
)
from pipelines.options import EXIT_WRONG_CALL, Options
from wsi_prep.output.query import head, open_catalog, write
from wsi_prep.untrusted.sql import bounded_memory

_PIPED_WIDTH = 100_000  # no line of a file is broken
_MEMORY_BYTES = 8 << 30  # DuckDB counts 4 GB of its own, and not what some functions take besides

EPILOG = """exit codes: 0 answered; 2 the question or the call is wrong. docs/queries.md has questions to begin with."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(build_parser(), _work, arguments, width=None if sys.stdout.isatty() else _PIPED_WIDTH)


def _work(options: argparse.Namespace, terminal: Terminal) -> int:
    if options.to is not None:
        require_apart("TO", options.to, options.shards)
    try:
        with bounded_memory(_MEMORY_BYTES), open_catalog(options.shards, seconds=options.time_limit) as catalog:
            answer = catalog.ask(options.sql)
            for note in catalog.notes:
                terminal.warn(note)
            if options.to:
                terminal.say(f"{write(answer, options.to):,} rows: {options.to}")
            else:
                show(terminal.out, *head(answer, options.rows))
    except MemoryError:
        terminal.warn("the answer does not fit in memory; ask for shorter texts or fewer rows")
        return EXIT_WRONG_CALL
    return EXIT_OK


def show(console: Console, rows: pa.Table, count: int) -> None:
    """The rows as a table, or one below the other where they are too wide, and how many of how many they are.

    Nothing in a cell can steer the terminal.
    """
    names = [printable(name) for name in rows.schema.names]
    cells = [[_cell(value) for value in row] for row in zip(*(c.to_pylist() for c in rows.columns), strict=True)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, kind in zip(names, rows.schema.types, strict=True):
        numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        table.add_column(Text(name), justify="right" if numeric else "left", no_wrap=True)
    for row in cells:
        table.add_row(*map(Text, row))
    unbroken = console.options.update(width=_PIPED_WIDTH)
    if not console.is_terminal or console.measure(table, options=unbroken).maximum <= console.width:
        console.print(table)
    else:
        widest = max(map(len, names))
        for row in cells:
            lines = (f"{name:<{widest}}  {cell}" for name, cell in zip(names, row, strict=True))
            console.print("\n".join(lines) + "\n", markup=False, soft_wrap=True)
    more = f"the first {len(rows):,} of {count:,} rows; TO=file.csv or file.parquet takes all"
    shown = f"{count:,} row{'' if count == 1 else 's'}"
    console.print(more if count > len(rows) else shown, markup=False, soft_wrap=True)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else printable(str(value))


def build_parser() -> Options:
    """The command line."""
    parser = Options(prog="python -m pipelines.query", description=__doc__, epilog=EPILOG, may_be_empty=("--sql",))
    add = parser.add_argument
    shards_option(parser)
    add("--sql", required=True, metavar="SELECT", help="one statement over the views slides and tiles")
    add("--to", type=Path, metavar="FILE", help="write all rows to this .csv or .parquet instead of showing some")
    question_time_limit(parser)
    add("--rows", type=int, default=50, metavar="N", help="most rows shown (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
