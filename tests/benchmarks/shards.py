"""`make bench BENCH=shards`: a slide on one worker, against the JPEG work alone and against a tile-by-tile loop."""

from __future__ import annotations

import argparse
import cProfile
import itertools
import multiprocessing
import os
import pstats
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import imagecodecs
import numpy as np
import pyarrow.parquet as pq
import tifffile

from sample_slides.make import CMU, make_missing
from tests.benchmarks.measure import Figure, compare, machine, markdown, memory, on_cores, table
from tests.benchmarks.mosaics import LAYOUTS, make_mosaic
from tests.benchmarks.peers import peers
from wsi_prep.format.jpeg import JpegSettings, decode_tile, encode_tile
from wsi_prep.format.magnifications import MAGNIFICATIONS
from wsi_prep.run.slide import prepare_slide
from wsi_prep.run.task import PrepareSettings, SlideTask
from wsi_prep.slides.find.manifest import EMPTY_ROW
from wsi_prep.slides.find.sources import find_slides
from wsi_prep.tiles import writer as tile_writer
from wsi_prep.tiles.plan import PlanSettings

_TARGETS = {
    "svs": 0.85,
    "svs, dense": 0.85,
    "generic": 0.85,
    "svs, 0.2281": 0.6,
    "generic, 0.2281": 0.6,
    "svs, JPEG 2000": 0.8,
}
_SAMPLE = 300
_NAMES = tuple(m.name for m in MAGNIFICATIONS)
_STAGES = {
    "decode": ("_decode_jpeg", "decode_planes", "jpeg2k_decode"),
    "encode": ("encode_tile", "encode_planes"),
    "measure": ("measure",),
    "halve or resample": ("reduced", "reduce_by", "area_resample", "resample_planes"),
    "tissue, stain, plan, overlay": (
        *("read_thumbnail", "check_bright_field", "of", "detect_tissue", "classify_stain", "tissue_geojson"),
        *("plan_tiles", "draw_overlay"),
    ),
    "store": ("append", "close"),
}


def main() -> None:
    """Measure every layout, print the figures, and write them as Markdown if asked."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--shards", help="not used")
    parser.add_argument("--only", nargs="+", choices=LAYOUTS, default=list(LAYOUTS), help="layouts")
    parser.add_argument("--side", type=int, default=30_000, help="px a side of the slides (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small and once: does it run?")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    given = parser.parse_args()
    print(machine(), flush=True)
    make_missing(Path("sample_slides"), [CMU])
    side, repeats = (6_000, 1) if given.quick else (given.side, 5)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="shards-") as folder, on_cores(0):
        for name in given.only:
            slide = Path(folder) / "slide.svs"
            make_mosaic(slide, Path("sample_slides") / CMU, LAYOUTS[name], side)
            figures += (of_layout := _measure(name, slide, Path(folder), repeats))
            print(table(of_layout), flush=True)
            slide.unlink()
    if given.markdown:
        given.markdown.write_text(markdown(figures, "make bench BENCH=shards"))


def _measure(name: str, slide: Path, folder: Path, repeats: int) -> list[Figure]:
    outs = (folder / f"out-{number}" for number in itertools.count())  # fresh ones: taking an old store away costs time
    out = next(outs)
    tiles = prepare(slide, out)
    rows = pq.read_table(out / "catalog" / "tiles").to_pylist()
    limit, whole = "JPEG work alone", "the whole path"
    work = _JpegWork(slide, out, rows)
    rates = compare(name, {limit: work.do, whole: lambda: prepare(slide, next(outs))}, repeats)
    megabytes = peak_megabytes(slide, next(outs))
    size = sum(row["nbytes"] for row in rows) / 1e6
    figures = [
        *rates.figures(),
        rates.ratio(whole, limit, _TARGETS[name]),
        Figure(name, "written", f"{tiles:,} tiles, {size:,.0f} MB"),
        Figure(name, "peak memory", f"{megabytes:,.0f} MB", "<= 400 MB", megabytes <= 400),
        Figure(name, "where the time goes", _breakdown(slide, next(outs))),
        *_against_peers(name, slide, folder, rows, rates.median(whole), 5),
        *_one_magnification(name, slide, folder, rows),
    ]
    for used in (*folder.glob("out-*"), *folder.glob("one-*")):
        shutil.rmtree(used)
    return figures


def _against_peers(
    part: str, slide: Path, folder: Path, rows: list[dict[str, Any]], ours: float, target: float
) -> list[Figure]:
    rates = compare(part, peers(slide, rows, folder), 1)
    best = max(rates.all, key=rates.median)
    ratio = ours / rates.median(best)
    return [*rates.figures(), Figure(part, f"ours / {best}", f"{ratio:.1f}", f">= {target:g}", ratio >= target)]


def _one_magnification(name: str, slide: Path, folder: Path, rows: list[dict[str, Any]]) -> list[Figure]:
    """The finest alone, against the same peers."""
    finest = max((row["magnification"] for row in rows), key=lambda m: float(m.rstrip("x")))
    part, outs = f"{name}, {finest} alone", (folder / f"one-{number}" for number in itertools.count())
    ours = compare(part, {"the whole path": lambda: prepare(slide, next(outs), (finest,))}, 3)
    of_finest = [row for row in rows if row["magnification"] == finest]
    return [*ours.figures(), *_against_peers(part, slide, folder, of_finest, ours.median("the whole path"), 2)]


def prepare(slide: Path, out: Path, magnifications: tuple[str, ...] = _NAMES) -> int:
    """The slide as a worker makes it; returns its tiles."""
    for kind in ("slides", "tiles"):
        (out / "catalog" / kind).mkdir(parents=True, exist_ok=True)
    (out / ".lock").write_text("bench")
    (source,) = find_slides(str(slide))
    settings = PrepareSettings(plan=PlanSettings(magnifications))
    row = prepare_slide(SlideTask(source, EMPTY_ROW, None, settings, str(out), "bench"))
    if row["status"] != "ok":
        raise RuntimeError(f"{row['status']}: {row['error']}")
    return sum(row[f"tiles_{name}"] for name in _NAMES)


def peak_megabytes(slide: Path, out: Path) -> float:
    """MB at most, of a new process that makes this slide alone."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return float(pool.apply(_peak, (slide, out)))


