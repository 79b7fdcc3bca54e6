"""Says what shards of a whole cohort will take, from what a sample of its slides took."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, fields
from pathlib import Path

from rich import box
from rich.table import Table

from pipelines.command import EXIT_OK, Terminal, output_named, run_command
from pipelines.options import Options
from wsi_prep.curation.estimate import Assumptions, Estimate, Interval, estimate, read_sample
from wsi_prep.storage.atomic import write_atomically

_TOTALS = (
    ("tiles", "tiles", ""),
    ("core_hours", "core-hours", ""),
    ("wall_days", "wall time", " days"),
    ("storage_tb", "storage", " TB"),
    ("objects", "objects", ""),
    ("read_tb", "slides read", " TB"),
    ("network_gbit_s", "network, both ways", " Gbit/s"),
    ("cost_compute", "cost of compute", ""),
    ("cost_storage", "cost of storage", ""),
    ("cost_requests", "cost of PUTs", ""),
    ("cost_egress", "cost of egress", ""),
    ("cost", "cost", ""),
)

EPILOG = "exit codes: 0 estimated; 2 the call is wrong."


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(build_parser(), _work, arguments)


def _work(options: argparse.Namespace, terminal: Terminal) -> int:
    assumptions = Assumptions(**{each.name: getattr(options, each.name) for each in fields(Assumptions)})
    found = estimate(read_sample(output_named(options.sample)), options.slides, assumptions, options.seed)
    show(terminal, found)
    if options.to:
        write_atomically(options.to, json.dumps(found.as_dict(), indent=2).encode())
        terminal.say(f"written: {options.to}")
    return EXIT_OK


def show(terminal: Terminal, found: Estimate) -> None:
    """Totals with their intervals, then by magnification, then what was assumed."""
    rate = found.sample.tiles_per_core_second
    measured = f"{len(found.sample):,} slides of {found.sample.where}, {rate:,.0f} tiles a second and core"
    terminal.say(f"{found.slides:,} slides, from {measured}")
    totals = Table("", "estimate", "95 % interval", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in totals.columns[1:]:
        column.justify = "right"
    for name, title, unit in _TOTALS:
        value = found.total[name]
        totals.add_row(title, f"{number(value.estimate)}{unit}", _span(value))
    terminal.out.print(totals)
    parts = Table("", "tiles", "core-hours", "TB", "objects", "cost", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in parts.columns[1:]:
        column.justify = "right"
    for name, of in found.by_magnification.items():
        columns = ("tiles", "core_hours", "storage_tb", "objects", "cost")
        parts.add_row(name, *(number(of[column].estimate) for column in columns))
    terminal.out.print(parts)
    terminal.say("assumed, and changed by ARGS='--workers 1000 ...':")
    values = asdict(found.assumptions)
    for each in fields(Assumptions):
        terminal.say(f"  --{each.name.replace('_', '-')} {values[each.name]:g}: {each.metadata['help']}")
    terminal.say("  core-hours of a slide are shared out to its magnifications by tiles")
    for note in found.notes:
        terminal.say(f"note: {note}")


def _span(value: Interval) -> str:
    return "" if value.low == value.high else f"{number(value.low)} to {number(value.high)}"


def number(value: float) -> str:
    """Three digits that count, and thousands apart."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:,.3g}"


def build_parser() -> Options:
    """The command line."""
    parser = Options(prog="python -m pipelines.plan", description=__doc__, epilog=EPILOG)
    add = parser.add_argument
    add("--slides", required=True, type=int, metavar="N", help="slides of the cohort")
    add("--sample", required=True, metavar="OUT", help="shards of a random choice of them")
    add("--to", type=Path, metavar="FILE", help="write everything to this .json too")
    add("--seed", type=int, default=0, metavar="N", help="of the bootstrap (default: %(default)s)")
    for each in fields(Assumptions):
        kind = int if each.name == "workers" else float
        told = f"{each.metadata['help']} (default: %(default)g)"
        add(f"--{each.name.replace('_', '-')}", type=kind, default=each.default, metavar="X", help=told)
    return parser


if __name__ == "__main__":
    sys.exit(main())
