"""What somebody can do with a file that no reader takes, by how it begins."""

from __future__ import annotations

import contextlib
from pathlib import Path

from wsi_prep.errors import StoreFailed
from wsi_prep.slides.fetch.ranges import open_ranges
from wsi_prep.slides.find.endings import ending, is_left_out
from wsi_prep.slides.readers.directories import TILE_WIDTH, first_tags
from wsi_prep.slides.readers.tiff.pictures import COMPRESSED

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


def advice(path: str, why: str = "") -> str:
    """What to do with a file, or URL, that no reader takes (`why`: the TIFF reader), as one sentence or a question."""
    tile_it = _TILE_IT.format(ending(path) if ending(path).isascii() else ".tif")
    if why.startswith(COMPRESSED):
        return f"With a vips that reads this compression, {tile_it}"
    if ending(path) == ".mrxs" and "://" not in path and not Path(path[: -len(".mrxs")]).is_dir():
        return "Its folder of the same name, which holds its data, is missing beside it; copy both, and rename both"
    return _by_its_begin(path, tile_it)


def _by_its_begin(path: str, tile_it: str) -> str:
    with contextlib.suppress(OSError, StoreFailed), contextlib.closing(open_ranges(path)) as ranges:
        head = ranges.read_ranges([(0, min(ranges.size, 132))])[0]
        tags = first_tags(ranges, head[:16])
        if tags is not None and TILE_WIDTH not in tags:
            return f"Its picture is stored in strips; {tile_it}"
        for start, kind in _PICTURES:
            if head.startswith(start):
                return f"It is a {kind} picture in one piece; {tile_it}"
        if head[128:] == b"DICM":
            return "It is DICOM, but no whole-slide microscopy image"
    if is_left_out(path):
        return f"{ending(path)} is not read; convert it to a tiled TIFF (docs/operations.md)"
    return "Is it a complete whole-slide image?"
