"""What a call of make says: which targets, which variables, and what their values mean."""

from __future__ import annotations

import difflib
import glob
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.targets import ALWAYS, FLAG, PATHS, TARGETS, TEXT, Target

_ON, _OFF = ("1", "yes", "true", "on"), ("0", "no", "false", "off", "")
_GIVEN = re.compile(r"([^:=]+):{0,3}=(.*)", re.DOTALL)


class WrongCall(ValueError):
    """What was typed is not understood; the message is one line for the person who typed it."""


@dataclass(frozen=True)
class Call:
    """One call of make: its goals, the variables on its command line, and the environment it was made in."""

    goals: tuple[str, ...]
    given: Mapping[str, str]
    environment: Mapping[str, str]

    def check(self) -> None:
        """Raise WrongCall where a goal is no target, or a variable of the command line one that no goal takes."""
        for goal in self.goals:
            if goal not in TARGETS:
                raise WrongCall(no_target(goal))
        targets = [TARGETS[goal] for goal in self.goals]
        known = {variable.name for target in targets for variable in target.variables}
        what = f"make {' '.join(self.goals)}"
        for name in self.given:
            if name in known or name in ALWAYS:
                continue
            if not known:
                raise WrongCall(
                    f"{what} takes no variable, so {name} means nothing to it; make help lists who takes which"
                )
            near = nearest(name, known)
            others = f"it takes {', '.join(sorted(known))}; what is for the environment goes before make"
            raise WrongCall(f"{name} is no variable of {what}; {f'did you mean {near}?' if near else others}")

    def said(self, target: Target) -> dict[str, str]:
        """What is said of the target's variables, on the command line or else by the environment.

        Raises WrongCall for one that is said to be nothing, for a flag that is neither on nor off, and for one that
        is needed and not said.
        """
        found: dict[str, str] = {}
        for variable in target.variables:
            text = self.given.get(variable.name, self.environment.get(variable.name))
            if text is None:
                continue
            if variable.kind == FLAG:
                flag(variable.name, text)
            elif not text.strip():
                raise WrongCall(f"{variable.name} is empty; give it a value, or omit it")
            found[variable.name] = text
        for name in target.needs:
            if name not in found:
                raise WrongCall(f"{name}= is missing; make help shows how it is called")
        both = [name for name in ("SHARDS", "SAMPLE") if name in self.given and "OUT" in self.given]
        if target.variable("OUT") and both and target.variable(both[0]) and self.goals == (target.name,):
            raise WrongCall(f"{both[0]} and OUT both name the shards; omit OUT")
        return found

    def heard(self, target: Target) -> list[str]:
        """The target's variables that the environment says, and the command line does not."""
        names = [variable.name for variable in target.variables]
        return [f"{name}={self.environment[name]}" for name in names if name in self.environment.keys() - self.given]


def read_call(environment: Mapping[str, str]) -> Call:
    """The call, as the Makefile passes it on in CALL_GOALS and CALL_GIVEN."""
    goals = tuple(environment.get("CALL_GOALS", "").split())
    return Call(goals or ("help",), parse_overrides(environment.get("CALL_GIVEN", "")), environment)


def parse_overrides(text: str) -> dict[str, str]:
    """Names and values in make's own MAKEOVERRIDES, where blanks and backslashes are escaped and `$` is doubled."""
    found = {}
    for word in re.findall(r"(?:\\.|[^\\ \t])+", text, re.DOTALL):
        match = _GIVEN.fullmatch(re.sub(r"\\(.)|\$\$", lambda m: m[1] or "$", word, flags=re.DOTALL))
        if match:
            found[match[1]] = match[2]
    return found


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is most like this one, in whatever case it was typed."""
    by_case = {each.lower(): each for each in known}
    found = difflib.get_close_matches(word.lower(), sorted(by_case), n=1, cutoff=0.5)
    return by_case[found[0]] if found else None


def no_target(goal: str) -> str:
    """That there is no such target, and the one that may be meant."""
    near = nearest(goal, TARGETS)
    hint = f"did you mean make {near}?" if near else "make help lists them"
    return f"there is no target {goal!r}; {hint}"


def flag(name: str, text: str) -> bool:
    """Whether the flag is on; WrongCall for what is neither on nor off."""
    word = text.strip().lower()
    if word not in _ON + _OFF:
        raise WrongCall(f"{name}={text} is neither on nor off; write {name}=1 or {name}=0")
    return word in _ON


def several(name: str, text: str, *, paths: bool) -> list[str]:
    """The values of a list: one a line, one a line of the file behind `@`, one that is there as a whole, or words.

    With `paths`, a word that is a glob is what it finds. Raises WrongCall where it can be read in two ways, or holds
    nothing.
    """
    if paths and _there(text):
        words = text.split()
        if len(words) > 1 and all(_there(word) for word in words):
            raise WrongCall(
                f"{name} can be one path or {len(words)}, and all exist; list them in a file, one a line: {name}=@file"
            )
        return [text]
    if text.startswith("@") and "\n" not in text:
        values = _lines(name, Path(text[1:]))
    elif "\n" in text:
        values = _not_blank(text)
    else:
        quoted = next((w for w in text.split() if paths and w[0] in "'\"" and not _there(w)), None)
        if quoted is not None:
            raise WrongCall(
                f"{name}: {quoted} begins with a quotation mark, which holds no words together here; write one path a "
                f"line, or list them in a file: {name}=@file"
            )
        values = [each for word in text.split() for each in (_globbed(word) if paths else [word])]
    if not values:
        raise WrongCall(f"{name}={text.strip()} lists nothing")
    return values


def options(target: Target, said: Mapping[str, str]) -> list[str]:
    """The command's options for what is said, and the words of ARGS at the end."""
    words: list[str] = []
    for variable in target.variables:
        text = said.get(variable.name)
        if text is None or not variable.option:
            continue
        if variable.kind == FLAG:
            words += [variable.option] * flag(variable.name, text)
        elif variable.kind == TEXT:
            words.append(f"{variable.option}={text}")
        else:
            values = several(variable.name, text, paths=variable.kind == PATHS)
            words += [f"{variable.option}={value}" for value in values]
    return words + arguments(said)


def arguments(said: Mapping[str, str]) -> list[str]:
    """The words of ARGS, quoted as in a shell."""
    try:
        return shlex.split(said.get("ARGS", ""))
    except ValueError as error:
        raise WrongCall(f"ARGS={said['ARGS']}: {str(error).lower()}") from error


def _there(text: str) -> bool:
    """Whether something is there under this name, or the file or folder in name:folder or file:column is."""
    parts = text.split(":")
    names = {text, ":".join(parts[1:]), ":".join(parts[:-1]), ":".join(parts[1:-1])}
    try:
        return any(Path(name).exists() for name in names if name.strip())
    except (OSError, ValueError):  # a name too long for a file, or no name at all
        return False


def _globbed(word: str) -> Sequence[str]:
    is_glob = glob.has_magic(word) and "://" not in word and not _there(word)
    return (is_glob and sorted(glob.glob(word))) or [word]  # noqa: PTH207 - a pattern may be absolute


def _lines(name: str, file: Path) -> list[str]:
    try:
        return _not_blank(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise WrongCall(f"{name}: the list {file.absolute()} cannot be read: {reason}") from error


def _not_blank(text: str) -> list[str]:
    return [line.removesuffix("\r") for line in text.split("\n") if line.strip()]
