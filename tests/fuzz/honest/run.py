"""Honest files that mislead, one after another, each compared with what was painted."""

import shutil
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.harness import Outcome, Told, prepare, run_case
from tests.fuzz.honest.case import Case
from tests.fuzz.honest.judge import judge
from tests.fuzz.honest.make import make_case
from tests.fuzz.honest.painting import BASES


def run_honest(options, folder: Path) -> int:
    """Cases until the time is up; returns 0, or 3 where one was stored wrong, said what is not so, or was refused."""
    counts, found = Counter[str](), 0
    ends, seed, worst = time.monotonic() + options.seconds, options.seed, Outcome()
    while time.monotonic() < ends and seed < options.seed + options.cases:
        case = make_case(seed, folder / "case/slide", BASES[: options.bases], plain=options.plain)
        outcome = run_one(case, folder / "case/out", options.limit_seconds, options.limit_mb)
        worst.seconds, worst.peak_mb = max(worst.seconds, outcome.seconds), max(worst.peak_mb, outcome.peak_mb)
        counts[" ".join([*outcome.statuses, *filter(None, outcome.kinds)])] += 1
        counts.update({fault.partition(":")[0] for fault in outcome.faults})
        if options.verbose or outcome.faults:
            told = "; ".join(outcome.faults) or " ".join([*outcome.statuses, *outcome.said])
            print(f"seed {seed}  {case.words}: {told}", flush=True)
        if outcome.faults:
            found += 1
            if options.keep:
                shutil.copytree(folder / "case/slide", options.keep / str(seed), dirs_exist_ok=True)
        shutil.rmtree(folder / "case")
        seed += 1
    for name, count in counts.most_common():
        print(f"{count:6,}  {name}")
    print(f"{seed - options.seed:,} honest cases (seeds {options.seed} to {seed - 1}), {found} at fault")
    print(f"slowest {worst.seconds:.1f} s, most memory {worst.peak_mb:.0f} MB")
    return 3 if found else 0


def run_one(case: Case, out: Path, limit_s: float, limit_mb: float) -> Outcome:
    """The case through the code of `make shards` in a process of its own, and what is at fault with the outcome."""

    def work(path: Path, out: Path, limit_s: float, told: Told) -> None:
        rows = prepare(case.given, out, limit_s, told, case.settings)
        if len(rows) != 1:
            told["faults"].append(f"wrong: {len(rows)} slides were found, where one is")
        for row in rows:
            told["faults"] += judge(case, row, out)

    outcome = run_case(case.path, out, limit_s, limit_mb, work)
    if outcome.died:
        outcome.faults.append(f"died: {outcome.died}")
    return outcome
