"""`make bench BENCH=regions`: reads and seconds for a region of 85 tiles, in the order that stores have and row by row.

A slide of whole regions is made of JPEG tiles that SHARDS holds. It is stored twice: region by region, as `make shards`
does, and each magnification row by row over the slide, as most tools do. Regions are read by chance, by the same code:
from the local disk, and over HTTP with 20 ms added to every answer.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from pretrain.data.index import open_index
from pretrain.data.loader import read_tile
from pretrain.data.regions import (
    LEVELS,
    PLACES,
    SIDES,
    SlideTiles,
    addresses_of,
    open_slide_tiles,
    places_of,
    read_region,
    spans_of,
)
from tests.benchmarks.measure import Figure, compare, machine, markdown, on_cores, table
from tests.benchmarks.servers import start
from wsi_prep.format.jpeg import JpegSettings
from wsi_prep.format.magnifications import MAGNIFICATIONS, TILE_PX
from wsi_prep.format.records import SLIDE_SCHEMA, TILE_SCHEMA
from wsi_prep.output.catalog import Catalog
from wsi_prep.tiles.store import StoreWriter

_DELAY_MS, _SLIDE = 20, "regions-00000000"
_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_REGION": "us-east-1"}
_ORDERS = ("region by region", "row by row")
Place = tuple[str, int, int]


def main() -> None:
    """Measure, print the figures, and write them as Markdown if asked."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--shards", required=True, help="an OUT folder whose JPEGs are used")
    parser.add_argument("--side", type=int, default=12, help="regions along the slide's side")
    parser.add_argument("--quick", action="store_true", help="small and once: does it run?")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    given = parser.parse_args()
    print(machine(), flush=True)
    side, repeats = (2, 1) if given.quick else (given.side, 5)
    with tempfile.TemporaryDirectory(prefix="regions-") as folder:
        for order in _ORDERS:
            _make(Path(folder) / order.split()[0], given.shards, side, by_region=order == _ORDERS[0])
        figures = _reads(Path(folder), side)
        figures += _seconds(Path(folder), side, repeats)
    print(table(figures))
    if given.markdown:
        given.markdown.write_text(markdown(figures, "make bench BENCH=regions"))


def _make(out: Path, shards: str, side: int, *, by_region: bool) -> None:
    """A slide of side x side whole regions, of tiles drawn from those of `shards`; in each order the same."""
    source = open_index([shards], out.parent / "index")
    pool: dict[str, list[bytes]] = defaultdict(list)
    for cell in source.cells:
        for tile in range(int(cell["start"]), int(cell["start"]) + int(cell["count"])):
            at = source.address(tile)
            pool[MAGNIFICATIONS[cell["magnification"]].name].append(at.source.read(at.path, at.offset, at.nbytes))
    choose = random.Random(0)
    jpegs = {place: choose.choice(pool[place[0]]) for place in _places(side)}
    writer = StoreWriter(out / f"stores/{_SLIDE}.zarr", defaultdict(JpegSettings), attributes={})
    rows = []
    for name, row, col in sorted(jpegs, key=_by_region if by_region else _row_by_row):
        at = writer.append(name, jpegs[name, row, col])
        mpp = next(m.mpp for m in MAGNIFICATIONS if m.name == name)
        span0 = TILE_PX * mpp / 0.25
        place = {"row": row, "col": col, "x0": int(col * span0), "y0": int(row * span0), "span0": span0, "mpp": mpp}
        where = {"array": f"stores/{_SLIDE}.zarr/{name}", "shard": f"stores/{_SLIDE}.zarr/{at.shard}"}
        place |= {field: getattr(at, field) for field in ("index", "offset", "nbytes", "crc32")}
        rows.append({"slide_id": _SLIDE, "magnification": name} | place | where)
    writer.close()
    catalog = Catalog(out)
    catalog.create()
    counts = {f"tiles_{name}": side**2 * s**2 for name, s in SIDES.items()}
    row = dict.fromkeys(SLIDE_SCHEMA.names) | {"slide_id": _SLIDE, "status": "ok"} | counts
    catalog.commit(row, pa.Table.from_pylist(rows, TILE_SCHEMA))


