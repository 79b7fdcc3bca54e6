"""Files and folders that appear whole or not at all, and outlive a power cut."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from wsi_prep.errors import BadOutput

MOVING = ".moving"
"""How the name of a copy ends that is not in its place yet."""


def sync(path: Path) -> None:
    """Make a file durable, or a folder's entries, so that a rename into it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file aside, make it durable, and rename it into place."""
    with aside(path) as unfinished:
        unfinished.write_bytes(data)


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON, as `write_atomically`."""
    write_atomically(path, (json.dumps(value, indent=1) + "\n").encode())


@contextlib.contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A hidden name to write to; what is there at the end is made durable and renamed to `path`.

    Others may read it as far as the umask lets them, whichever library wrote it. Write what is secret in another way.
    """
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        yield unfinished
        _open_to_others(unfinished)
        sync(unfinished)
    except BaseException:
        unfinished.unlink(missing_ok=True)  # on a full disk even this counts
        raise
    unfinished.rename(path)
    sync(path.parent)


def _open_to_others(file: Path) -> None:
    """Give a file that is its owner's alone, as some libraries make theirs, the mode that any new file gets."""
    if file.stat().st_mode & 0o077:
        return
    plain = file.with_name(f"{file.name}.mode")  # the umask itself cannot be asked for without setting it
    try:
        plain.touch()
        file.chmod(plain.stat().st_mode & 0o777)
    finally:
        plain.unlink(missing_ok=True)


def remove_tree(path: Path) -> None:
    """Remove a file, a link, or a folder with all it holds; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        try:
            shutil.rmtree(path)
        except RecursionError as error:
            raise BadOutput(f"{path} holds folders within folders without end; remove it") from error
    else:
        path.unlink(missing_ok=True)


def put_in_place(made: Path, place: Path) -> None:
    """Rename a file or folder to `place`, in place of what is there, even while another worker does the same.

    A worker that leaves the cluster in the middle of a slide may still finish it beside the one that took it over.
    """
    before = made.with_name(f"{made.name}.before")
    while True:
        try:
            place.rename(before)
            remove_tree(before)
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            remove_tree(place)
        try:
            made.rename(place)
        except OSError as error:
            if error.errno == errno.EXDEV and made.parent != place.parent:
                made = _brought(made, place.parent)
            elif error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        else:
            return


def _brought(made: Path, folder: Path) -> Path:
    """A copy in a folder into which the system does not rename: another mount, layer or project's quota."""
    there = folder / f".{made.name}{MOVING}"
    remove_tree(there)
    if made.is_dir():
        shutil.copytree(made, there)
    else:
        shutil.copy2(made, there)
    remove_tree(made)
    return there
