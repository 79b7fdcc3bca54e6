"""What the Makefile calls: `python -m pipelines.make TARGET` checks the whole call of make, then does its target."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path

from pipelines.targets import TARGETS, Target
from pipelines.variables import Call, WrongCall, arguments, nearest, no_target, options, read_call

EXIT_OK, EXIT_WRONG_CALL, EXIT_INTERRUPTED = 0, 2, 130

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "sample_slides"
_AT_ROOT = ("test", "test-fast", "test-long", "check", "docs")
_LEFT_OUT = "not (long or slow or browser or cluster or network)"

_HELP = """
Without SLIDES, make shards takes the sample slides. Without SHARDS, a target takes the folder shards/.
Lists ("a b ..."): words, or one path that is there as it stands, or one a line, or @file with one a line.
Flags (=1): 1, yes, true, on, or 0, no, false, off. forget and REPAIR=1 ask first, or want YES=1.
Relative paths are taken from where you stand, with make -C too. PYTHON and VENV are for every target."""

Commands = list[list[str]]


def main(words: list[str] | None = None) -> int:
    """Do a target; --check only looks at the call. Returns the exit code.

    --no-target says which target may be meant, --requires lists the packages of an extra.
    """
    words = sys.argv[1:] if words is None else words
    if words[0] == "--no-target":
        print(no_target(words[1].split()[0]))
        return EXIT_OK
    if words[0] == "--requires":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        print("\n".join(project["optional-dependencies"][words[1]]))
        return EXIT_OK
    call, name = read_call(os.environ), words[0]
    checking = name == "--check"
    name = call.goals[0] if checking else name
    start, note = standing(os.environ)
    os.chdir(ROOT if name in _AT_ROOT else start)
    try:
        check(call)
        # before the environment is set up, too; a later target may need what an earlier one makes
        commands = plan(call, name) if not checking or (len(call.goals) == 1 and TARGETS[name].module) else []
    except WrongCall as error:
        print(f"make {name}: {_one_line(str(error))}", file=sys.stderr)
        return EXIT_WRONG_CALL
    except ImportError:  # what looks into a catalog may not be set up yet; then this is asked again
        if not checking:
            raise
        return EXIT_OK
    heard = call.heard(TARGETS[name]) if name in TARGETS else []
    if heard:
        note = "; ".join(filter(None, [note, f"from the environment: {' '.join(heard)}"]))
    if note and commands and not checking:
        print(_one_line(f"make {name}: {note}"), file=sys.stderr)
    return EXIT_OK if checking else _run(commands)


def check(call: Call) -> None:
    """Raise WrongCall where any target of the call is not said as it can be done: nothing is begun of half a call."""
    call.check()
    for goal in call.goals:
        options(TARGETS[goal], call.said(TARGETS[goal]))


def plan(call: Call, name: str) -> Commands:
    """The commands that do one target of the call, whose relative paths are of the current folder; or WrongCall."""
    target = TARGETS[name]
    return _PLANS.get(name, _plain)(target, call.said(target))


def standing(environment: Mapping[str, str]) -> tuple[Path, str]:
    """The folder that relative paths are taken from, and words on it where it is not the plain one.

    With `make -C` it is where the user called. That make moved is seen by its flag w, which -s and
    --no-print-directory take away, and which every make that another one calls has; then it is the Makefile's folder.
    """
    here = Path.cwd()
    stood = environment.get("CALL_FROM", "")
    called_by_make = environment.get("MAKELEVEL", "1") != "1"
    if called_by_make or not stood or not Path(stood).is_dir() or Path(stood).samefile(here):
        return here, ""
    flags = environment.get("MAKEFLAGS", "").partition(" -- ")[0]
    letters = "" if flags.startswith((" ", "-")) or "=" in flags.split(" ")[0] else flags.split(" ")[0]
    start = Path(stood) if "w" in letters else here
    plain = not set(letters) & {"w", "s"} and "--no-print-directory" not in flags
    return start, "" if plain else f"relative paths are taken from {start}"


def _plain(target: Target, said: Mapping[str, str]) -> Commands:
    """A command that takes its options, with the folder of shards in OUT where SHARDS does not name them."""
    shards = []
    for name in ("SHARDS", "SAMPLE"):
        variable = target.variable(name)
        if variable is not None and name not in said and "OUT" in said:
            shards = [f"{variable.option}={said['OUT']}"]
    return [_python(target.module, *shards, *options(target, said))]


def _shards(target: Target, said: Mapping[str, str]) -> Commands:
    """Of the slides that are named, or of the sample slides where nothing of a user's is."""
    out = said.get("OUT", "shards")
    if "SLIDES" in said:
        return _plain(target, said)
    _only_samples(target, said, "SLIDES")
    _no_slides_of_others(out)
    return _sample_shards(out, options(target, {name: text for name, text in said.items() if name != "OUT"}))


def _sample_shards(out: str, more: list[str]) -> Commands:
    where = [f"--slides={SAMPLES}", f"--out={out}", f"--manifest={SAMPLES / 'manifest.csv'}"]
    return [_python("pipelines.samples"), _python("pipelines.shards", *where, *more)]


def _only_samples(target: Target, said: Mapping[str, str], name: str) -> None:
    """Refuse the sample slides to a call that says something of slides of the user's."""
    theirs = [each.name for each in target.variables if each.cohort and each.name in said]
    if theirs:
        raise WrongCall(
            f"name {name} too: {theirs[0]} is about slides of yours, and without {name} it would be the sample slides"
        )


