"""How well copies of tiles are found, and how seldom others are taken for copies: `python -m ... TABLE[:GROUP] ...`.

Each table has a column `image`, and tiles of unlike GROUP (a slide; else each tile) are known to be distinct. Printed:
the share of copies that are near; how many pairs of distinct tiles differ in so many signs at most, from a comparison
of all with all; and the rate at the limit, carried on from there, with an interval over groups. `--search 100000
1000000`: how long it takes to find so many tiles among so many.
"""

from __future__ import annotations

import argparse
import io
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from wsi_prep.storage.overlap.likeness import GOOD, PLAIN, Likenesses, likeness_of_image, likenesses, turned
from wsi_prep.storage.overlap.near import near_copies
from wsi_prep.storage.overlap.search import ALL_BITS, NearTiles

Pixels = NDArray[np.uint8]
_MOST_SIGNS = 120
_FIRST, _LAST = 10, 1000  # counts of pairs between which the fall is measured
_RESAMPLES = 100


def main() -> None:
    """Print the tables, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("tables", nargs="*", help="table.parquet or table.parquet:group")
    parser.add_argument("--copies", type=int, default=600, help="tiles of each table that are copied")
    parser.add_argument("--search", nargs=2, type=int, metavar=("TILES", "OTHERS"), help="random hashes to search")
    given = parser.parse_args()
    for spec in given.tables:
        file, _, group = spec.partition(":")
        table = pq.read_table(file)
        images = table["image"].to_pylist()
        groups = table[group].to_pylist() if group else list(range(len(images)))
        numbers = np.unique(np.array(groups, str), return_inverse=True)[1]
        found = Likenesses.of(likenesses(images, likeness_of_image, 1))
        rows = np.flatnonzero(found.state == GOOD)
        print(f"\n{Path(file).stem}: {len(images):,} tiles, {found.count(PLAIN):,} plain, {numbers.max() + 1:,} groups")
        _copies(images, found, np.random.default_rng(0).permutation(rows)[: given.copies])
        _distinct(found.words[rows], numbers[rows])
    if given.search:
        _search(*given.search)


def _copies(images: list[bytes], found: Likenesses, rows: NDArray[np.int64]) -> None:
    """The share of copies of each kind that are near to their tile, and in how many signs 99 % of them differ."""
    print("| copy | found | signs, 99 % |\n| --- | --- | --- |")
    for kind, copied in _kinds().items():
        hits, signs = [], []
        for row in rows:
            copy = likeness_of_image(copied(np.asarray(Image.open(io.BytesIO(images[row])).convert("RGB"))))
            words = found.words[row][None]
            hits.append(copy["state"] == GOOD and len(NearTiles(words).pairs(copy["words"][None])) > 0)
            signs.append(np.bitwise_count(turned(words)[:, 0] ^ copy["words"]).sum(1).min())
        print(f"| {kind} | {np.mean(hits):.1%} | {np.quantile(signs, 0.99):.0f} |", flush=True)


def _kinds() -> dict[str, Callable[[Pixels], bytes]]:
    kinds = {f"JPEG of quality {q}": (lambda tile, q=q: _jpeg(tile, q)) for q in (95, 85, 70, 50)}
    kinds["turned, JPEG 70"] = lambda tile: _jpeg(np.rot90(tile)[:, ::-1], 70)
    kinds |= {f"at {f:g} times the px": (lambda tile, f=f: _jpeg(_sized(tile, f), 85)) for f in (0.5, 2)}
    return kinds | {f"shifted by {n} px": (lambda tile, n=n: _jpeg(_shifted(tile, n), 85)) for n in (1, 2, 4)}


def _jpeg(pixels: Pixels, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JPEG", quality=quality)
    return file.getvalue()


def _sized(tile: Pixels, factor: float) -> Pixels:
    size = (round(tile.shape[1] * factor), round(tile.shape[0] * factor))
    return np.asarray(Image.fromarray(tile).resize(size, Image.Resampling.BICUBIC))


def _shifted(tile: Pixels, px: int) -> Pixels:
    return np.pad(tile, ((px, 0), (px, 0), (0, 0)), "edge")[:-px, :-px]


def _distinct(words: NDArray[np.uint64], groups: NDArray[np.int64]) -> None:
    """Pairs of tiles of unlike groups by the signs that they differ in, and what that says of the limit."""
    count = groups.max() + 1
    pairs = np.zeros((_MOST_SIGNS, count, count)) if count < 500 else None
    seen, total = np.zeros(_MOST_SIGNS, np.int64), 0
    turns = turned(words)
    for row in range(len(words)):
        others = np.flatnonzero(groups[row + 1 :] != groups[row]) + row + 1
        signs = np.bitwise_count(turns[:, row, None] ^ words[others]).sum(2, dtype=np.int64).min(0)
        close, total = signs < _MOST_SIGNS, total + len(others)
        seen += np.bincount(signs[close], minlength=_MOST_SIGNS)
        if pairs is not None:
            np.add.at(pairs, (signs[close], groups[row], groups[others[close]]), 1)
    upto = np.cumsum(seen)
    shown = ", ".join(f"{signs}: {upto[signs]:,}" for signs in range(76, 101, 4))
    print(f"\n{total:,} pairs of distinct tiles, the closest differs in {np.flatnonzero(seen)[0]} signs; up to {shown}")
    print(f"carried on to {ALL_BITS} signs: {_carried_on(upto, total):.1e} of all pairs", end="")
    if pairs is None:
        print("; groups are tiles: no interval")
        return
    rng, sizes, found = np.random.default_rng(0), np.bincount(groups), []
    for _ in range(_RESAMPLES):
        times = np.bincount(rng.integers(0, count, count), minlength=count).astype(float)
        drawn = np.cumsum(np.einsum("sij,i,j->s", pairs, times, times, optimize=True))
        found.append(_carried_on(drawn, ((times * sizes).sum() ** 2 - ((times * sizes) ** 2).sum()) / 2))
    low, high = np.quantile(found, [0.025, 0.975])
    print(f" (95 % over groups: {low:.0e} to {high:.0e})")


def _carried_on(upto: NDArray[np.float64] | NDArray[np.int64], total: float) -> float:
    """The share of pairs that differ in at most ALL_BITS signs, if it falls on as it does between two counts."""
    first, last = (int(np.searchsorted(upto, count)) for count in (_FIRST, _LAST))
    fall = np.log(upto[last] / upto[first]) / (last - first)
    return float(upto[first] / total * np.exp(-fall * (first - ALL_BITS)))


def _search(tiles: int, others: int) -> None:
    rng = np.random.default_rng(0)
    mine, theirs = (rng.integers(0, 1 << 64, (n, 4), np.uint64, endpoint=False) for n in (tiles, others))
    block = Likenesses(theirs, np.zeros(others, np.uint8))
    began = time.monotonic()
    near_copies(Likenesses(mine, np.zeros(tiles, np.uint8)), [(block, np.zeros(others, np.int64))])
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\n{tiles:,} tiles among {others:,}: {time.monotonic() - began:.0f} s, {memory:.0f} MB at most")


if __name__ == "__main__":
    main()
