"""Command lines on which nothing is guessed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

EXIT_WRONG_CALL = 2


class Options(argparse.ArgumentParser):
    """A parser of whole option names, each with one value that is not empty; what it refuses is told in one line.

    A list's option may be given several times: its values add up; of others the last counts. Of those in
    `may_be_empty`, the command judges.
    """

    def __init__(self, *, may_be_empty: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)
        self._may_be_empty = may_be_empty

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        """As the parser's own, but that a list goes on where its option comes again."""
        if settings.get("nargs") in {"+", "*"}:
            settings.setdefault("action", "extend")
        return super().add_argument(*names, **settings)

    def parse_known_args(  # type: ignore[override]  # the overloads are of no use here
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As the parser's own, after a look for values that are empty."""
        words = list(sys.argv[1:] if args is None else args)
        for before, word in zip(["", *words], words, strict=False):
            option = before if not word else word.removesuffix("=")
            empty = not word or (word.endswith("=") and option in self._option_string_actions)
            if empty and option not in self._may_be_empty:
                self.error(f"{option} is empty; give it a value, or leave it away")
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """End with one line, and exit code 2."""
        self.exit(EXIT_WRONG_CALL, f"{self.prog.rpartition('.')[2]}: {message}; --help lists the options\n")
