"""One slide by two readers: where they disagree, a person should look."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from wsi_prep.errors import DamagedSlide
from wsi_prep.slides.base import SlideInfo, SlideReader
from wsi_prep.slides.pyramid.compare import alike, resized

_SCALES_APART = 0.05
_LOOKED_AT = 0.45
"""Where on the slide's diagonal both readers read a tile, as a share of it."""

_REDUCED = 8


def disagreements(first: SlideReader, other: SlideReader, other_name: str) -> list[str]:
    """What the slide's row warns of: size, scale or pixels of `first`, which is used, are not those of `other`."""
    ours, theirs = first.info, other.info
    if (ours.width0, ours.height0) != (theirs.width0, theirs.height0):
        return [
            f"the slide is read as {ours.width0} x {ours.height0} px, "
            f"where {other_name} reads {theirs.width0} x {theirs.height0} px"
        ]
    return [*_scales_apart(ours, theirs, other_name), *_pixels_apart(first, other, other_name)]


def _scales_apart(ours: SlideInfo, theirs: SlideInfo, other_name: str) -> Iterator[str]:
    if ours.mpp_x is None or theirs.mpp_x is None:
        return
    if abs(ours.mpp_x - theirs.mpp_x) > _SCALES_APART * ours.mpp_x:
        yield f"the scale is read as {ours.mpp_x:g} um/px, where {other_name} reads {theirs.mpp_x:g}"


def _pixels_apart(first: SlideReader, other: SlideReader, other_name: str) -> Iterator[str]:
    info = first.info
    side = min(info.tile_px, info.width0, info.height0) // _REDUCED * _REDUCED
    if side == 0:
        return
    x0, y0 = (
        int(_LOOKED_AT * (length - side)) // info.tile_px * info.tile_px for length in (info.width0, info.height0)
    )
    size = (side // _REDUCED, side // _REDUCED)
    with contextlib.suppress(DamagedSlide):  # the tiles will tell
        if not alike(*(resized(reader.read(0, x0, y0, side, side), size) for reader in (first, other))):
            yield f"the pixels near x {x0}, y {y0} (level 0) are not those that {other_name} reads"
