"""Messages in the words of who called: variables for make, as they are written, and options for `mixmag`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextvars import ContextVar

from pipelines.targets import COMMANDS, FLAG, Target, Variable

_BY_MIXMAG: ContextVar[bool] = ContextVar("_BY_MIXMAG", default=False)

_FIRST = ("OUT", "SLIDES", "MANIFEST", "MASKS", "SHARDS")
"""Variables that are known by their bare names in the messages of every command."""

_WORDS = frozenset({"PNG", "SQL", "LIKE", "SET", "ROWS", "LIMIT"})
"""Variables whose bare names are words of messages, too."""

_NAME = re.compile(r"(?<![\w/.\-$'\"])([A-Z][A-Z0-9_]+)(?:=(1\b)?(?=(['\"$@\w(/.]?))|(?![\w/\-]|\.\w))")
_COMMAND = re.compile(rf"\bmake (?={'|'.join(COMMANDS)})")


@contextlib.contextmanager
def by_mixmag() -> Iterator[None]:
    """Within this, `in_callers_words` speaks of options."""
    token = _BY_MIXMAG.set(True)
    try:
        yield
    finally:
        _BY_MIXMAG.reset(token)


def in_callers_words(text: str, command: str) -> str:
    """A message of a command as its caller types it: for `mixmag`, REDO=1 is --redo, and "make shards" mixmag's."""
    if not _BY_MIXMAG.get() or command not in COMMANDS:
        return text
    own = _variables(COMMANDS[command])

    def option(found: re.Match[str]) -> str:
        name, one, following = found[1], found[2], found[3]
        known = own.get(name) or _ALL.get(name)
        bare = following is None
        if known is None or (bare and not _is_bare(name, own)):
            return found[0]
        if known.kind == FLAG:
            return known.option
        return known.option + (f" {one or ''}" if one or following else "")

    return _COMMAND.sub("mixmag ", _NAME.sub(option, text))


def said_again(module: str, words: list[str]) -> list[str]:
    """What to write behind `python -m`, so that another process runs this command and speaks in its caller's words."""
    if not _BY_MIXMAG.get():
        return [module, *words]
    name = next(target.name for target in COMMANDS.values() if target.module == module)
    return ["pipelines.mixmag", name, *words]


def _is_bare(name: str, own: dict[str, Variable]) -> bool:
    """Whether the name alone, in capitals, is the variable: a question in SQL has such words too."""
    if name in _WORDS or (name == "TO" and "SQL" in own):
        return False
    return name in own or name in _FIRST or "_" in name


def _variables(target: Target) -> dict[str, Variable]:
    """A command's variables by name; OUT is the shards where the command has no other."""
    found = {each.name: each for each in target.variables if each.option}
    shards = found.get("SHARDS") or found.get("SAMPLE")
    return found if shards is None else {"OUT": shards, **found}


_ALL = {name: each for target in reversed(COMMANDS.values()) for name, each in _variables(target).items()}
_ALL["OUT"] = next(each for each in COMMANDS["shards"].variables if each.name == "OUT")
