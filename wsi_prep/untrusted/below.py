"""Files below a folder that somebody else may have filled: reached through no link, files alone, of bounded size.

The folder itself may be a link, or lie behind one: it is what the caller named. Reading goes from folder to folder by
descriptors (openat), so that nobody can put a link in between. What is changed, and what a library opens by its name,
is looked at just before: see docs/security.md for what that leaves open.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wsi_prep.errors import BadOutput

MOST_BYTES = 64 * 2**20
"""Of a file that is read whole, where nothing smaller is said: run.json of a run with a million warnings."""

_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # not to wait for the other end of a pipe
_NO_FILE = (errno.ENXIO, errno.EISDIR, errno.ENODEV, errno.EOPNOTSUPP)  # sockets, pipes to write to, folders


def open_below(root: Path, path: str, flags: int = os.O_RDONLY) -> int:
    """A descriptor of the file at the relative `path` below `root`.

    BadOutput where a link is on the way or at its end, or where it is no file: a pipe, device, socket or folder.
    OSError where it is not there or cannot be opened.
    """
    with _folder_of(root, path) as (folder, name):
        try:
            opened = os.open(name, flags | _FILE, 0o666, dir_fd=folder)
        except OSError as error:
            _refuse_link(root, path, folder, name)
            if error.errno in _NO_FILE:
                raise _no_file(root, path) from error
            raise
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise _no_file(root, path)
    return opened


def read_below(root: Path, path: str, most: int = MOST_BYTES) -> bytes:
    """What that file holds; see `open_below`. BadOutput where it has more than `most` bytes."""
    with os.fdopen(open_below(root, path), "rb") as file:
        require_size(f"{root}/{path}", os.fstat(file.fileno()).st_size, most)
        data = file.read(most + 1)
    require_size(f"{root}/{path}", len(data), most)
    return data


def require_size(where: str, size: int, most: int) -> None:
    """Raise BadOutput for a file that has more bytes than one of its kind can have."""
    if size > most:
        raise BadOutput(f"{where} has {size:,} bytes, and what make shards writes there at most {most:,}; move it away")


def path_below(root: Path, path: str) -> Path:
    """The relative `path` below `root`, to change what is at its end; BadOutput where one of its folders is a link."""
    *folders, name = _parts(root, path)
    at = root
    for folder in folders:
        at /= folder
        if at.is_symlink():
            raise _a_link(at)
    return at / name


def folder_below(root: Path, path: str) -> Path:
    """The same for a folder, which is no link either; `root` itself for an empty path."""
    if not path:
        return root
    folder = path_below(root, path)
    if folder.is_symlink():
        raise _a_link(folder)
    return folder


def file_below(root: Path, path: str) -> tuple[Path, os.stat_result]:
    """The same for a file that a library opens by its name, and what is known of it; raises as `open_below`."""
    file = path_below(root, path)
    about = file.lstat()
    if stat.S_ISLNK(about.st_mode):
        raise _a_link(file)
    if not stat.S_ISREG(about.st_mode):
        raise _no_file(root, path)
    return file, about


@contextmanager
def _folder_of(root: Path, path: str) -> Iterator[tuple[int, str]]:
    """A descriptor of the folder that `path` is in, and the name of what is in it."""
    *folders, name = _parts(root, path)
    at = os.open(root, _FOLDER & ~os.O_NOFOLLOW)
    try:
        for number, folder in enumerate(folders, 1):
            try:
                inner = os.open(folder, _FOLDER, dir_fd=at)
            except OSError:
                _refuse_link(root, "/".join(folders[:number]), at, folder)
                raise
            os.close(at)
            at = inner
        yield at, name
    finally:
        os.close(at)


def _parts(root: Path, path: str) -> list[str]:
    parts = path.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise BadOutput(f"{path[:200]!r} is no place in {root}")
    return parts


def _refuse_link(root: Path, path: str, folder: int, name: str) -> None:
    try:
        mode = os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except OSError:
        return
    if stat.S_ISLNK(mode):
        raise _a_link(root / path)


def _a_link(path: Path) -> BadOutput:
    return BadOutput(
        f"{path} is a link, which nothing in a folder of ours may be; put what it leads to in its place, or remove it"
    )


def _no_file(root: Path, path: str) -> BadOutput:
    return BadOutput(f"{root}/{path} is no file but a folder, pipe, socket or device; move it away")