def _peak(slide: Path, out: Path) -> float:
    prepare(slide, out)
    return memory()["peak"]


class _JpegWork:
    """Each source tile that a kept tile touches decoded once, each kept tile encoded once; nothing else."""

    def __init__(self, slide: Path, out: Path, rows: list[dict[str, Any]]) -> None:
        with tifffile.TiffFile(slide) as tiff:
            self._page: Any = tiff.pages[0]
            self._tables = self._page.jpegtables
        page = self._page
        needed = np.zeros((-(-page.imagelength // page.tilelength), -(-page.imagewidth // page.tilewidth)), bool)
        for row in rows:
            last_x, last_y = row["x0"] + row["span0"] - 1e-6, row["y0"] + row["span0"] - 1e-6
            needed[
                row["y0"] // page.tilelength : int(last_y) // page.tilelength + 1,
                row["x0"] // page.tilewidth : int(last_x) // page.tilewidth + 1,
            ] = True
        self._needed = np.flatnonzero(needed).tolist()
        self._file = os.open(slide, os.O_RDONLY)
        self._count = len(rows)
        self._tiles = []
        for row in rows[:: max(1, len(rows) // _SAMPLE)]:
            with (out / row["shard"]).open("rb") as shard:
                shard.seek(row["offset"])
                self._tiles.append(decode_tile(shard.read(row["nbytes"])))

    def do(self) -> int:
        """All of it; returns how many tiles that makes."""
        page = self._page
        stored = "RGB" if page.photometric == 2 else "YCBCR"
        for index in self._needed:
            data = os.pread(self._file, page.databytecounts[index], page.dataoffsets[index])
            if page.compression == 7:
                imagecodecs.jpeg8_decode(data, tables=self._tables, colorspace=stored, outcolorspace="RGB")
            else:
                imagecodecs.jpeg2k_decode(data)
        settings = JpegSettings()
        for number in range(self._count):
            encode_tile(self._tiles[number % len(self._tiles)], settings)
        return self._count


def _as_asked(items: Iterator[Any]) -> Iterator[Any]:
    yield from items


def _breakdown(slide: Path, out: Path) -> str:
    """Shares of one run by stage, each with all that it calls; the profiler itself slows what calls most."""
    profile = cProfile.Profile()
    with mock.patch.object(tile_writer, "prefetch", _as_asked):  # it sees one thread only
        profile.enable()
        prepare(slide, out)
        profile.disable()
    spent: dict[str, float] = defaultdict(float)
    stats: dict[Any, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    total = max(entry[3] for entry in stats.values())
    for (file, _, function), (_, _, _, cumulative, callers) in stats.items():
        for stage, functions in _STAGES.items():
            if function in functions and ("wsi_prep" in file or "imagecodecs" in file):
                inside = sum(c[3] for (f, _, caller), c in callers.items() if caller in functions and "wsi_prep" in f)
                spent[stage] += cumulative - inside
    rest = total - sum(spent.values())
    return ", ".join(f"{stage} {share / total:.0%}" for stage, share in [*spent.items(), ("the rest", rest)])


if __name__ == "__main__":
    main()
