"""Slides and patients that shards share with tables of labelled tiles: who was trained on must not be judged on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wsi_prep.errors import BadTask, counted, one_line
from wsi_prep.format.layout import bare_name
from wsi_prep.overlap.likeness import Likenesses, likeness_of_image, likenesses

SLIDES = ("slide_id", "slide", "group")
"""Columns of tables that name a tile's slide: by its id, its file, or its file without the ending."""

PATIENTS = ("patient_key",)
"""Columns that name its patient as shards do: by the keyed hash."""

OWNERS = ("patient", "patient_id", "patient_key")
"""Columns that name its patient in any way; the first that there is counts."""

SPLIT = "split"
_ROWS = 1024  # of a table, whose images are read at once


@dataclass(frozen=True)
class Overlap:
    """Of the `tiles` of a table: how many are of `slides`, and of `patients`, that the shards hold, by their ids.

    None where no column of the table tells. `divided`: patients on both sides of the table's own split, or slides where
    it names no patients.
    """

    tiles: int
    of_slides: int | None
    slides: tuple[str, ...]
    of_patients: int | None
    patients: tuple[str, ...]
    divided: int = 0

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


def shared_with(table: Path, known: Callable[[], Iterable[tuple[str, str, str]]]) -> Overlap:
    """What a table of labelled tiles shares with shards that hold these slides: id, file and patient's key of each.

    "" for what is not said. Raises BadTask.
    """
    try:
        file = pq.ParquetFile(table)
        there = file.schema_arrow.names
        slide, patient, owner = (next((n for n in names if n in there), None) for names in (SLIDES, PATIENTS, OWNERS))
        told = file.read(sorted({name for name in (slide, patient, owner, SPLIT) if name and name in there}))
        rows = file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise BadTask(f"{table} is no table of labelled tiles: {one_line(error)}") from error
    ids: dict[str, set[str]] = {}
    patients: set[str] = set()
    for slide_id, name, key in known():
        for called in {slide_id, name, bare_name(name)} - {""}:
            ids.setdefault(called, set()).add(slide_id)
        patients |= {key} - {""}
    of_slides, slides = _shared(told[slide], set(ids)) if slide else (None, [])
    of_patients, keys = _shared(told[patient], patients) if patient else (None, [])
    found = tuple(sorted({one for name in slides for one in ids[name]}))
    return Overlap(rows, of_slides, found, of_patients, tuple(keys), _divided(told, owner or slide))


def likenesses_of_table(table: Path, threads: int) -> Likenesses:
    """Of every tile of a table's column `image`, encoded bytes or as Hugging Face has them. Raises BadTask."""

    def images() -> Iterator[bytes | None]:
        for batch in file.iter_batches(_ROWS, columns=["image"]):
            column = batch.column(0)
            if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
                column = column.field("bytes")
            if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
                raise BadTask(f"{table}: column image is {str(column.type)[:80]}, and no bytes of images")
            yield from column.to_pylist()

    try:
        file = pq.ParquetFile(table)
        if "image" not in file.schema_arrow.names:
            raise BadTask(f"{table}: has no column image, with encoded tiles")
        return Likenesses.of(likenesses(images(), likeness_of_image, threads))
    except (OSError, pa.ArrowException) as error:
        raise BadTask(f"{table} is no table of labelled tiles: {one_line(error)}") from error


def both_sides(overlap: Overlap) -> str:
    """A line about owners on both sides of a table's own split; "" where there are none."""
    if not overlap.divided:
        return ""
    return f"{counted(overlap.divided, 'patient or slide is', 'patients or slides are')} on both sides of its split"


def _divided(told: pa.Table, owner: str | None) -> int:
    """How many owners have tiles on several sides of the column split."""
    if owner is None or SPLIT not in told.column_names:
        return 0
    pairs = pa.table({"owner": told[owner].cast(pa.string()), "side": told[SPLIT].cast(pa.string())}).drop_null()
    sides = pairs.group_by("owner", use_threads=False).aggregate([("side", "count_distinct")])
    return int(pc.sum(pc.greater(sides["side_count_distinct"], 1)).as_py() or 0)


def _shared(column: pa.ChunkedArray, known: set[str]) -> tuple[int, list[str]]:
    """How many rows have one of these names, and which of them are there."""
    values = column.cast(pa.string())
    mine = pc.is_in(values, pa.array(sorted(known), pa.string()))
    return int(pc.sum(mine).as_py() or 0), sorted(values.filter(mine).unique().to_pylist())


def quoted(names: Sequence[str]) -> str:
    """Texts of SQL, one after another."""
    return ", ".join("'" + name.replace("'", "''") + "'" for name in names)
