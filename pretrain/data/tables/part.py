"""The part of an index that a folder of tables is: which columns say what, and where each JPEG is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pretrain.data.parts import ROW, TILE, cells_of, matching_rows, slide_rows, words_of, write_part
from pretrain.data.tables.folder import PACKED, RowGroup, TableFolder
from pretrain.errors import BadShards
from wsi_prep.format.jpeg import first_frame
from wsi_prep.format.magnifications import MAGNIFICATIONS, TILE_PX
from wsi_prep.format.records import SLIDE_SCHEMA, TILE_SCHEMA
from wsi_prep.format.stored_tiles import LARGEST_JPEG
from wsi_prep.format.strata import STRATUM_LEVELS
from wsi_prep.untrusted.sql import Condition

_NAMES = [m.name for m in MAGNIFICATIONS]
_UNKNOWN = {"stain": "UNKNOWN"} | {level: "unknown" for level in STRATUM_LEVELS if level != "stain"}
_ABOUT_SLIDE = (*STRATUM_LEVELS, "patient_key")
_TELLS_SLIDE = ("slide_id", "slide")
_LIKE = 0.51  # in powers of two: how far from a magnification's um/px tiles still count as of it
_SAME_MPP = 1e-3
_LENGTH = 4  # bytes before each JPEG that lies plain


def build_table_part(source: TableFolder, where: Condition | None, folder: Path) -> None:
    """Read the tables of `source` and write the part at `folder`.

    Each needs a column of JPEGs, `slide_id` (or `slide`), and `mpp` or `magnification`; other columns of the catalog
    count where they are there, and nbytes with crc32 save that each JPEG is read. Raises BadShards, and BadFilter where
    `where` cannot be evaluated.
    """
    first, found, tables = 0, [], []
    for file in source.names:
        table = _told(source, file.name, where)
        places = np.concatenate([np.empty(0, TILE), *_places(source, file.name, table)])
        places["index"] = first + np.arange(len(places))
        tables.append((file.name, first))
        first += len(places)
        rows = table.append_column("number", pa.array(np.arange(len(table))))
        kept = matching_rows(rows, where) if where else rows["number"]
        for name in TILE.names or ():
            rows = rows.append_column(f"at {name}", pa.array(places[name]))
        found.append(rows.take(kept))
    joined = pa.concat_tables(found)
    slides = joined.group_by("slide_id", use_threads=False).aggregate([(name, "first") for name in _ABOUT_SLIDE])
    slides = slides.rename_columns(["slide_id", *_ABOUT_SLIDE])
    rows = _rows(joined, slides)
    cells = cells_of(rows)
    _require_one_scale(source, rows, cells, slides)
    levels = {level: sorted(set(slides[level].to_pylist())) for level in STRATUM_LEVELS}
    tiles = rows[list(TILE.names or ())]
    names = {**levels, "of_tables": {"tables": tables, "packed": int((tiles["offset"] >= PACKED).sum())}}
    write_part(folder, tiles, cells, slide_rows(slides, levels), names, slides["slide_id"])


def column_of(source: TableFolder, name: str, column: str) -> pa.Table | None:
    """`slide_id` and a `value` of each row of a table, in order; None where it has no such column."""
    file = source.table(name)
    if column not in file.schema_arrow.names:
        return None
    slide = _slide_column(source, name)
    read = file.read(sorted({slide, column}), use_threads=False)
    return pa.table({"slide_id": read[slide].cast(pa.string()), "value": read[column]})


def slides_of(source: TableFolder, name: str) -> pa.Table:
    """`slide_id` and `patient_key` of each slide of a table; the latter null where it is not said."""
    file, slide = source.table(name), _slide_column(source, name)
    read = file.read(sorted({slide, "patient_key"} & set(file.schema_arrow.names)), use_threads=False)
    keys = (
        read["patient_key"].cast(pa.string())
        if "patient_key" in read.column_names
        else pa.nulls(len(read), pa.string())
    )
    rows = pa.table({"slide_id": read[slide].cast(pa.string()), "patient_key": keys})
    found = rows.group_by("slide_id", use_threads=False).aggregate([("patient_key", "first")])
    return found.rename_columns(["slide_id", "patient_key"])


def _slide_column(source: TableFolder, name: str) -> str:
    there = source.table(name).schema_arrow.names
    slide = next((column for column in _TELLS_SLIDE if column in there), None)
    if slide is None:
        raise BadShards(f"{source.where}/{name} has no column slide_id, which tells the trainer what its tiles are of")
    return slide


def _told(source: TableFolder, name: str, where: Condition | None) -> pa.Table:
    """What a table says of its tiles, in the catalog's columns: those that the index needs, and that `where` names."""
    file = source.table(name)
    there = set(file.schema_arrow.names)
    slide = _slide_column(source, name)
    if not there & {"mpp", "magnification"}:
        raise BadShards(
            f"{source.where}/{name} has no column mpp or magnification, which says what scale its tiles have"
        )
    words = words_of(where) if where else set()
    wanted = {field.name: field for field in (*SLIDE_SCHEMA, *TILE_SCHEMA)}
    needed = {"slide_id", "magnification", "mpp", "nbytes", "crc32", *_ABOUT_SLIDE}
    wanted = {n: field for n, field in wanted.items() if n in needed or n in words}
    read = file.read(sorted(({*wanted} | {slide}) & there), use_threads=False)
    told: dict[str, pa.ChunkedArray | pa.Array] = {}
    for column, field in wanted.items():
        given = slide if column == "slide_id" else column
        try:
            told[column] = _cast(read[given], field) if given in there else pa.nulls(len(read), field.type)
        except pa.ArrowException as error:
            raise BadShards(f"{source.where}/{name}: its column {given} is {read[given].type}: {error}") from error
    if told["slide_id"].null_count:
        raise BadShards(f"{source.where}/{name}: {told['slide_id'].null_count} rows have no {slide}")
    for level, unknown in _UNKNOWN.items():
        told[level] = pc.fill_null(told[level], unknown)
    told["magnification"], told["mpp"] = _scales(f"{source.where}/{name}", told["magnification"], told["mpp"])
    return pa.table(told)


