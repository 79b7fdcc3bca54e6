"""A stored tile by its row of the catalog: where it lies, whether its bytes are those that were written, its pixels.

The row may be anybody's. Everything that reads tiles does it by this: checking, training, features, pictures, tars.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from wsi_prep.errors import BadCatalog
from wsi_prep.format.jpeg import decode_tile, first_frame
from wsi_prep.format.layout import shard_place
from wsi_prep.format.magnifications import MAGNIFICATIONS, TILE_PX
from wsi_prep.format.records import TILES_PER_SHARD, TileRow

LARGEST_JPEG = 1 << 21
"""Bytes. 392 px are 49 x 49 x 3 blocks of 64 coefficients, of 27 bits at most in a baseline JPEG: 1.56 MB."""

FARTHEST_OFFSET = 1 << 62
SHAPE = (TILE_PX, TILE_PX, 3)

_BASELINE = 0xC0  # SOF0
_PICTURE_PX = 1 << 27
"""Of an overlay, at 8 um/px: a slide of 90 mm a side."""


class WrongBytes(ValueError):
    """Bytes at a tile's place that are not those that were written there."""


@dataclass(frozen=True)
class TilePlace:
    """Where a tile's JPEG is: `shard` relative to the output, offset and size in bytes, and its CRC-32."""

    shard: str
    offset: int
    nbytes: int
    crc32: int


def place_of(row: TileRow) -> TilePlace:
    """Where the tile of a row lies by its slide, magnification and index, whatever shard the row names.

    BadCatalog, which names the row, where one of these, or the place in the shard, is not of this format.
    """
    numbers = (row["index"], row["offset"], row["nbytes"], row["crc32"])
    index, offset, nbytes, crc32 = (number if isinstance(number, int) else -1 for number in numbers)
    shard = shard_place(row["slide_id"], row["magnification"], max(index, 0))
    sound = index >= 0 and 0 <= offset < FARTHEST_OFFSET and 0 < nbytes <= LARGEST_JPEG and 0 <= crc32 < 1 << 32
    if not sound:
        raise BadCatalog(_not_ours(row))
    return TilePlace(shard, offset, nbytes, crc32)


def require_places(tiles: pa.Table) -> None:
    """Raise BadCatalog, which names the first, unless every row, of slides that are known, lies where its shard says.

    So `place_of` knows them all; and each has a scale.
    """
    sound = pc.is_in(tiles["magnification"], pa.array([m.name for m in MAGNIFICATIONS]))
    number = pc.divide(tiles["index"], pa.scalar(TILES_PER_SHARD, pa.int32()))
    stores = (pa.scalar("stores/"), tiles["slide_id"], pa.scalar(".zarr/"), tiles["magnification"])
    shard = pc.binary_join_element_wise(
        *stores, pa.scalar("/c."), pc.cast(number, pa.string()), pa.scalar(".0.0.0"), ""
    )
    sound = pc.and_(sound, pc.equal(shard, tiles["shard"]))
    for name, least, most in (("index", 0, None), ("offset", 0, FARTHEST_OFFSET - 1), ("nbytes", 1, LARGEST_JPEG)):
        sound = pc.and_(sound, pc.greater_equal(tiles[name], least))
        sound = pc.and_(sound, pc.less_equal(tiles[name], most)) if most else sound
    sound = pc.and_(sound, pc.and_(pc.is_valid(tiles["crc32"]), pc.greater(tiles["mpp"], 0)))
    wrong = pc.invert(pc.fill_null(sound, False))
    if pc.any(wrong).as_py():
        raise BadCatalog(_not_ours(tiles.filter(wrong).slice(0, 1).to_pylist()[0]))


def require_whole(jpeg: Any, crc32: int) -> None:
    """Raise WrongBytes unless these bytes are those that were written."""
    if imagecodecs.deflate_crc32(jpeg) != crc32:  # several times as fast as zlib's
        raise WrongBytes("CRC-32 differs from the catalog's")


def decode_stored(jpeg: Any, crc32: int, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """(392, 392, 3) uint8 RGB of a stored tile, written into `out` if given; ValueError or RuntimeError.

    A JPEG of another size, or of scans without end, is not begun to be decoded.
    """
    require_whole(jpeg, crc32)
    frame = first_frame(jpeg)
    if frame is None or frame[0] != _BASELINE:
        raise ValueError("it is no baseline JPEG")
    if frame[1:] != SHAPE[:2]:
        raise ValueError(f"it is {frame[2]} x {frame[1]} px in place of {TILE_PX} x {TILE_PX}")
    pixels = decode_tile(jpeg, out)
    if pixels.shape != SHAPE:
        raise ValueError("it is not in three colours")
    return pixels


def is_picture(jpeg: bytes) -> bool:
    """Whether these bytes begin a baseline JPEG of no more pixels than an overlay can have."""
    marker, height, width = first_frame(jpeg) or (0, 0, 0)
    return marker == _BASELINE and 0 < width * height <= _PICTURE_PX


def _not_ours(row: TileRow) -> str:
    magnification = str(row["magnification"])[:10]
    shown = magnification if magnification.isalnum() else repr(magnification)
    named = f"{str(row['slide_id'])[:80]!r} {shown} {row['index']}"
    return f"the tile {named} in {str(row['shard'])[:120]!r} has a place that is not of this format; run make verify"
