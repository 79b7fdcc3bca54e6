"""Run by scale.py, or by itself: what it costs to come back to an output of millions of slides, a process a question.

`python -m tests.benchmarks.scale_known FOLDER --slides 3100000` makes the files and the output in FOLDER, or takes
those that are there, and measures: seconds on the clock, of a core, and the most memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.benchmarks.scale_rows import KEY, make_catalog, make_slides, patient
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


def measured(command: list[str]) -> tuple[float, float, float, str]:
    """Seconds on the clock, seconds of a core, most MB, and what it printed last."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as child:
        assert child.stdout is not None
        said = child.stdout.read().strip().splitlines()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1000, f"{child.returncode} {said[-1:]}"


def commands(folder: Path, key: Path) -> dict[str, list[str]]:
    """Each question as a command of a process of its own."""
    out, python = str(folder / "out"), [sys.executable, "-m"]
    again = [*python, "tests.benchmarks.scale_known", str(folder), "--resume"]
    found = {
        f"query: {name}": [*python, "pipelines.query", f"--shards={out}", f"--sql={sql}"]
        for name, sql in _QUERIES.items()
    }
    found["status"] = [*python, "pipelines.status", f"--shards={out}"]
    found["audit"] = [*python, "pipelines.audit", f"--shards={out}", f"--to={folder}/audit.html"]
    found["resume"] = again
    found["forget"] = [
        *python,
        "pipelines.forget",
        f"--shards={out}",
        f"--patient={patient(100)}",
        f"--patient-key={key}",
        "--yes",
    ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slides", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--only", nargs="+")
    given = parser.parse_args()
    if given.resume:
        resume(given.folder)
        return
    key = given.folder / "key"
    if given.slides and not given.folder.exists():
        given.folder.mkdir()
        key.write_bytes(KEY)
        began = time.perf_counter()
        make_slides(given.folder / "slides", 0, given.slides)
        print(f"files made in {time.perf_counter() - began:.0f} s", flush=True)
        make_catalog(request_of(given.folder), given.folder / "slides", given.slides)
        print(f"all made in {time.perf_counter() - began:.0f} s", flush=True)
    for name, command in commands(given.folder, key).items():
        if not given.only or any(each in name for each in given.only):
            seconds, cores, memory, said = measured(command)
            print(f"{name:<40}{seconds:8.1f} s {cores:8.1f} s of a core {memory:8,.0f} MB   {said}", flush=True)


if __name__ == "__main__":
    main()
