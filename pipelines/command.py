"""What all commands share: the terminal, how a call ends, and exit codes."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TextIO, TypeVar, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipelines.bars import Bar, ctrl_c_as_itself, ctrl_c_held, stop_bars
from pipelines.calls.base import command_name
from pipelines.options import read_call
from pipelines.spoken import in_callers_words
from wsi_prep.errors import BadOption, UsageError
from wsi_prep.slides.urls import without_secrets
from wsi_prep.storage.select import local_folder

C = TypeVar("C")

EXIT_OK, EXIT_WRONG_CALL, EXIT_NOT_ALL, EXIT_INTERRUPTED = 0, 2, 3, 130
"""Of every command: all is done; the call is wrong; it is done, and something was left out, lost or found; Ctrl-C."""

PATIENT_KEY_VARIABLE = "WSI_PREP_PATIENT_KEY"
_LEAST_KEY_BYTES = 16
_OURS = frozenset(
    {"catalog", "stores", "tissue", "overlays", ".staging", ".lock", "call.sh"}
    | {f"{hidden}{name}.json" for hidden in ("", ".") for name in ("run", "forgotten")}
)
"""Names in an output."""


class Terminal:
    """Where a command speaks: `say` what it found on standard output, `warn` of what went wrong on standard error.

    Nothing in a line can steer the terminal. The work goes on where nobody reads it any more.
    """

    def __init__(self, name: str, width: int | None = None) -> None:
        self.name = name
        self.said_elsewhere: Callable[[str], bool] = lambda _: False
        """Whether a line of `warn` needs not be said, because another process of this call has said it."""
        self.out = _console(sys.stdout, width)
        self.err = _console(sys.stderr, stderr=True)

    def say(self, line: str) -> None:
        """One line, not broken."""
        self.out.print(printable(line), markup=False, soft_wrap=True)

    def warn(self, line: str) -> None:
        """One line that begins with the command's name."""
        text = in_callers_words(without_secrets(line), self.name)
        if self.said_elsewhere(text):
            return
        self.err.print(printable(f"{self.name}: {text}"), markup=False, soft_wrap=True)

    def note(self, line: str) -> None:
        """As `say`, of what a message tells the user to do: in the words of who called."""
        self.say(in_callers_words(line, self.name))

    def shown(self) -> bool:
        """Whether all lines were written that somebody could want; a line says why where they were not."""
        error = getattr(self.out.file, "error", None)
        if error is not None:
            self.warn(f"standard output cannot be written ({error.strerror}); some lines are not shown")
        return error is None

    def warn_of(self, lines: Sequence[str], most: int = 20) -> None:
        """So many of these lines, and how many more there are."""
        for line in lines[:most]:
            self.warn(line)
        if len(lines) > most:
            self.warn(f"and {len(lines) - most:,} more")


class _Lasting:
    """A stream that may close before the work is done: from then on, what is written to it is dropped.

    `error` is why, where it is none of a reader who left, as `| head` does.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """All of it, or nothing."""
        with self._or_dropped():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """What was written."""
        with self._or_dropped():
            self._stream.flush()

    @contextlib.contextmanager
    def _or_dropped(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                self.error = error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # what Python still holds for it must not fail at exit
            os.close(nowhere)


def _console(stream: TextIO | None, width: int | None = None, *, stderr: bool = False) -> Console:
    lasting = None if stream is None else cast("IO[str]", _Lasting(stream))
    return Console(file=lasting, stderr=stderr, width=width, highlight=False)


def run_command(
    call: type[C],
    work: Callable[[C, Terminal], int],
    arguments: Iterable[str] | None,
    interrupted: str = "interrupted",
    *,
    width: int | None = None,
) -> int:
    """Do a command's work; returns its exit code, also where it fails: a user's mistake is one line, and code 2."""
    terminal = Terminal(command_name(call), width)
    words = list(sys.argv[1:] if arguments is None else arguments)
    given: C | None = None
    try:
        with ctrl_c_as_itself():
            given = read_call(call, words)
            code = EXIT_OK if given is None else work(given, terminal)
        return code if terminal.shown() or code != EXIT_OK else EXIT_NOT_ALL
    except UsageError as error:
        terminal.warn(str(error))
    except OSError as error:
        where = error.filename
        if where is None and not isinstance(error, (ConnectionError, TimeoutError)):  # of what a library writes
            where = getattr(given, "to", None) or getattr(given, "out", None)
        why = error.strerror or str(error)
        terminal.warn(f"{where} cannot be read or written ({why})" if where else why)
    except KeyboardInterrupt:
        with contextlib.suppress(KeyboardInterrupt), ctrl_c_held():
            stop_bars()
            terminal.warn(interrupted)
        return EXIT_INTERRUPTED
    return EXIT_WRONG_CALL


def printable(text: str) -> str:
    """Text with what could steer a terminal made visible."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


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
        raise BadOption(f"nothing was done: to {what} takes YES=1 where there is no terminal to ask at")
    sys.stderr.write(f"{what}? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


@contextlib.contextmanager
def progress(console: Console, what: str, *numbers: str, **fields: Any) -> Iterator[Callable[..., None]]:
    """A bar, or lines now and then; what it yields is called with (done, of) and the `fields` that changed.

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
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None, **fields)
        yield lambda done, of=None, **changed: bar.update(task, completed=done, total=of, **changed)
