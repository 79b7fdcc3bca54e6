"""Command lines on which nothing is guessed: words to the record of a command's call."""

from __future__ import annotations

import inspect
import itertools
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, TypeVar

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter, UnusedCliTokensError

from pipelines.calls.base import Declared, command_name, declared
from wsi_prep.errors import BadOption

C = TypeVar("C")


def command_line(call: type[C]) -> App:
    """The parser of a command, which returns the call; its help is the docstrings of the call's class and fields."""

    def received(given: C) -> C:
        return given

    received.__annotations__ = {"given": Annotated[call, Parameter(name="*")]}
    if not any(each.required for each in declared(call)):
        received.__defaults__ = (call(),)
    app = App(
        name=command_name(call),
        help=_paragraphs(inspect.getdoc(call) or ""),
        help_format="plaintext",  # help texts hold brackets
        version_flags=[],
        default_parameter=Parameter(negative=(), consume_multiple=1, show_default=_shown),
        result_action="return_value",
    )
    app.default(received)
    return app


def read_call(call: type[C], words: Sequence[str]) -> C | None:
    """The call that the words say, or None where they ask for help, which is shown.

    Each option is written in full and once, with a value that is not empty; a list's option may come several times,
    and its values add up. A text that lists words may be written as several. Raises BadOption for all else.
    """
    options = declared(call)
    words = _one_text(_named_as_today(words, options), options)
    _require_values(words, options)
    try:
        given: C | None = command_line(call)(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        about_words = isinstance(error, (UnusedCliTokensError, MissingArgumentError))
        said = _dashed(words, options) or (about_words and _stray(words, options)) or " ".join(str(error).split())
        raise BadOption(f"{said} --help lists the options.") from error
    if given is not None:
        _require_local(given, options)
    return given


def _shown(default: object) -> str | None:
    """A default as help shows it; nothing for what is off or empty."""
    if isinstance(default, tuple):
        default = " ".join(map(str, default))
    if default is False or default == "":
        return None
    return f"{default:g}" if isinstance(default, float) else str(default)


def _paragraphs(text: str) -> str:
    """A docstring whose paragraphs are lines, for the terminal to break."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _named_as_today(words: Sequence[str], options: Sequence[Declared]) -> list[str]:
    """The same words, options that had another name before by their name of today."""
    names = {each.says.formerly: each.option for each in options if each.says.formerly}
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        found.append(names.get(name, name) + equals + value)
    return found


def _one_text(words: Sequence[str], options: Sequence[Declared]) -> list[str]:
    """The same words, those behind an option that lists them in a text as this one text: --mags "20x 40x"."""
    lists = {each.option for each in options if each.says.words and not each.is_list}
    found: list[str] = []
    option = ""
    for word in words:
        if word.startswith("-") or option not in lists:
            option = word.partition("=")[0]
            found.append(word)
        elif found[-1] == option or not word.strip():
            found.append(word)
        else:
            found[-1] += f" {word}"
    return found


def _dashed(words: Sequence[str], options: Sequence[Declared]) -> str:
    """What to say of a value that begins with a dash and stands by itself, which is taken for an option."""
    known = {each.option: each for each in options}
    for before, word in itertools.pairwise(words):
        each = known.get(before)
        if each is None or each.kind is bool or not word.startswith("-") or word.partition("=")[0] in known:
            continue
        if not word.startswith("--"):
            path = "./" if each.option == "--slides" or "Path" in str(each.kind) else ""
            return f"{word} looks like an option; write {shlex.quote(f'{before}={path}{word}')}."
    return ""


def _stray(words: Sequence[str], options: Sequence[Declared]) -> str:
    """What to say of the first word that no option takes, or an empty text: what may be meant by it."""
    known = {each.option: each for each in options}
    before: Declared | None = None
    value, room = "", 0
    for number, word in enumerate(words):
        name, equals, after = word.partition("=")
        if name in known:
            before, value = known[name], after
            room = 0 if before.kind is bool or equals else len(words) if before.is_list else 1
        elif room:
            value, room = word, room - 1
        elif word != "--" and not word.startswith("--"):
            rest = itertools.takewhile(lambda each: each.partition("=")[0] not in known, words[number:])
            if before is not None and before.kind is not bool:
                whole = shlex.quote(" ".join([value, *rest]))
                return f"{word} is one word too many: quote the value, as in {before.option} {whole}."
            return f"{word} belongs to no option{_meant(word, words, options)}"
    return ""


def _meant(word: str, words: Sequence[str], options: Sequence[Declared]) -> str:
    """A question whether the word is the value of the first option that is missing, one that must be given before."""
    given = {each.partition("=")[0] for each in words}
    free = [each for each in options if each.kind is not bool and each.option not in given]
    likely = next((each for each in free if each.required), free[0] if free else None)
    return f"; did you mean {likely.option} {shlex.quote(word)}?" if likely else "."


def _require_values(words: Sequence[str], options: Sequence[Declared]) -> None:
    names = {each.option for each in options}
    may_be_empty = {each.option for each in options if each.says.may_be_empty}
    for before, word in zip(["", *words], words, strict=False):
        option = before if not word.strip() else word.removesuffix("=")
        empty = not word.strip() or (word.endswith("=") and option in names)
        if empty and option not in may_be_empty:
            raise BadOption(f"{option} is empty; give it a value, or omit it")


def _require_local(given: object, options: Sequence[Declared]) -> None:
    for each in options:
        path = getattr(given, each.name)
        # a path has lost one of the URL's slashes
        if each.says.local and isinstance(path, Path) and (url := re.match(r"([A-Za-z][\w+.-]+:)/(.*)", str(path))):
            raise BadOption(f"{each.option} {url[1]}//{url[2]} is a URL; name a file or folder on a disk")
