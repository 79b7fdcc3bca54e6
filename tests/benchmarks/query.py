"""`make bench BENCH=query`: questions over a catalog of ten million tiles, each in a fresh connection."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from tests.benchmarks.measure import Figure, machine, markdown, table
from wsi_prep.format.records import SLIDE_SCHEMA, TILE_SCHEMA
from wsi_prep.output.query import open_catalog

_SECONDS = 2.0
_TILES_A_PART = 4_000_000  # as the catalog's merge leaves them
_LEVELS = ("40x", "20x", "10x", "5x")

COUNT = """SELECT stain, institution, tissue, magnification, count(*) AS tiles
FROM tiles JOIN slides USING (slide_id) WHERE status = 'ok'
GROUP BY ALL ORDER BY tiles DESC"""
SAMPLE = """SELECT slide_id, magnification, x0, y0 FROM tiles JOIN slides USING (slide_id) WHERE magnification = '20x'
QUALIFY row_number() OVER (PARTITION BY stain, institution, tissue ORDER BY hash(slide_id, row, col)) <= 10"""


def main() -> None:
    """Measure, print the figures, and write them as Markdown if asked."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--shards", help="not used")
    parser.add_argument("--quick", action="store_true", help="small and once: does it run?")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    given = parser.parse_args()
    print(machine(), flush=True)
    tiles, repeats = (100_000, 1) if given.quick else (10_000_000, 5)
    with tempfile.TemporaryDirectory() as folder:
        slides = make_catalog(Path(folder), tiles)
        figures = _figures(Path(folder), f"{tiles:,} tiles of {slides:,} slides", repeats)
    print(table(figures))
    if given.markdown:
        given.markdown.write_text(markdown(figures, "make bench BENCH=query"))


def make_catalog(out: Path, tiles: int, tiles_a_slide: int = 640) -> int:
    """A catalog without stores, every column filled; returns how many slides it has."""
    slides = -(-tiles // tiles_a_slide)
    rng = np.random.default_rng(0)
    ids = pa.array([f"archive-{number:06d}-block-A1-{number * 2654435761 % 2**40:010x}" for number in range(slides)])
    for name in ("slides", "tiles"):
        (out / "catalog" / name).mkdir(parents=True)
    given = {
        "slide_id": ids,
        "file": pc.binary_join_element_wise(ids, ".svs", ""),
        "stain": rng.choice(["HE", "IHC", "SPECIAL"], slides, p=[0.7, 0.25, 0.05]),
        "institution": [f"institution {n}" for n in (200 * rng.random(slides) ** 3).astype(int)],
        "tissue": [f"tissue {n}" for n in (30 * rng.random(slides) ** 2).astype(int)],
        "status": ["ok"] * slides,
    }
    columns = [pa.array(given[f.name], f.type) if f.name in given else pa.nulls(slides, f.type) for f in SLIDE_SCHEMA]
    pq.write_table(pa.table(columns, SLIDE_SCHEMA), out / "catalog/slides/part-00000.parquet", compression="zstd")
    for part, begin in enumerate(range(0, tiles, _TILES_A_PART)):
        with pq.ParquetWriter(out / f"catalog/tiles/part-{part:05d}.parquet", TILE_SCHEMA, compression="zstd") as file:
            for first in range(begin, min(tiles, begin + _TILES_A_PART), 1_000_000):
                count = min(1_000_000, tiles - first, begin + _TILES_A_PART - first)
                file.write_table(_tiles(rng, ids, first, count, tiles_a_slide))
    return slides


def _tiles(rng: np.random.Generator, ids: pa.Array, first: int, count: int, tiles_a_slide: int) -> pa.Table:
    number = np.arange(first, first + count)
    index = number % tiles_a_slide
    slide_id = ids.take(pa.array(number // tiles_a_slide))
    level = np.searchsorted([480, 608, 632], index, side="right")  # of 640: three quarters at 40x, a fifth at 20x
    magnification = pa.array(_LEVELS).take(pa.array(level))
    store = pc.binary_join_element_wise("stores/", slide_id, ".zarr/", magnification, "")
    given = {
        "slide_id": slide_id,
        "magnification": magnification,
        "mpp": 0.25 * 2.0**level,
        "row": index // 25,
        "col": index % 25,
        "x0": index % 25 * 392,
        "y0": index // 25 * 392,
        "array": store,
        "shard": pc.binary_join_element_wise(store, "/c.0.0.0.0", ""),
        "index": index,
        "offset": index * 50_000,
        "crc32": rng.integers(0, 1 << 32, count, dtype=np.uint32),
        "nbytes": rng.integers(20_000, 80_000, count),
    }
    return pa.table(
        [pa.array(given[f.name] if f.name in given else rng.random(count), f.type) for f in TILE_SCHEMA], TILE_SCHEMA
    )


def _figures(out: Path, part: str, repeats: int) -> list[Figure]:
    timed = {
        "opened": lambda: open_catalog([str(out)]).close(),
        "tiles by stain, institution, tissue and magnification": lambda: _answer(out, COUNT),
        "ten 20x tiles a stratum": lambda: _answer(out, SAMPLE),
        "tiles by magnification, in pyarrow alone": lambda: _in_pyarrow(out),
    }
    figures = []
    for what, run in timed.items():
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
        median = statistics.median(seconds)
        target, ok = (f"< {_SECONDS:g} s", median < _SECONDS) if what.startswith("tiles by stain") else ("", None)
        value = f"{median:.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"
        figures.append(Figure(part, what, value, target, ok))
    return figures


def _answer(out: Path, sql: str) -> None:
    with open_catalog([str(out)]) as catalog:
        assert len(catalog.ask(sql).read_all()), sql


def _in_pyarrow(out: Path) -> None:
    tiles = ds.dataset(out / "catalog/tiles", schema=TILE_SCHEMA)
    assert len(tiles.to_table(["magnification"]).group_by("magnification").aggregate([([], "count_all")]))


if __name__ == "__main__":
    main()
