"""Pages of the documents that the code knows best: options, recipes and public names, in Markdown."""

from __future__ import annotations

import importlib
import inspect
import re
import typing
from collections.abc import Callable
from dataclasses import fields

from docstring_parser import parse_from_object

from pipelines.calls.base import Declared, declared
from pipelines.targets import COMMANDS, TARGETS, Target

_KINDS = {str: "text", int: "whole number", float: "number", bool: "flag"}


def options_page() -> str:
    """Every command: what it does, its exit codes, and a table of its options; then what `make` alone does."""
    parts = [_command(target) for target in COMMANDS.values()]
    others = [target for target in TARGETS.values() if target.name not in COMMANDS]
    rows = [
        [f"`make {each.name}`", each.about, " ".join(f"`{variable.shown()}`" for variable in each.variables)]
        for each in others
    ]
    return "\n\n".join([*parts, "## For developers", _table(["target", "what it does", "variables"], rows)])


def recipes_page() -> str:
    """A table of every setting with its value in each recipe, and a line on each recipe."""
    from pretrain.train.recipe.recipe import flat  # noqa: PLC0415 - torch
    from pretrain.train.recipe.recipes import RECIPES, recipe  # noqa: PLC0415

    told = [f"- **{name}**: {_plain(' '.join((inspect.getdoc(make) or '').split()))}" for name, make in RECIPES.items()]
    values = {name: flat(recipe(name)) for name in RECIPES}
    settings = list(dict.fromkeys(name for each in values.values() for name in each if name != "name"))
    parts = ["\n".join(told)]
    for group in dict.fromkeys(setting.partition(".")[0] for setting in settings):
        own = [setting for setting in settings if setting.partition(".")[0] == group]
        rows = [[f"`{setting}`", *(_value(each.get(setting)) for each in values.values())] for setting in own]
        parts.append(f"## {group}\n\n{_table(['setting', *values], rows)}")
    return "\n\n".join(parts)


def api_page() -> str:
    """A block of mkdocstrings for each public name of the packages."""
    parts = []
    for package in ("wsi_prep", "pretrain"):
        names = getattr(importlib.import_module(package), "__all__", ())
        blocks = [f"::: {package}.{name}" for name in sorted(names, key=str.lower)]
        about = (
            "" if names else "It has no public names: use its [commands](options.md) and its [files](../training.md)."
        )
        parts.append("\n\n".join(filter(None, [f"## {package}", about, *blocks])))
    return "\n\n".join(parts)


PAGES: dict[str, Callable[[], str]] = {"options": options_page, "recipes": recipes_page, "api": api_page}
"""By the word that stands in a page where the text belongs."""


def _command(target: Target) -> str:
    assert target.call is not None
    options = declared(target.call)
    meant, defaults = _meanings(target.call), _defaults(target.call)
    rows = [
        [
            f"`{each.option}`",
            f"`{each.variable}`",
            _kind(each),
            "**must be given**" if each.required else _value(defaults[each.name]),
            meant.get(each.name, ""),
        ]
        for each in options
    ]
    about = "\n\n".join(" ".join(part.split()) for part in (inspect.getdoc(target.call) or "").split("\n\n"))
    table = _table(["option", "for make", "takes", "default", "meaning"], rows)
    return f"## {target.name}\n\n{_plain(about)}\n\n{table}"


def _meanings(call: type) -> dict[str, str]:
    """What each field's docstring says, the class's own before those it inherits."""
    found: dict[str, str] = {}
    for each in inspect.getmro(call)[:-1]:
        for said in parse_from_object(each).params:
            found.setdefault(said.arg_name, " ".join((said.description or "").split()))
    return {name: _plain(text) for name, text in found.items()}


def _defaults(call: type) -> dict[str, object]:
    return {each.name: each.default for each in fields(call)}


def _kind(option: Declared) -> str:
    kind, many = option.kind, ""
    if typing.get_origin(kind) is typing.Union:
        kind = next(each for each in typing.get_args(kind) if each is not type(None))
    if option.is_list:
        kind, many = typing.get_args(kind)[0], ", several"
    if typing.get_origin(kind) is typing.Literal:
        return " ".join(f"`{word}`" for word in typing.get_args(kind))
    return _KINDS.get(typing.cast("type", kind), "path") + many


def _value(value: object) -> str:
    """A value in a cell; nothing for what is empty or not there."""
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        value = str(value).lower()
    return f"`{f'{value:g}' if isinstance(value, float) else value}`"


def _plain(text: str) -> str:
    """A text that Markdown shows as it stands, with links to the pages that it names."""
    shown = re.sub(r"([\\*_])", r"\\\1", text).replace("<", "&lt;")
    return re.sub(r"docs/([\w-]+)\.md", r"[\1](../\1.md)", shown)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
