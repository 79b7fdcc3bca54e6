"""SVS files that OpenSlide must not be handed."""

from __future__ import annotations

import contextlib

import tifffile

from wsi_prep.errors import StoreFailed, UnreadableSlide
from wsi_prep.slides.fetch.ranges import open_ranges, seekable
from wsi_prep.slides.readers.tiff.bounds import require_few_directories


def require_openslide_survives(path: str) -> None:
    """Raise UnreadableSlide for an SVS on which OpenSlide (4.0.1) would divide by zero, which ends the process.

    It marks the tile under each missing one as missing too, in the next picture that is stored in tiles; that is a
    level, so it has fewer tiles: but a macro stored in tiles, or levels in another order, may have twice as many.
    """
    try:
        with contextlib.closing(open_ranges(path)) as ranges, tifffile.TiffFile(seekable(ranges)) as tiff:
            require_few_directories(tiff)
            tiled = [page for page in tiff.pages if page.is_tiled]
            grids = [(-(-p.imagewidth // p.tilewidth), -(-p.imagelength // p.tilelength)) for p in tiled]
            lacks = [0 in page.databytecounts for page in tiled]
    except (UnreadableSlide, StoreFailed):
        raise
    except Exception:
        return
    for at in range(1, len(tiled)):
        if any(lacks[:at]) and any(2 * above < below for above, below in zip(grids[at - 1], grids[at], strict=True)):
            raise UnreadableSlide(
                "OpenSlide cannot open it: a level lacks tiles, and a picture with more tiles follows it; "
                "leave the reader to auto"
            )
