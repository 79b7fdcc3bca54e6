"""Run by scale.py, or by itself: what it costs to come back to an output of millions of slides, a process a question.

`python -m tests.benchmarks.scale_known FOLDER --slides 3100000` makes the files and the output in FOLDER, or takes
those that are there, and measures: seconds on the clock, of a core, and the most memory.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.measure import Figure, machine, table
from tests.benchmarks.scale_rows import KEY, make_catalog, make_slides, path_of, patient
from tests.support.paths import ROOT
from wsi_prep.curation.verify.catalog import check_catalog_file
from wsi_prep.output.catalog import Catalog
from wsi_prep.run.before import look_before
from wsi_prep.run.call import run_shards
from wsi_prep.run.request import Nobody, RunRequest

NEW = 1_000
_QUERIES = {
    "tiles by institution": "SELECT institution, sum(tiles_20x) AS tiles, count(*) AS slides FROM slides "
    "WHERE stain = 'HE' AND status = 'ok' GROUP BY institution ORDER BY tiles DESC",
    "what was not made": "SELECT status, error_type, count(*) AS slides, min(file) AS one_of_them, any_value(error) AS "
    "reason FROM slides WHERE status <> 'ok' GROUP BY status, error_type ORDER BY slides DESC",
    "slides that are there twice": "SELECT fingerprint, count(*) AS copies, list(slide_id ORDER BY slide_id) AS slides "
    "FROM slides WHERE fingerprint <> '' GROUP BY fingerprint HAVING count(*) > 1 ORDER BY copies DESC",
}


class _Stopped(Exception):
    """The work would begin."""


class _UntilWork(Nobody):
    """Ends the run where its work begins."""

    def started(self, todo: int, done_before: int, dashboard: str) -> None:
        print(json.dumps({"todo": todo, "done": done_before}), flush=True)
        raise _Stopped


def request_of(folder: Path) -> RunRequest:
    """The call whose output is in `folder`."""
    return RunRequest(str(folder / "slides"), str(folder / "out"), patient_key=KEY)


def resume(folder: Path) -> None:
    """The call until its work would begin, or its end where nothing is to do."""
    try:
        summary = run_shards(request_of(folder), _UntilWork())
        print(json.dumps({"todo": summary.found - summary.done_before, "done": summary.done_before}))
    except _Stopped:
        pass


def check(folder: Path) -> None:
    """What CHECK=1 does, but for opening slides, which takes as long as it is given."""
    before = look_before(request_of(folder), seconds=0)
    print(f"{before.found:,} slides, {before.to_do:,} to do")


@dataclass(frozen=True)
class Question:
    """A command of a process of its own, what it may take, and its exit codes where all is well."""

    command: list[str]
    seconds: float | None = None
    megabytes: float | None = None
    codes: tuple[int, ...] = (0,)


def questions(folder: Path) -> dict[str, Question]:
    """What is measured, in this order."""
    out, python = f"--shards={folder / 'out'}", [sys.executable, "-m"]
    itself = [*python, "tests.benchmarks.scale_known", str(folder), "--do"]
    whom = [f"--patient={patient(100)}", f"--patient-key={folder / 'key'}", "--yes"]
    return {
        **{
            f"query: {name}": Question([*python, "pipelines.query", out, f"--sql={sql}"], 5)
            for name, sql in _QUERIES.items()
        },
        "CHECK=1": Question([*itself, "check"], None),
        "resume, nothing to do": Question([*itself, "resume"], 60, 2000),
        f"resume, {NEW:,} slides to do, up to their work": Question([*itself, "resume_more"], 60, 2000),
        "audit": Question([*python, "pipelines.audit", out, f"--to={folder}/audit.html", "--tiles=0"], 300, None, (3,)),
        "verify, the catalog's files": Question([*itself, "verify"]),
        "forget a patient": Question([*python, "pipelines.forget", out, *whom], 60),
    }


def resume_more(folder: Path) -> None:
    """The same with NEW slides more, which are taken away again."""
    count = sum(1 for place in (folder / "slides").iterdir() for _ in place.iterdir())
    make_slides(folder / "slides", count, NEW)
    try:
        resume(folder)
    finally:
        for number in range(count, count + NEW):
            Path(path_of(folder / "slides", number)).unlink()


def verify(folder: Path) -> None:
    """What `make verify` does before it looks at slides' stores, of which there are none here."""
    out = str(folder / "out")
    rows = sum(len(check_catalog_file((out, name)).statuses) for name in Catalog(Path(out)).names())
    print(f"{rows:,} rows")


def measured(command: list[str]) -> tuple[float, float, float, int, str]:
    """Seconds on the clock, seconds of a core, most MB, the exit code, and what it printed last."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT) as child:
        assert child.stdout is not None
        said = child.stdout.read().strip().splitlines()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1000, child.returncode, "".join(said[-1:])


def make(folder: Path, slides: int) -> None:
    """The slides' files and the output, unless they are there."""
    if (folder / "out").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "key").write_bytes(KEY)
    make_slides(folder / "slides", 0, slides)
    make_catalog(request_of(folder), folder / "slides", slides)


def measure(folder: Path, slides: int, only: Sequence[str] = ("",)) -> list[Figure]:
    """A figure a question, each against its limit, which is for the clock of a machine that does nothing else."""
    make(folder, slides)
    figures, part = [], f"{slides:,} slides known"
    for name, asked in questions(folder).items():
        if not any(each in name for each in only):
            continue
        seconds, cores, memory, code, said = measured(asked.command)
        assert code in asked.codes, (name, code, said)
        print(f"{name}: {said}", flush=True)
        limits = f"<= {asked.seconds:g} s" if asked.seconds else ""
        limits += f", {asked.megabytes / 1000:g} GB" if asked.megabytes else ""
        kept = seconds <= (asked.seconds or math.inf) and memory <= (asked.megabytes or math.inf)
        value = f"{seconds:.1f} s, {cores:.1f} s of a core, {memory:,.0f} MB"
        figures.append(Figure(part, name, value, limits, kept if limits else None))
        print(table(figures[-1:]).splitlines()[-1], flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slides", type=int, default=3_100_000)
    parser.add_argument("--do", choices=("resume", "resume_more", "check", "verify"))
    parser.add_argument("--only", nargs="+", default=[""], help="parts of what is measured, by their names")
    given = parser.parse_args()
    if given.do:
        {"resume": resume, "resume_more": resume_more, "check": check, "verify": verify}[given.do](given.folder)
        return
    print(machine(), flush=True)
    print(table(measure(given.folder, given.slides, given.only)))


if __name__ == "__main__":
    main()
