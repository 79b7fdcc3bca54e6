"""One part of the index: a catalog file pair (slides and tiles of one name) as arrays that can be memory-mapped.

A part is a folder named by what it was made from, so a changed catalog file, filter or format makes a new one and an
unchanged one is never made again. It appears by one rename; several processes may build at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pretrain.compute.arrays import load_array, load_column, save_fields
from pretrain.data.sources import ShardSource, check_ids
from pretrain.errors import BadFilter, BadShards
from wsi_prep.errors import BadCatalog, BadQuery, first_line
from wsi_prep.format.magnifications import MAGNIFICATIONS
from wsi_prep.format.records import SLIDE_SCHEMA, TILE_SCHEMA
from wsi_prep.format.stored_tiles import require_places
from wsi_prep.format.strata import STRATUM_LEVELS
from wsi_prep.storage.atomic import sync
from wsi_prep.untrusted.sql import CONDITION_SECONDS, Condition
from wsi_prep.untrusted.tables import of_today

INDEX_VERSION = 1

TILE = np.dtype([("offset", "<u8"), ("nbytes", "<u4"), ("crc32", "<u4"), ("index", "<u4")])
"""Where a tile's JPEG is: 20 bytes a tile."""
_TILE_ROW = struct.Struct("<QIII")
CELL = np.dtype([("start", "<u8"), ("count", "<u4"), ("slide", "<u4"), ("magnification", "<u4"), ("mpp", "<f4")])
"""The tiles of one slide at one magnification: rows `start` to `start + count` of the part's tiles."""
SLIDE = np.dtype([("id_hash", "<u8"), ("split", "<f8"), ("by_patient", "<u4"), *((n, "<u4") for n in STRATUM_LEVELS)])
"""A slide: `split` in [0, 1) is the same for all slides of a patient; strata are numbers into the part's names."""

_NAMES = [m.name for m in MAGNIFICATIONS]
_NEEDED = ("slide_id", "magnification", "mpp", "shard", "index", "offset", "nbytes", "crc32")
_SHOWN = 200  # characters of a filter, in a message


class TileRows:
    """The tiles of a part, read by row and not mapped: a thread that waits for a page holds the interpreter's lock."""

    def __init__(self, file: Path) -> None:
        self._descriptor = -1
        with file.open("rb") as opened:
            np.lib.format.read_magic(opened)
            shape, _, dtype = np.lib.format.read_array_header_1_0(opened)
            self._count, self._offset = shape[0], opened.tell()
        if dtype != TILE:
            raise BadShards(f"{file} is of another format; delete its folder, and the index is made again")
        self._descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, row: int) -> tuple[int, int, int, int]:
        """offset, nbytes, crc32 and index of one tile."""
        packed = os.pread(self._descriptor, _TILE_ROW.size, self._offset + row * _TILE_ROW.size)
        offset, nbytes, crc32, index = _TILE_ROW.unpack(packed)
        return offset, nbytes, crc32, index


@dataclass(frozen=True)
class Part:
    """A part as it lies on disk: arrays of the dtypes above, and its names of strata by level.

    `catalog`: the name of the catalog's files that it was made of, whose order is another. `tables`: where it was made
    from a folder of tables, their names, each with the `index` of its first row; `packed`: how many of its tiles can be
    read only with their row groups.
    """

    folder: Path
    catalog: str
    tiles: TileRows
    cells: NDArray[np.void]
    slides: NDArray[np.void]
    names: dict[str, list[str]]
    slide_ids: pa.ChunkedArray
    tables: tuple[tuple[str, int], ...] = ()
    packed: int = 0


