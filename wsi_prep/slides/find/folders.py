"""Folders as a search for slides walks them: which files are taken, and what cannot be looked into."""

from __future__ import annotations

import errno
import os
import re
from collections import deque
from collections.abc import Iterator, Sequence
from glob import has_magic
from pathlib import PurePosixPath

from fsspec import AbstractFileSystem
from fsspec.utils import glob_translate

from wsi_prep.errors import NoSlides, counted
from wsi_prep.format.layout import suffix_in
from wsi_prep.slides.find.endings import SLIDE_ENDINGS, ending, is_left_out, left_out_note
from wsi_prep.slides.find.found import Found, printed
from wsi_prep.slides.urls import name_of
from wsi_prep.storage.patience import passes, patiently

_GONE = (errno.ENOENT, errno.ENOTDIR)
_DICOM_STARTS = 128  # bytes, before which a file may hold anything
_SHOWN = 5


class Folders:
    """A folder and those below it, links followed, each real folder once: by its own path where that is below the
    first folder too, so that a further link to it changes nothing.

    Iterating gives a folder's path, names of its folders (what the caller takes out of these is passed by), and names
    of its files, all sorted. `unseen` then has the path of each folder that could not be looked into, and why. Links to
    a folder that they lie in, and links into our own outputs, are not followed. Raises OSError where the first folder
    cannot be listed, or a file server's error passes. `hidden`: those with a dot before their name are walked too.
    """

    def __init__(self, first: str, *, hidden: bool = False) -> None:
        self.unseen: list[tuple[str, str]] = []
        self._first, self._hidden = first, hidden
        self._trees: set[str] = set()  # real paths
        self._outputs: dict[str, bool] = {}

    def __iter__(self) -> Iterator[tuple[str, list[str], list[str]]]:
        self._trees.add(real := os.path.realpath(self._first))
        links: deque[tuple[str, str]] = deque()
        yield from self._tree(self._first, real, links)
        while links:
            link, lies_in = links.popleft()
            real = os.path.realpath(link)
            if self._is_new(link, real, lies_in):
                self._trees.add(real)
                yield from self._tree(link, real, links)

    def _tree(
        self, top: str, real_top: str, links: deque[tuple[str, str]]
    ) -> Iterator[tuple[str, list[str], list[str]]]:
        """What can be reached without a link; links to folders join the others, each with the real path it lies in."""
        waiting = [(top, real_top)]
        while waiting:
            at, real = waiting.pop()
            folders, linked, files = listed(at, self.unseen, first=at == self._first)
            names = sorted([*folders, *linked])
            yield at, names, files
            links += [(_in(at, name), real) for name in names if name in linked]
            below = ((_in(at, name), _in(real, name)) for name in reversed(names) if name not in linked)
            waiting += [(path, place) for path, place in below if place not in self._trees]

    def _is_new(self, link: str, real: str, lies_in: str) -> bool:
        places = (real, *map(str, PurePosixPath(real).parents))
        for place in places:
            hidden = "/." in real.removeprefix(place.rstrip("/"))
            if place in self._trees and (self._hidden or not hidden):
                return False  # by another path it is walked already, or was passed by
        if any(self._is_output(place) for place in places):
            return False
        why = ""
        if lies_in == real or lies_in.startswith(f"{real.rstrip('/')}/"):
            why = "a link to a folder above it"
        elif any(place.endswith(".zarr") for place in places):
            why = "a link into a .zarr, which is not read"
        if why:
            self.unseen.append((link, why))
        return not why

    def _is_output(self, folder: str) -> bool:
        if folder not in self._outputs:
            marks = ("run.json", "catalog")
            self._outputs[folder] = all(os.path.exists(_in(folder, name)) for name in marks)  # noqa: PTH110
        return self._outputs[folder]


def listed(at: str, unseen: list[tuple[str, str]], *, first: bool = False) -> tuple[list[str], set[str], list[str]]:
    """Names of the folders in a folder, of the links to folders, and of all else, sorted; what cannot be looked into
    joins `unseen`. Raises OSError of a file server that passes, and of the `first` folder any.
    """
    folders, linked, files = [], set[str](), []
    try:
        with os.scandir(at) as entries:
            for entry in entries:
                why = _unreachable(entry) if entry.is_symlink() else ""
                if why:
                    unseen.append((entry.path, why))
                elif not entry.is_symlink() and entry.is_dir():
                    folders.append(entry.name)
                elif _leads_to_folder(entry):
                    linked.add(entry.name)
                else:
                    files.append(entry.name)
    except OSError as error:
        if first or passes(error):
            raise
        if error.errno not in _GONE:
            unseen.append((at, error.strerror or type(error).__name__))
    return sorted(folders), linked, sorted(files)


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if passes(error):
            raise
        return False


