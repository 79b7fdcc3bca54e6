"""Tiles that look like others, among millions: hashes that differ in few bits, whichever way up a tile lies.

Two tiles are near where, in one of eight flips and quarter turns, at most KEY_BITS of the 63 lowest frequencies' signs
differ, and at most ALL_BITS of all 255. The lowest 64 bits are four bands of 16: of two hashes that differ there in at
most 7 bits, one band differs in at most one. So each tile is compared with those alone that lie in 17 of a band's
65,536 places, and none that is near is missed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from wsi_prep.storage.overlap.likeness import WORDS, Words, turned

KEY_BITS = 7
ALL_BITS = 48

Ints = NDArray[np.int64]
_BANDS, _PLACES = 4, 1 << 16
_PROBES = np.array([0, *(1 << bit for bit in range(16))], np.int64)
_BLOCK = 1 << 12  # tiles that are looked for at once
_MOST = 1 << 22  # pairs that are compared at once


class NearTiles:
    """Finds which of some tiles others are near to; `words`: (n, 4) uint64, the tiles that are to be found."""

    def __init__(self, words: Words) -> None:
        distinct, place = np.unique(words, axis=0, return_inverse=True)
        self._same = np.argsort(place.ravel(), kind="stable")  # rows by the distinct hash that they have
        self._ends = np.concatenate([[0], np.cumsum(np.bincount(place.ravel(), minlength=len(distinct)))])
        every = turned(distinct).reshape(-1, WORDS)
        self._words = every
        self._owner = np.tile(np.arange(len(distinct)), 8)
        self._orders, self._begins = [], []
        for band in _bands(every).T:
            order = np.argsort(band, kind="stable")
            self._orders.append(order)
            self._begins.append(np.searchsorted(band[order], np.arange(_PLACES + 1)))

    def pairs(self, others: Words) -> Ints:
        """(k, 2): the row of a tile and of one of `others` (m, 4) that is near to it; each pair once, in order."""
        found = [np.empty((0, 2), np.int64)]
        for begin in range(0, len(others), _BLOCK):
            block = others[begin : begin + _BLOCK]
            near = [pair for band in range(_BANDS) for pair in self._near(block, band)]
            if near:
                owner, other = np.unique(np.concatenate(near), axis=0).T
                found.append(self._of_each(owner, other + begin))
        pairs = np.concatenate(found)
        return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]

    def _near(self, block: Words, band: int) -> Iterator[Ints]:
        """Pairs of a distinct hash and a row of the block, that agree in one band but for a bit."""
        probes = (_bands(block)[:, band].astype(np.int64)[:, None] ^ _PROBES).ravel()
        begin, end = self._begins[band][probes], self._begins[band][probes + 1]
        upto = np.cumsum(end - begin)
        first = 0
        while first < len(probes):  # so many probes that the pairs fit
            done = upto[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(upto, done + _MOST, side="right")))
            counts = end[first:last] - begin[first:last]
            row = np.repeat(np.arange(first, last) // len(_PROBES), counts)
            shift = np.repeat(begin[first:last] - (np.cumsum(counts) - counts), counts)
            yield self._close(block, row, self._orders[band][shift + np.arange(len(row))])
            first = last

    def _close(self, block: Words, row: Ints, at: Ints) -> Ints:
        close = np.bitwise_count(self._words[at, 0] ^ block[row, 0]) <= KEY_BITS
        row, at = row[close], at[close]
        close = np.bitwise_count(self._words[at] ^ block[row]).sum(1, dtype=np.int64) <= ALL_BITS
        return np.stack([self._owner[at[close]], row[close]], axis=1)

    def _of_each(self, owner: Ints, other: Ints) -> Ints:
        """The pairs of all rows that have the distinct hashes `owner`."""
        counts = self._ends[owner + 1] - self._ends[owner]
        shift = np.repeat(self._ends[owner] - (np.cumsum(counts) - counts), counts)
        return np.stack([self._same[shift + np.arange(len(shift))], np.repeat(other, counts)], axis=1)


def _bands(words: Words) -> NDArray[np.uint16]:
    """(n, 4): the lowest frequencies' 64 bits in four parts."""
    return np.ascontiguousarray(words[:, 0]).view(np.uint16).reshape(-1, _BANDS)
