"""Stored tiles with their rows, in slide order or in a random one, for whoever packs them in files of another kind."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsi_prep.curation.exchange.coordinates import Written
from wsi_prep.format.records import TILE_SCHEMA, TileRow
from wsi_prep.format.stored_tiles import TilePlace, place_of, require_whole
from wsi_prep.output.query import open_catalog
from wsi_prep.storage.base import Storage
from wsi_prep.storage.select import open_storage
from wsi_prep.untrusted.sql import QUESTION_SECONDS, one_expression

STRATUM = ("stain", "institution", "tissue", "patient_key")
"""What a tile is given of its slide's row."""

_TILES = "SELECT {columns} FROM tiles JOIN slides USING (slide_id) WHERE status = 'ok' AND ({where}\n) {order}"


@dataclass(frozen=True)
class Wanted:
    """Tiles of the folder or URL `out` that fit `where`: slide by slide, or in a random order that `shuffle` fixes.

    `seconds` as in open_catalog.
    """

    out: str | Path
    where: str
    shuffle: int | None
    seconds: float = QUESTION_SECONDS


def pack_tiles(
    wanted: Wanted, to: Path, add: Callable[[TileRow, bytes], None], of_slide: tuple[str, ...] = STRATUM
) -> Written:
    """Call `add` with row and JPEG of each tile, the row with the columns `of_slide` of its slide.

    The folder `to` has room for sorting. A tile whose bytes are not what the catalog says is left out, and named in
    what is returned.
    """
    keys = "slide_id, magnification, index"
    order = f"ORDER BY {keys}" if wanted.shuffle is None else f"ORDER BY hash({keys}, {wanted.shuffle:d}), {keys}"
    columns = ", ".join(f'"{name}"' for name in (*TILE_SCHEMA.names, *of_slide))
    written = Written()
    storage = open_storage(wanted.out)
    with (
        tempfile.TemporaryDirectory(dir=to, prefix=".sorting.") as spill,
        open_catalog([storage.where], Path(spill), wanted.seconds) as catalog,
    ):
        for batch in catalog.ask(_TILES.format(columns=columns, where=one_expression(wanted.where), order=order)):
            placed = ((row, place_of(row)) for row in batch.to_pylist())
            for shard, tiles in itertools.groupby(placed, lambda tile: tile[1].shard):
                for row, jpeg in _stored(storage, shard, tiles):
                    if isinstance(jpeg, Exception):
                        written.left_out[f"{row['array']}[{row['index']}]"] = getattr(jpeg, "strerror", "") or str(jpeg)
                        continue
                    add(row, jpeg)
                    written.tiles += 1
    return written


def tile_key(row: TileRow) -> str:
    """A name without a dot: webdataset takes what follows the first one for the ending."""
    return f"{row['slide_id'].replace('.', '_')}_{row['magnification']}_{row['index']:06d}"


def plain(row: TileRow) -> dict[str, Any]:
    """The same row with None for numbers that are not finite, which JSON does not have."""
    return {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in row.items()}


def _stored(
    storage: Storage, shard: str, tiles: Iterable[tuple[TileRow, TilePlace]]
) -> Iterator[tuple[TileRow, bytes | Exception]]:
    """Rows of one shard file, each with its tile's JPEG, or with the reason where that is not there, or not whole."""
    waiting = deque(tiles)
    while waiting:
        jpegs = storage.spans(shard, [(place.offset, place.nbytes) for _, place in waiting])
        try:
            for jpeg in jpegs:
                row, place = waiting.popleft()
                yield row, _whole(jpeg, place.crc32)
        except OSError as error:
            yield waiting.popleft()[0], error


def _whole(jpeg: bytes, crc32: int) -> bytes | Exception:
    try:
        require_whole(jpeg, crc32)
    except ValueError:
        return ValueError("its bytes are not those that the catalog says")
    return jpeg
