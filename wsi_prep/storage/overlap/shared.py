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
from wsi_prep.storage.overlap.likeness import Likenesses, likeness_of_image, likenesses

SLIDES = ("slide_id", "slide", "group")
"""Columns of tables that name a tile's slide: by its id, its file, or its file without the ending."""

FINGERPRINT = "fingerprint"
"""A column that knows a slide by its content, as the catalog's does, whatever it is named; looked at besides."""

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


@dataclass(frozen=True)
class KnownSlide:
    """A slide of the shards: its id, file, patient's key and fingerprint; "" for what is not said."""

    slide_id: str
    file: str = ""
    patient_key: str = ""
    fingerprint: str = ""


def shared_with(table: Path, known: Callable[[], Iterable[KnownSlide]]) -> Overlap:
    """What a table of labelled tiles shares with shards that hold these slides. Raises BadTask."""
    try:
        file = pq.ParquetFile(table)
        there = file.schema_arrow.names
        slide, patient, owner = (next((n for n in names if n in there), None) for names in (SLIDES, PATIENTS, OWNERS))
        wanted = {slide, patient, owner, SPLIT, FINGERPRINT}
        told = file.read(sorted(name for name in wanted if name and name in there))
        rows = file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise BadTask(f"{table} is no table of labelled tiles: {one_line(error)}") from error
    ids: dict[str, set[str]] = {}
    contents: dict[str, set[str]] = {}
    patients: set[str] = set()
    for each in known():
        for called in {each.slide_id, each.file, bare_name(each.file)} - {""}:
            ids.setdefault(called, set()).add(each.slide_id)
        if each.fingerprint:
            contents.setdefault(each.fingerprint, set()).add(each.slide_id)
        patients |= {each.patient_key} - {""}
    by = [(told[name], of) for name, of in ((slide, ids), (FINGERPRINT, contents)) if name in told.column_names]
    of_slides, slides = _of_slides(by)
    keys = _there(told[patient], patients) if patient else None
    return Overlap(
        rows,
        of_slides if by else None,
        slides,
        None if keys is None else int(pc.sum(keys).as_py() or 0),
        () if keys is None else _distinct(told[patient], keys),
        _divided(told, owner or slide),
    )


def _of_slides(by: Sequence[tuple[pa.ChunkedArray, dict[str, set[str]]]]) -> tuple[int, tuple[str, ...]]:
    """How many rows are of slides that are known by the one or the other column, and the ids of these slides."""
    found: set[str] = set()
    rows = None
    for column, ids in by:
        mine = _there(column, set(ids))
        found |= {one for name in _distinct(column, mine) for one in ids[name]}
        rows = mine if rows is None else pc.or_(rows, mine)
    return int(pc.sum(rows).as_py() or 0) if by else 0, tuple(sorted(found))


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


def _there(column: pa.ChunkedArray, known: set[str]) -> pa.ChunkedArray:
    """Which rows have one of these names."""
    return pc.is_in(column.cast(pa.string()), pa.array(sorted(known), pa.string()))


def _distinct(column: pa.ChunkedArray, rows: pa.ChunkedArray) -> tuple[str, ...]:
    return tuple(sorted(column.cast(pa.string()).filter(rows).unique().to_pylist()))


def quoted(names: Sequence[str]) -> str:
    """Texts of SQL, one after another."""
    return ", ".join("'" + name.replace("'", "''") + "'" for name in names)
