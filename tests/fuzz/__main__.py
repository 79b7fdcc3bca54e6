"""Slides broken in every way, through the same code as `make shards`: python -m tests.fuzz --seconds 600."""

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.corpus import make_corpus
from tests.fuzz.harness import Outcome, run_case, warm_up
from tests.fuzz.honest.run import run_honest
from tests.fuzz.lies import LARGE, break_slide

_REPEATED_S = 10


def main(arguments: list[str] | None = None) -> int:
    """Run cases until the time is up; returns 0, or 3 where one broke a rule."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--seconds", type=float, default=600, metavar="S", help="how long to go on (default: %(default)g)")
    add("--seed", type=int, default=0, metavar="N", help="number of the first case (default: %(default)s)")
    add("--cases", type=int, default=10**9, metavar="N", help="most cases")
    add("--made-only", action="store_true", help="break only slides that are made here, not real ones")
    add("--limit-seconds", type=float, default=30, metavar="S", help="time limit of a slide (default: %(default)g)")
    add("--limit-mb", type=float, default=1200, metavar="MB", help="memory of a slide (default: %(default)g)")
    add("--keep", type=Path, default=Path("fuzz-found"), metavar="FOLDER", help="where slides that broke a rule go")
    add(
        "--class",
        dest="kind",
        choices=("broken", "honest"),
        default="broken",
        help="slides that are broken, or honest "
        "ones that mislead, which are compared with what was painted (default: %(default)s)",
    )
    add("--plain", action="store_true", help="of honest slides: those that do not mislead")
    add(
        "--bases", type=int, default=3, metavar="N", help="of honest slides: how many pictures they are made of, 1 to 3"
    )
    add("--verbose", action="store_true", help="of honest slides: name each")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        warm_up()
        return (run_honest if options.kind == "honest" else _run)(options, Path(folder))


def _run(options: argparse.Namespace, folder: Path) -> int:
    corpus = make_corpus(folder / "corpus", real=not options.made_only)
    for number, path in enumerate([] if options.cases == 1 else corpus):  # each must be sound before it is broken
        sound = run_case(path, folder / "out", options.limit_seconds * 4, options.limit_mb)
        told = f"{' '.join(sound.statuses)} {sound.seconds:.1f} s, {sound.peak_mb:.0f} MB"
        print(f"sound {number:2d}  {path.parent.name}: {told}", flush=True)
        if sound.faults:
            print(f"a sound slide breaks a rule: {sound.faults}", file=sys.stderr)
    print(f"first seed {options.seed}, {len(corpus)} slides", flush=True)
    counts, found, died = Counter[str](), 0, 0
    ends, seed, worst = time.monotonic() + options.seconds, options.seed, Outcome()
    said = time.monotonic()
    while time.monotonic() < ends and seed < options.seed + options.cases:
        path, told = break_slide(seed, corpus, folder / "case" / "slide")
        outcome = run_case(path, folder / "case" / "out", options.limit_seconds, options.limit_mb)
        worst.seconds, worst.peak_mb = max(worst.seconds, outcome.seconds), max(worst.peak_mb, outcome.peak_mb)
        for status, kind in zip(outcome.statuses, outcome.kinds, strict=True):
            counts[f"{status} {kind}".strip()] += 1
        if "TimedOut" in outcome.kinds:
            print(f"seed {seed}  {told}: ran into its time limit, as it should, at {outcome.hung_at[:6]}", flush=True)
        if outcome.died:
            died += 1
            print(f"seed {seed}  {told}: its worker died ({outcome.died}), and a run would go on", flush=True)
        if outcome.faults:
            found += 1
            print(f"seed {seed}  {told}: {'; '.join(outcome.faults)}", flush=True)
        if outcome.faults or outcome.died:
            shutil.copytree(path.parent, options.keep / str(seed), dirs_exist_ok=True, ignore=_too_large)
        shutil.rmtree(folder / "case")
        seed += 1
        if time.monotonic() - said > _REPEATED_S and sys.stdout.isatty():
            said = time.monotonic()
            print(f"{seed - options.seed:,} cases, {found} broke a rule, {ends - said:.0f} s left", flush=True)
    for name, count in counts.most_common():
        print(f"{count:6,}  {name}")
    kept = f"; kept in {options.keep}" if found or died else ""
    told = f"{found} broke a rule, {died} workers died{kept}"
    print(f"{seed - options.seed:,} cases (seeds {options.seed} to {seed - 1}), {told}")
    print(f"slowest {worst.seconds:.1f} s, most memory {worst.peak_mb:.0f} MB")
    return 3 if found else 0


def _too_large(folder: str, names: list[str]) -> list[str]:
    """What is not kept: files of holes, which a copy would fill. Their seed makes them again."""
    return [name for name in names if (Path(folder) / name).stat().st_size > LARGE]


if __name__ == "__main__":
    sys.exit(main())
