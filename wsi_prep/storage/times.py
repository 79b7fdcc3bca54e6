"""Times of files that tell nothing: in private output all that a run makes has the time at which the run began.

An object store keeps times of its own. Nor does a disk let anybody set when a file's entry was last changed (ctime); a
copy has nothing of that.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from wsi_prep.storage.select import local_folder

_LISTED = ("", "catalog", "catalog/slides", "catalog/tiles")
"""Folders whose files the client writes."""

_FOLDERS = ("stores", "tissue", "overlays")


def set_times(tree: Path, when: float | None) -> None:
    """Give a file, or a folder with all it holds, this time; nothing where it is None. Links are not followed."""
    if when is None:
        return
    for folder, _, files in os.walk(tree):
        for name in files:
            _set(os.path.join(folder, name), when)  # noqa: PTH118 - millions of them
    for folder, _, _ in os.walk(tree, topdown=False):
        _set(folder, when)
    _set(tree, when)


def set_times_in(out: str, names: Iterable[str], when: float | None) -> None:
    """The same for files of an output that lies on a disk, by their names in it."""
    folder = local_folder(out) if when is not None else None
    if folder is not None:
        for name in names:
            set_times(folder / name, when)


@contextlib.contextmanager
def settled(out: str, when: float | None) -> Iterator[None]:
    """Around a run: at its end, also a broken one, what the client itself has changed has the time `when`."""
    try:
        yield
    finally:
        folder = local_folder(out) if when is not None else None
        if folder is not None and when is not None:
            for listed in _LISTED:
                for entry in _entries(folder / listed):
                    if entry.stat(follow_symlinks=False).st_mtime > when:
                        _set(entry.path, when)
            for name in (*_LISTED, *_FOLDERS):
                _set(folder / name, when)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        yield from found


def _set(path: str | Path, when: float) -> None:
    with contextlib.suppress(OSError):  # one that is gone has no time either
        os.utime(path, (when, when), follow_symlinks=False)
