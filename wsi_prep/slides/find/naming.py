"""Files by the names that people write: in one Unicode form, and which file a name that fits none may mean."""

from __future__ import annotations

import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

from wsi_prep.format.layout import bare_name


def one_form(text: str) -> str:
    """The text in NFC: macOS gives file names in NFD, keyboards and spreadsheets write NFC."""
    return unicodedata.normalize("NFC", text)


def as_stored(path: str) -> str | None:
    """A local path by the names under which its folders and its file are there; None where there is none."""
    found = "/"
    for part in PurePosixPath(path).parts[1:]:
        step = os.path.join(found, part)  # noqa: PTH118 - names of bytes that are no text stay as they are
        if not os.path.lexists(step):
            same = [name for name in _names_in(found) if one_form(name) == one_form(part)]
            if len(same) != 1:
                return None
            step = os.path.join(found, same[0])  # noqa: PTH118
        found = step
    return found


def _names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208
    except OSError:
        return []


def told_apart(slides: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    """Of slides (id, name, path) that share their name with others, by id: the end of the folder in which each lies, as
    deep for all of one name, that no other of them has. None is told of one that lies in no folder.
    """
    folders: dict[str, dict[str, tuple[str, ...]]] = defaultdict(dict)
    for slide_id, name, path in slides:
        parts = PurePosixPath(os.fsencode(path).decode(errors="replace")).parts
        in_folder = parts[-1:] != (name,) and parts[-2:-1] == (name,)  # files that are called by their folder
        above = parts[: -2 if in_folder else -1]
        folders[one_form(name)][slide_id] = tuple(part for part in above if part != "/")
    told = {}
    for alike in (alike for alike in folders.values() if len(alike) > 1):
        deepest = max(map(len, alike.values()))
        enough = (n for n in range(1, deepest) if len({above[-n:] for above in alike.values()}) == len(alike))
        depth = next(enough, deepest)
        told.update({slide_id: "/".join(above[-depth:]) for slide_id, above in alike.items() if above})
    return told


class KnownNames:
    """Names of files that are there, to ask which of them a name means that is not."""

    def __init__(self, names: Iterable[str]) -> None:
        self._whole: dict[str, str] = {}
        self._bare: dict[str, str] = {}
        for name in names:
            self._whole.setdefault(_loosely(name), name)
            self._bare.setdefault(_loosely(bare_name(name)), name)

    def meant(self, name: str) -> str | None:
        """The file whose name differs in case alone, or in an ending that is left out or another; else None."""
        whole, bare = _loosely(name), _loosely(bare_name(name))
        return self._whole.get(whole) or self._bare.get(whole) or self._bare.get(bare)


def _loosely(name: str) -> str:
    return one_form(one_form(name).casefold())


def did_you_mean(name: str | None) -> str:
    """A question to put behind a name that fits nothing; empty where no other comes near."""
    return f" (did you mean {name}?)" if name else ""