def open_part(folder: Path, catalog: str = "") -> Part:
    """A part that was built before, of the catalog's files of this name."""
    cells, slides = (load_array(folder / f"{name}.npy") for name in ("cells", "slides"))
    names = json.loads((folder / "names.json").read_text())
    slide_ids = load_column(folder / "slide_ids.arrow", "slide_id")
    of_tables = names.pop("of_tables", {"tables": [], "packed": 0})
    tables = tuple((str(name), int(first)) for name, first in of_tables["tables"])
    at = folder / "tiles.npy"
    packed = int(of_tables["packed"])
    return Part(folder, catalog, TileRows(at), cells, slides, names, slide_ids, tables, packed)


def build_part(source: ShardSource, name: str, has_tiles: bool, where: Condition | None, folder: Path) -> None:
    """Read the catalog files `name` of `source` and write the part at `folder`.

    Raises BadShards where slides and tiles contradict each other, BadFilter where `where` cannot be evaluated.
    """
    slides = of_today(source.parquet("slides", name).read(), SLIDE_SCHEMA)
    slides = slides.filter(pc.equal(slides["status"], "ok"))
    check_ids(source, name, slides["slide_id"])
    found = [np.empty(0, ROW)]
    seen = 0
    if has_tiles:
        file = source.parquet("tiles", name)
        for batch in file.iter_batches(batch_size=1 << 18, columns=_columns(where)):
            seen += _known(batch, slides)
            found.append(_rows(source, batch, slides, where))
    stated = sum(pc.sum(slides[f"tiles_{m}"]).as_py() or 0 for m in _NAMES)
    if seen != stated:
        raise BadShards(
            f"{source.where}/catalog: {name} has {seen} tiles, its slides say {stated}; run make shards on it again"
        )
    rows = np.concatenate(found)
    rows = rows[np.lexsort((rows["index"], rows["magnification"], rows["slide"]))]
    levels = {level: sorted({str(v) for v in slides[level].to_pylist()}) for level in STRATUM_LEVELS}
    write_part(
        folder, rows[list(TILE.names or ())], cells_of(rows), slide_rows(slides, levels), levels, slides["slide_id"]
    )


def write_part(
    folder: Path,
    tiles: NDArray[np.void],
    cells: NDArray[np.void],
    slides: NDArray[np.void],
    names: Mapping[str, object],
    slide_ids: pa.ChunkedArray | pa.Array,
) -> None:
    """Write a part aside and rename it into place; `names` of strata by level, and of tables `of_tables`."""
    aside = folder.with_name(f".{folder.name}.{uuid4().hex}")
    aside.mkdir(parents=True)
    save_fields(aside / "tiles.npy", TILE, tiles)
    np.save(aside / "cells.npy", cells)
    np.save(aside / "slides.npy", slides)
    (aside / "names.json").write_text(json.dumps(names))
    table = pa.table({"slide_id": slide_ids})
    with pa.ipc.new_file(aside / "slide_ids.arrow", table.schema) as file:
        file.write_table(table)
    for file in aside.iterdir():
        sync(file)
    try:
        aside.rename(folder)
    except OSError:  # another process was first
        shutil.rmtree(aside)
        if not folder.is_dir():
            raise


def read_filter(where: str | None, seconds: float = CONDITION_SECONDS) -> Condition | None:
    """A condition on the catalog's columns, None where nothing is asked for; `seconds` are for some 100,000 tiles.

    Raises BadFilter where it is something else, BadOption for a time limit that is none.
    """
    if not (where := (where or "").strip()):
        return None
    try:
        condition = Condition(where, seconds)
    except BadQuery as error:
        raise _not_understood(where, error) from error
    columns = [field for field in SLIDE_SCHEMA if field.name != "slide_id"]
    matching_rows(pa.schema([*TILE_SCHEMA, *columns]).empty_table(), condition)
    return condition


ROW = np.dtype([*((n, TILE[n]) for n in TILE.names or ()), ("slide", "<u4"), ("magnification", "<u4"), ("mpp", "<f4")])


def _columns(where: Condition | None) -> list[str]:
    words = words_of(where) if where else set()
    return [name for name in TILE_SCHEMA.names if name in _NEEDED or name in words]


