"""Blocks of 2 x 2 tiles that lie side by side in the grid of a slide and magnification, and are all in the index.

They are found by the catalog's row and col when somebody asks first, and kept with the index's parts.
"""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from pretrain.compute.arrays import load_array
from pretrain.data.columns import tile_numbers
from pretrain.data.index import Index
from pretrain.data.parts import Part
from pretrain.data.sources import ShardSource
from pretrain.data.tables.folder import TableFolder
from wsi_prep.storage.atomic import sync

_BESIDE = ((0, 0), (0, 1), (1, 0), (1, 1))  # rows and columns on from a block's first tile
_BITS = 23  # of a row or column: the catalog's float32 holds these exactly
_TILES_AT_ONCE = 1 << 20
_FILE = "blocks-1"


class Blocks:
    """The blocks of an index; `count`: (cells,) int64, how many each of its cells has.

    Tables of others say nothing of a grid that can be relied on, and have none.
    """

    def __init__(self, index: Index) -> None:
        starts = index.cells["start"].astype(np.int64)
        self.count = np.zeros(len(starts), np.int64)
        self._first = np.zeros(len(starts), np.int64)
        self._start = starts
        self._blocks: list[NDArray[np.uint32]] = []
        parts, rows = index.in_parts(starts)
        self._part = parts
        for number, (source, part) in enumerate(index.parts):
            blocks, count = (np.empty((0, 4), np.uint32), np.zeros(len(part.cells), np.int64))
            if not isinstance(source, TableFolder) and len(part.cells):
                blocks, count = _kept(source, part)
            here = np.flatnonzero(parts == number)
            of = np.searchsorted(part.cells["start"], rows[here].astype(np.uint64))
            self.count[here] = count[of]
            self._first[here] = (np.cumsum(count) - count)[of]
            self._blocks.append(blocks)

    def tiles(self, cells: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n, 4) int64: of these blocks of these cells the tiles, as rows of the index: first, right, below, across."""
        found = np.empty((len(cells), 4), np.int64)
        at = self._first[cells] + numbers
        for part in np.unique(self._part[cells]):
            here = self._part[cells] == part
            found[here] = self._blocks[part][at[here]]
        return found + self._start[cells][:, None]


def _kept(source: ShardSource, part: Part) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Blocks of a part and their number by cell, as they lie in its folder; made and written there first if missing."""
    files = [part.folder / f"{_FILE}.npy", part.folder / f"{_FILE}-count.npy"]
    if not files[1].is_file():
        for file, made in zip(files, _found(source, part), strict=True):
            _write(file, made)
    blocks, count = (load_array(file) for file in files)
    return blocks, np.asarray(count, np.int64)


def _write(file: Path, made: NDArray[np.generic]) -> None:
    """Aside, then by a rename: several processes may do so at once."""
    unfinished = file.with_name(f".{uuid4().hex}.npy")
    np.save(unfinished, made)
    sync(unfinished)
    unfinished.rename(file)


def _found(source: ShardSource, part: Part) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """(n, 4) uint32 tiles of each block, counted from their cell's first, sorted by cell; and blocks a cell."""
    row, col = (tile_numbers(source, part, name) for name in ("row", "col"))
    ends = np.cumsum(part.cells["count"].astype(np.int64))
    found, counts, first = [np.empty((0, 4), np.uint32)], np.zeros(len(part.cells), np.uint32), 0
    while first < len(ends):
        begin = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, begin + _TILES_AT_ONCE, side="right")))
        last = min(last, first + (1 << (62 - 2 * _BITS)))
        tiles = slice(begin, int(ends[last - 1]))
        cell = np.repeat(np.arange(last - first), part.cells["count"][first:last])
        blocks = _of_cells(cell, row[tiles], col[tiles])
        of = cell[blocks[:, 0]]
        counts[first:last] = np.bincount(of, minlength=last - first)
        found.append((blocks - (np.append(0, ends)[first + of] - begin)[:, None]).astype(np.uint32))
        first = last
    return np.concatenate(found), counts


def _of_cells(cell: NDArray[np.int64], row: NDArray[np.float32], col: NDArray[np.float32]) -> NDArray[np.int64]:
    """(n, 4) tiles of the blocks among tiles of these cells, by rows of these arrays, sorted by the first tile."""
    most = 1 << _BITS
    known = np.flatnonzero((row >= 0) & (row < most - 1) & (col >= 0) & (col < most - 1))
    place = np.stack([row[known], col[known]]).astype(np.int64)
    keys = [(((cell[known] << _BITS) + place[0] + down) << _BITS) + place[1] + right for down, right in _BESIDE]
    order = np.argsort(keys[0], kind="stable")
    ordered = keys[0][order]
    blocks, whole = np.empty((len(known), 4), np.int64), np.ones(len(known), bool)
    for number, key in enumerate(keys):
        at = np.minimum(np.searchsorted(ordered, key), max(len(ordered) - 1, 0))
        whole &= ordered[at] == key
        blocks[:, number] = known[order[at]]
    return blocks[whole]
