"""Run by scale.py in a process of its own: one call of the slide stage with stand-in work; prints its cost as JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

from wsi_prep.compute.cluster.options import ClusterOptions
from wsi_prep.format.records import TILE_SCHEMA
from wsi_prep.output.catalog import Catalog
from wsi_prep.run import call as run_module
from wsi_prep.run.call import run_shards
from wsi_prep.run.request import Nobody, RunRequest
from wsi_prep.run.row import blank_row
from wsi_prep.run.task import SlideTask


class StandIn:
    """In place of prepare_slide: the row and tiles of a slide that nobody looked at."""

    def __init__(self, tiles: int) -> None:
        self._tiles = tiles

    def __call__(self, task: SlideTask) -> dict[str, Any]:
        began = time.perf_counter()
        number = np.arange(self._tiles)
        slide_id = task.source.slide_id
        values = {"slide_id": np.full(self._tiles, slide_id), "magnification": np.full(self._tiles, "20x")}
        values |= {"shard": np.full(self._tiles, f"stores/{slide_id}.zarr/20x/c.0.0.0.0"), "index": number}
        plain = {f.name: values.get(f.name, number * 7919 % 100_003) for f in TILE_SCHEMA if f.name != "array"}
        columns = {**plain, "array": np.full(self._tiles, f"stores/{slide_id}.zarr/20x")}
        rows = pa.table([pa.array(columns[f.name]).cast(f.type) for f in TILE_SCHEMA], schema=TILE_SCHEMA)
        row = blank_row(task)
        row.update(status="ok", tiles_20x=self._tiles, fingerprint="0" * 32, stain="HE", width=1, height=1)
        Catalog(Path(task.out)).commit(row, rows)
        row["seconds"] = time.perf_counter() - began
        return row


class Clerk(Nobody):
    """Watches the run: when it began and ended, what it held, and how many files lay in the catalog."""

    def __init__(self, out: Path, scheduler: int) -> None:
        self._slides, self._scheduler = out / "catalog/slides", scheduler
        self.files = self.done = 0
        self.memory: list[tuple[float, float]] = []

    def started(self, todo: int, done_before: int, dashboard: str) -> None:
        self.began, self._cores_began = time.perf_counter(), self._cores()
        self._look()

    def finished(self, row: dict[str, Any]) -> None:
        self.done += 1
        self.ended = time.perf_counter()
        if self.done % 500 == 0:
            self._look()

    def noted(self, line: str) -> None:
        print(line)

    def _cores(self) -> NDArray[np.float64]:
        return np.array([sum(psutil.Process(number).cpu_times()[:2]) for number in (os.getpid(), self._scheduler)])

    def _look(self) -> None:
        self.cores = self._cores() - self._cores_began
        self.memory.append((resident(os.getpid()), resident(self._scheduler)))
        self.files = max(self.files, len(os.listdir(self._slides)))  # noqa: PTH208 - names alone, and fast


def resident(process: int) -> float:
    """MB that a process holds."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:", 1)[1].split()[0]) / 1000


def main() -> None:
    folder, address, scheduler, tiles = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    run_module.prepare_slide = StandIn(tiles)  # type: ignore[assignment]
    clerk = Clerk(folder / "out", scheduler)
    began = time.perf_counter()
    request = RunRequest(str(folder / "slides"), folder / "out", cluster=ClusterOptions(scheduler=address))
    summary = run_shards(request, clerk)
    tables = {name: ds.dataset(folder / "out/catalog" / name, format="parquet") for name in ("slides", "tiles")}
    found = {
        "before": clerk.began - began,
        "work": clerk.ended - clerk.began,
        "after": time.perf_counter() - clerk.ended,
        "cores": clerk.cores.tolist(),
        "worker_seconds": summary.worker_seconds,
        "client": (clerk.memory[0][0], resident(os.getpid())),
        "scheduler": (clerk.memory[0][1], clerk.memory[-1][1]),
        "files": clerk.files,
        "rows": tables["slides"].count_rows(),
        "tiles": tables["tiles"].count_rows(),
        "parts": len(tables["slides"].files),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    from tests.benchmarks import scale_client  # noqa: PLW0406 - so that workers find StandIn by its name

    scale_client.main()
