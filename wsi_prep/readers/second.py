"""What OpenSlide says of a slide that the TIFF reader reads: where they disagree, a person should look."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from wsi_prep.errors import DamagedSlide, UnreadableSlide
from wsi_prep.readers.base import SlideInfo, SlideReader
from wsi_prep.readers.compare import alike, resized
from wsi_prep.readers.openslide_reader import OpenSlideReader

_SCALES_APART = 0.05
_LOOKED_AT = (0.3, 0.6)
"""Where on the slide's diagonal both readers read a tile, as shares of it."""

_REDUCED = 8


def second_opinion(first: SlideReader, path: str) -> list[str]:
    """What the slide's row warns of: the size, the scale or the pictures of `first` are not those of OpenSlide."""
    try:
        other = OpenSlideReader(path)
    except UnreadableSlide:
        return []
    with contextlib.closing(other):
        ours, theirs = first.info, other.info
        if (ours.width0, ours.height0) != (theirs.width0, theirs.height0):
            return [
                f"the slide is read as {ours.width0} x {ours.height0} px, "
                f"where OpenSlide reads {theirs.width0} x {theirs.height0} px"
            ]
        return [*_scales_apart(ours, theirs), *_pictures_apart(first, other)]


def _scales_apart(ours: SlideInfo, theirs: SlideInfo) -> Iterator[str]:
    if ours.mpp_x is None or theirs.mpp_x is None:
        return
    if abs(ours.mpp_x - theirs.mpp_x) > _SCALES_APART * ours.mpp_x:
        yield f"the scale is read as {ours.mpp_x:g} um/px, where OpenSlide reads {theirs.mpp_x:g}"


def _pictures_apart(first: SlideReader, other: SlideReader) -> Iterator[str]:
    info = first.info
    side = min(info.tile_px, info.width0, info.height0) // _REDUCED * _REDUCED
    if side == 0:
        return
    for share in _LOOKED_AT:
        x0, y0 = (int(share * (length - side)) // info.tile_px * info.tile_px for length in (info.width0, info.height0))
        size = (side // _REDUCED, side // _REDUCED)
        try:
            seen = [resized(reader.read(0, x0, y0, side, side), size) for reader in (first, other)]
        except DamagedSlide:  # the tiles will tell
            return
        if not alike(*seen):
            yield f"the pixels near x {x0}, y {y0} (level 0) are not those that OpenSlide reads"
            return
