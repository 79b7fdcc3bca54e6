"""What is asked of a DICOM file before a reader opens it: whether it is part of a slide, of which, and safe."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import stat
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from wsi_prep.errors import StoreFailed, UnreadableSlide
from wsi_prep.format.jpeg import is_ycc
from wsi_prep.slides.fetch.ranges import open_ranges, seekable
from wsi_prep.slides.fetch.remote import files_in
from wsi_prep.storage.patience import patiently

_WSI_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"  # VL Whole Slide Microscopy Image Storage
_DEFLATED = "1.2.840.10008.1.2.1.99"
_TAGS = [0x00080008, 0x00080016, 0x0020000E, 0x00480006]
"""ImageType, SOPClassUID, SeriesInstanceUID, TotalPixelMatrixColumns: in the order in which a file has them."""

_LAST_TAG, _MOST_ELEMENTS, _META_BYTES = _TAGS[-1], 20_000, 16_384
_HEADER_BYTES = 4 * 2**20
"""In which the tags above stand; elements of group 0, which pydicom reads to their end, stop there."""

_COLOUR_TAGS = [0x00080008, 0x00280004]
"""ImageType, PhotometricInterpretation."""

_COLOUR_HEADER_BYTES = 64 * 2**20
_PIXEL_DATA_HEAD, _ITEM_HEAD, _FRAME_HEAD = 12, 8, 4096
"""Bytes of the element PixelData before its first item, of an item before its value, of a frame up to its markers."""

_MOST_NESTED = 100
_ITEM = re.compile(rb"\xfe\xff(?:\x00\xe0\xff{4}|\x0d\xe0\x00{4})")
"""An item of a sequence begins without saying how long it is, or ends (DICOM PS3.5, 7.5)."""


@dataclass(frozen=True)
class DicomHeader:
    """Whether a file is part of a slide, which `series` it belongs to, and which of its pictures it is."""

    is_slide: bool
    series: str
    is_volume: bool
    width: int


def dicom_header(path: str) -> DicomHeader | None:
    """The header of a DICOM file; None of any other, and of one whose tags make no sense. StoreFailed goes on."""
    pydicom = _quiet_pydicom()
    seen = itertools.count()

    def enough(tag: Any, *_: object) -> bool:
        return bool(tag > _LAST_TAG or next(seen) > _MOST_ELEMENTS)

    try:
        with contextlib.closing(open_ranges(path)) as ranges:
            file = seekable(ranges, _HEADER_BYTES)
            if _DEFLATED.encode() in file.read(_META_BYTES):
                return None  # no slide is, and its header would be inflated whole
            file.seek(0)
            header = pydicom.filereader.read_partial(file, enough, specific_tags=_TAGS)
        if next(seen) > _MOST_ELEMENTS:
            return None
        return DicomHeader(  # pydicom parses a value when it is asked for
            is_slide=header.get("SOPClassUID") == _WSI_CLASS,
            series=str(header.get("SeriesInstanceUID")),
            is_volume="VOLUME" in (header.get("ImageType") or []),
            width=int(header.get("TotalPixelMatrixColumns") or 0),
        )
    except StoreFailed:
        raise
    except Exception:  # no DICOM after all: its reader will say so
        return None


DicomSeries = dict[tuple[str, str], list[tuple[str, DicomHeader]]]
"""Files with their headers, by the folder and the series that they belong to."""


def without_scan(found: DicomSeries) -> set[tuple[str, str]]:
    """Of series that lie in several folders the parts that lack their widest picture, which another folder has.

    OpenSlide takes a series from one folder, so each such part would be a slide of its own, at a coarser scale.
    """
    widest = {key: max((h.width for _, h in members if h.is_volume), default=0) for key, members in found.items()}
    of_series: dict[str, int] = defaultdict(int)
    for (_, series), width in widest.items():
        of_series[series] = max(of_series[series], width)
    return {key for key, width in widest.items() if width < of_series[key[1]]}


def series_beside(folder: str, series: str) -> list[tuple[str, DicomHeader]]:
    """The files of a series in a folder."""
    found = []
    for path in files_in(folder):
        if PurePosixPath(path).suffix.lower() in (".dcm", ""):
            header = dicom_header(path)
            if header is not None and header.series == series:
                found.append((path, header))
    return found


def is_ycc_called_rgb(files: Sequence[str]) -> bool:
    """Whether the pictures of a series are JPEG stored as YCbCr under a tag that says RGB, by which OpenSlide goes.

    Raises UnreadableSlide where only some of them are, or where a JPEG stored as RGB is tagged as YCbCr.
    """
    found = set(filter(None, map(_tag_and_marker, files)))
    if any(tag.startswith("YBR") and marker is False for tag, marker in found):
        raise UnreadableSlide("its tag says YCbCr where its JPEG frames say RGB, so its colours are not sure")
    wrong = {tag == "RGB" and marker is True for tag, marker in found}
    if len(wrong) > 1:
        raise UnreadableSlide("some of its files are YCbCr that is tagged RGB, so its colours are not sure")
    return True in wrong


def _tag_and_marker(path: str) -> tuple[str, bool | None] | None:
    """PhotometricInterpretation, and what the first JPEG frame says; None of a label and the like, and of no JPEG."""
    pydicom = _quiet_pydicom()
    try:
        with contextlib.closing(open_ranges(path)) as ranges:
            file = seekable(ranges, _COLOUR_HEADER_BYTES)
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_COLOUR_TAGS)
            if "VOLUME" not in (header.get("ImageType") or []):
                return None
            file.read(_PIXEL_DATA_HEAD)
            table = file.read(_ITEM_HEAD)
            file.seek(int.from_bytes(table[4:], "little"), os.SEEK_CUR)
            frame = file.read(_ITEM_HEAD + _FRAME_HEAD)[_ITEM_HEAD:]
            tag = str(header.get("PhotometricInterpretation"))
    except StoreFailed:
        raise
    except Exception:  # OpenSlide will say what is wrong with it
        return None
    return (tag, is_ycc(frame)) if frame[:2] == b"\xff\xd8" else None


def _quiet_pydicom() -> Any:
    """pydicom, whose warnings quote values of tags and never reach anybody: what matters becomes a slide's reason."""
    import pydicom  # noqa: PLC0415 - half a second that only DICOM should cost

    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module="pydicom")  # each time: whoever restored the filters took it away
    return pydicom


def require_few_nested(path: str, files: Sequence[str] = ()) -> None:
    """Raise UnreadableSlide where a DICOM file, or one of its series' `files`, has sequences in sequences without end.

    OpenSlide follows them by recursion, until the process is out of stack and dies.
    """
    if not stat.S_ISREG(patiently(Path(path).stat).st_mode) or _bytes(path, 132)[128:] != b"DICM":
        return
    for file in {path, *files}:
        depth = 0
        for item in _ITEM.finditer(_bytes(file, _HEADER_BYTES)):
            depth += 1 if item[0].endswith(b"\xff") else -1
            if depth > _MOST_NESTED:
                raise UnreadableSlide(
                    f"its DICOM sequences are nested more than {_MOST_NESTED} deep, where a slide's are some five"
                )


def _bytes(path: str, count: int) -> bytes:
    """The first bytes of a file."""
    with contextlib.closing(open_ranges(path)) as ranges:
        return ranges.read_ranges([(0, min(ranges.size, count))])[0]
