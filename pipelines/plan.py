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
from wsi_prep.curation.estimate import REST, Estimate, Interval, estimate, read_sample
from wsi_prep.errors import BadOption, counted
from wsi_prep.storage.atomic import write_atomically

_TIME = ((1, " hours"), (60, " minutes"), (3600, " seconds"))
_CORE_TIME = tuple((factor, f" core-{unit.strip()}") for factor, unit in _TIME)
_SIZE = ((1, " TB"), (1e3, " GB"), (1e6, " MB"))
_Units = tuple[tuple[float, str], ...]
"""By how much to multiply for each unit, largest first."""

_TOTALS: tuple[tuple[str, str, str | _Units], ...] = (
    ("tiles", "tiles", ""),
    ("core_hours", "work", _CORE_TIME),
    ("wall_days", "wall time", " days"),
    ("wall_hours", "wall time", _TIME),
    ("storage_tb", "storage", _SIZE),
    ("objects", "objects", ""),
    ("read_tb", "slides read", _SIZE),
    ("network_gbit_s", "network, both ways", " Gbit/s"),
    ("cost_compute", "cost of compute", ""),
    ("cost_storage", "cost of storage", ""),
    ("cost_requests", "cost of PUTs", ""),
    ("cost_egress", "cost of egress", ""),
    ("cost", "cost", ""),
)
_LEAST, _MOST_DIGITS = 0.001, 15


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(PlanCall, _work, arguments)


def _work(call: PlanCall, terminal: Terminal) -> int:
    assumptions = Assumptions(**{each.name: getattr(call, each.name) for each in fields(Assumptions)})
    slides = _how_many(call.slides)
    found = estimate(read_sample(output_named(call.sample)), slides, assumptions, call.seed)
    show(terminal, found, call.currency.strip())
    if call.to:
        everything = {**found.as_dict(), "currency": call.currency.strip()}
        write_atomically(call.to, json.dumps(everything, indent=2).encode())
        terminal.say(f"written: {call.to}")
    return EXIT_OK


def _how_many(text: str) -> int:
    digits = text.strip().replace(",", "").replace("_", "")
    if not digits.isascii() or not digits.isdigit() or len(digits) > _MOST_DIGITS:
        raise BadOption(
            f"SLIDES={text} is not a number: here it is how many slides the cohort has. First cut a sample with make "
            "shards, then plan reads it: make plan SLIDES=100000 SAMPLE=folder"
        )
    return int(digits)


def show(terminal: Terminal, found: Estimate, currency: str = "") -> None:
    """Totals with their intervals, then by magnification, then what was assumed; money with the word `currency`."""
    money = f" {printable(currency)}" if currency else ""
    rate = found.sample.tiles_per_core_second
    measured = f"{counted(len(found.sample), 'slide')} of {found.sample.where}, {rate:,.0f} tiles per second and core"
    terminal.say(f"{counted(found.slides, 'slide')}, from {measured}")
    totals = Table("", "estimate", "95 % interval", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in totals.columns[1:]:
        column.justify = "right"
    for name, title, units in _TOTALS:
        value = found.total[name]
        if name == "wall_days" and value.estimate < 1:
            continue
        factor, unit = (1.0, units) if isinstance(units, str) else _unit(value, units)
        unit = money if name.startswith("cost") else unit
        totals.add_row(title, f"{number(value.estimate * factor)}{escape(unit)}", _span(value, factor))
    terminal.out.print(totals)
    terminal.out.print(_by_magnification(found, money))
    terminal.note("assumed; change these with SLIDE_GB=1.2 and so on:")
    for each in parse_from_object(Assumptions).params:
        said = f"mean size of a slide's file, in GB; {found.slide_gb_from}" if each.arg_name == "slide_gb" else ""
        terminal.note(
            f"  {each.arg_name.upper()}={getattr(found.assumptions, each.arg_name):g}: {said or each.description}"
        )
    terminal.say("  core-hours of a slide are shared out to its magnifications by tiles")
    for note in found.notes:
        terminal.say(f"note: {note}")


def _by_magnification(found: Estimate, money: str) -> Table:
    """Of those that the sample was asked for, or has."""
    columns = {"tiles": (1.0, "tiles"), "core_hours": _unit(found.total["core_hours"], _CORE_TIME)}
    columns |= {"storage_tb": _unit(found.total["storage_tb"], _SIZE), "objects": (1.0, "objects")}
    columns["cost"] = (1.0, f"cost{escape(money)}")
    table = Table("", *(unit.strip() for _, unit in columns.values()), box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, part in found.by_magnification.items():
        if name in (*found.sample.asked, REST) or part["tiles"].estimate:
            table.add_row(name, *(number(part[column].estimate * factor) for column, (factor, _) in columns.items()))
    return table


def _unit(value: Interval, units: _Units) -> tuple[float, str]:
    """The largest unit of which there is one or more, else the smallest: its factor, and its name."""
    return next((each for each in units if value.estimate * each[0] >= 1), units[-1])


def _span(value: Interval, factor: float) -> str:
    low, high = number(value.low * factor), number(value.high * factor)
    return "" if low == high else f"{low} to {high}"


def number(value: float) -> str:
    """Three digits that count, and thousands apart; of what is next to nothing, that it is."""
    if value == 0:
        return "0"
    if 0 < value < _LEAST:
        return f"< {_LEAST}"
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:,.3g}"


if __name__ == "__main__":
    sys.exit(main())
