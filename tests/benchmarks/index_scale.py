"""The index at the size of the whole archive: made without tiles, then opened and drawn from in fresh processes."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pretrain.data.parts import CELL, SLIDE, TILE
from tests.benchmarks.measure import Figure

_PART = "scale"
_STAINS, _INSTITUTIONS, _TISSUES = 5, 200, 30
_MEAN_TILES = {"5x": 9, "10x": 31, "20x": 122, "40x": 690}  # on slides that have them; some 645 a slide in all
_HAVE = {"5x": 0.9, "10x": 0.95, "20x": 1.0, "40x": 0.7}
_MPP = {"5x": 2.0, "10x": 1.0, "20x": 0.5, "40x": 0.25}


@dataclass(frozen=True)
class Scale:
    """How much: `per_part` slides a part. The catalog's merge ends a part at 50,000 slides or 4 million tiles."""

    slides: int = 3_100_000
    per_part: int = 50_000
    repeats: int = 5


def run(folder: Path, scale: Scale) -> list[Figure]:
    """Make the index once, probe it `repeats` times in fresh processes, and say the medians."""
    began = time.perf_counter()
    tiles = sum(
        _make_part(folder / f"{number:05d}", number, min(scale.per_part, scale.slides - number * scale.per_part))
        for number in range(-(-scale.slides // scale.per_part))
    )
    parts = len(list(folder.iterdir()))
    print(f"an index of {scale.slides:,} slides and {tiles:,} tiles in {parts} parts made in", end=" ")
    print(f"{time.perf_counter() - began:.0f} s", flush=True)
    return _figures(f"{_PART}, {parts} parts", [_probe(folder) for _ in range(scale.repeats)])


def _make_part(folder: Path, number: int, slides: int) -> int:
    """One part as parts.write_part leaves it, but with tiles that take no room on the disk; returns how many."""
    rng = np.random.default_rng(number)
    folder.mkdir(parents=True)
    rows = np.zeros(slides, SLIDE)
    rows["id_hash"] = rng.integers(0, 1 << 64, slides, dtype=np.uint64)
    rows["split"], rows["by_patient"] = rng.random(slides), 1
    drawn = {
        "stain": np.minimum(rng.geometric(0.6, slides) - 1, _STAINS - 1),
        "institution": (_INSTITUTIONS * rng.random(slides) ** 3).astype(int),
        "tissue": (_TISSUES * rng.random(slides) ** 2).astype(int),
    }
    names = {}
    for level, values in drawn.items():  # numbers are into the part's own sorted names
        found, rows[level] = np.unique(values, return_inverse=True)
        names[level] = [f"{level}{value:03d}" for value in found]
    cells = _cells(rng, slides)
    tiles = int(cells["count"].sum())
    np.lib.format.open_memmap(folder / "tiles.npy", mode="w+", dtype=TILE, shape=(tiles,))
    np.save(folder / "cells.npy", cells)
    np.save(folder / "slides.npy", rows)
    (folder / "names.json").write_text(json.dumps(names))
    ids = [f"archive-{number:05d}-{i:06d}-block-A1-{h:010x}" for i, h in enumerate(rows["id_hash"] >> np.uint64(24))]
    written = pa.table({"slide_id": ids})
    with pa.ipc.new_file(folder / "slide_ids.arrow", written.schema) as file:
        file.write_table(written)
    return tiles


def _cells(rng: np.random.Generator, slides: int) -> NDArray[np.void]:
    """Each slide's magnifications, with as many tiles as real slides have in the mean, and a long tail."""
    there = rng.random((slides, len(_HAVE))) < list(_HAVE.values())
    count = 1 + rng.exponential(np.array(list(_MEAN_TILES.values())) - 1, (slides, len(_HAVE))).astype(np.int64)
    slide, level = np.nonzero(there)
    cells = np.zeros(len(slide), CELL)
    cells["slide"], cells["magnification"], cells["count"] = slide, level, count[slide, level]
    cells["mpp"] = np.array(list(_MPP.values()))[level]
    cells["start"] = np.cumsum(cells["count"], dtype=np.uint64) - cells["count"]
    return cells


def _probe(folder: Path) -> dict[str, float]:
    """What index_probe says of the index in `folder`, read from the disk and not from the page cache."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)  # pages not yet written cannot be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
    command = [sys.executable, "-m", "tests.benchmarks.index_probe", str(folder), repr(time.time())]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _figures(part: str, probes: list[dict[str, float]]) -> list[Figure]:
    at = {name: statistics.median(probe[name] for probe in probes) for name in probes[0]}

    def split(when: str) -> str:
        return f"{at[f'rss {when}']:,.0f} MB ({at[f'anon {when}']:,.0f} own, {at[f'file {when}']:,.0f} of files)"

    draws, imports = at["draws/s"], at["import"]
    largest = max(at["peak"], *(at[f"rss {when}"] for when in ("open", "sampler", "end")))
    return [
        Figure(part, "open the index", f"{at['open']:.2f} s", "<= 10 s", at["open"] <= 10),
        Figure(part, "make the sampler of batches of 4096", f"{at['sampler']:.2f} s"),
        Figure(part, "resident after imports", split("import")),
        Figure(part, "resident after opening", split("open")),
        Figure(part, "resident after making the sampler", split("sampler")),
        Figure(part, "resident after 100 batches", split("end")),
        Figure(part, "resident at its peak", f"{largest:,.0f} MB", "<= 2000 MB", largest <= 2000),
        Figure(part, "draws on one core", f"{draws:,.0f} tiles/s", ">= 100,000/s", draws >= 100_000),
        Figure(
            part,
            "process start to first batch (64 of 4096), addresses resolved",
            f"{at['first']:.2f} s, of which imports {imports:.2f} s",
            "<= 30 s",
            at["first"] <= 30,
        ),
        Figure(part, "addresses on one core, slides not seen before", f"{at['addresses/s']:,.0f} /s"),
        Figure(part, "listing the sampler's strata", f"{at['strata']:.2f} s for {at['number of strata']:,.0f}"),
    ]
