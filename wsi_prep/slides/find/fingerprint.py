"""A mark of what a slide holds, by which a changed one is known."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from wsi_prep.errors import FileServerFailed, UnreadableSlide, counted
from wsi_prep.slides.find.found import SlideSource, files_of, place_of, require_file, seen
from wsi_prep.storage.patience import patiently

_MOST_UNSEEN = 20
"""Of slides that are done, the file server may fail for so many before the call ends."""

_EDGE_BYTES, _SAMPLE_BYTES, _SAMPLES, _MAX_EXTRA_FILES = 65536, 4096, 16, 64


def fingerprint(source: SlideSource) -> str:
    """A mark of the slide's content, 32 hex digits: the same for a copy, another when bytes change.

    Hashes the sizes of all files, the edges of each (64 at most) and samples spread over the main one, but no name: a
    name could be guessed and checked against it. Where a store keeps a mark of its own (an ETag), this stands for the
    samples, and a copy elsewhere has another fingerprint. Raises UnreadableSlide if a file is gone, or is none.
    """
    try:
        return patiently(lambda: _fingerprint(source))
    except UnreadableSlide:
        raise
    except OSError as error:
        raise UnreadableSlide(f"cannot be opened ({error.strerror or type(error).__name__})") from error


class Unseen:
    """Slides that are done whose file server fails now. They count as unchanged: what is done stays."""

    def __init__(self) -> None:
        self._failed: list[FileServerFailed] = []

    def look_into(self, source: SlideSource) -> tuple[str | None, str | None]:
        """The slide's fingerprint, None where its server fails; and the mark that stands for it from now on.

        Raises FileServerFailed where it fails for many: it answers nobody, and each would wait for it.
        """
        if len(self._failed) > _MOST_UNSEEN:
            raise self._failed[0]
        try:
            before = seen(source, settled=True)
            content = fingerprint(source)
        except FileServerFailed as error:
            self._failed.append(error)
            return None, None
        except OSError:
            return "", None
        return content, before if before == seen(source) else None

    def note(self) -> list[str]:
        """What a user should know of them."""
        if not self._failed:
            return []
        many = counted(len(self._failed), "slide", "slides")
        return [f"whether {many} changed cannot be seen, so what is done of them stays: {self._failed[0]}"]


def _fingerprint(source: SlideSource) -> str:
    mark = hashlib.blake2b(digest_size=16)
    for number, path in enumerate(files_of(source)):
        fs, inner = place_of(path)
        size, version = _size_and_version(fs, inner)
        mark.update(f"{size}\0{version}".encode())
        if number > _MAX_EXTRA_FILES or size == 0:
            continue
        spans = [(0, min(size, _EDGE_BYTES)), (max(0, size - _EDGE_BYTES), size)]
        if number == 0 and not version:
            starts = [size * i // _SAMPLES for i in range(_SAMPLES)]
            spans += [(start, min(size, start + _SAMPLE_BYTES)) for start in starts]
        for data in _read(fs, inner, spans):
            mark.update(data)
    return mark.hexdigest()


def _read(fs: AbstractFileSystem, inner: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    if not isinstance(fs, LocalFileSystem):
        found: list[bytes] = fs.cat_ranges(
            [inner] * len(spans), [a for a, _ in spans], [b for _, b in spans], on_error="raise"
        )
        return found
    opened = os.open(inner, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return [os.pread(opened, b - a, a) for a, b in spans]
    finally:
        os.close(opened)


def _size_and_version(fs: AbstractFileSystem, inner: str) -> tuple[int, str]:
    """A file's bytes, and what an object store says that changes with them."""
    if isinstance(fs, LocalFileSystem):
        about = os.stat(inner)  # noqa: PTH116
        require_file(about.st_mode)
        return about.st_size, ""
    info = fs.info(inner)
    return int(info["size"]), f"{info.get('e_tag') or info.get('ETag') or ''}{info.get('version') or ''}"
