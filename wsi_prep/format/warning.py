"""The column `warning` of a slide's row: what was assumed, left out or fallen back on, in one line."""

from __future__ import annotations

_BETWEEN = "; "


def warned(*said: str | None) -> str | None:
    """What is said, each thing once, in one line; None where nothing is. Takes earlier lines as well as single texts.

    A single text holds no semicolon followed by a space, which stands between two.
    """
    texts = [text for line in said if line for text in told(line)]
    return _BETWEEN.join(dict.fromkeys(texts)) or None


def told(line: str | None) -> list[str]:
    """The single texts of a line that `warned` made."""
    return [text for text in (line or "").split(_BETWEEN) if text]
