"""Which reader a slide gets."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from wsi_prep.compute.threads import ThreadPool
from wsi_prep.errors import BadOption, DamagedSlide, UnreadableSlide
from wsi_prep.slides.base import SlideReader
from wsi_prep.slides.dicom import require_few_nested
from wsi_prep.slides.fetch.cache import Lease
from wsi_prep.slides.fetch.ranges import open_ranges
from wsi_prep.slides.fetch.remote import copy_here, local_path
from wsi_prep.slides.find.endings import ending
from wsi_prep.slides.find.found import SlideSource
from wsi_prep.slides.readers.advice import advice
from wsi_prep.slides.readers.directories import truncated
from wsi_prep.slides.readers.openslide_reader import OpenSlideReader, detect_vendor
from wsi_prep.slides.readers.second import disagreements
from wsi_prep.slides.readers.tiff.facts import OTHERS_SCALE
from wsi_prep.slides.readers.tiff.opening import is_ome_tiff
from wsi_prep.slides.readers.tiff.pictures import TRANSPARENT, UnsupportedLayout
from wsi_prep.slides.readers.tiff.reader import TiffReader
from wsi_prep.storage.patience import patiently

READERS = ("auto", "tiff", "openslide")
_PIECE_BYTES = 8 * 2**20
_TIFF_ENDINGS = (".svs", ".tif", ".tiff")

_PLAIN_TILES = (None, "aperio", "generic-tiff")
"""What the tiled-TIFF reader may try: other vendors' TIFFs have overlaps, gaps or several regions."""


@contextlib.contextmanager
def opened(source: SlideSource, reader: str, lease: Lease, pool: ThreadPool | None = None) -> Iterator[SlideReader]:
    """The slide, open for the time of the block: where it is, or as a copy in `lease` where only local files will do.

    Raises as `open_slide` does, and NoRoom where a copy does not fit.
    """
    far = local_path(source.path) is None
    slide = _open_far(source.path, reader, pool) if far else open_slide(source.path, reader, pool, source.files)
    if slide is None:
        here = copy_here(source.path, source.files, lease)
        slide = open_slide(here, reader, pool, [str(file) for file in Path(here).parent.iterdir()])
    try:
        yield slide
    except DamagedSlide:
        if not far and slide.info.reader == "openslide":
            _require_served(source.path, source.files)
        raise
    finally:
        slide.close()


def _open_far(path: str, reader: str, pool: ThreadPool | None) -> SlideReader | None:
    """A slide that is read by ranges, or None where it has to be a local file."""
    if reader == "openslide" or (reader == "auto" and ending(path) not in _TIFF_ENDINGS):
        return None
    try:
        return TiffReader(path, pool)
    except UnsupportedLayout:
        if reader == "tiff":
            raise
        return None


def open_slide(
    path: str, reader: str = "auto", pool: ThreadPool | None = None, files: Sequence[str] = ()
) -> SlideReader:
    """Open a slide file or URL with the named reader, or with the first that takes it: tiff, then openslide.

    The tiled-TIFF reader comes first because it hands over compressed tiles several times faster. Raises
    UnreadableSlide with every reader's reason in one line, DamagedSlide for a truncated file, BadOption for an unknown
    reader. A `pool` decodes tiles side by side, where the reader is handed compressed ones. `files` are those that the
    slide consists of, where they are more than one: OpenSlide follows a DICOM file to its series.
    """
    if reader not in READERS:
        raise BadOption(f"reader {reader!r} is not known; choose from {' '.join(READERS)}")
    try:
        return _opened(path, reader, pool, files)
    except UnreadableSlide as error:
        if local_path(path) is not None:
            _require_served(path, files)
        if what := truncated(path):
            raise DamagedSlide(f"the file is truncated: {what}; copy the slide again") from error
        raise


def _require_served(path: str, files: Sequence[str]) -> None:
    """Read all of a slide that OpenSlide refuses, as it does not tell a file server's errors from a damaged file's.

    Raises StoreFailed.
    """
    for file in {path, *files}:
        with contextlib.suppress(UnreadableSlide), contextlib.closing(open_ranges(file)) as ranges:
            for start in range(0, ranges.size, _PIECE_BYTES):
                ranges.read_ranges([(start, _PIECE_BYTES)])


