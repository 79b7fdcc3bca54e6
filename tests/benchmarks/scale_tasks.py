"""Run by scale.py, or by itself: what it costs to hand out a million tasks and to take their results in.

`python -m tests.benchmarks.scale_tasks --tasks 100000 1000000`. Scheduler, workers and client are real processes, and
the tasks those of slides; but a worker does nothing with one. Each of the two workers has 64 threads, so that hundreds
of tasks are under way at once, as on a cluster of 128 cores. There is no catalog.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from distributed import Client

from tests.benchmarks.measure import Figure, machine, markdown, table
from tests.benchmarks.scale_client import resident
from tests.support.dask_processes import ROOT, DaskProcesses
from wsi_prep.compute.cluster.options import ClusterOptions
from wsi_prep.compute.jobs import cluster, run_tasks
from wsi_prep.run.task import PrepareSettings, SlideTask
from wsi_prep.slides.find.found import SlideSource
from wsi_prep.slides.find.manifest import EMPTY_ROW

_WORKERS, _THREADS = 2, 64
_LOOKS = 10
_MILLISECONDS, _GROWN_MB = 5.0, 200.0


def nothing(task: SlideTask) -> dict[str, Any]:
    """In place of prepare_slide: a row that says little."""
    return {"slide_id": task.source.slide_id, "status": "ok", "tiles_20x": 64, "seconds": 0.0}


def make_tasks(count: int) -> Iterator[SlideTask]:
    """So many slides' tasks, each made when it is asked for."""
    first = SlideTask(SlideSource("", "", "", ()), EMPTY_ROW, None, PrepareSettings(), "/data/out", "token")
    for number in range(count):
        name = f"archive-{number:07d}-block-A1"
        path = f"/data/slides/{number // 1000:05d}/{name}.svs"
        yield replace(first, source=SlideSource(f"{name}-0123456789", path, f"{name}.svs", (path,)))


def client(address: str, scheduler: int, count: int) -> None:
    """Hands out the tasks, and prints what that took as JSON."""
    me = psutil.Process()
    there = psutil.Process(scheduler)
    with cluster(ClusterOptions(scheduler=address)) as connected:
        began, cores = time.perf_counter(), [sum(each.cpu_times()[:2]) for each in (me, there)]
        memory = []
        for done, (_, row) in enumerate(
            run_tasks(connected, nothing, make_tasks(count), lambda task: task.source.slide_id), 1
        ):
            assert row["status"] == "ok", row  # type: ignore[index]
            if done % (count // _LOOKS) == 0:
                memory.append((resident(me.pid), resident(scheduler)))
        seconds = time.perf_counter() - began
        used = [sum(each.cpu_times()[:2]) - before for each, before in zip((me, there), cores, strict=True)]
    print(json.dumps({"seconds": seconds, "cores": used, "memory": memory}))


def measure(count: int) -> list[Figure]:
    """So many tasks on a cluster of their own."""
    with tempfile.TemporaryDirectory(prefix="scale-") as folder, DaskProcesses(Path(folder)) as running:
        for _ in range(_WORKERS):
            running.worker("--nthreads", str(_THREADS))
        with Client(running.address, set_as_default=False) as waiting:
            waiting.wait_for_workers(_WORKERS, timeout=600)
        command = [sys.executable, "-m", "tests.benchmarks.scale_tasks", "--client", running.address]
        command += [str(running.scheduler.pid), str(count)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    each, part = 1000 * found["seconds"] / count, f"{count:,} tasks that do nothing"
    first, last = found["memory"][0], found["memory"][-1]
    mine, its = (1000 * seconds / count for seconds in found["cores"])
    figures = [
        Figure(part, "a task, on the clock", f"{each:.2f} ms", f"<= {_MILLISECONDS:g} ms", each <= _MILLISECONDS),
        Figure(part, "a task, of a core", f"{mine:.2f} ms the client, {its:.2f} ms the scheduler"),
    ]
    for name, begin, end in zip(("client", "scheduler"), first, last, strict=True):
        said = f"{begin:,.0f} MB after a tenth, {end:,.0f} MB at the end"
        flat = f"<= {_GROWN_MB:g} MB more"
        figures.append(Figure(part, f"{name}'s memory", said, flat, end - begin <= _GROWN_MB))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--tasks", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--client", nargs=3, metavar=("ADDRESS", "PID", "COUNT"))
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    if given.client:
        client(given.client[0], int(given.client[1]), int(given.client[2]))
        return
    print(machine(), flush=True)
    figures = []
    for count in given.tasks:
        figures += measure(count)
        print(table(figures), flush=True)
    if given.markdown:
        given.markdown.write_text(markdown(figures, "make bench BENCH=scale_tasks"))


if __name__ == "__main__":
    from tests.benchmarks import scale_tasks  # noqa: PLW0406 - so that workers find `nothing` by its name

    scale_tasks.main()
