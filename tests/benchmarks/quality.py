"""`make bench BENCH=quality`: what the measures say of tiles spoilt in known ways, and what they cost."""

from __future__ import annotations

import argparse
import collections
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tests.benchmarks.measure import machine
from wsi_prep.format.jpeg import JpegSettings, decode_tile, encode_tile
from wsi_prep.slides.images import Rgb
from wsi_prep.tiles.focus import focus
from wsi_prep.tiles.quality import Measurer

Tile = NDArray[np.uint8]
_LEVELS = ("40x", "20x", "10x", "5x")


def main() -> None:
    """Print two Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--shards", type=Path, required=True, help="a folder that make shards has made")
    parser.add_argument("--tiles", type=int, default=60, help="most tiles of a slide at a magnification")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    print(f"{machine()}; {time.strftime('%Y-%m-%d')}; make bench BENCH=quality\n")
    tiles = read_tiles(given.shards, given.tiles)
    show_focus(tiles)
    show_cost([tile for some in tiles.values() for tile in some[:3]])


def read_tiles(shards: Path, most: int) -> dict[tuple[str, str], list[Tile]]:
    """Tiles by file name and magnification."""
    names = {row["slide_id"]: row["file"] for row in pq.read_table(shards / "catalog" / "slides").to_pylist()}
    found = collections.defaultdict(list)
    for row in pq.read_table(shards / "catalog" / "tiles").to_pylist():
        some = found[names[row["slide_id"]], row["magnification"]]
        if len(some) < most:
            with (shards / row["shard"]).open("rb") as shard:
                shard.seek(row["offset"])
                some.append(decode_tile(shard.read(row["nbytes"])))
    return found


def show_focus(tiles: dict[tuple[str, str], list[Tile]]) -> None:
    """Median focus as it is and spoilt, and the share of tiles that rank below themselves when spoilt."""
    rng = np.random.default_rng(0)

    def noisy(tile: Tile, sigma: float) -> Tile:
        return np.clip(np.rint(tile + rng.normal(0, sigma, tile.shape)), 0, 255).astype(np.uint8)

    def blurred(sigma: float) -> Callable[[Tile], Tile]:
        return lambda tile: np.asarray(cv2.GaussianBlur(tile, (0, 0), sigma), np.uint8)

    def enlarged(tile: Tile) -> Tile:
        half = cv2.resize(tile, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.resize(half, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC), np.uint8)

    ways: dict[str, Callable[[Tile], Tile]] = {f"blurred by {sigma:g} px": blurred(sigma) for sigma in (0.5, 1, 2, 4)}
    ways["enlarged twice"] = enlarged
    ways["blurred by 2 px, noise of 3, JPEG 80"] = lambda tile: decode_tile(
        encode_tile(noisy(blurred(2)(tile), 3), JpegSettings(80))
    )
    ways["noise of 3"] = lambda tile: noisy(tile, 3)
    ways["JPEG 75"] = lambda tile: decode_tile(encode_tile(tile, JpegSettings(75)))
    by_level = {level: [t for (_, at), some in tiles.items() if at == level for t in some] for level in _LEVELS}
    as_is = {level: np.array([focus(Rgb(t).brightness()) for t in some]) for level, some in by_level.items()}
    print(f"| focus, median | {' | '.join(f'{level}, {len(some)} tiles' for level, some in by_level.items())} |")
    print("|---|---|---|---|---|")
    print(f"| as it is | {' | '.join(f'{np.median(values):.3f}' for values in as_is.values())} |")
    for name, spoil in ways.items():
        cells = []
        for level, some in by_level.items():
            values = np.array([focus(Rgb(np.ascontiguousarray(spoil(t))).brightness()) for t in some])
            cells.append(f"{np.median(values):.3f}, lower for {(values < as_is[level]).mean():.0%}")
        print(f"| {name} | {' | '.join(cells)} |")


def show_cost(tiles: list[Tile]) -> None:
    """CPU time of all measures of a tile that has just been copied close at hand, without the copy."""
    near = np.empty_like(tiles[0])
    corner = np.zeros((1, 2), np.int64)
    small = [cv2.resize(t, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for t in tiles]
    quarters = [cv2.resize(t, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for t in small]
    with_quarter, alone = [Measurer(corner, np.asarray(q, np.uint8)) for q in quarters], Measurer(corner)

    def seconds(measure: Callable[[int], object]) -> float:
        best = np.inf
        for _ in range(9):
            began = time.process_time()
            for number, tile in enumerate(tiles):
                np.copyto(near, tile)
                measure(number)
            best = min(best, (time.process_time() - began) / len(tiles))
        return float(best)

    copying = seconds(lambda _: None)
    print("\n| measuring a tile | CPU time |\n|---|---|")
    shared = seconds(lambda number: with_quarter[number].measure(0, Rgb(near)))
    print(f"| whose image is also there at a quarter | {1e3 * (shared - copying):.3f} ms |")
    print(f"| by itself | {1e3 * (seconds(lambda _: alone.measure(0, Rgb(near))) - copying):.3f} ms |")


if __name__ == "__main__":
    main()
