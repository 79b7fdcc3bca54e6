"""Whether a catalog's Parquet files can be read and agree with each other, and what they name to look at."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wsi_prep.errors import BadCatalog, StoreFailed, counted, one_line
from wsi_prep.format.layout import PART_NAME, require_slide_id
from wsi_prep.format.records import SLIDE_SCHEMA, STATUSES, TILE_SCHEMA, SlideRow
from wsi_prep.output.sealed_parquet import check_seal
from wsi_prep.storage.base import Storage
from wsi_prep.storage.patience import patient
from wsi_prep.storage.select import open_storage
from wsi_prep.untrusted.tables import of_today, open_table, require_columns

_NEEDED_OF_SLIDES = ["slide_id", "status", "width", "height", "tiles_5x", "tiles_10x", "tiles_20x", "tiles_40x"]
SLIDE_COLUMNS = [*_NEEDED_OF_SLIDES, "mpp_x", "mpp_y", "digests"]
"""What a slide is checked by."""

_SCHEMAS = {"slides": SLIDE_SCHEMA, "tiles": TILE_SCHEMA}
_TILE_COLUMNS = ["slide_id", "magnification", "array", "shard", "index", "offset", "nbytes", "crc32"]
_NEEDED = {"slides": set(_NEEDED_OF_SLIDES), "tiles": set(_TILE_COLUMNS)}


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong. `count` such things are at `where`, a slide's id or a path relative to OUT.

    `kind` is one of `KINDS`, `what` the first of them in words.
    """

    kind: str
    where: str
    what: str
    count: int = 1


KINDS = {
    "run": "run.json and forgotten.json by their own digests",
    "catalog": "Parquet files by their own digests, each with its other half",
    "rows": "slides' rows against the rows of their tiles",
    "orphans": "tiles' rows of no slide",
    "metadata": "zarr.json, to the byte",
    "index": "shard files by index and CRC-32C, against the rows",
    "tiles": "JPEGs by their checksum, decoded to 392 x 392 x 3, baseline",
    "pictures": "tissue outlines and overlays by their digests",
    "strays": "files that belong to no row",
}
"""What is looked at, by kind of fault, in the order of the summary."""


@dataclass
class CatalogFile:
    """What a catalog's files of one name hold: ids by status, and what is wrong with them.

    `ids`: whatever the slides' rows name, as far as they can be read. `damaged`: the files are of no use. `broken`:
    slides to be done again. `orphans`: ids that have tiles alone, or that are no ids. `unsealed`: files that hold no
    digest of themselves, as those of earlier versions.
    """

    name: str
    ids: frozenset[str] = frozenset()
    statuses: dict[str, str] = field(default_factory=dict)
    damaged: bool = False
    broken: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    unsealed: int = 0


def check_catalog_file(task: tuple[str, str]) -> CatalogFile:
    """Read the files `name` of an output's catalog whole; `task` is (OUT, name)."""
    place, name = open_storage(task[0]), task[1]
    found = CatalogFile(name)
    slides = _slides(place, name, found)
    found.ids = frozenset(str(slide_id) for slide_id, _ in slides)
    tile_ids = _tile_ids(place, name, found)
    if found.faults:
        found.damaged = True
        known = found.ids | tile_ids
        if known:
            what = f"{found.faults[0].what}; it has rows of {counted(len(known), 'slide')}"
            found.faults[0] = Fault("catalog", found.faults[0].where, what)
        return found
    for slide_id, status in slides:
        _take_row(found, slide_id, status)
    for slide_id in sorted(tile_ids - found.statuses.keys() - set(found.orphans)):
        found.orphans.append(slide_id)
        found.faults.append(Fault("orphans", f"catalog/tiles/{name}", f"tiles of {slide_id[:80]!r}, which has no row"))
    return found


def _take_row(found: CatalogFile, named: object, status: object) -> None:
    try:
        slide_id = require_slide_id(named)
    except BadCatalog as error:
        found.orphans.append(str(named))
        found.faults.append(Fault("rows", f"catalog/slides/{found.name}", str(error)))
        return
    if slide_id in found.statuses:
        found.broken.append(slide_id)
        found.faults.append(Fault("rows", slide_id, f"two rows in catalog/slides/{found.name}"))
    elif status not in STATUSES:
        found.broken.append(slide_id)
        found.faults.append(Fault("rows", slide_id, f"its status is {str(status)[:40]!r}"))
    elif not PART_NAME.fullmatch(found.name) and found.name != f"{slide_id}.parquet":
        found.broken.append(slide_id)
        found.faults.append(Fault("rows", slide_id, f"its row is in another slide's file, {found.name}"))
    found.statuses[slide_id] = str(status)


def _slides(storage: Storage, name: str, found: CatalogFile) -> list[tuple[object, object]]:
    """The slides' ids and states, after everything in the file has been read once."""
    try:
        whole = _whole(storage, name, found)
        require_columns(whole.schema, SLIDE_SCHEMA, _NEEDED["slides"])
        return list(zip(whole["slide_id"].to_pylist(), whole["status"].to_pylist(), strict=True))
    except FileNotFoundError:
        _damaged(found, "slides", "it is missing, but its tiles exist")
    except StoreFailed:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        _damaged(found, "slides", _one_line(error))
    return []


