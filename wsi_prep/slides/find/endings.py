"""Which files are slides by their endings, and which are pictures that are not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

from wsi_prep.errors import counted
from wsi_prep.format.layout import bare_name, suffix_in
from wsi_prep.slides.urls import bare_url, name_of

SLIDE_ENDINGS = (
    *(".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".czi", ".dcm"),
)
"""Of OpenSlide's formats, OME-TIFF and DICOM; compared without regard to case."""

_SCANNERS = (
    *(".qptiff", ".isyntax", ".i2syntax", ".vsi", ".afi", ".lif", ".lof", ".xlif", ".lsm", ".nd2", ".zvi", ".oir"),
    *(".oib", ".oif", ".ims", ".sld", ".sldy", ".stk", ".kfb", ".kfbf", ".sdpc", ".dyqx", ".tmap", ".tron", ".mds"),
    *(".mdsx", ".szi", ".dzi", ".btf", ".tf2", ".tf8", ".ptif", ".ptiff", ".zarr", ".ndpis"),
)
_PICTURES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".jp2", ".j2k", ".jpf", ".jxl", ".jxr"),
    *(".heic", ".heif", ".avif", ".psd", ".pnm", ".ppm"),
)
_ARCHIVES = (".zip", ".tar", ".tgz", ".7z", ".rar")
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_PACKED = (*_ARCHIVES, *_COMPRESSED)

PICTURE_ENDINGS = frozenset((*_SCANNERS, *_PICTURES, *_PACKED))
"""Of pictures, and of archives that may hold some. What else lies beside slides (.txt, .xml, .dat) is no picture."""

_LISTS = (
    *(".txt", ".tsv", ".tab", ".lst", ".list", ".xlsx", ".xlsm", ".xls", ".ods", ".json", ".jsonl", ".yaml", ".yml"),
    *(".parquet", ".csv.gz", ".csv.zip", ".txt.gz", ".tsv.gz"),
)
"""Of files in which people list slides, beside .csv."""

_SHOWN = 6
_REMEDY = "convert what is a slide (docs/operations.md)"


def ending(path: str) -> str:
    """The ending of a file's name, in lower case."""
    return suffix_in(name_of(path)).lower()


def is_list(path: str) -> bool:
    """Whether a file may be a list of slides, by its ending, that is not read."""
    return name_of(path).lower().endswith(_LISTS)


def _has_blank(path: str) -> bool:
    """Whether a name would be a slide's or a picture's without the blank at its end, which nobody sees."""
    name = name_of(path)
    return name != name.rstrip() and suffix_in(name.rstrip()).lower() in {*SLIDE_ENDINGS, *PICTURE_ENDINGS}


def is_left_out(path: str) -> bool:
    """Whether a file is a picture, by its ending, that is not read; or a slide whose name ends in a blank."""
    if _has_blank(path):
        return not name_of(path).startswith(".")
    name = PurePosixPath(name_of(path))
    if ending(path) in _COMPRESSED and ending(name.stem) not in {*SLIDE_ENDINGS, *_SCANNERS, *_PICTURES, ".tar"}:
        return False
    return not name.name.startswith(".") and ending(path) in PICTURE_ENDINGS


def why_left_out(path: str) -> str:
    """What to say where somebody names such a file."""
    if _has_blank(path):
        return "it is there, but its name ends in a blank: rename it"
    if ending(path) in _PACKED:
        return f"it is there, but {ending(path)} files are not opened: unpack it"
    return f"it is there, but {_kind(path)} is not read: convert it to a tiled TIFF"


def without_masks(pictures: Iterable[str], slides: Iterable[str]) -> tuple[str, ...]:
    """The pictures without those that are masks of slides beside them: `a.mask.png` beside `a.svs`."""
    pictures = tuple(pictures)
    if not any(picture.endswith(".mask.png") for picture in pictures):
        return pictures
    places = [(bare_url(slide).rpartition("/")[0], bare_name(name_of(slide))) for slide in slides]
    masks = {f"{folder}/{name}.mask.png" for folder, name in places}
    return tuple(picture for picture in pictures if bare_url(picture) not in masks)


def left_out_note(paths: Iterable[str]) -> list[str]:
    """One line of all files that were left out, and what can be done; none where there are none."""
    return [f"{count}; the formats that are read are {' '.join(SLIDE_ENDINGS)}: {_REMEDY}" for count in _counts(paths)]


def only_left_out(paths: Iterable[str]) -> str:
    """The same where no slide was found, to put behind what says so."""
    return "".join(f"; {count}: {_REMEDY}" for count in _counts(paths))


def _counts(paths: Iterable[str]) -> list[str]:
    """How many files were left out, by ending, in one text; none where there are none."""
    counts = Counter(_kind(path) for path in paths).most_common()
    if not counts:
        return []
    total = sum(count for _, count in counts)
    shown = [f"{count:,} {kind}" for kind, count in counts[:_SHOWN]]
    if counts[_SHOWN:]:
        shown.append(f"{sum(count for _, count in counts[_SHOWN:]):,} of {len(counts) - _SHOWN} other kinds")
    return [f"{counted(total, 'file was', 'files were')} skipped: {', '.join(shown)}"]


def _kind(path: str) -> str:
    if _has_blank(path):
        return f"{ending(path).rstrip()} with a blank behind it (rename it)"
    return ending(path) if ending(path) in PICTURE_ENDINGS else "DICOM that is no slide"
