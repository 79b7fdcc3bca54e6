"""Says what shards of a whole cohort will take, from what a sample of its slides took."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, fields
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from pipelines.console import printable
from pipelines.options import Options
from pipelines.verify import output_named
from wsi_prep.curation.estimate import Assumptions, Estimate, Interval, estimate, read_sample
from wsi_prep.errors import UsageError
from wsi_prep.storage.atomic import write_atomically

EXIT_OK, EXIT_WRONG_CALL = 0, 2

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
    options = build_parser().parse_args(arguments)
    errors, console = Console(stderr=True, highlight=False), Console(highlight=False)
    try:
        given = {each.name: getattr(options, each.name) for each in fields(Assumptions)}
        assumptions = Assumptions(**given)
        found = estimate(read_sample(output_named(options.sample)), options.slides, assumptions, options.seed)
        show(console, found)
        if options.to:
            write_atomically(options.to, json.dumps(found.as_dict(), indent=2).encode())
            console.print(f"written: {options.to}", markup=False, soft_wrap=True)
    except UsageError as error:
        errors.print(f"plan: {printable(str(error))}", markup=False, soft_wrap=True)
        return EXIT_WRONG_CALL
    except OSError as error:
        errors.print(f"plan: {options.to}: {error.strerror or error}", markup=False, soft_wrap=True)
        return EXIT_WRONG_CALL
    return EXIT_OK


def show(console: Console, found: Estimate) -> None:
    """Totals with their intervals, then by magnification, then what was assumed."""
    rate = found.sample.tiles_per_core_second
    measured = f"{len(found.sample):,} slides of {found.sample.where}, {rate:,.0f} tiles a second and core"
    console.print(f"{found.slides:,} slides, from {measured}", markup=False, soft_wrap=True)
    totals = Table("", "estimate", "95 % interval", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in totals.columns[1:]:
        column.justify = "right"
    for name, title, unit in _TOTALS:
        value = found.total[name]
        totals.add_row(title, f"{number(value.estimate)}{unit}", _span(value))
    console.print(totals)
    parts = Table("", "tiles", "core-hours", "TB", "objects", "cost", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in parts.columns[1:]:
        column.justify = "right"
    for name, of in found.by_magnification.items():
        columns = ("tiles", "core_hours", "storage_tb", "objects", "cost")
        parts.add_row(name, *(number(of[column].estimate) for column in columns))
    console.print(parts)
    console.print("assumed, and changed by ARGS='--workers 1000 ...':")
    values = asdict(found.assumptions)
    for each in fields(Assumptions):
        console.print(f"  --{each.name.replace('_', '-')} {values[each.name]:g}: {each.metadata['help']}", markup=False)
    console.print("  core-hours of a slide are shared out to its magnifications by tiles")
    for note in found.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)


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
