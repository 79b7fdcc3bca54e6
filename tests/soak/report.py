"""What a soak found, as JSON and as a page."""

from __future__ import annotations

import json
from pathlib import Path

from tests.soak.run import Options, Outcome


def write_report(options: Options, outcome: Outcome, seconds: float, folder: Path) -> str:
    """Write report.json and report.md into the folder; returns the page."""
    told = {
        "seed": options.seed,
        "seconds": round(seconds),
        "workers": options.workers,
        "slides": dict(zip(("local", "far"), options.slides, strict=True)),
        "done": dict(sorted(outcome.done.items())),
        "calls ended": dict(sorted(outcome.exits.items())),
        "judged": outcome.ends,
        "memory": outcome.memory,
        "leftovers": outcome.leftovers,
        "faults": outcome.faults,
    }
    folder.joinpath("report.json").write_text(json.dumps(told, indent=1) + "\n")
    page = _page(told)
    folder.joinpath("report.md").write_text(page)
    return page


def _page(told: dict) -> str:
    slides = " and ".join(f"{count} {where}" for where, count in told["slides"].items())
    lines = [
        f"# Soak of {told['seconds'] / 60:.0f} minutes, seed {told['seed']}",
        "",
        f"{told['workers']} workers, {slides} slides, {len(told['faults'])} faults.",
        "",
        "| what was done | times |",
        "| --- | --- |",
        *(f"| {name} | {count:,} |" for name, count in told["done"].items()),
        "",
        "| how calls ended: exit code | times |",
        "| --- | --- |",
        *(f"| {name} | {count:,} |" for name, count in told["calls ended"].items()),
        "",
        "| judged after round | output | slides | tiles | faults |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {e['round']} | {e['world']} | {e['slides']} | {e['tiles']:,} | {e['faults']} |" for e in told["judged"]),
        "",
        "| process that lived longest | minutes | first MB | median MB | peak MB | MB an hour, last half |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_memory(watched) for watched in told["memory"]),
        "",
        *([f"Left over: {', '.join(told['leftovers'])}.", ""] if told["leftovers"] else []),
        *(f"- {fault}" for fault in told["faults"]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _memory(watched: dict) -> str:
    slope = f"{watched['mb_an_hour']:+} ± {watched['plus_minus']}" if "mb_an_hour" in watched else "too short"
    cells = (watched["role"], *(watched[k] for k in ("minutes", "first_mb", "median_mb", "peak_mb")), slope)
    return f"| {' | '.join(map(str, cells))} |"
