"""SET: single values of a recipe, as somebody types them."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pretrain.train.recipe.recipe import KINDS, SHOWN, Recipe, build, unknown_setting
from wsi_prep.errors import BadOption


def changed(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """The recipe with some values replaced, each given as `name=value` with dots: `schedule.rate=0.002`.

    Raises BadOption for a name that there is not (with the nearest that there is) and a value of another type.
    """
    values = dataclasses.asdict(recipe)
    for change in changes:
        name, found, text = change.partition("=")
        if not found:
            raise BadOption(f"{change!r} sets nothing; write name=value, as in schedule.rate=0.002")
        _set(values, recipe, name.strip(), text.strip())
    made: Recipe = build(Recipe, values, "")
    return made


def shown(value: object) -> str:
    """A value as somebody types it."""
    if not isinstance(value, tuple):
        return str(value)
    return ",".join(":".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in value)


def _set(values: dict[str, Any], record: Any, name: str, text: str) -> None:
    """Replace one value, by its dotted name, in the nested dictionaries of the record."""
    *way, last = name.split(".")
    for step in way:
        record = getattr(record, step, None) if dataclasses.is_dataclass(record) else None
        values = values[step] if record is not None else {}
    if isinstance(record, Mapping) and last in record:
        wanted: Any = float
    elif dataclasses.is_dataclass(record) and last != "name":
        wanted = typing.get_type_hints(type(record)).get(last)
    else:
        wanted = None
    if wanted is None or isinstance(values.get(last), dict):
        raise BadOption(unknown_setting(name))
    values[last] = _parse(name, text, wanted)


def _parse(name: str, text: str, wanted: Any) -> Any:
    """The text as a value of the type; tuples are written with commas, and tuples in them with colons."""
    return _parse_by(name, text, wanted, ",")


def _parse_by(name: str, text: str, wanted: Any, between: str) -> Any:
    if typing.get_origin(wanted) is tuple:
        kinds = typing.get_args(wanted)
        words = [word.strip() for word in text.split(between) if word.strip()]
        if kinds[-1] is Ellipsis:
            return tuple(_parse_by(name, word, kinds[0], ":") for word in words)
        if len(words) != len(kinds):
            named = {",": "commas", ":": "colons"}[between]
            raise BadOption(f"{name} takes {len(kinds)} values with {named} between them, not {text!r}")
        return tuple(_parse_by(name, word, kind, ":") for word, kind in zip(words, kinds, strict=True))
    if wanted is bool:
        if text.lower() not in ("true", "false"):
            raise BadOption(f"{name} is true or false, not {text!r}")
        return text.lower() == "true"
    try:
        return wanted(text)
    except ValueError:
        raise BadOption(f"{name} is {KINDS[wanted]}, not {text[:SHOWN]!r}") from None
