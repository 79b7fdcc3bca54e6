"""Regions: what lies under one tile of the 5x grid, at all magnifications (1 + 4 + 16 + 64 tiles), read together.

`make shards` writes a slide's tiles region by region, so those of one region and magnification are neighbours in the
file: a region takes one read for each magnification, where tile by tile takes 85.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pretrain.data.index import TileAddress
from pretrain.data.loader import UNREADABLE, read_jpeg, unreadable_reason
from pretrain.data.parts import checked_tiles
from pretrain.data.sources import ShardSource, copies_of, folders_of, open_source
from pretrain.errors import BadShards
from wsi_prep.compute.ahead import ahead
from wsi_prep.errors import BadOption
from wsi_prep.format.magnifications import MAGNIFICATIONS, TILE_PX
from wsi_prep.format.records import SLIDE_SCHEMA
from wsi_prep.format.stored_tiles import decode_stored
from wsi_prep.untrusted.tables import of_today

LEVELS = tuple(m.name for m in reversed(MAGNIFICATIONS))
"""Coarsest first: 5x, 10x, 20x, 40x."""
SIDES = {name: 2**number for number, name in enumerate(LEVELS)}
"""Tiles along a region's side at each magnification."""
FIRST = {name: sum(SIDES[coarser] ** 2 for coarser in LEVELS[:number]) for number, name in enumerate(LEVELS)}
"""The number of each magnification's first place; places are counted row by row."""
PLACES = sum(side**2 for side in SIDES.values())
"""Of a region: 85."""

_SPAN_BYTES, _GAP_BYTES = 8 * 2**20, 64 * 2**10


@dataclass(frozen=True)
class Region:
    """The tiles of one region by magnification; `row` and `col` as in the 5x grid.

    `pixels`: (s, s, 392, 392, 3) uint8 RGB, s = 1, 2, 4, 8 for 5x, 10x, 20x, 40x; 0 where there is no tile. `there`:
    (s, s) bool, whether there is one. `mpp`: um/px, of the magnifications that have a tile here.
    """

    row: int
    col: int
    pixels: dict[str, NDArray[np.uint8]]
    there: dict[str, NDArray[np.bool_]]
    mpp: dict[str, float]


@dataclass(frozen=True)
class SlideTiles:
    """Where the tiles of one slide are. `tiles`: rows of catalog/tiles.

    >>> slide = open_slide_tiles("shards", "slide1-00000001")
    >>> len(slide.tiles), slide.regions.tolist()
    (18, [[0, 0], [0, 1]])
    """

    source: ShardSource
    slide_id: str
    tiles: pa.Table

    @property
    def regions(self) -> NDArray[np.int64]:
        """(r, 2): row and col of each region that has a tile, row by row."""
        row, col, _ = places_of(self.tiles)
        found: NDArray[np.int64] = np.unique(np.stack([row, col], axis=1), axis=0)
        return found


def open_slide_tiles(shards: str | Path | Sequence[str | Path], slide_id: str) -> SlideTiles:
    """The tiles of one slide in the OUT folders or URLs `shards`. Raises BadShards, BadOption for an unknown slide.

    >>> open_slide_tiles("shards", "slide2-00000002").tiles["magnification"].value_counts().to_pylist()
    [{'values': '20x', 'counts': 12}, {'values': '10x', 'counts': 6}]
    """
    sources = list(map(open_source, folders_of(shards)))
    for source, counted in zip(sources, copies_of(sources)[0], strict=True):
        with_tiles = {file.name for file in source.files("tiles")}
        for name in (name for name in counted if name in with_tiles):
            slides = of_today(source.parquet("slides", name).read(), SLIDE_SCHEMA).filter(counted[name])
            slides = slides.filter(pc.equal(slides["slide_id"], slide_id))
            if len(slides):
                return SlideTiles(source, slide_id, _tiles_of(source, name, slides))
    raise BadOption(f"{' '.join(folders_of(shards))} holds no tiles of a slide {slide_id!r}")


def _tiles_of(source: ShardSource, name: str, slides: pa.Table) -> pa.Table:
    """The one slide's tiles, from those row groups that can hold them."""
    file, slide_id = source.parquet("tiles", name), slides["slide_id"][0].as_py()
    column = file.schema_arrow.names.index("slide_id")
    groups = [n for n in range(file.num_row_groups) if _may_hold(file.metadata.row_group(n).column(column), slide_id)]
    batches = [checked_tiles(source, batch, slides, None) for batch in file.iter_batches(row_groups=groups)]
    if not sum(map(len, batches)):
        raise BadShards(f"{source.where}/catalog: {name} has no tile of {slide_id}; run make shards on it again")
    return pa.concat_tables(batches)


def _may_hold(column: pq.ColumnChunkMetaData, value: str) -> bool:
    said = column.statistics
    return said is None or not said.has_min_max or bool(said.min <= value <= said.max)