def _places(side: int) -> Iterator[Place]:
    for name in LEVELS:
        for row in range(side * SIDES[name]):
            for col in range(side * SIDES[name]):
                yield name, row, col


def _by_region(place: Place) -> tuple[int, ...]:
    name, row, col = place
    return row // SIDES[name], col // SIDES[name], -SIDES[name], row, col


def _row_by_row(place: Place) -> tuple[int, ...]:
    name, row, col = place
    return -SIDES[name], row, col


def _reads(folder: Path, side: int) -> list[Figure]:
    """How many ranged reads a region takes, and the bytes between its tiles that come with them."""
    figures = []
    for order in _ORDERS:
        slide = open_slide_tiles(folder / order.split()[0], _SLIDE)
        reads, asked, needed = [], 0, 0
        for region in range(side**2):
            rows, cols, _ = places_of(slide.tiles)
            here = slide.tiles.filter(pa.array((rows == region // side) & (cols == region % side)))
            addresses = sorted(addresses_of(slide.source, here), key=lambda at: (at.path, at.offset))
            spans = list(spans_of(addresses))
            reads.append(len(spans))
            asked += sum(span[-1].offset + span[-1].nbytes - span[0].offset for span in spans)
            needed += sum(address.nbytes for address in addresses)
        mean = sum(reads) / len(reads)
        value = f"{mean:.1f} ({min(reads)} to {max(reads)}), {asked / needed:.2f} of the bytes needed"
        figures.append(Figure("reads a region", order, value, "<= 5" if order == _ORDERS[0] else "", _few(order, mean)))
    return [*figures, Figure("reads a region", "tile by tile", str(PLACES))]


def _few(order: str, reads: float) -> bool | None:
    return reads <= 5 if order == _ORDERS[0] else None


def _seconds(folder: Path, side: int, repeats: int) -> list[Figure]:
    figures = []
    for part, where in (("local disk", _local), (f"HTTP, {_DELAY_MS} ms", _far)):
        contestants: dict[str, Callable[[], int]] = {}
        with where(folder, _ORDERS[0]) as ours, where(folder, _ORDERS[1]) as other, on_cores(0):
            contestants["by region, stored region by region"] = _by_chance(ours, side)
            contestants["by region, stored row by row"] = _by_chance(other, side)
            contestants["tile by tile, stored region by region"] = _one_by_one(ours, side)
            rates = compare(part, contestants, repeats)
        names = list(contestants)
        figures += [*rates.figures(), *(rates.ratio(names[0], name) for name in names[1:])]
    return figures


@contextmanager
def _local(folder: Path, order: str) -> Iterator[SlideTiles]:
    yield open_slide_tiles(folder / order.split(maxsplit=1)[0], _SLIDE)


@contextmanager
def _far(folder: Path, order: str) -> Iterator[SlideTiles]:
    with on_cores(-1):
        server, url = start("plain", str(_DELAY_MS), str(folder / order.split(maxsplit=1)[0]))
    try:
        os.environ.update(_CREDENTIALS, AWS_ENDPOINT_URL=url)
        yield open_slide_tiles("s3://bench", _SLIDE)
    finally:
        server.kill()
        server.wait()


def _by_chance(slide: SlideTiles, side: int) -> Callable[[], int]:
    def run() -> int:
        choose = random.Random(1)
        for _ in range(4):
            read_region(slide, choose.randrange(side), choose.randrange(side))
        return 4 * PLACES

    return run


def _one_by_one(slide: SlideTiles, side: int) -> Callable[[], int]:
    """The same tiles, each by a read of its own, as one would without a reader of regions."""

    def run() -> int:
        choose = random.Random(1)
        rows, cols, _ = places_of(slide.tiles)
        for _ in range(4):
            at = (rows == choose.randrange(side)) & (cols == choose.randrange(side))
            for address in addresses_of(slide.source, slide.tiles.filter(pa.array(at))):
                read_tile(address)
        return 4 * PLACES

    return run


if __name__ == "__main__":
    main()
