"""Columns of the catalog in the order of the index, read when somebody asks for one and kept with the index's parts."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pretrain.compute.arrays import load_array
from pretrain.data.index import Index
from pretrain.data.parts import Part
from pretrain.data.sources import ShardSource
from pretrain.data.tables.folder import TableFolder
from pretrain.data.tables.part import column_of
from wsi_prep.format.magnifications import MAGNIFICATIONS
from wsi_prep.format.records import SLIDE_SCHEMA
from wsi_prep.storage.atomic import sync
from wsi_prep.untrusted.tables import of_today

_NAMES = [m.name for m in MAGNIFICATIONS]
_ROWS = 1 << 18  # of the catalog that are read at once


def slide_texts(index: Index, column: str) -> list[str | None]:
    """A column of the catalog's slides, for each slide of the index; None where nothing is said."""
    return [text for source, part in index.parts for text in _kept(source, part, "slides", column).to_pylist()]


def tile_numbers(source: ShardSource | TableFolder, part: Part, column: str) -> NDArray[np.float32]:
    """A column of the catalog's tiles for each tile of a part; NaN where nothing is said."""
    return _numbers(_kept(source, part, "tiles", column))


class TileNumbers:
    """A column of the catalog's tiles, by the tile's row number in the index; NaN where nothing is said."""

    def __init__(self, index: Index, column: str) -> None:
        self._index = index
        self._parts = [tile_numbers(source, part, column) for source, part in index.parts]

    def __getitem__(self, tiles: NDArray[np.int64]) -> NDArray[np.float32]:
        found = np.empty(len(tiles), np.float32)
        parts, rows = self._index.in_parts(tiles)
        for part in np.unique(parts):
            here = parts == part
            found[here] = self._parts[part][rows[here]]
        return found

    def sums(self, start: NDArray[np.int64], count: NDArray[np.int64]) -> NDArray[np.float64]:
        """(cells, 3): of the rows `start` to `start + count` of each, how many numbers, their sum, that of squares."""
        found = np.zeros((len(start), 3))
        parts, rows = self._index.in_parts(start)
        for part in np.unique(parts):
            here = np.flatnonzero(parts == part)
            here = here[np.argsort(rows[here])]
            values = self._parts[part].astype(np.float64)
            known = np.isfinite(values)
            values = np.append(np.where(known, values, 0.0), 0.0)
            bounds = np.stack([rows[here], rows[here] + count[here]], 1).ravel()
            for column, each in enumerate((np.append(known, False).astype(np.float64), values, values**2)):
                found[here, column] = np.add.reduceat(each, bounds)[::2]
        return found


def _numbers(column: pa.ChunkedArray) -> NDArray[np.float32]:
    values: NDArray[np.float32] = column.chunk(0).to_numpy() if column.num_chunks else np.empty(0, np.float32)
    return values


def _kept(source: ShardSource | TableFolder, part: Part, table: str, column: str) -> pa.ChunkedArray:
    """A column as it is kept in the part's folder, written there first where it is missing."""
    file = part.folder / f"{table}-{column}.arrow"
    if not file.is_file():
        if isinstance(source, TableFolder):
            made = _of_tables(source, part, table, column)
        else:
            made = _of_slides(source, part, column) if table == "slides" else _of_tiles(source, part, column)
        _write(file, pa.table({"value": made}))
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()["value"]


def _write(file: Path, table: pa.Table) -> None:
    """Aside, then by a rename: several processes may do so at once."""
    unfinished = file.with_name(f".{file.name}.{uuid4().hex}")
    with pa.ipc.new_file(unfinished, table.schema) as opened:
        opened.write_table(table)
    sync(unfinished)
    unfinished.rename(file)


def _of_tables(source: TableFolder, part: Part, table: str, column: str) -> pa.Array:
    """A text for each slide, or a number for each tile, of tables whose rows say it."""
    found = [(first, column_of(source, name, column)) for name, first in part.tables]
    told = [(first, rows) for first, rows in found if rows is not None]
    if table == "slides":
        nothing = pa.table({"slide_id": pa.array([], pa.string()), "value": pa.array([], pa.string())})
        every = pa.concat_tables(
            [nothing, *(rows.set_column(1, "value", rows["value"].cast(pa.string())) for _, rows in told)]
        )
        every = (
            every.filter(pc.is_valid(every["value"]))
            .group_by("slide_id", use_threads=False)
            .aggregate([("value", "first")])
        )
        ids = every["slide_id"].combine_chunks()
        return every["value_first"].combine_chunks().take(pc.index_in(part.slide_ids.combine_chunks(), ids))
    numbers = load_array(part.folder / "tiles.npy")["index"] if len(part.tiles) else np.empty(0, np.uint32)
    out = np.full(len(numbers), np.nan, np.float32)
    for first, rows in told:
        here = (numbers >= first) & (numbers < first + len(rows))
        values = rows["value"].cast(pa.float32()).to_numpy(zero_copy_only=False)
        out[here] = np.where(np.isfinite(values), values, np.nan)[numbers[here] - first]
    return pa.array(out)


def _of_slides(source: ShardSource, part: Part, column: str) -> pa.Array:
    slides = of_today(source.parquet("slides", part.catalog).read(), SLIDE_SCHEMA)
    slides = slides.filter(pc.equal(slides["status"], "ok"))
    rows = pc.index_in(part.slide_ids.combine_chunks(), slides["slide_id"].combine_chunks())
    return slides[column].cast(pa.string()).combine_chunks().take(rows)


def _of_tiles(source: ShardSource, part: Part, column: str) -> pa.Array:
    """float32 for every tile of the part, found by slide, magnification and number in its array."""
    out = np.full(len(part.tiles), np.nan, np.float32)
    keys = _keys(
        np.repeat(part.cells["slide"], part.cells["count"]),
        np.repeat(part.cells["magnification"], part.cells["count"]),
        load_array(part.folder / "tiles.npy")["index"] if len(out) else np.empty(0, np.uint32),
    )
    file = source.parquet("tiles", part.catalog) if len(out) else None
    if file is None or column not in file.schema_arrow.names:  # of an older version
        return pa.array(out)
    ids = part.slide_ids.combine_chunks()
    for batch in file.iter_batches(batch_size=_ROWS, columns=["slide_id", "magnification", "index", column]):
        slide = pc.index_in(batch["slide_id"], ids)
        table = pa.Table.from_batches([batch]).append_column("slide", slide).filter(pc.is_valid(slide))
        magnification = pc.index_in(table["magnification"], pa.array(_NAMES)).to_numpy()
        wanted = _keys(table["slide"].to_numpy(), magnification, table["index"].to_numpy())
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        there = keys[at] == wanted  # others were filtered out
        values = table[column].cast(pa.float32()).to_numpy()
        out[at[there]] = np.where(np.isfinite(values), values, np.nan)[there]
    return pa.array(out)


def _keys(slide: NDArray[np.int64], magnification: NDArray[np.int64], index: NDArray[np.int64]) -> NDArray[np.int64]:
    """One number a tile, rising in the order of a part's rows."""
    of_array = slide.astype(np.int64) * len(_NAMES) + magnification.astype(np.int64)
    keys: NDArray[np.int64] = (of_array << 32) + index.astype(np.int64)
    return keys
