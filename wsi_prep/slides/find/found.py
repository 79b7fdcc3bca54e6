"""Slides as they were found, millions of them in little memory, and by which marks one is known to be what it was."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import overload

import pyarrow as pa
from fsspec import AbstractFileSystem

from wsi_prep.errors import NoSlides, StoreFailed, UnreadableSlide
from wsi_prep.slides.fetch.remote import file_system, local_path
from wsi_prep.slides.urls import bare_url, name_of, without_secrets
from wsi_prep.storage.patience import patiently

_AT_ONCE = 10_000
_YOUNG = 60.0  # s


@dataclass(frozen=True)
class SlideSource:
    """One slide as found.

    `slide_id` is unique and safe as a file name and object key; `path` is what a reader opens (local absolute path or
    URL, with the signature that it may bear: `slides.urls` says what may be written of it); `name` is the file's
    name as given, no folder; `files` are all files that the slide consists of. `former_id`
    is what earlier versions may have called it. Its text, which a cluster may log, is the id alone.
    """

    slide_id: str
    path: str = field(repr=False)
    name: str = field(repr=False)
    files: tuple[str, ...] = field(repr=False)
    former_id: str = field(default="", repr=False)


class Sources(Sequence[SlideSource]):
    """Slides sorted by path. Of most only path and id are kept, since the rest follows from these.

    `former` has the earlier ids that differ, and `grouped` the name and files of slides that are no single file, by
    number.
    """

    def __init__(
        self,
        paths: list[str],
        ids: pa.StringArray,
        former: Mapping[int, str] | None = None,
        grouped: Mapping[int, tuple[str, tuple[str, ...]]] | None = None,
    ) -> None:
        self.paths, self.ids = paths, ids
        self._former, self._grouped = former or {}, grouped or {}

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, number: int) -> SlideSource: ...

    @overload
    def __getitem__(self, number: slice) -> list[SlideSource]: ...

    def __getitem__(self, number: int | slice) -> SlideSource | list[SlideSource]:
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        return self._source(number, self.ids[number].as_py())

    def __iter__(self) -> Iterator[SlideSource]:
        return (self._source(number, slide_id) for number, slide_id in enumerate(_each(self.ids)))

    def named(self) -> Iterator[tuple[str, str, str]]:
        """Of each slide its id, name and path."""
        for number, (slide_id, path) in enumerate(zip(_each(self.ids), self.paths, strict=True)):
            name = self._grouped[number][0] if number in self._grouped else name_of(path)
            yield slide_id, name if name.isascii() else printed(name), path

    def seen(self, numbers: Sequence[int]) -> list[str | None]:
        """What `seen` says of the slides of these numbers."""
        return [_seen(self._files(number)) for number in numbers]

    def _files(self, number: int) -> tuple[str, ...]:
        """All files of a slide, the one that is opened first."""
        path = self.paths[number]
        if number not in self._grouped:
            return (path,)
        return (path, *(file for file in self._grouped[number][1] if file != path))

    def renamed(self) -> Mapping[int, str]:
        """The earlier ids that differ, by number."""
        return self._former

    def _source(self, number: int, slide_id: str) -> SlideSource:
        path = self.paths[number]
        name, files = self._grouped.get(number) or (name_of(path), (path,))
        return SlideSource(slide_id, path, printed(name), files, self._former.get(number, slide_id))


def _each(texts: pa.StringArray) -> Iterator[str]:
    for first in range(0, len(texts), _AT_ONCE):
        yield from texts.slice(first, _AT_ONCE).to_pylist()


def printed(name: str) -> str:
    """A file's name as text: one of bytes that are no text is still a slide's."""
    return name if name.isascii() else os.fsencode(name).decode(errors="replace")


@dataclass(frozen=True)
class Found:
    """Slides sorted by path, the files beside them that are pictures too and are not read, and the folders that could
    not be looked into, each with why.
    """

    sources: Sources
    left_out: tuple[str, ...] = ()
    unseen: tuple[tuple[str, str], ...] = ()


def place_of(path: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a slide's path or URL, and the path in it; NoSlides where there is none."""
    try:
        return file_system(path)
    except ImportError as error:
        scheme = path.partition("://")[0]
        raise NoSlides(
            f"SLIDES {bare_url(path)} cannot be reached: {scheme}:// needs packages that are not installed "
            f"({' '.join(str(error).split())}); install them on every machine, or name slides on a disk or in a store"
        ) from error
    except ValueError as error:
        why = without_secrets(" ".join(str(error).split()), path)
        raise NoSlides(f"SLIDES {bare_url(path)} cannot be reached ({why})") from error


def seen(source: SlideSource, *, settled: bool = False) -> str | None:
    """A mark of the sizes and times of the slide's files, 16 hex digits: while it stays, the fingerprint does.

    Times are those of the last writing and of the last change of the file's entry (mtime, ctime): nobody can set the
    second, so a file in another one's place has another. None where files are not on a disk, or cannot be asked;
    with `settled`, also for files that were changed less than a minute ago: within a tick of the disk's clock a second
    change would not show.
    """
    return _seen(files_of(source), settled=settled)


def _seen(files: Iterable[str], *, settled: bool = False) -> str | None:
    mark = hashlib.blake2b(digest_size=8)
    try:
        for path in files:
            inner = local_path(path) if "://" in path else path
            if inner is None:
                return None
            now = os.stat(inner)  # noqa: PTH116 - millions of them
            mark.update(b"%d %d %d\n" % (now.st_size, now.st_mtime_ns, now.st_ctime_ns))
            if settled and time.time() - max(now.st_mtime, now.st_ctime) < _YOUNG:
                return None
    except (OSError, ValueError):
        return None
    return mark.hexdigest()


_KINDS = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}


def kind_of(mode: int) -> str:
    """What that is which is no file, by its mode; empty for a file."""
    return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "device")


def require_files(source: SlideSource) -> None:
    """Raise UnreadableSlide where a part of the slide is no file: whoever opens a pipe waits for its other end."""
    for path in files_of(source):
        inner = local_path(path)
        if inner is not None:
            with contextlib.suppress(FileNotFoundError):  # its reader will say so
                require_file(os.stat(inner).st_mode)  # noqa: PTH116


def require_file(mode: int) -> None:
    """The same of one file's mode."""
    if kind := kind_of(mode):
        raise UnreadableSlide(f"it is no file but a {kind}")


def files_of(source: SlideSource) -> tuple[str, ...]:
    """All files that the slide consists of, the one that is opened first."""
    return (source.path, *(file for file in source.files if file != source.path))


def source_bytes(source: SlideSource) -> int | None:
    """Bytes of all files that the slide consists of; None where one of them cannot be asked."""
    total = 0
    try:
        for path in {source.path, *source.files}:
            files, inner = file_system(path)
            total += patiently(partial(files.size, inner))
    except (OSError, TypeError, StoreFailed):  # a server of web pages need not say how long one is
        return None
    return total
