"""Run by scale.py: CHECK=1 on very many slides behind a slow file system, whose every answer takes so long.

The file system is FUSE's, of `tests.support.fuse_server`: names and attributes that were seen stay known for 3 s, as on
NFS. The slides are links to few copies of a sample slide.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from tests.benchmarks.measure import Figure
from tests.benchmarks.scale_known import measured
from tests.support.fuse_mount import HarmfulDisk, harmful_disk
from tests.support.paths import ROOT

MILLISECONDS = (10, 20)
_PER_FOLDER, _LINKS, _SECONDS = 1_000, 30_000, 60.0
_CALLS = ("lookup", "getattr", "open", "read", "flush", "release", "opendir", "readdir", "access")


def measure(folder: Path, slides: int) -> list[Figure]:
    """Seconds until CHECK=1 has ended, for each of MILLISECONDS an answer."""
    figures = []
    with harmful_disk(folder / "far", remembered=3) as disk:
        _make(disk, slides)
        for wait in MILLISECONDS:
            disk.does(*({"call": call, "seconds": wait / 1000} for call in _CALLS))
            words = ["--slides", str(disk.path / "slides"), "--out", str(folder / "out"), "--check"]
            seconds, cores, _, code, _ = measured([sys.executable, "-m", "pipelines.shards", *words])
            assert code in (0, 3), code
            asked = sum(disk.does())
            value = f"{seconds:.1f} s, {cores:.1f} s of a core, {asked:,} requests"
            part = f"{slides:,} slides, {wait} ms a request"
            figures.append(Figure(part, "CHECK=1", value, f"<= {_SECONDS:g} s", seconds <= _SECONDS))
    return figures


def _make(disk: HarmfulDisk, slides: int) -> None:
    place, first = disk.behind / "slides", None
    for number in range(slides):
        path = place / f"{number // _PER_FOLDER:04d}" / f"case-{number:07d}.svs"
        path.parent.mkdir(parents=True, exist_ok=True)
        if first is None or number % _LINKS == 0:
            first = path
            shutil.copyfile(ROOT / "sample_slides/he_40x.svs", path)
        else:
            os.link(first, path)
