"""Runs that are disturbed for hours, and whether they end right: python -m tests.soak --hours 1."""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

from tests.soak.crew import Crew
from tests.soak.report import write_report
from tests.soak.run import Options, Outcome, Soak
from tests.soak.store import Store


def main(arguments: list[str] | None = None) -> int:
    """Run a soak; returns 0, or 1 where something was wrong, and keeps the folder then."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--hours", type=float, default=1.0, metavar="H", help="how long (default: %(default)g)")
    add("--seed", type=int, default=0, metavar="N", help="what is done, and when (default: %(default)s)")
    add("--workers", type=int, default=2, metavar="N", help="worker processes (default: %(default)s)")
    add(
        "--slides",
        type=int,
        nargs=2,
        default=(60, 30),
        metavar="N",
        help="in the folder and in the bucket (default: 60 30)",
    )
    add(
        "--round-seconds",
        type=float,
        default=300,
        metavar="S",
        help="of trouble between judgements (default: %(default)g)",
    )
    add("--out", type=Path, default=Path("soak"), metavar="FOLDER", help="a new folder (default: %(default)s)")
    add("--keep", action="store_true", help="keep slides and outputs also where nothing is wrong")
    given = parser.parse_args(arguments)
    folder = given.out.absolute()
    if folder.exists() and any(folder.iterdir()):
        parser.error(f"{folder} is not empty; name a new folder")
    (folder / "tmp").mkdir(parents=True)
    os.environ.update(TMPDIR=str(folder / "tmp"), OMP_NUM_THREADS="1")
    options = Options(given.hours, given.seed, given.workers, tuple(given.slides), given.round_seconds, folder)
    began = time.monotonic()

    def report(outcome: Outcome) -> str:
        return write_report(options, outcome, time.monotonic() - began, folder)

    with Store(given.seed) as store:
        os.environ.update(store.environment)
        crew = Crew(folder / "dask", given.workers)
        try:
            soak = Soak(options, crew, store, report)
            soak.run()
            outcome = soak.told()
        except KeyboardInterrupt:
            print(f"interrupted; all is kept in {folder}", file=sys.stderr)
            return 130
        finally:
            crew.close()
    print(report(outcome))
    if outcome.faults:
        print(f"{len(outcome.faults)} faults; all is kept in {folder}", file=sys.stderr)
        return 1
    if not given.keep:
        for name in ("local", "far", "dask", "tmp"):
            shutil.rmtree(folder / name, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
