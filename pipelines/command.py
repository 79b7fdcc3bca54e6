"""What all commands share: the terminal, how a call ends, exit codes, and the options that several of them take."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipelines.options import EXIT_WRONG_CALL, Options
from wsi_prep.errors import BadOption, UsageError
from wsi_prep.slides.urls import without_secrets
from wsi_prep.storage.select import local_folder
from wsi_prep.untrusted.sql import CONDITION_SECONDS, QUESTION_SECONDS

EXIT_OK, EXIT_NOT_ALL, EXIT_INTERRUPTED = 0, 3, 130
"""Of every command: all is done; the call is done, and something was left out, lost or found; ended by Ctrl-C."""

PATIENT_KEY_VARIABLE = "WSI_PREP_PATIENT_KEY"
_LEAST_KEY_BYTES = 16
_OURS = frozenset(
    {"catalog", "stores", "tissue", "overlays", ".staging", ".lock"}
    | {f"{hidden}{name}.json" for hidden in ("", ".") for name in ("run", "forgotten")}
)
"""Names in an output."""


class Terminal:
    """Where a command speaks: `say` what it found on standard output, `warn` of what went wrong on standard error.

    Nothing in a line can steer the terminal.
    """

    def __init__(self, name: str, width: int | None = None) -> None:
        self.name = name
        self.out = Console(highlight=False, width=width)
        self.err = Console(stderr=True, highlight=False)

    def say(self, line: str) -> None:
        """One line, not broken."""
        self.out.print(printable(line), markup=False, soft_wrap=True)

    def warn(self, line: str) -> None:
        """One line that begins with the command's name."""
        self.err.print(printable(f"{self.name}: {without_secrets(line)}"), markup=False, soft_wrap=True)

    def warn_of(self, lines: Sequence[str], most: int = 20) -> None:
        """So many of these lines, and how many more there are."""
        for line in lines[:most]:
            self.warn(line)
        if len(lines) > most:
            self.warn(f"and {len(lines) - most:,} more")


def run_command(
    parser: Options,
    work: Callable[[argparse.Namespace, Terminal], int],
    arguments: Iterable[str] | None,
    interrupted: str = "interrupted",
    *,
    name: str = "",
    width: int | None = None,
) -> int:
    """Do a command's work; returns its exit code, also where it fails: a user's mistake is one line, and code 2."""
    options = parser.parse_args(None if arguments is None else list(arguments))
    terminal = Terminal(name or parser.prog.rpartition(".")[2].replace("_", "-"), width)
    try:
        return work(options, terminal)
    except UsageError as error:
        terminal.warn(str(error))
    except OSError as error:
        where = error.filename
        if where is None and not isinstance(error, (ConnectionError, TimeoutError)):  # of what a library writes
            where = getattr(options, "to", None) or getattr(options, "out", None)
        why = error.strerror or str(error)
        terminal.warn(f"{where} cannot be read or written ({why})" if where else why)
    except KeyboardInterrupt:
        terminal.warn(interrupted)
        return EXIT_INTERRUPTED
    return EXIT_WRONG_CALL


def printable(text: str) -> str:
    """Text with what could steer a terminal made visible."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def shards_option(parser: Options, *, several: bool = True) -> None:
    """The option that names shards."""
    told = "folders or URLs that make shards has filled" if several else "a folder or URL that make shards has filled"
    parser.add_argument("--shards", required=True, metavar="OUT", help=told, **({"nargs": "+"} if several else {}))


def where_options(parser: Options, example: str) -> None:
    """WHERE of the trainer's commands, and how long it may take."""
    told = f"a condition on the catalog's columns, as in {example}"
    parser.add_argument("--where", metavar="SQL", help=told)
    time_limit_option(parser, CONDITION_SECONDS, "most that --where may take for a part of the catalog")


def question_time_limit(parser: Options) -> None:
    """How long the catalog may take to answer."""
    time_limit_option(parser, QUESTION_SECONDS, "most that the catalog may take to answer")


def time_limit_option(parser: Options, default: float, what: str) -> None:
    """A number of seconds."""
    told = f"{what}, in seconds (default: %(default)g)"
    parser.add_argument("--time-limit", type=float, default=default, metavar="SECONDS", help=told)


def local_path(text: str) -> Path:
    """The path that an option names, for argparse; a URL would become a folder of that name here."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; name a file or folder")
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text} is a URL; name a file or folder on a disk")
    return Path(text)


def output_named(where: str) -> str:
    """`where` as an absolute path or an object store's URL; BadOption for what is neither."""
    folder = local_folder(where)
    if folder is None:
        return where.rstrip("/")
    if not folder.is_dir():
        raise BadOption(f"SHARDS {where} is no folder; name one that make shards has filled")
    return str(folder)


def require_apart(option: str, to: Path, shards: Sequence[str]) -> None:
    """Raise BadOption where `to` is a file or folder that make shards writes, or would lie in one of these."""
    places = {Path(os.path.realpath(to)), Path(os.path.realpath(to.parent)) / to.name}
    for folder in filter(None, map(local_folder, shards)):
        root = Path(os.path.realpath(folder))
        if any(
            place.is_relative_to(root) and _OURS.intersection(place.relative_to(root).parts[:1]) for place in places
        ):
            raise BadOption(f"{option} {to} lies among what make shards has written to {folder}; name another place")


def read_key(what: str, file: Path | None, variable: str) -> bytes | None:
    """The secret from the file, or from the environment, or None; never written anywhere."""
    where = file or f"${variable}"
    try:
        key = file.read_bytes().strip() if file else os.environ.get(variable, "").encode()
    except OSError as error:
        raise BadOption(f"{what} {file} cannot be read ({error.strerror})") from error
    if file is None and not key:
        return None
    if len(key) < _LEAST_KEY_BYTES:
        raise BadOption(f"{what} {where} has {len(key)} bytes; a secret of at least {_LEAST_KEY_BYTES} is needed")
    return key


def agreed(what: str, yes: bool) -> bool:
    """Whether to go on with what cannot be undone: with `yes`, or as the person at the terminal says.

    `what` is said in the question. Raises BadOption where there is no terminal to ask at.
    """
    if yes:
        return True
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        raise BadOption(f"nothing was done: to {what} takes YES=1 (--yes) where there is no terminal to ask at")
    sys.stderr.write(f"{what}? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


@contextlib.contextmanager
def progress(console: Console, what: str, *numbers: str, **fields: Any) -> Iterator[Callable[..., None]]:
    """A bar, where the output is a terminal; what it yields is called with (done, of) and the `fields` that changed.

    `numbers` are columns over the fields, as in "{task.fields[failed]} failed".
    """
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        *map(TextColumn, numbers),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, **fields)
        yield lambda done, of=None, **changed: bar.update(task, completed=done, total=of, **changed)
