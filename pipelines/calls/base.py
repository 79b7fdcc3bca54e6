"""What one option says beside its type, and the options that several commands take."""

from __future__ import annotations

import re
import types
import typing
from dataclasses import MISSING, dataclass, fields
from typing import Annotated


@dataclass(frozen=True)
class Option:
    """What is known of an option beside its name, type, default and help, as `Annotated[str, Option(...)]`.

    `example` is shown behind the variable's name by `make help`. `words`: a list's words are no paths, and a text is a
    list of words. With `cohort`, it says something of slides of the user's, so that sample slides cannot be what is
    meant. `local`: a path that is no URL. `make`: the variable's name, where it is another. `formerly`: an option's
    name of before, still understood.
    """

    example: str = ""
    words: bool = False
    cohort: bool = False
    local: bool = False
    may_be_empty: bool = False
    make: str = ""
    formerly: str = ""


@dataclass(frozen=True)
class Declared:
    """One option of a call as it is declared. `kind` is its type, without None where that is its default."""

    name: str
    kind: object
    required: bool
    says: Option

    @property
    def option(self) -> str:
        """As on a command line: --time-limit."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        """As for make: TIME_LIMIT."""
        return self.says.make or self.name.upper()

    @property
    def is_list(self) -> bool:
        """Whether it takes several values."""
        return typing.get_origin(self.kind) is tuple


def command_name(call: type) -> str:
    """As a person types it: FitStainCall is fit-stain."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", call.__name__.removesuffix("Call")).lower()


def declared(call: type) -> list[Declared]:
    """The options of a call, in the order of their declaration."""
    hints = typing.get_type_hints(call, include_extras=True)
    found = []
    for each in fields(call):
        hint, says = hints[each.name], Option()
        if typing.get_origin(hint) is Annotated:
            hint, *more = typing.get_args(hint)
            says = next((one for one in more if isinstance(one, Option)), says)
        if isinstance(hint, types.UnionType):
            (hint,) = (kind for kind in typing.get_args(hint) if kind is not type(None))
        required = each.default is MISSING and each.default_factory is MISSING
        found.append(Declared(each.name, hint, required, says))
    return found


@dataclass(frozen=True, kw_only=True)
class OfShards:
    """Of a command that reads what make shards has made."""

    shards: Annotated[tuple[str, ...], Option('"folder ..."')] = ("shards",)
    """Folders or URLs that hold shards."""


@dataclass(frozen=True, kw_only=True)
class OfTiles:
    """Of a command that reads a part of the tiles."""

    where: Annotated[str | None, Option("\"stain = 'HE'\"", cohort=True)] = None
    """Take only tiles that meet this SQL condition on the catalog's columns, as in "stain = 'HE' and focus > 0.3"."""

    time_limit: Annotated[float, Option("seconds")] = 60.0
    """Most seconds that the condition may take for a part of the catalog."""


@dataclass(frozen=True, kw_only=True)
class OfQuestions:
    """Of a command that asks the catalog in SQL."""

    time_limit: Annotated[float, Option("seconds")] = 600.0
    """Most seconds that the catalog may take to answer."""