def places_of(tiles: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Of each tile: row and col of its region, and its place there, 0 to 84: 5x, 10x, 20x, 40x, each row by row.

    `tiles`: at least the columns magnification, row and col of catalog/tiles.
    """
    level = pc.index_in(tiles["magnification"], pa.array(LEVELS)).to_numpy(zero_copy_only=False).astype(np.int64)
    side, first = np.array([*SIDES.values()])[level], np.array([*FIRST.values()])[level]
    row, col = (tiles[name].to_numpy().astype(np.int64) for name in ("row", "col"))
    return row // side, col // side, first + row % side * side + col % side


def read_region(slide: SlideTiles, row: int, col: int, magnifications: Sequence[str] = LEVELS) -> Region:
    """All tiles of `magnifications` under the 5x tile at `row`, `col`, whether that tile itself is there or not.

    Raises OSError, with the tile's name, where one cannot be read; BadOption where there is no tile at all.

    >>> region = read_region(open_slide_tiles("shards", "slide1-00000001"), 0, 0)
    >>> region.pixels["20x"].shape, int(region.there["20x"].sum()), region.mpp
    ((4, 4, 392, 392, 3), 12, {'10x': 1.0, '20x': 0.5})
    """
    if unknown := [name for name in magnifications if name not in SIDES]:
        raise BadOption(f"magnification {unknown[0]!r} is not known; choose from {' '.join(LEVELS)}")
    rows, cols, places = places_of(slide.tiles)
    here = np.flatnonzero((rows == row) & (cols == col))
    tiles, places = slide.tiles.take(pa.array(here)), places[here]
    wanted = np.flatnonzero(pc.is_in(tiles["magnification"], pa.array(magnifications)).to_numpy(zero_copy_only=False))
    if not len(wanted):
        raise BadOption(f"{slide.slide_id} has no tile in region {row}, {col}; its `regions` are those that have one")
    tiles, places = tiles.take(pa.array(wanted)), places[wanted]
    names = [name for name in LEVELS if name in magnifications]
    blank = {name: (SIDES[name], SIDES[name], TILE_PX, TILE_PX, 3) for name in names}
    pixels = {name: np.zeros(shape, np.uint8) for name, shape in blank.items()}
    there = {name: np.zeros(shape[:2], bool) for name, shape in blank.items()}
    addresses = addresses_of(slide.source, tiles)
    order = sorted(range(len(addresses)), key=lambda n: (addresses[n].path, addresses[n].offset))
    level = tiles["magnification"].to_pylist()
    spans = ahead(read_span, spans_of([addresses[n] for n in order]), len(LEVELS) if slide.source.remote else 1)
    for number, jpeg in zip(order, itertools.chain.from_iterable(spans), strict=True):
        name = level[number]
        at = divmod(int(places[number]) - FIRST[name], SIDES[name])
        try:
            decode_read(addresses[number], jpeg, pixels[name][at])
        except UNREADABLE as error:
            raise OSError(f"{addresses[number].name}: {unreadable_reason(error)}") from error
        there[name][at] = True
    mpp = {name: float(tiles["mpp"][level.index(name)].as_py()) for name in names if name in level}
    return Region(row, col, pixels, there, mpp)


def addresses_of(source: ShardSource, tiles: pa.Table) -> list[TileAddress]:
    """Where tiles of the catalog are, in order."""
    columns = (tiles[name].to_pylist() for name in ("shard", "offset", "nbytes", "crc32", "index"))
    return [TileAddress(source, *at) for at in zip(*columns, strict=True)]


def spans_of(addresses: Sequence[TileAddress]) -> Iterator[list[TileAddress]]:
    """Runs of tiles, in order, that lie one after another in a file, less than 64 kB apart: at most some 8 MB each."""
    span: list[TileAddress] = []
    for address in addresses:
        if span:
            last, size = span[-1], address.offset + address.nbytes - span[0].offset
            gap = address.offset - last.offset - last.nbytes
            same = address.path == last.path and address.source is last.source
            if not (same and 0 <= gap < _GAP_BYTES and size <= _SPAN_BYTES):
                yield span
                span = []
        span.append(address)
    if span:
        yield span


def read_span(span: Sequence[TileAddress]) -> list[memoryview | Exception]:
    """The JPEGs of neighbours as they lie there, by one read; by one each where that fails, so that one fails alone."""
    first, last = span[0], span[-1]
    try:
        whole = TileAddress(first.source, first.path, first.offset, last.offset + last.nbytes - first.offset, 0, 0)
        data = memoryview(read_jpeg(whole))
    except UNREADABLE as error:
        return [error] if len(span) == 1 else [jpeg for address in span for jpeg in read_span([address])]
    return [data[a.offset - first.offset : a.offset - first.offset + a.nbytes] for a in span]


def decode_read(
    address: TileAddress, jpeg: memoryview | Exception, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """(392, 392, 3) uint8 RGB of a tile that `read_span` has read, in `out` if given; raises what it found, UNREADABLE
    where it is not whole.
    """
    if isinstance(jpeg, Exception):
        raise jpeg
    pixels = np.empty((TILE_PX, TILE_PX, 3), np.uint8) if out is None else out
    return decode_stored(jpeg, address.crc32, pixels)