def _no_slides_of_others(out: str) -> None:
    """Refuse the sample slides to an output that holds others."""
    if "://" in out:
        raise WrongCall(f"name SLIDES: sample slides are not put into an object store (OUT={out})")
    if not any((Path(out) / "catalog" / "slides").glob("*.parquet")):
        return
    from sample_slides.make import CMU, SYNTHETIC  # noqa: PLC0415
    from wsi_prep.errors import UsageError  # noqa: PLC0415 - the environment may not be there yet
    from wsi_prep.output.query import open_catalog  # noqa: PLC0415

    samples = {*SYNTHETIC, CMU}
    try:
        with open_catalog([out]) as catalog:
            others = {
                row["file"] for row in catalog.ask("SELECT DISTINCT file FROM slides").read_all().to_pylist()
            } - samples
    except UsageError as error:
        raise WrongCall(f"name SLIDES: the sample slides are not put into {Path(out).absolute()}: {error}") from error
    if others:
        raise WrongCall(
            f"name SLIDES: {Path(out).absolute()} holds other slides than the samples, {len(others)} of them"
        )


def _train(target: Target, said: Mapping[str, str]) -> Commands:
    """Training, on the sample slides where no shards are named and none are there."""
    before: Commands = []
    usual = "virchow2g_mini" if target.name == "distill" else "debug"
    run = Path(said.get("RUN") or Path("runs") / said.get("RECIPE", usual))
    named = "SHARDS" in said or "OUT" in said or (run / "run.json").exists()
    if not named and not Path("shards/run.json").exists():
        _only_samples(target, said, "SHARDS")
        before = _sample_shards("shards", [])
    return [*before, *_plain(target, said)]


def _bench(target: Target, said: Mapping[str, str]) -> Commands:
    """One of the benchmarks, on shards of the sample slides if none are there."""
    name, known = said.get("BENCH", "feed"), {path.stem for path in (ROOT / "tests" / "benchmarks").glob("[a-z]*.py")}
    if name not in known:
        raise WrongCall(
            f"BENCH={name} is no benchmark; did you mean {nearest(name, known) or ', '.join(sorted(known))}?"
        )
    out = Path(said.get("OUT", "shards"))
    if "OUT" in said and not out.exists():
        raise WrongCall(f"OUT={out} does not exist; make shards OUT={out} makes it of the sample slides")
    before = [] if out.exists() else _sample_shards(str(out), [])
    return [*before, _python(f"{target.module}.{name}", f"--shards={out}", *options(target, said))]


def _check(_target: Target, _said: Mapping[str, str]) -> Commands:
    typos = [str(Path(sys.executable).with_name("typos"))]
    return [typos, _python("ruff", "check", "."), _python("ruff", "format", "--check", "."), _python("mypy")]


def _test(target: Target, said: Mapping[str, str]) -> Commands:
    # two runs of neighbours: what a module's tests share is made once, or twice for the one that is parted
    chosen = {"test": "not long", "test-fast": _LEFT_OUT, "test-long": "long"}[target.name]
    few = ["--hypothesis-profile=quick"] if target.name == "test-fast" else []
    return [_python("pytest", "-n", "2", "--dist", "worksteal", "-m", chosen, *few, *arguments(said))]


def _docs(_target: Target, said: Mapping[str, str]) -> Commands:
    # not --quiet: what it hides, --strict does not count
    return [_python("mkdocs", "build", "--strict", *arguments(said))]


def _fuzz(target: Target, said: Mapping[str, str]) -> Commands:
    return _plain(target, {"SECONDS": "600"} | dict(said))


def _evaluate_tissue(target: Target, said: Mapping[str, str]) -> Commands:
    """Outlines against masks, then ink, on the same pictures."""
    judged = _plain(target, said)  # which asks for PICTURES
    return [*judged, _python("tests.benchmarks.ink", f"--pictures={said['PICTURES']}")]


def _nothing(_target: Target, _said: Mapping[str, str]) -> Commands:
    return []


def _help(_target: Target, _said: Mapping[str, str]) -> Commands:
    width, column = min(shutil.get_terminal_size((120, 0)).columns, 140), max(map(len, TARGETS)) + 1
    for target in TARGETS.values():
        names = [each for each in target.variables if each.name != "OUT" or target.name in ("shards", "bench", "soak")]
        shown = " ".join(variable.shown().replace(" ", "\0") for variable in names)
        text = f"{target.about}: {shown}" if shown else target.about
        lines = textwrap.wrap(text, width - column, break_long_words=False, break_on_hyphens=False)
        print(f"{target.name:<{column}}" + f"\n{'':{column}}".join(lines).replace("\0", " "))
    print(_HELP)
    return []


_PLANS: dict[str, Callable[[Target, Mapping[str, str]], Commands]] = {
    "help": _help,
    "shards": _shards,
    "pretrain": _train,
    "distill": _train,
    "bench": _bench,
    "check": _check,
    "docs": _docs,
    "test": _test,
    "test-fast": _test,
    "test-long": _test,
    "fuzz": _fuzz,
    "evaluate-tissue": _evaluate_tissue,
    "clean": _nothing,
}


def _python(module: str, *words: str) -> list[str]:
    return [sys.executable, "-m", module, *words]


def _run(commands: Commands) -> int:
    """Run them one after the other, the last in place of this process, until one fails."""
    sys.stdout.flush()
    environment = dict(os.environ)
    if Path.cwd() != ROOT:  # this code, and none that lies where the user stands
        environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
        environment["PYTHONSAFEPATH"] = "1"
    try:
        for command in commands[:-1]:
            code = subprocess.run(command, env=environment, check=False).returncode  # noqa: S603 - a list, no shell
            if code:
                return code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    for command in commands[-1:]:
        os.execve(command[0], command, environment)  # noqa: S606
    return EXIT_OK


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # make help | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_OK)
