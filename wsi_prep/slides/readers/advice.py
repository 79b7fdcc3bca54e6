"""What somebody can do with a file that no reader takes, by how it begins."""

from __future__ import annotations

import contextlib
import struct

from wsi_prep.errors import StoreFailed
from wsi_prep.slides.fetch.ranges import Ranges, open_ranges
from wsi_prep.slides.find.endings import ending, is_left_out

_TILE_IT = (
    "make a tiled pyramid of it: vips tiffsave in{} out.tif --tile --pyramid --bigtiff --compression jpeg --Q 90; "
    "give its mpp in the manifest where it states none"
)

_PICTURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n", "PNG"),
    (b"\0\0\0\x0cjP  \r\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
)
_HEADS = {b"II*\0": ("<", False), b"MM\0*": (">", False), b"II+\0": ("<", True), b"MM\0+": (">", True)}
"""Byte order, and whether it is a BigTIFF (TIFF 6.0, section 2; the BigTIFF file format)."""

_TILE_WIDTH, _MOST_ENTRIES = 322, 4096


def advice(path: str) -> str:
    """What to do with a file, or URL, that no reader takes, as one sentence or a question."""
    tile_it = _TILE_IT.format(ending(path) if ending(path).isascii() else ".tif")
    with contextlib.suppress(OSError, StoreFailed, struct.error), contextlib.closing(open_ranges(path)) as ranges:
        head = ranges.read_ranges([(0, min(ranges.size, 132))])[0]
        if head[:4] in _HEADS and not _first_is_tiled(ranges, head):
            return f"Its picture is stored in strips; {tile_it}"
        for start, kind in _PICTURES:
            if head.startswith(start):
                return f"It is a {kind} picture in one piece; {tile_it}"
        if head[128:] == b"DICM":
            return "It is DICOM, but no whole-slide microscopy image"
    if is_left_out(path):
        return f"{ending(path)} is not read; convert it to a tiled TIFF (docs/operations.md)"
    return "Is it a complete whole-slide image?"


def _first_is_tiled(ranges: Ranges, head: bytes) -> bool:
    """Whether the first directory of a TIFF is of a picture in tiles; struct.error where it is cut off."""
    order, big = _HEADS[head[:4]]
    (start,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", head, 8 if big else 4)
    count_bytes, entry_bytes = (8, 20) if big else (2, 12)
    length = min(count_bytes + _MOST_ENTRIES * entry_bytes, ranges.size - start)
    directory = ranges.read_ranges([(start, length)])[0] if length > 0 else b""
    (count,) = struct.unpack_from(f"{order}{'Q' if big else 'H'}", directory)
    entries = range(count_bytes, count_bytes + min(count, _MOST_ENTRIES) * entry_bytes, entry_bytes)
    return _TILE_WIDTH in {struct.unpack_from(f"{order}H", directory, at)[0] for at in entries}