def _known(batch: pa.RecordBatch, slides: pa.Table) -> int:
    return int(pc.sum(pc.is_in(batch["slide_id"], slides["slide_id"].combine_chunks())).as_py() or 0)


def words_of(where: Condition) -> set[str]:
    """The words of a condition in small letters, columns among them."""
    return set(re.findall(r"\w+", where.text.lower()))


def matching_tiles(batch: pa.RecordBatch, slides: pa.Table, where: Condition | None) -> pa.Table:
    """The batch's tiles that belong to one of the slides and pass the filter, with the row of their `slide`."""
    table = pa.Table.from_batches([batch])
    slide = pc.index_in(table["slide_id"], slides["slide_id"].combine_chunks())
    table = table.append_column("slide", slide).filter(pc.is_valid(slide))
    if where:
        words = words_of(where)
        joined = table
        for field in slides.schema:
            if field.name in words and field.name not in joined.schema.names:
                joined = joined.append_column(field.name, slides[field.name].take(table["slide"]))
        table = table.take(matching_rows(joined, where))
    return table


def _rows(source: ShardSource, batch: pa.RecordBatch, slides: pa.Table, where: Condition | None) -> NDArray[np.void]:
    table = checked_tiles(source, batch, slides, where)
    rows = np.empty(len(table), ROW)
    for name in (*(TILE.names or ()), "slide", "mpp"):
        rows[name] = table[name].to_numpy()
    rows["magnification"] = pc.index_in(table["magnification"], pa.array(_NAMES)).to_numpy(zero_copy_only=False)
    return rows


def checked_tiles(source: ShardSource, batch: pa.RecordBatch, slides: pa.Table, where: Condition | None) -> pa.Table:
    """`matching_tiles`; BadShards where one of them does not lie where the format says."""
    table = matching_tiles(batch, slides, where)
    try:
        require_places(table)
    except BadCatalog as error:
        raise BadShards(f"{source.where}/catalog: {error}") from error
    return table


def matching_rows(table: pa.Table, where: Condition) -> pa.Array:
    """Numbers of the rows that `where` holds for."""
    try:
        return pa.array(where.rows(table), pa.int64())
    except BadQuery as error:
        raise _not_understood(where.text, error) from error


def _not_understood(where: str, error: Exception) -> BadFilter:
    line = first_line(error)
    shown = where if len(where) <= _SHOWN else f"{where[:_SHOWN]}..."
    return BadFilter(
        f"the filter {shown!r} is not understood ({line}); write a condition on the catalog's columns, "
        "as in stain = 'HE' and focus > 0.3"
    )


def cells_of(rows: NDArray[np.void]) -> NDArray[np.void]:
    """Runs of one slide and magnification in the sorted rows."""
    key = rows["slide"].astype(np.uint64) * len(_NAMES) + rows["magnification"]
    starts = np.flatnonzero(np.diff(key, prepend=key[:1] + 1)) if len(key) else np.empty(0, np.int64)
    cells = np.empty(len(starts), CELL)
    cells["start"] = starts
    cells["count"] = np.diff(starts, append=len(rows))
    for name in ("slide", "magnification", "mpp"):
        cells[name] = rows[name][starts]
    return cells


def slide_rows(slides: pa.Table, levels: dict[str, list[str]]) -> NDArray[np.void]:
    """SLIDE of each slide, strata as numbers into `levels`."""
    out = np.empty(len(slides), SLIDE)
    ids, patients = slides["slide_id"].to_pylist(), slides["patient_key"].to_pylist()
    out["id_hash"] = [_hash(slide_id) for slide_id in ids]
    out["split"] = [(_hash(f"split {p or i}") >> 11) * 2.0**-53 for p, i in zip(patients, ids, strict=True)]
    out["by_patient"] = [bool(p) for p in patients]
    for level, names in levels.items():
        code = {name: number for number, name in enumerate(names)}
        out[level] = [code[str(v)] for v in slides[level].to_pylist()]
    return out


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