def _unreachable(entry: os.DirEntry[str]) -> str:
    """Why one cannot look at what a link leads to, where this may be a folder; a file's reader will say it."""
    try:
        entry.stat()
    except OSError as error:
        if passes(error):
            raise
        name = entry.name
        a_file = name.startswith(".") or ending(name) in SLIDE_ENDINGS or is_left_out(name)
        if not a_file and not suffix_in(name)[1:].isalpha():
            return "a link that leads nowhere" if error.errno in _GONE else error.strerror or type(error).__name__
    return ""


def looks_like_slide(path: str, fs: AbstractFileSystem) -> bool:
    """Whether a file is one by its ending, or DICOM that has none."""
    name = name_of(path)
    suffix = suffix_in(name).lower()
    if name.startswith("."):
        return False
    if suffix in SLIDE_ENDINGS:
        return True
    if suffix and not suffix[1:].isdigit():  # DICOM files often end in a UID's digits, or in nothing
        return False
    try:
        return patiently(lambda: _is_dicom(path, fs))
    except OSError:
        return False


def _is_dicom(path: str, fs: AbstractFileSystem) -> bool:
    long_enough = fs.size(path) >= _DICOM_STARTS + 4
    return bool(long_enough and fs.cat_file(path, _DICOM_STARTS, _DICOM_STARTS + 4) == b"DICM")


def matching(pattern: str) -> tuple[list[str], list[tuple[str, str]]]:
    """The paths of files that fit a local, absolute pattern as fsspec understands it, sorted; and what could not be
    looked into.

    Links to folders are followed; a file that several paths lead to is there once. Raises NoSlides for what is no
    pattern, and OSError as `Folders` does.
    """
    parts = pattern.split("/")
    fixed = next(number for number, part in enumerate(parts) if has_magic(part))
    root, rest = "/".join(parts[:fixed]) or "/", parts[fixed:]
    try:
        whole, *each = (re.compile(glob_translate(text)) for text in (pattern, *rest))
    except (ValueError, re.error) as error:
        raise NoSlides(f"SLIDES {pattern} is no pattern of files ({error})") from error
    if not os.path.lexists(root):
        return [], []
    if "**" in rest:
        below = Folders(root, hidden=True)
        paths = (_in(at, name) for at, _, names in below for name in names)
        return sorted(path for path in paths if whole.match(path)), below.unseen
    unseen: list[tuple[str, str]] = []
    folders = [root]
    for part in each[:-1]:
        inside = [(at, *listed(at, unseen, first=at == root)[:2]) for at in folders]
        folders = [_in(at, name) for at, own, links in inside for name in (*own, *links) if part.match(name)]
    inside_last = ((at, listed(at, unseen, first=at == root)[2]) for at in _each_once(folders, root))
    return sorted(_in(at, name) for at, names in inside_last for name in names if each[-1].match(name)), unseen


def _each_once(folders: Sequence[str], root: str) -> list[str]:
    """The folders without those that are the same by another path; the one without links counts."""
    real = {folder: os.path.realpath(folder) for folder in folders}
    start = os.path.realpath(root)
    own = {folder: real[folder] != start + folder.removeprefix(root) for folder in folders}
    chosen: dict[str, str] = {}
    for folder in sorted(folders, key=lambda folder: (own[folder], folder)):
        chosen.setdefault(real[folder], folder)
    return list(chosen.values())


def found_notes(found: Found, *, private: bool) -> list[str]:
    """What a user should know of files and folders that were found and not taken; `private`: without folders' names."""
    return [*left_out_note(found.left_out), *unseen_note(found.unseen, private=private)]


def unseen_note(unseen: Sequence[tuple[str, str]], *, private: bool = False) -> list[str]:
    """One line of the folders that were skipped, and why, if there are any. `private`: without names."""
    if not unseen:
        return []
    count = counted(len(unseen), "folder was", "folders were")
    said = f"{count} skipped, with all slides in there"
    if private:
        return [f"{said} ({', '.join(sorted({why for _, why in unseen}))})"]
    more = f" and {len(unseen) - _SHOWN:,} more" if len(unseen) > _SHOWN else ""
    return [f"{said}: {', '.join(f'{printed(path)} ({why})' for path, why in unseen[:_SHOWN])}{more}"]


def _in(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"
