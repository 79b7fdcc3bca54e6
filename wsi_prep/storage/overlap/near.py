"""Which tiles look like others, and how many are expected to by chance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wsi_prep.errors import counted
from wsi_prep.storage.overlap.likeness import GOOD, PLAIN, UNREADABLE, Likenesses
from wsi_prep.storage.overlap.search import NearTiles

Ints = NDArray[np.int64]
FALSE_RATE = 2e-12
"""Of pairs of tiles of different slides, at most, that are near by chance: docs/evaluation.md has how it is known."""

_LITTLE = 0.01


@dataclass(frozen=True)
class NearCopies:
    """Of `tiles` that were looked for among `others`.

    `near`: rows of the tiles that look like one of the others. `slides`: numbers of the slides of the others that they
    look like. `pairs`: how many were compared. `others`, `others_plain`, `others_unreadable`: counts of the others.
    """

    tiles: Likenesses
    near: Ints
    slides: Ints
    pairs: int
    others: int
    others_plain: int
    others_unreadable: int

    @property
    def by_chance(self) -> float:
        """How many tiles, at most, are expected to be near to one that is no copy."""
        return self.pairs * FALSE_RATE

    @property
    def line(self) -> str:
        """For people."""
        of = counted(len(self.tiles), "tile")
        if not len(self.near):
            found = f"none of {of} looks like a tile in SHARDS"
        else:
            looks = counted(len(self.near), f"of {of} looks", f"of {of} look")
            found = f"{looks} like tiles in SHARDS, of {counted(len(self.slides), 'slide')}"
        chance = f"fewer than {_LITTLE:g}" if self.by_chance < _LITTLE else f"up to {self.by_chance:,.2g}"
        told = [f"{found} (by chance, {chance} would)"]
        skipped = []
        for what, mine, theirs in (
            ("plain", self.tiles.count(PLAIN), self.others_plain),
            ("unreadable", self.tiles.count(UNREADABLE), self.others_unreadable),
        ):
            if mine or theirs:
                skipped.append(f"{mine:,} {what} of it, {theirs:,} in SHARDS")
        if skipped:
            told.append(f"not compared: {', '.join(skipped)}")
        return "; ".join(told)


def near_copies(tiles: Likenesses, others: Iterable[tuple[Likenesses, Ints]]) -> NearCopies:
    """The tiles that look like others, which come in blocks: their likenesses, and the number of each one's slide."""
    rows = np.flatnonzero(tiles.state == GOOD)
    search = NearTiles(tiles.words[rows])
    near, slides = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    counts, pairs = np.zeros(3, np.int64), 0
    for block, slide in others:
        good = np.flatnonzero(block.state == GOOD)
        counts += [len(block), block.count(PLAIN), block.count(UNREADABLE)]
        pairs += len(rows) * len(good)
        mine, theirs = search.pairs(block.words[good]).T
        near.append(np.unique(mine))
        slides.append(np.unique(slide[good[theirs]]))
    found = rows[np.unique(np.concatenate(near))]
    return NearCopies(tiles, found, np.unique(np.concatenate(slides)), pairs, *map(int, counts))


def twins(tiles: Likenesses, groups: Ints) -> int:
    """How many tiles look like a tile of another group, slide or case, among themselves."""
    rows = np.flatnonzero(tiles.state == GOOD)
    one, other = NearTiles(tiles.words[rows]).pairs(tiles.words[rows]).T
    apart = groups[rows[one]] != groups[rows[other]]
    return len(np.unique(one[apart]))
