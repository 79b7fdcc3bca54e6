"""Answers a question in SQL to the catalogs of some shards, as a table here or as a file."""

from __future__ import annotations

import sys

import pyarrow as pa
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.calls.slides import QueryCall
from pipelines.command import EXIT_OK, EXIT_WRONG_CALL, Terminal, printable, require_apart, run_command
from pipelines.spoken import in_callers_words
from wsi_prep.errors import counted
from wsi_prep.output.query import head, open_catalog, write
from wsi_prep.untrusted.sql import bounded_memory

_PIPED_WIDTH = 100_000  # no line of a file is broken
_MEMORY_BYTES = 8 << 30  # DuckDB counts 4 GB of its own, and not what some functions take besides


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(QueryCall, _work, arguments, width=None if sys.stdout.isatty() else _PIPED_WIDTH)


def _work(call: QueryCall, terminal: Terminal) -> int:
    if call.to is not None:
        require_apart("TO", call.to, call.shards)
    try:
        with bounded_memory(_MEMORY_BYTES), open_catalog(call.shards, seconds=call.time_limit) as catalog:
            answer = catalog.ask(call.sql)
            for note in catalog.notes:
                terminal.warn(note)
            if call.to:
                terminal.say(f"{counted(write(answer, call.to), 'row')}: {call.to}")
            else:
                show(terminal.out, *head(answer, call.rows))
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
    more = in_callers_words(more, "query")
    console.print(more if count > len(rows) else counted(count, "row"), markup=False, soft_wrap=True)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "" if value is None else printable(str(value))


if __name__ == "__main__":
    sys.exit(main())
