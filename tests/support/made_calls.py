"""`make`, called as a person would, with names that a shell or make could trip over."""

import os
import subprocess
from pathlib import Path

from tests.support.paths import ROOT

WORST = 'it\'s & (that)$HOME; touch pwned `touch pwned` $(touch pwned) "#" 100%'

_NO_SET_UP = [word for stamp in ("shards", "train", "test", "bench", "docs") for word in ("-o", f".venv/.{stamp}")]


def make(*words, cwd=ROOT, set_up=False, **environment) -> subprocess.CompletedProcess[str]:
    """One call of make in `cwd`; unless told to, it never sets the environment up, which is the tests' own."""
    surrounding = {
        k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
    }
    surrounding = {k: v for k, v in surrounding.items() if not k.startswith("CALL_")}
    surrounding |= {"PWD": str(cwd), "OMP_NUM_THREADS": "1"} | environment
    call = ["make", *([] if set_up else _NO_SET_UP), *map(str, words)]
    return subprocess.run(call, cwd=cwd, env=surrounding, capture_output=True, text=True, check=False, timeout=300)


def done(*words, **how) -> str:
    """What a call that must go well prints."""
    called = make(*words, **how)
    assert called.returncode == 0, (words, called.stdout[-2000:], called.stderr[-4000:])
    return called.stdout


def refusal(*words, **how) -> str:
    """The one line of a call that must be refused, beside make's own."""
    called = make(*words, **how)
    assert called.returncode == 2, (words, called.stdout[-2000:], called.stderr[-2000:])
    (line,) = [line for line in called.stderr.splitlines() if not line.startswith("make: ")]
    return line


def executed(*folders) -> list[Path]:
    """Files that a word of WORST would have made."""
    return [path for folder in (ROOT, *folders) for path in Path(folder).glob("pwned*")]
