"""SET: single values of a recipe, as somebody types them."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pretrain.train.recipe.recipe import KINDS, SHOWN, Recipe, build, unknown_setting
from pretrain.train.recipe.stages import NONE, PREFIX, Stage, place_of, require_may_change
from wsi_prep.errors import BadOption


def changed(recipe: Recipe, changes: Sequence[str]) -> Recipe:
    """The recipe with some values replaced, each given as `name=value` with dots: `schedule.rate=0.002`.

    `stages.800.schedule.rate=0.001` replaces a value from step 800 on, `stages.800=none` takes that stage out.
    Raises BadOption for a name that there is not (with the nearest that there is) and a value of another type.
    """
    pairs = [_pair(change) for change in changes]
    staged = [(name, text) for name, text in pairs if name.startswith(PREFIX)]
    stages = {stage.start: stage.values for stage in recipe.stages}
    bare = _replaced(replace(recipe, stages=()), [pair for pair in pairs if pair not in staged])
    for name, text in staged:
        _set_stage(stages, bare, name, text)
    made = replace(bare, stages=tuple(_stage(start, values) for start, values in sorted(stages.items())))
    for start in sorted(stages):
        at_step(made, start)
    return made


def at_step(recipe: Recipe, step: int) -> Recipe:
    """What the recipe is at a step, with no stages. Raises BadOption where values do not fit together from then on."""
    made = replace(recipe, stages=())
    for stage in recipe.stages:
        if stage.start <= step:
            try:
                made = _replaced(made, list(stage.values.items()))
            except BadOption as error:
                raise BadOption(f"from step {stage.start:,} on: {error}") from None
    return made


def _pair(change: str) -> tuple[str, str]:
    name, found, text = change.partition("=")
    if not found:
        raise BadOption(f"{change!r} sets nothing; write name=value, as in schedule.rate=0.002")
    return name.strip(), text.strip()


def _replaced(recipe: Recipe, pairs: Sequence[tuple[str, str]]) -> Recipe:
    values = dataclasses.asdict(recipe)
    for name, text in pairs:
        _set(values, recipe, name, text)
    made: Recipe = build(Recipe, values, "")
    return made


def _set_stage(stages: dict[int, dict[str, str]], recipe: Recipe, name: str, text: str) -> None:
    """Put one value into the stages, or take one of them out."""
    start, setting = place_of(name)
    if not setting:
        if text != NONE:
            raise BadOption(f"{name} is taken out by {name}={NONE}; a value of it is set by {name}.schedule.rate=0.001")
        if stages.pop(start, None) is None:
            raise BadOption(f"no stage begins at step {start:,}")
        return
    values: Any = dataclasses.asdict(recipe)
    _set(values, recipe, setting, text)
    require_may_change(setting)
    for step in setting.split("."):
        values = values[step]
    stages.setdefault(start, {})[setting] = shown(values)


def _stage(start: int, values: Mapping[str, str]) -> Stage:
    return Stage(start, tuple(f"{name}={text}" for name, text in sorted(values.items())))


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
    if name == PREFIX.rstrip("."):
        raise BadOption("stages are set one value at a time: write stages.STEP.name=value")
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
