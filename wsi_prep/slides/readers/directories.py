"""A TIFF's directories as they are in the file, whoever made it: which tags they have, and whether all is there.

TIFF 6.0, section 2; the BigTIFF file format; and Hamamatsu's NDPI, whose offsets have their upper 32 bits behind the
directory (OpenSlide's and tifffile's reading of it).
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_prep.errors import StoreFailed
from wsi_prep.slides.fetch.ranges import Ranges, open_ranges
from wsi_prep.slides.find.endings import ending
from wsi_prep.slides.readers.tiff.bounds import MOST_DIRECTORIES

TILE_WIDTH = 322
_TILES, _STRIPS, _SUB_DIRECTORIES, _NDPI = (324, 325), (273, 279), 330, 65420

_HEADS = {b"II*\0": ("<", False), b"MM\0*": (">", False), b"II+\0": ("<", True), b"MM\0+": (">", True)}
"""Byte order, and whether it is a BigTIFF."""

_KINDS = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value, by the type's number."""

_WHOLE_NUMBERS = {3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}
_MOST_ENTRIES, _MOST_BYTES = 4096, 2**26
_HIGHEST = 2**16
"""Above the upper 32 bits of any file's length: another file that is called .ndpi has something else there."""


class _Beyond(Exception):
    """What lies beyond the file's end."""


@dataclass(frozen=True)
class _Directory:
    """Where each tag's values lie: tag to (type, count, byte); and where the next directory is, 0 for none."""

    values: Mapping[int, tuple[int, int, int]]
    following: int


def truncated(path: str) -> str:
    """What of a TIFF, or URL of one, lies beyond the file's end, in words; an empty text where nothing does."""
    try:
        with contextlib.suppress(OSError, StoreFailed), contextlib.closing(open_ranges(path)) as ranges:
            head = ranges.read_ranges([(0, min(ranges.size, 16))])[0]
            for directory, name in _directories(ranges, head, ndpi=ending(path) == ".ndpi"):
                _require_data(ranges, _HEADS[head[:4]][0], directory, name)
    except _Beyond as what:
        return str(what)
    return ""


def first_tags(ranges: Ranges, head: bytes) -> set[int] | None:
    """The tags of the first directory, by a file's first 16 bytes; None for what is no TIFF, or is cut off there."""
    with contextlib.suppress(_Beyond):
        for directory, _ in _directories(ranges, head):
            return set(directory.values)
    return None


def _directories(ranges: Ranges, head: bytes, *, ndpi: bool = False) -> Iterator[tuple[_Directory, str]]:
    """All directories, each with what to call it, none of what is no TIFF; _Beyond where one is not all there.

    In a file that is called `ndpi`, the first one's offset has 64 bits.
    """
    if head[:4] not in _HEADS:
        return
    order, big = _HEADS[head[:4]]
    if len(head) < (16 if big else 8):
        raise _Beyond(f"its first TIFF directory is missing, it has {ranges.size:,} bytes")
    waiting, seen = [_first(head, ndpi=ndpi)], set[int]()
    while waiting and len(seen) < MOST_DIRECTORIES:
        at = waiting.pop(0)
        if at == 0 or at in seen:
            continue
        seen.add(at)
        name = f"TIFF directory {len(seen)}"
        directory = _directory(ranges, order, at, name, big=big)
        if directory is None:
            return
        yield directory, name
        waiting.append(directory.following)
        waiting += map(int, _numbers(ranges, order, directory, _SUB_DIRECTORIES, name))


def _first(head: bytes, *, ndpi: bool) -> int:
    order, big = _HEADS[head[:4]]
    at = int(struct.unpack_from(f"{order}{'Q' if big else 'I'}", head, 8 if big else 4)[0])
    if not ndpi or big or at < 12 or len(head) < 12:
        return at
    above = int(struct.unpack_from(f"{order}I", head, 8)[0])
    return at + (above << 32) if above < _HIGHEST else at


def _directory(ranges: Ranges, order: str, at: int, name: str, *, big: bool) -> _Directory | None:
    """The directory at a byte, or None for nonsense."""
    count_bytes, entry_bytes, offset = (8, 20, "Q") if big else (2, 12, "I")
    (count,) = struct.unpack(f"{order}{'Q' if big else 'H'}", _there(ranges, at, count_bytes, name))
    if not 0 < count <= _MOST_ENTRIES:
        return None
    end = at + count_bytes + count * entry_bytes
    following_bytes = 8 if big else 4
    data = _there(ranges, at + count_bytes, end + following_bytes - at - count_bytes, name)
    entries = list(struct.iter_unpack(f"{order}HH{offset}{offset}", data[: count * entry_bytes]))
    (following,) = struct.unpack_from(f"{order}{offset}", data, count * entry_bytes)
    above = [0] * count
    if not big and any(tag == _NDPI for tag, *_ in entries) and end + 8 + 4 * count <= ranges.size:
        words = struct.unpack(f"{order}Q{count}I", ranges.read_ranges([(end, 8 + 4 * count)])[0])
        following, above = words[0], list(words[1:])
    values = {}
    for number, (tag, kind, many, where) in enumerate(entries):
        inline = many * _KINDS.get(kind, 1) <= (8 if big else 4)
        begin = at + count_bytes + (number + 1) * entry_bytes - (8 if big else 4)
        values[tag] = (kind, many, begin if inline else where + (above[number] << 32))
        if inline and above[number] and many == 1:
            values[tag] = (0, where + (above[number] << 32), 0)
    return _Directory(values, following)


def _numbers(ranges: Ranges, order: str, directory: _Directory, tag: int, name: str) -> NDArray[np.uint64]:
    """A tag's whole numbers, none where it has others; _Beyond where they are not all there."""
    kind, count, at = directory.values.get(tag, (1, 0, 0))
    if kind == 0:  # the number itself, in NDPI's two parts
        return np.array([count], np.uint64)
    if kind not in _WHOLE_NUMBERS or count * _KINDS[kind] > _MOST_BYTES:
        return np.empty(0, np.uint64)
    data = _there(ranges, at, count * _KINDS[kind], f"a table of {name}")
    return np.frombuffer(data, f"{order}{_WHOLE_NUMBERS[kind]}").astype(np.uint64)


def _require_data(ranges: Ranges, order: str, directory: _Directory, name: str) -> None:
    """Raise _Beyond where a directory's tiles or strips, or the tables of them, are not all there."""
    for what, (offsets, counts) in (("tiles", _TILES), ("strips", _STRIPS)):
        begin = _numbers(ranges, order, directory, offsets, name)
        length = _numbers(ranges, order, directory, counts, name)
        if len(begin) != len(length) or not len(begin):
            continue
        end = int((begin + length)[length > 0].max(initial=0))
        if end > ranges.size:
            raise _Beyond(f"the {what} of its {name} reach to byte {end:,}, it has {ranges.size:,}")


def _there(ranges: Ranges, at: int, length: int, name: str) -> bytes:
    if at + length > ranges.size:
        raise _Beyond(
            f"{'' if name.startswith('a ') else 'its '}{name} reaches to byte {at + length:,}, it has {ranges.size:,}"
        )
    return ranges.read_ranges([(at, length)])[0]
