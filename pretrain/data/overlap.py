"""Slides and patients that shards share with tables of labelled tiles: who was trained on must not be judged on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pretrain.data.sources import folders_of
from pretrain.data.tables.folder import TableFolder, open_any
from pretrain.data.tables.part import slides_of
from pretrain.errors import BadTask
from wsi_prep.errors import counted
from wsi_prep.format.layout import bare_name

SLIDES = ("slide_id", "slide", "group")
"""Columns of tables that name a tile's slide: by its id, its file, or its file without the ending."""

PATIENTS = ("patient_key",)
"""Columns that name its patient as shards do: by the keyed hash."""


@dataclass(frozen=True)
class Overlap:
    """Of the `tiles` of a table: how many are of `slides`, and of `patients`, that the shards hold, by their ids.

    None where no column of the table tells.
    """

    tiles: int
    of_slides: int | None
    slides: tuple[str, ...]
    of_patients: int | None
    patients: tuple[str, ...]

    @property
    def line(self) -> str:
        """For people."""
        told = []
        for count, names, what, columns in (
            (self.of_slides, self.slides, "slide", SLIDES),
            (self.of_patients, self.patients, "patient", PATIENTS),
        ):
            if count is None:
                told.append(
                    f"whether {what}s of it are in SHARDS is not known: it has no column {' or '.join(columns)}"
                )
            elif not count:
                told.append(f"no tile is of a {what} in SHARDS")
            else:
                tiles = counted(self.tiles, "tile is", "tiles are")
                told.append(f"{count:,} of {tiles} of {counted(len(names), what)} in SHARDS")
        if self.slides or self.patients:
            told.append("a model that was trained on these has seen them; EXCLUDE of make pretrain keeps them out")
        return "; ".join(told)


def overlap(table: Path, shards: str | Path | Sequence[str | Path]) -> Overlap:
    """What a table of labelled tiles shares with folders or URLs of shards. Raises BadTask and BadShards."""
    try:
        file = pq.ParquetFile(table)
        there = file.schema_arrow.names
        slide, patient = (next((n for n in names if n in there), None) for names in (SLIDES, PATIENTS))
        told = file.read([name for name in (slide, patient) if name])
        rows = file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise BadTask(f"{table} is no table of labelled tiles: {' '.join(str(error).split())}") from error
    ids: dict[str, set[str]] = {}
    patients: set[str] = set()
    for where in folders_of(shards):
        for slide_id, name, key in _slides_of(where):
            for called in {slide_id, name, bare_name(name)} - {""}:
                ids.setdefault(called, set()).add(slide_id)
            patients |= {key} - {""}
    of_slides, slides = _shared(told[slide], set(ids)) if slide else (None, [])
    of_patients, keys = _shared(told[patient], patients) if patient else (None, [])
    return Overlap(
        rows, of_slides, tuple(sorted({one for name in slides for one in ids[name]})), of_patients, tuple(keys)
    )


def without(where: str | None, shared: Sequence[Overlap]) -> str | None:
    """The condition `where`, and that a tile is of none of these slides and patients."""
    conditions = []
    for column, names in (
        ("slide_id", sorted({name for each in shared for name in each.slides})),
        ("coalesce(patient_key, '')", sorted({name for each in shared for name in each.patients})),
    ):
        condition = f"{column} NOT IN ({', '.join(map(_quoted, names))})"
        if names and condition not in (where or ""):  # of a run that goes on with its own
            conditions.append(condition)
    return " AND ".join([*([f"({where})"] if where else []), *conditions]) if conditions else where


def _slides_of(where: str) -> Iterator[tuple[str, str, str]]:
    """The id, file name and patient's key of each slide that is ok; "" for what is not said."""
    source = open_any(where)
    if isinstance(source, TableFolder):
        for file in source.names:
            for row in slides_of(source, file.name).to_pylist():
                yield row["slide_id"], "", row["patient_key"] or ""
        return
    for file in source.files("slides"):
        read = source.parquet("slides", file.name)
        rows = read.read([n for n in ("slide_id", "file", "patient_key", "status") if n in read.schema_arrow.names])
        for row in rows.filter(pc.equal(rows["status"], "ok")).to_pylist():
            yield row["slide_id"], row.get("file") or "", row.get("patient_key") or ""


def _shared(column: pa.ChunkedArray, known: set[str]) -> tuple[int, list[str]]:
    """How many rows have one of these names, and which of them are there."""
    values = column.cast(pa.string())
    mine = pc.is_in(values, pa.array(sorted(known), pa.string()))
    return int(pc.sum(mine).as_py() or 0), sorted(values.filter(mine).unique().to_pylist())


def _quoted(name: str) -> str:
    return "'" + name.replace("'", "''") + "'"
