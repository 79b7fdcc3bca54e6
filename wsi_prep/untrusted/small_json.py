"""JSON that somebody else may have written: what is no object of plain values ends as ValueError."""

from __future__ import annotations

import json
from typing import Any

_DEEPEST = 32
"""Levels of lists and dictionaries; run.json has 5."""


class Nonsense(ValueError):
    """JSON, but not what is expected of it; the text says why."""


def read_object(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`; ValueError where there is none, Nonsense where it is a list, or is nested deeply."""
    try:
        value = json.loads(data)
    except RecursionError as error:
        raise Nonsense("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise Nonsense(f"it holds a {type(value).__name__} in place of an object")
    if _is_deeper(value, _DEEPEST):
        raise Nonsense("it is nested too deeply")
    return value


def _is_deeper(value: object, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels == 0 or any(_is_deeper(each, levels - 1) for each in inner if isinstance(each, (dict, list)))
