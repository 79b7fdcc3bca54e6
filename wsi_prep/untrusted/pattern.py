"""A regular expression of a user's, bounded: in its length, in what it is asked of, and in its time."""

from __future__ import annotations

import regex

from wsi_prep.errors import BadOption

_MAX_PATTERN, _MAX_PATH, _SECONDS = 500, 1000, 1.0


class TimedPattern:
    """The expression `text`, which messages call `called`. Raises BadOption for one that cannot be used."""

    def __init__(self, text: str, called: str) -> None:
        if len(text) > _MAX_PATTERN:
            raise BadOption(f"{called} has {len(text)} characters; {_MAX_PATTERN} are the most")
        try:
            self._pattern = regex.compile(text)
        except regex.error as error:
            raise BadOption(f"{called} {text!r} is no regular expression ({error})") from error
        self._called = called
        self.groups = tuple(self._pattern.groupindex)

    def search(self, path: str) -> dict[str, str | None] | None:
        """What each group finds in a path; None where nothing fits or the path is longer than 1,000.

        Raises BadOption when it takes longer than a second.
        """
        if len(path) > _MAX_PATH:
            return None
        try:
            found = self._pattern.search(path, timeout=_SECONDS)
        except TimeoutError as error:
            raise BadOption(
                f"{self._called} {self._pattern.pattern!r} takes more than {_SECONDS:g} s on {path!r}; "
                "do not repeat what repeats, as (a+)+ does"
            ) from error
        return found.groupdict() if found is not None else None
