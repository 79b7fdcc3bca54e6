"""Which reader a slide gets."""

from __future__ import annotations

import os

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from wsi_prep.errors import BadOption, UnreadableSlide
from wsi_prep.readers.base import SlideReader
from wsi_prep.readers.openslide_reader import OpenSlideReader, detect_vendor
from wsi_prep.readers.tiff_reader import TiffReader, UnsupportedLayout

READERS = ("auto", "tiff", "openslide")

_PLAIN_TILES = (None, "aperio", "generic-tiff")
"""What the tiled-TIFF reader may try: other vendors' TIFFs have overlaps, gaps or several regions."""


def open_slide(path: str, reader: str = "auto") -> SlideReader:
    """Open a slide file or URL with the named reader, or with the first that takes it: tiff, then openslide.

    The tiled-TIFF reader comes first because it hands over compressed tiles several times faster. Raises
    UnreadableSlide with every reader's reason in one line, DamagedSlide for a truncated file, BadOption for an unknown
    reader.
    """
    if reader not in READERS:
        raise BadOption(f"reader {reader!r} is not known; choose from {' '.join(READERS)}")
    local = _local_path(path)
    if local is not None:
        _require_file(local)
    if reader == "tiff":
        return TiffReader(path)
    if reader == "openslide":
        return OpenSlideReader(_required_local(local))
    vendor = detect_vendor(local) if local is not None else None
    if vendor not in _PLAIN_TILES:
        return OpenSlideReader(_required_local(local))
    try:
        return TiffReader(path)
    except UnsupportedLayout as error:
        refusal = error
    try:
        return OpenSlideReader(_required_local(local))
    except UnreadableSlide as error:
        raise UnreadableSlide(
            f"no reader takes this file: {refusal}; {error}. Is it a whole-slide image, and whole?"
        ) from error


def _local_path(path: str) -> str | None:
    fs, inner = url_to_fs(path)
    return inner if isinstance(fs, LocalFileSystem) else None


def _required_local(local: str | None) -> str:
    if local is None:
        raise UnreadableSlide("OpenSlide reads local files only; copy the slide to a disk that the workers see")
    return local


def _require_file(path: str) -> None:
    if not os.path.exists(path):  # noqa: PTH110 - a path from fsspec
        raise UnreadableSlide("the file does not exist")
    if os.path.isfile(path) and os.path.getsize(path) == 0:  # noqa: PTH113, PTH202
        raise UnreadableSlide("the file is empty (0 bytes); copy the slide again")
