"""`make bench BENCH=workers`: two workers, two threads on one slide, a slow file system, a slide ten times as large."""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

from sample_slides.make import CMU, make_missing
from tests.benchmarks.measure import Figure, compare, machine, markdown, on_cores, table
from tests.benchmarks.mosaics import LAYOUTS, make_mosaic
from tests.benchmarks.shards import peak_megabytes, prepare
from wsi_prep.compute.cluster.options import ClusterOptions
from wsi_prep.run.call import run_shards
from wsi_prep.run.request import Nobody, RunRequest

_PARTS = ("latency", "workers", "threads", "tenfold")
_LATENCY_SECONDS = 0.005
_SLIDES = 20
"""So many that the first of each worker, before which it imports and compiles, does not decide."""

_LARGER = 10


class _Watch(Nobody):
    """When the workers began, and when the last slide was through: starting a cluster is left out."""

    def __init__(self) -> None:
        self.began = self.ended = 0.0

    def started(self, *_: Any) -> None:
        self.began = time.perf_counter()

    def finished(self, _: dict[str, Any]) -> None:
        self.ended = time.perf_counter()


def main() -> None:
    """Measure the parts, print the figures, and write them as Markdown if asked."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--shards", help="not used")
    parser.add_argument("--only", nargs="+", choices=_PARTS, default=list(_PARTS), help="parts")
    parser.add_argument("--side", type=int, default=30_000, help="px a side of a slide (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small and once: does it run?")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    given = parser.parse_args()
    print(machine(), flush=True)
    make_missing(Path("sample_slides"), [CMU])
    side, repeats = (6_000, 1) if given.quick else (given.side, 3)
    measure = {"latency": _latency, "workers": _workers, "threads": _threads, "tenfold": _tenfold}
    figures: list[Figure] = []
    for part in given.only:
        with tempfile.TemporaryDirectory(prefix="workers-") as folder:
            figures += measure[part](Path(folder), side, repeats)
    print(table(figures))
    if given.markdown:
        given.markdown.write_text(markdown(figures, "make bench BENCH=workers"))


def _mosaic(slide: Path, side: int) -> Path:
    slide.parent.mkdir(exist_ok=True)
    make_mosaic(slide, Path("sample_slides") / CMU, LAYOUTS["svs"], side)
    return slide


def _latency(folder: Path, side: int, repeats: int) -> list[Figure]:
    """Every range of the file takes 5 ms longer."""
    slide, outs = _mosaic(folder / "slides/slide.svs", side), (folder / str(n) for n in itertools.count())
    read = os.pread
    asked = itertools.count()

    def far(file: int, count: int, offset: int) -> bytes:
        next(asked)
        time.sleep(_LATENCY_SECONDS)
        return read(file, count, offset)

    def slowly() -> int:
        with mock.patch.object(os, "pread", far):
            return prepare(slide, next(outs))

    near, slow = "as it is", "5 ms more a request"
    with on_cores(0):
        rates = compare("one core", {near: lambda: prepare(slide, next(outs)), slow: slowly}, repeats)
    requests = next(asked) // (repeats + 1)
    return [*rates.figures(), rates.ratio(slow, near, 0.7), Figure("one core", "requests a slide", f"{requests:,}")]


def _run(slides: Path, out: Path, workers: int) -> tuple[int, float]:
    """The tiles of a run, and the seconds that its workers had."""
    watch = _Watch()
    summary = run_shards(RunRequest(str(slides), str(out), cluster=ClusterOptions(workers=workers)), watch)
    shutil.rmtree(out)
    assert not summary.failed
    return sum(summary.tiles_made.values()), watch.ended - watch.began


def _rate(slides: Path, out: Path, workers: int, cores: tuple[int, ...]) -> float:
    with on_cores(*cores):
        tiles, seconds = _run(slides, out, workers)
    return tiles / seconds


def _against(part: str, slides: Path, out: Path, names: tuple[str, str], repeats: int, target: float) -> list[Figure]:
    """Tiles/s on one core with one worker, and on two cores with two, in turn; and the ratio of the medians."""
    one, two = [], []
    for _ in range(repeats):
        one.append(_rate(slides, out, 1, (0,)))
        two.append(_rate(slides, out, 2, (0, 1)))
    ratio = sorted(two)[len(two) // 2] / sorted(one)[len(one) // 2]
    shown = [
        Figure(part, name, f"{sorted(r)[len(r) // 2]:,.0f} tiles/s ({min(r):,.0f} to {max(r):,.0f})")
        for name, r in zip(names, (one, two), strict=True)
    ]
    return [*shown, Figure(part, f"{names[1]} / {names[0]}", f"{ratio:.2f}", f">= {target:g}", ratio >= target)]


def _workers(folder: Path, side: int, repeats: int) -> list[Figure]:
    """Several slides."""
    first = _mosaic(folder / "slides/0.svs", side * 2 // 3)
    for number in range(1, _SLIDES):
        shutil.copy(first, first.with_name(f"{number}.svs"))
    names = "one worker, one core", "two workers, two cores"
    return _against(f"{_SLIDES} slides", first.parent, folder / "out", names, repeats, 1.92)


def _threads(folder: Path, side: int, repeats: int) -> list[Figure]:
    """One slide, whose worker has the threads of the other."""
    slide = _mosaic(folder / "slides/slide.svs", side)
    names = "one worker, one core", "one worker of two threads, two cores"
    return _against("one slide", slide.parent, folder / "out", names, repeats, 1.7)


def _tenfold(folder: Path, side: int, _: int) -> list[Figure]:
    peaks = []
    for times in (1, _LARGER):
        slide = _mosaic(folder / "slides/slide.svs", round(side * times**0.5))
        peaks.append(peak_megabytes(slide, folder / f"out-{times}"))
    small, large = peaks
    return [
        Figure("memory", f"peak, {side:,} px a side", f"{small:,.0f} MB", "<= 400 MB", small <= 400),
        Figure("memory", f"peak, {_LARGER} times the area", f"{large:,.0f} MB", "<= 450 MB", large <= 450),
        Figure("memory", "larger / smaller", f"{large / small:.2f}", "<= 1.1", large <= 1.1 * small),
    ]


if __name__ == "__main__":
    main()
