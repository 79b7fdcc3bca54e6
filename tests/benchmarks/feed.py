"""`make bench BENCH=feed`: how fast the trainer is fed, against limits measured in the same run."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import torch

from tests.benchmarks import cohort, crops, index_scale, local, remote
from tests.benchmarks.measure import Figure, machine, markdown, table


def main() -> None:
    """Run the chosen parts, print their figures, and write them as Markdown if asked."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--shards", default="shards", help="an OUT folder whose JPEG tiles make the cohort")
    parser.add_argument("--only", default="local cores any_mpp tables remote crops scale", help="which parts")
    parser.add_argument("--quick", action="store_true", help="small and once: does it run?")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    print(machine(), flush=True)
    figures = []
    for name in given.only.split():
        with tempfile.TemporaryDirectory(prefix=f"feed-{name}-") as folder:
            figures += _PARTS[name](Path(folder), given.shards, given.quick)
    print(table(figures))
    if given.markdown:
        given.markdown.write_text(markdown(figures, "make bench BENCH=feed"))


def _cohort(folder: Path, shards: str, quick: bool) -> cohort.Cohort:
    return cohort.make(folder, shards, slides=10 if quick else 100, batch=64, steps=4 if quick else 40)


def _local(folder: Path, shards: str, quick: bool) -> list[Figure]:
    return local.run(_cohort(folder, shards, quick), 1 if quick else 5)


def _cores(folder: Path, shards: str, quick: bool) -> list[Figure]:
    return local.run_cores(_cohort(folder, shards, quick), 1 if quick else 5)


def _any_mpp(folder: Path, shards: str, quick: bool) -> list[Figure]:
    return local.run_any_mpp(_cohort(folder, shards, quick), 1 if quick else 5)


def _tables(folder: Path, shards: str, quick: bool) -> list[Figure]:
    return local.run_tables(_cohort(folder, shards, quick), 1 if quick else 5)


def _remote(folder: Path, shards: str, quick: bool) -> list[Figure]:
    return remote.run(_cohort(folder, shards, quick), 1 if quick else 5)


def _crops(folder: Path, shards: str, quick: bool) -> list[Figure]:
    return crops.run(_cohort(folder, shards, quick), 1 if quick else 5)


def _scale(folder: Path, shards: str, quick: bool) -> list[Figure]:
    return index_scale.run(folder, index_scale.Scale(100_000, 50_000, 1) if quick else index_scale.Scale())


_PARTS: dict[str, Callable[[Path, str, bool], list[Figure]]] = {
    "local": _local,
    "cores": _cores,
    "any_mpp": _any_mpp,
    "tables": _tables,
    "remote": _remote,
    "crops": _crops,
    "scale": _scale,
}

if __name__ == "__main__":
    main()
