"""A mark of what a slide holds, by which a changed one is known."""

from __future__ import annotations

import hashlib

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from wsi_prep.errors import UnreadableSlide
from wsi_prep.slides.fetch.remote import file_system
from wsi_prep.slides.find.sources import SlideSource
from wsi_prep.storage.patience import patiently

_EDGE_BYTES, _SAMPLE_BYTES, _SAMPLES, _MAX_EXTRA_FILES = 65536, 4096, 16, 64


def fingerprint(source: SlideSource) -> str:
    """A mark of the slide's content, 32 hex digits: the same for a copy, another when bytes change.

    Hashes the sizes of all files, the edges of each (64 at most) and samples spread over the main one, but no name: a
    name could be guessed and checked against it. Where a store keeps a mark of its own (an ETag), this stands for the
    samples, and a copy elsewhere has another fingerprint. Raises UnreadableSlide if a file is gone.
    """
    try:
        return patiently(lambda: _fingerprint(source))
    except OSError as error:
        raise UnreadableSlide(f"cannot be opened ({error.strerror or type(error).__name__})") from error


def _fingerprint(source: SlideSource) -> str:
    mark = hashlib.blake2b(digest_size=16)
    for number, path in enumerate((source.path, *(f for f in source.files if f != source.path))):
        fs, inner = file_system(path)
        size, version = _size_and_version(fs, inner)
        mark.update(f"{size}\0{version}".encode())
        if number > _MAX_EXTRA_FILES or size == 0:
            continue
        spans = [(0, min(size, _EDGE_BYTES)), (max(0, size - _EDGE_BYTES), size)]
        if number == 0 and not version:
            starts = [size * i // _SAMPLES for i in range(_SAMPLES)]
            spans += [(start, min(size, start + _SAMPLE_BYTES)) for start in starts]
        for data in fs.cat_ranges([inner] * len(spans), [a for a, _ in spans], [b for _, b in spans], on_error="raise"):
            mark.update(data)
    return mark.hexdigest()


def _size_and_version(fs: AbstractFileSystem, inner: str) -> tuple[int, str]:
    """A file's bytes, and what an object store says that changes with them."""
    if isinstance(fs, LocalFileSystem):
        return int(fs.size(inner)), ""
    info = fs.info(inner)
    return int(info["size"]), f"{info.get('e_tag') or info.get('ETag') or ''}{info.get('version') or ''}"
