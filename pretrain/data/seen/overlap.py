"""What shards share with labelled tiles: slides, patients, and tiles that look the same; and how it is left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.compute as pc

from pretrain.data.sources import folders_of
from pretrain.data.tables.folder import TableFolder, open_any
from pretrain.data.tables.part import slides_of
from wsi_prep.storage.overlap.shared import KnownSlide, Overlap, quoted, shared_with


def overlap(table: Path, shards: str | Path | Sequence[str | Path]) -> Overlap:
    """What a table of labelled tiles shares with folders or URLs of shards. Raises BadTask and BadShards."""
    return shared_with(table, lambda: (row for where in folders_of(shards) for row in _slides_of(where)))


def without(where: str | None, shared: Sequence[Overlap], alike: Sequence[str] = ()) -> str | None:
    """The condition `where`, and that a tile is of none of these slides and patients, nor of the slides `alike`."""
    slides, patients = ({n for each in shared for n in names(each)} for names in (_slides, _patients))
    conditions = []
    for column, names in (
        ("slide_id", slides),
        ("coalesce(patient_key, '')", patients),
        ("slide_id", {*alike} - slides),  # of its own, since a run that goes on with its own finds none
    ):
        condition = f"{column} NOT IN ({quoted(sorted(names))})"
        if names and condition not in (where or ""):  # of a run that goes on with its own
            conditions.append(condition)
    return " AND ".join([*([f"({where})"] if where else []), *conditions]) if conditions else where


def _slides(shared: Overlap) -> tuple[str, ...]:
    return shared.slides


def _patients(shared: Overlap) -> tuple[str, ...]:
    return shared.patients


def _slides_of(where: str) -> Iterator[KnownSlide]:
    """Each slide that is ok."""
    source = open_any(where)
    if isinstance(source, TableFolder):
        for file in source.names:
            for row in slides_of(source, file.name).to_pylist():
                yield KnownSlide(row["slide_id"], patient_key=row["patient_key"] or "")
        return
    names = ("slide_id", "file", "patient_key", "fingerprint")
    for file in source.files("slides"):
        read = source.parquet("slides", file.name)
        rows = read.read([name for name in (*names, "status") if name in read.schema_arrow.names])
        for row in rows.filter(pc.equal(rows["status"], "ok")).to_pylist():
            yield KnownSlide(*(row.get(name) or "" for name in names))
