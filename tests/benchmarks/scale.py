"""`make bench BENCH=scale`: what a run costs beside the slides' own work, over ten and a hundred thousand slides.

`ARGS="--known 3100000"` comes back to an output of millions (scale_known.py), `ARGS="--tasks 100000 1000000"` hands
out tasks that do nothing (scale_tasks.py), `ARGS="--slow 100000"` looks before a run on a slow disk (scale_slow.py).
Else everything is real (files found, scheduler, workers and client as processes, catalog) but the work on a slide: in
its place a worker commits a row and some tiles that nobody made.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from distributed import Client

from tests.benchmarks import scale_known, scale_slow, scale_tasks
from tests.benchmarks.measure import Figure, machine, markdown, table
from tests.support.dask_processes import ROOT, DaskProcesses

_WORKERS = 2
_PER_FOLDER = 1_000
_PROCESSES = ("client", "scheduler")
_MILLISECONDS, _SECONDS, _FILES = 5.0, 300.0, 10_000


def main() -> None:
    """Measure, print the figures, and write them as Markdown if asked."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--shards", help="not used")
    parser.add_argument("--slides", type=int, nargs="+", default=[10_000, 100_000], help="how many, one run each")
    parser.add_argument("--tiles", type=int, default=64, help="tiles a slide")
    parser.add_argument("--known", type=int, nargs="+", help="instead: come back to outputs of so many slides")
    parser.add_argument("--tasks", type=int, nargs="+", help="instead: hand out so many tasks that do nothing")
    parser.add_argument("--slow", type=int, nargs="+", help="instead: CHECK=1 on so many slides on a slow file system")
    parser.add_argument("--quick", action="store_true", help="small: does it run?")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    given = parser.parse_args()
    print(machine(), flush=True)
    figures, found = _other_parts(given), list[dict[str, Any]]()
    for count in [200, 400] if given.quick else given.slides if not figures else ():
        with tempfile.TemporaryDirectory(prefix="scale-") as folder:
            found.append(measure(Path(folder), count, given.tiles))
        figures += _figures(f"{count:,} slides, {given.tiles} tiles each", found[-1])
        print(table(figures), flush=True)
    if len(found) > 1:
        figures += _growth(found[0], found[-1])
        print(table(figures[-2:]))
    if given.markdown:
        given.markdown.write_text(markdown(figures, "make bench BENCH=scale"))


def _other_parts(given: argparse.Namespace) -> list[Figure]:
    figures = []
    for count in given.known or ():
        with tempfile.TemporaryDirectory(prefix="scale-") as folder:
            figures += scale_known.measure(Path(folder), count)
    for count in given.tasks or ():
        figures += scale_tasks.measure(count)
    for count in given.slow or ():
        with tempfile.TemporaryDirectory(prefix="scale-") as folder:
            figures += scale_slow.measure(Path(folder), count)
    if figures:
        print(table(figures), flush=True)
    return figures


def measure(folder: Path, slides: int, tiles: int) -> dict[str, Any]:
    """One run over so many slides; what scale_client says of it."""
    for number in range(slides):
        place = folder / "slides" / f"{number // _PER_FOLDER:04d}"
        if number % _PER_FOLDER == 0:
            place.mkdir(parents=True)
        (place / f"archive-{number:07d}-block-A1.svs").write_bytes(number.to_bytes(8, "little"))
    (folder / "dask").mkdir()
    with DaskProcesses(folder / "dask") as cluster:
        for _ in range(_WORKERS):
            cluster.worker()
        with Client(cluster.address, set_as_default=False) as client:
            client.wait_for_workers(_WORKERS, timeout=120)
        command = [sys.executable, "-m", "tests.benchmarks.scale_client", str(folder), cluster.address]
        command += [str(cluster.scheduler.pid), str(tiles)]
        began = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "slides": slides, "whole": time.perf_counter() - began}


def _figures(part: str, found: dict[str, Any]) -> list[Figure]:
    slides = found["slides"]
    each = 1000 * found["work"] / slides
    own = 1000 * found["worker_seconds"] / _WORKERS / slides
    client, scheduler = (1000 * seconds / slides for seconds in found["cores"])
    memory = {name: "{:,.0f} MB at the start, {:,.0f} MB at the end".format(*found[name]) for name in _PROCESSES}
    held = f"{found['rows']:,} slides, {found['tiles']:,} tiles in {found['parts']} parts"
    files, after = found["files"], found["after"]
    return [
        Figure(part, "before the work: slides found, compared with the catalog", f"{found['before']:.1f} s"),
        Figure(part, "a slide, on the clock", f"{each:.2f} ms, of which its worker's own {own:.2f} ms"),
        Figure(part, "overhead a slide", f"{each - own:.2f} ms", "<= 5 ms", each - own <= _MILLISECONDS),
        Figure(part, "a slide, of a core", f"{client:.2f} ms the client, {scheduler:.2f} ms the scheduler"),
        Figure(part, "client's memory", memory["client"]),
        Figure(part, "scheduler's memory", memory["scheduler"]),
        Figure(part, "most files in catalog/slides", f"{files:,}", f"<= {_FILES:,}", files <= _FILES),
        Figure(part, "finalised after the last slide in", f"{after:.1f} s", f"<= {_SECONDS:.0f} s", after <= _SECONDS),
        Figure(part, "in the catalog", held),
    ]


def _growth(small: dict[str, Any], large: dict[str, Any]) -> list[Figure]:
    more = large["slides"] - small["slides"]
    part = f"{small['slides']:,} to {large['slides']:,} slides"
    figures = []
    for name in _PROCESSES:
        grown = 1000 * (large[name][1] - small[name][1]) / more
        figures.append(Figure(part, f"{name}'s memory, grown by each slide", f"{grown:.2f} kB"))
    return figures


if __name__ == "__main__":
    main()
