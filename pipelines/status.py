"""Tells how far shards are, from any terminal."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import asdict

from pipelines.calls.slides import StatusCall
from pipelines.command import EXIT_OK, Terminal, output_named, require_apart, run_command
from pipelines.console import told_bytes
from pipelines.metrics import write_metrics
from wsi_prep.curation.status import Status, read_status
from wsi_prep.errors import BadOption, counted


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(StatusCall, _work, arguments)


def _work(call: StatusCall, terminal: Terminal) -> int:
    if call.rows < 1:
        raise BadOption("--rows must be at least 1")
    outs = [output_named(where) for where in call.shards]
    if call.metrics is not None:
        require_apart("METRICS", call.metrics, outs)
    statuses = [read_status(out, call.rows) for out in outs]
    if call.metrics is not None:
        write_metrics(statuses, call.metrics)
    for status in statuses:
        if call.json:
            terminal.say(json.dumps(asdict(status)))
        else:
            for line in lines_of(status):
                terminal.note(line)
    return EXIT_OK


def lines_of(status: Status) -> list[str]:
    """What there is to tell a person, most important first."""
    done = sum(status.statuses.values())
    kinds = ", ".join(f"{count:,} {name}" for name, count in status.statuses.items())
    lines = [f"{status.out}: {_state(status)}", f"slides     {done:,} done" + (f": {kinds}" if kinds else "")]
    if any(status.tiles.values()):
        of = ", ".join(f"{name} {count:,}" for name, count in status.tiles.items())
        lines.append(f"tiles      {sum(status.tiles.values()):,}: {of}")
    if status.to_do is not None:
        lines.append(f"this call  {status.left:,} of {counted(status.to_do, 'slide')} left{_pace(status)}")
    lines.append(f"disk       {told_bytes(status.bytes_made)} made{_disk(status)}")
    for number, failure in enumerate(status.failures):
        beginning = "failed" if number == 0 else ""
        lines.append(f"{beginning:<9}  {failure.slides:,} {failure.error_type}, as {failure.slide_id}: {failure.error}")
    if status.at_work:
        if status.running is None:
            lines.append(
                "running    not known: workers that write to an object store leave no sign before they are done"
            )
        elif not status.running:
            lines.append("running    no slide")
    for number, each in enumerate(status.running or ()):
        lines.append(f"{'running' if number == 0 else '':<9}  {each.seconds:,.0f} s, in {each.stage}: {each.slide_id}")
    for number, slow in enumerate(status.slowest):
        lines.append(
            f"{'slowest' if number == 0 else '':<9}  {slow.seconds:,.1f} s, most in {slow.stage}: {slow.slide_id}"
        )
    return lines


def _state(status: Status) -> str:
    if status.at_work:
        return "a run is at work"
    if status.to_do is not None:
        return "the last run was stopped; repeat its command to continue"
    return "no run is at work"


def _pace(status: Status) -> str:
    if status.slides_per_hour is None or status.seconds_left is None:
        return ""
    minutes = math.ceil(status.seconds_left / 60)
    return f", {status.slides_per_hour:,.0f} an hour, {minutes // 60}:{minutes % 60:02} h left"


def _disk(status: Status) -> str:
    said = "" if status.bytes_to_come is None else f", about {told_bytes(status.bytes_to_come)} to come"
    if status.bytes_free is None:
        return said
    said += f", {told_bytes(status.bytes_free)} free"
    if status.bytes_to_come is not None and status.bytes_to_come > status.bytes_free:
        said += ": not enough, make room or stop the run"
    return said


if __name__ == "__main__":
    sys.exit(main())
