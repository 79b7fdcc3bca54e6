"""Says what shards of a whole cohort will take, from what a sample of its slides took."""

from __future__ import annotations

import json
import sys
from dataclasses import fields

from docstring_parser import parse_from_object
from rich import box
from rich.markup import escape
from rich.table import Table

from pipelines.calls.slides import PlanCall
from pipelines.command import EXIT_OK, Terminal, output_named, printable, run_command
from wsi_prep.curation.assumptions import Assumptions
from wsi_prep.curation.estimate import Estimate, Interval, estimate, read_sample
from wsi_prep.errors import counted
from wsi_prep.storage.atomic import write_atomically

_TOTALS = (
    ("tiles", "tiles", ""),
    ("core_hours", "core-hours", ""),
    ("wall_days", "wall time", " days"),
    ("wall_hours", "the same", " hours"),
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


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(PlanCall, _work, arguments)


def _work(call: PlanCall, terminal: Terminal) -> int:
    assumptions = Assumptions(**{each.name: getattr(call, each.name) for each in fields(Assumptions)})
    found = estimate(read_sample(output_named(call.sample)), call.slides, assumptions, call.seed)
    show(terminal, found, call.currency.strip())
    if call.to:
        everything = {**found.as_dict(), "currency": call.currency.strip()}
        write_atomically(call.to, json.dumps(everything, indent=2).encode())
        terminal.say(f"written: {call.to}")
    return EXIT_OK


def show(terminal: Terminal, found: Estimate, currency: str = "") -> None:
    """Totals with their intervals, then by magnification, then what was assumed; money with the word `currency`."""
    money = f" {printable(currency)}" if currency else ""
    rate = found.sample.tiles_per_core_second
    measured = f"{counted(len(found.sample), 'slide')} of {found.sample.where}, {rate:,.0f} tiles per second and core"
    terminal.say(f"{counted(found.slides, 'slide')}, from {measured}")
    totals = Table("", "estimate", "95 % interval", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in totals.columns[1:]:
        column.justify = "right"
    for name, title, unit in _TOTALS:
        value = found.total[name]
        of = money if name.startswith("cost") else unit
        totals.add_row(title, f"{number(value.estimate)}{escape(of)}", _span(value))
    terminal.out.print(totals)
    parts = Table(
        "", "tiles", "core-hours", "TB", "objects", f"cost{escape(money)}", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for column in parts.columns[1:]:
        column.justify = "right"
    for name, part in found.by_magnification.items():
        columns = ("tiles", "core_hours", "storage_tb", "objects", "cost")
        parts.add_row(name, *(number(part[column].estimate) for column in columns))
    terminal.out.print(parts)
    terminal.note("assumed; change these with SLIDE_GB=1.2 and so on:")
    for each in parse_from_object(Assumptions).params:
        said = f"mean size of a slide's file, in GB; {found.slide_gb_from}" if each.arg_name == "slide_gb" else ""
        terminal.note(
            f"  {each.arg_name.upper()}={getattr(found.assumptions, each.arg_name):g}: {said or each.description}"
        )
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


if __name__ == "__main__":
    sys.exit(main())