def _tile_ids(storage: Storage, name: str, found: CatalogFile) -> set[str]:
    """Whose tiles the file has. Every row group is read whole, one at a time."""
    ids = set[str]()
    if not storage.exists(f"catalog/tiles/{name}"):
        if PART_NAME.fullmatch(name):
            _damaged(found, "tiles", "it is missing, but its slides exist")
        return ids
    try:
        ids = _read_ids(storage, name, found)
    except StoreFailed:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        _damaged(found, "tiles", _one_line(error))
    return ids


@patient
def _whole(storage: Storage, name: str, found: CatalogFile) -> pa.Table:
    with _sealed(storage, "slides", name, found) as file:
        return file.read()


@patient
def _read_ids(storage: Storage, name: str, found: CatalogFile) -> set[str]:
    ids = set[str]()
    with _sealed(storage, "tiles", name, found) as file:
        require_columns(file.schema_arrow, TILE_SCHEMA, _NEEDED["tiles"])
        for group in range(file.num_row_groups):
            ids.update(map(str, pc.unique(file.read_row_group(group)["slide_id"]).to_pylist()))
    return ids


def _damaged(found: CatalogFile, table: str, what: str) -> None:
    """Note what is wrong with one of the two files; what was found first is the reason of the rest."""
    path = f"catalog/{table}/{found.name}"
    if path not in [fault.where for fault in found.faults]:
        found.faults.append(Fault("catalog", path, what))


def _sealed(storage: Storage, table: str, name: str, found: CatalogFile) -> pq.ParquetFile:
    """The file, to be read with its pages' checksums; ValueError where it is not what its digest is of."""
    source = _source(storage, table, name)
    seal = check_seal(source)
    found.unsealed += seal == "none"
    if seal == "broken":  # a bit in a footer may crash pyarrow
        raise ValueError("it was changed, by its SHA-256")
    return open_table(source, _SCHEMAS[table], page_checksum_verification=True)


def _open(storage: Storage, table: str, name: str) -> pq.ParquetFile:
    return open_table(_source(storage, table, name), _SCHEMAS[table])


def _source(storage: Storage, table: str, name: str) -> Path | pa.BufferReader:
    return next(iter(storage.sources([f"catalog/{table}/{name}"])))


def _one_line(error: Exception) -> str:
    return one_line(error)


def slide_rows(storage: Storage, name: str) -> Iterator[SlideRow]:
    """The rows of a slides file that check_catalog_file has found sound, a batch at a time."""
    with _open(storage, "slides", name) as file:
        columns = [name for name in SLIDE_COLUMNS if name in file.schema_arrow.names]
        for batch in file.iter_batches(columns=columns):
            yield from batch.to_pylist()


@patient
def tiles_of(storage: Storage, name: str, slide_id: str) -> pa.Table:
    """A slide's rows of a tiles file, in the file's order; files of many slides stay open for the next.

    Out of an object store such a file comes whole and is held: some hundred MB at most.
    """
    try:
        version = storage.version(f"catalog/tiles/{name}")
    except FileNotFoundError:
        return TILE_SCHEMA.empty_table()
    if not PART_NAME.fullmatch(name):
        with _open(storage, "tiles", name) as file:
            return of_today(file.read(), TILE_SCHEMA)
    part = _open_part(storage.where, name, version)
    groups = part.groups(slide_id)
    rows = part.file.read_row_groups(groups) if groups else TILE_SCHEMA.empty_table()
    return rows.filter(pc.equal(rows["slide_id"], slide_id))


class _Part:
    """A part of the tiles' table, and in which of its row groups a slide's rows can be."""

    def __init__(self, file: pq.ParquetFile) -> None:
        self.file = file
        metadata = self.file.metadata
        column = self.file.schema_arrow.get_field_index("slide_id")
        self._alone: dict[str, list[int]] = {}
        self._mixed: list[tuple[int, str, str]] = []
        for group in range(metadata.num_row_groups):
            known = metadata.row_group(group).column(column).statistics
            if known is None or not known.has_min_max:
                self._mixed.append((group, "", "\U0010ffff"))
            elif known.min == known.max:
                self._alone.setdefault(known.min, []).append(group)
            else:
                self._mixed.append((group, known.min, known.max))

    def groups(self, slide_id: str) -> list[int]:
        mixed = [group for group, first, last in self._mixed if first <= slide_id <= last]
        return sorted(self._alone.get(slide_id, []) + mixed)


@functools.lru_cache(maxsize=1)
def _open_part(out: str, name: str, version: str) -> _Part:
    """`version` tells a part from one that takes its place."""
    return _Part(_open(open_storage(out), "tiles", name))


def twice(files: Collection[CatalogFile]) -> Counter[str]:
    """Ids that are in several files, and in how many."""
    counts = Counter(slide_id for file in files for slide_id in file.statuses)
    return Counter({slide_id: count for slide_id, count in counts.items() if count > 1})
