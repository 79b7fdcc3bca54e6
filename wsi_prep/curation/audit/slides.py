"""The slides of an audit, in columns: of millions, an object each would take gigabytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from wsi_prep.format.magnifications import MAGNIFICATIONS

NAMES = tuple(m.name for m in MAGNIFICATIONS)

_FEW = ("status", "stain", "institution", "tissue", "scanner", "error_type", "error", "warning")
"""Columns whose words are few: each is held once."""


@dataclass(frozen=True, slots=True)
class Slide:
    """A slide's row: `folder` is the number of its shards folder, `tiles` counts by MAGNIFICATIONS, mpp in um/px."""

    slide_id: str
    folder: int
    file: str
    status: str
    stain: str
    stain_confidence: float | None
    institution: str
    tissue: str
    mpp: float | None
    scanner: str
    tissue_mm2: float | None
    error_type: str
    error: str
    warning: str
    tiles: tuple[int, ...]


class Slides:
    """Slides by number, as the audit counts them: `slides[number]`."""

    def __init__(self, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
        """Rows with the fields of Slide, and in place of `tiles` a count for each of NAMES."""
        tables = (_short(pa.Table.from_batches([batch])) for batch in batches)
        self.table = pa.concat_tables([_short(schema.empty_table()), *tables]).unify_dictionaries()
        self._marks: dict[int, NDArray[np.uint64]] = {}

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: int) -> Slide:
        return self.some([number])[0]

    def __iter__(self) -> Iterator[Slide]:
        for batch in self.table.to_batches(10_000):
            yield from map(_slide, batch.to_pylist())

    def some(self, numbers: Sequence[int] | NDArray[np.int64]) -> list[Slide]:
        """The slides of these numbers, in their order."""
        return [_slide(row) for row in self.table.take(pa.array(numbers, pa.int64())).to_pylist()]

    def numbers_of(self, slide_ids: Sequence[str]) -> list[int]:
        """The numbers of these slides, each of which is here."""
        ids = pc.index_in(self.table["slide_id"], pa.array(slide_ids, pa.string()))
        at = {place: number for number, place in zip(*_found(ids), strict=True)}
        return [at[place] for place in range(len(slide_ids))]

    def where(self, mask: pa.ChunkedArray) -> NDArray[np.int64]:
        """The numbers of the slides for which `mask` is true."""
        return np.flatnonzero(mask.fill_null(False).to_numpy())

    def tiles(self, magnification: str) -> NDArray[np.int64]:
        """(slides,) counts of tiles."""
        counts: NDArray[np.int64] = self.table[magnification].to_numpy()
        return counts

    @property
    def any_tiles(self) -> NDArray[np.bool_]:
        """(slides,): whether a slide has tiles at any magnification."""
        any_tiles: NDArray[np.bool_] = np.logical_or.reduce([self.tiles(name) > 0 for name in NAMES])
        return any_tiles

    def groups(self, names: Sequence[str]) -> NDArray[np.int64]:
        """(slides,): equal numbers where these columns of _FEW are equal."""
        codes = np.zeros(len(self), np.int64)
        for name in names:
            column = self.table[name].combine_chunks()
            one = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
            codes = np.unique(codes * len(one.dictionary) + one.indices.to_numpy(), return_inverse=True)[1]
        return codes

    def marks(self, seed: int) -> NDArray[np.uint64]:
        """(slides,): an order by chance that `seed` and the slides' ids alone decide."""
        if seed not in self._marks:
            ids = (text for part in self.table["slide_id"].chunks for text in part.to_pylist())
            self._marks[seed] = np.fromiter((mark(seed, slide_id) for slide_id in ids), np.uint64, len(self))
        return self._marks[seed]


def mark(seed: int, name: str) -> int:
    """A number below 2^64 by chance that these two alone decide."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest(), "little")


def in_turn(groups: NDArray[np.int64], marks: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Places by the turn that each has within its group, which `marks` decide, and then by these."""
    order = np.lexsort((marks, groups))
    begins = np.flatnonzero(np.diff(groups[order], prepend=-1))
    turns = np.empty(len(order), np.int64)
    turns[order] = np.arange(len(order)) - np.repeat(begins, np.diff(begins, append=len(order)))
    return np.lexsort((marks, turns))


def _short(rows: pa.Table) -> pa.Table:
    for name in filter(rows.column_names.__contains__, _FEW):
        rows = rows.set_column(rows.column_names.index(name), name, rows[name].dictionary_encode())
    return rows


def _slide(row: dict[str, object]) -> Slide:
    tiles = tuple(row.pop(name) for name in NAMES)
    return Slide(**row, tiles=tiles)  # type: ignore[arg-type]


def _found(places: pa.ChunkedArray) -> tuple[list[int], list[int]]:
    there = np.flatnonzero(places.is_valid().to_numpy())
    return there.tolist(), places.take(pa.array(there)).to_pylist()