def _opened(path: str, reader: str, pool: ThreadPool | None, files: Sequence[str]) -> SlideReader:
    local = local_path(path)
    if local is not None:
        _require_file(local)
        require_few_nested(local, files)
    if reader == "tiff":
        return TiffReader(path, pool)
    if reader == "openslide":
        if local is not None and is_ome_tiff(local):
            raise UnreadableSlide("an OME-TIFF, of which OpenSlide would read one plane; leave the reader to auto")
        return _by_openslide(_required_local(local), files)
    vendor = detect_vendor(local) if local is not None else None
    if vendor not in _PLAIN_TILES:
        return OpenSlideReader(_required_local(local), files)
    try:
        found = TiffReader(path, pool)
    except UnsupportedLayout as error:
        refusal = error
    else:
        known = vendor is not None and not found.is_ome and not found.leaves_out_samples  # to OpenSlide
        if known and local is not None:
            with contextlib.suppress(UnreadableSlide), contextlib.closing(OpenSlideReader(local)) as second:
                found.add_notes(disagreements(found, second, "OpenSlide"))
        return found
    try:
        last = OpenSlideReader(_required_local(local))
    except UnreadableSlide as error:
        what_to_do = advice(path, str(refusal))
        raise UnreadableSlide(f"no reader takes this file: {refusal}; {error}. {what_to_do}") from error
    _require_same(last, refusal.largest, str(refusal))
    if str(refusal) == TRANSPARENT:
        last.look_for_transparency()
    if what := truncated(path):  # of levels that OpenSlide does not know
        last.close()
        raise DamagedSlide(f"the file is truncated: {what}; copy the slide again")
    return last


def _by_openslide(path: str, files: Sequence[str]) -> OpenSlideReader:
    """The slide by OpenSlide, which takes the largest picture of a plain TIFF for it, a label too."""
    chosen = OpenSlideReader(path, files)
    if chosen.info.vendor not in _PLAIN_TILES:
        return chosen
    try:
        with contextlib.closing(TiffReader(path)) as other:
            sides = other.info.width0, other.info.height0
            _require_right(other)
            notes = disagreements(chosen, other, "the TIFF reader")  # and what other pictures the file holds:
            notes += [note for note in other.info.notes if note not in chosen.info.notes]
    except UnsupportedLayout as refusal:
        _require_same(chosen, refusal.largest, str(refusal))
        if str(refusal) == TRANSPARENT:
            chosen.look_for_transparency()
    except DamagedSlide:
        return chosen
    except UnreadableSlide:
        chosen.close()
        raise
    else:
        _require_same(chosen, sides, "leave the reader to auto")
        chosen.add_notes(notes)
    return chosen


def _require_right(other: TiffReader) -> None:
    """Raise UnreadableSlide where OpenSlide would read wrongly what the TIFF reader reads."""
    if other.leaves_out_samples:
        raise UnreadableSlide("OpenSlide would take its fourth sample for transparency; leave the reader to auto")
    if others := next((note for note in other.info.notes if note.startswith(OTHERS_SCALE)), ""):
        raise UnreadableSlide(f"OpenSlide would not see that {others}; leave the reader to auto")


def _require_same(found: SlideReader, sides: tuple[int, int] | None, why: str) -> None:
    """Raise UnreadableSlide where OpenSlide takes a picture of other sides than `sides` for the slide."""
    taken = found.info.width0, found.info.height0
    if sides is not None and taken != sides:
        found.close()
        raise UnreadableSlide(
            f"its slide, of {sides[0]} x {sides[1]} px, is not read ({why}), and OpenSlide takes one of "
            f"{taken[0]} x {taken[1]} px for the slide"
        )


def _required_local(local: str | None) -> str:
    if local is None:
        raise UnreadableSlide("OpenSlide reads local files only; copy the slide to a disk that the workers see")
    return local


def _require_file(path: str) -> None:
    try:
        about = patiently(Path(path).stat)
    except FileNotFoundError as error:
        raise UnreadableSlide("the file does not exist") from error
    except OSError as error:
        raise UnreadableSlide(f"cannot be opened ({error.strerror})") from error
    if stat.S_ISREG(about.st_mode) and about.st_size == 0:
        raise UnreadableSlide("the file is empty (0 bytes); copy the slide again")