def _cast(values: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    if field.name == "magnification" and not pa.types.is_string(values.type):
        whole = pc.cast(values, pa.int64())
        return pc.binary_join_element_wise(pc.cast(whole, pa.string()), pa.scalar("x"), "")
    return pc.cast(values, field.type)


def _scales(where: str, names: pa.ChunkedArray, mpps: pa.ChunkedArray) -> tuple[pa.Array, pa.Array]:
    """Magnification and um/px of each row, one by the other where that is not said; BadShards where neither is."""
    number = pc.index_in(names, pa.array(_NAMES)).to_numpy(zero_copy_only=False)
    mpp = pc.cast(mpps, pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
    nominal = np.array([m.mpp for m in MAGNIFICATIONS])
    number = np.array(number, np.float64)  # NaN where a name is none of them
    said = np.isfinite(number)
    mpp = np.where(np.isfinite(mpp) | ~said, mpp, nominal[np.where(said, number, 0).astype(int)])
    with np.errstate(invalid="ignore", divide="ignore"):
        away = np.abs(np.log2(mpp[:, None] / nominal))
    near = np.where(np.isfinite(away), away, np.inf)
    number = np.where(said, np.where(said, number, 0), near.argmin(1)).astype(int)
    if (wrong := ~(near[np.arange(len(number)), number] <= _LIKE)).any():
        row = int(wrong.argmax())
        what = f"magnification {names[row].as_py()!r} and {mpps[row].as_py()} um/px"
        raise BadShards(f"{where}: row {row} has {what}; tiles are of {', '.join(_NAMES)}, or near them in um/px")
    return pa.array(np.array(_NAMES)[number]), pa.array(mpp)


def _places(source: TableFolder, name: str, table: pa.Table) -> Iterator[NDArray[np.void]]:
    """Where each JPEG is, by row group: what the table says of it, or else the JPEG itself."""
    known = not table["nbytes"].null_count + table["crc32"].null_count
    for group in source.groups(name):
        places = np.empty(group.rows, TILE)
        rows = slice(group.begin, group.begin + group.rows)
        if known:
            for field in ("nbytes", "crc32"):
                places[field] = table[field].slice(rows.start, group.rows).to_numpy()
        else:
            places[["nbytes", "crc32"]] = list(_looked_at(source, name, group))
        if (far := (places["nbytes"] == 0) | (places["nbytes"] > LARGEST_JPEG)).any():
            at = int(far.argmax())
            raise BadShards(
                f"{source.where}/{name}: row {rows.start + at} has an image of {places['nbytes'][at]:,} bytes"
            )
        if group.plain:
            places["offset"] = _offsets(f"{source.where}/{name}", group, places["nbytes"])
        else:
            places["offset"] = PACKED + group.begin + np.arange(group.rows)
        yield places


def _offsets(where: str, group: RowGroup, nbytes: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Where each JPEG of a plain row group begins."""
    behind = np.cumsum(nbytes[::-1].astype(np.int64) + _LENGTH)[::-1]
    if len(behind) and behind[0] > group.end - group.start:
        raise BadShards(f"{where}: the nbytes of rows from {group.begin} on are more than is there; write it again")
    return group.end - behind + _LENGTH


def _looked_at(source: TableFolder, name: str, group: RowGroup) -> Iterator[tuple[int, int]]:
    """Size and CRC-32 of each JPEG of a row group; BadShards where one is none, or of another size than a tile."""
    for row, jpeg in enumerate(source.jpegs(name, group), group.begin):
        frame = first_frame(jpeg) if jpeg else None
        if not jpeg or frame is None or frame[1:] != (TILE_PX, TILE_PX):
            what = "no JPEG" if frame is None else f"a JPEG of {frame[2]} x {frame[1]} px"
            raise BadShards(
                f"{source.where}/{name}: row {row} has {what}; the trainer takes JPEGs of {TILE_PX} x {TILE_PX} px"
            )
        yield len(jpeg), imagecodecs.deflate_crc32(jpeg)


def _rows(tiles: pa.Table, slides: pa.Table) -> NDArray[np.void]:
    rows = np.empty(len(tiles), ROW)
    for name in TILE.names or ():
        rows[name] = tiles[f"at {name}"].to_numpy()
    rows["slide"] = pc.index_in(tiles["slide_id"], slides["slide_id"].combine_chunks()).to_numpy()
    rows["magnification"] = pc.index_in(tiles["magnification"], pa.array(_NAMES)).to_numpy()
    rows["mpp"] = tiles["mpp"].to_numpy()
    return rows[np.lexsort((rows["index"], rows["magnification"], rows["slide"]))]


def _require_one_scale(source: TableFolder, rows: NDArray[np.void], cells: NDArray[np.void], slides: pa.Table) -> None:
    """BadShards where tiles of one slide and magnification have several um/px: the index keeps one."""
    of_cell = np.repeat(cells["mpp"], cells["count"])
    if (other := np.abs(rows["mpp"] / of_cell - 1) > _SAME_MPP).any():
        row = rows[int(other.argmax())]
        named = f"{slides['slide_id'][int(row['slide'])].as_py()!r} {_NAMES[row['magnification']]}"
        raise BadShards(
            f"{source.where}: tiles of {named} have {row['mpp']:g} um/px and others; give them other slides"
        )
