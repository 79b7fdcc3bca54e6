"""Whether one slide's files are what its rows say, to the last byte of the last tile."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import google_crc32c
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wsi_prep.curation.verify.catalog import Fault, tiles_of
from wsi_prep.curation.verify.metadata import check_metadata, same_settings
from wsi_prep.curation.verify.pictures import PICTURES, picture_faults
from wsi_prep.errors import counted, one_line
from wsi_prep.format.jpeg import JpegSettings
from wsi_prep.format.layout import output_places
from wsi_prep.format.magnifications import MAGNIFICATIONS, to_level0
from wsi_prep.format.records import TILES_PER_SHARD, SlideRow, tile_counts
from wsi_prep.format.stored_tiles import LARGEST_JPEG, WrongBytes, decode_stored
from wsi_prep.storage.base import Storage
from wsi_prep.storage.digests import ShardDigest, from_column
from wsi_prep.storage.select import open_storage

_NAMES = tuple(m.name for m in MAGNIFICATIONS)
_ENTRY, _CHECKSUM = 16, 4  # bytes in a shard's index
_MISSING = 2**64 - 1
_PLACE = ("index", "offset", "nbytes", "crc32")
_WITH_PICTURES = ("ok", "empty")


@dataclass(frozen=True)
class SlideCheck:
    """A slide to look at: its row (the columns SLIDE_COLUMNS), and the catalog file that its tiles' rows are in."""

    out: str
    row: SlideRow
    name: str

    @property
    def slide_id(self) -> str:
        """Whose row it is."""
        return str(self.row["slide_id"])


@dataclass(frozen=True)
class SlideReport:
    """What was found of one slide, and how many tiles and bytes were read for it.

    `digests`: whether its row has those of its files, by which they were checked.
    """

    slide_id: str
    faults: tuple[Fault, ...]
    strays: tuple[str, ...] = ()
    tiles: int = 0
    bytes: int = 0
    digests: bool = True


def check_slide(task: SlideCheck) -> SlideReport:
    """Look at everything of one slide. What cannot be read becomes a fault; StoreFailed where a store does not answer.

    Holds the slide's rows of tiles, one tile, and what Storage.spans holds: of a shard in an object store 40 MB,
    however large it is.
    """
    place, row, slide_id = open_storage(task.out), task.row, task.slide_id
    tiles = tiles_of(place, task.name, slide_id)
    digests, found = _digests(row)
    found += _row_faults(row, tiles)
    paths = output_places(slide_id)
    strays: list[str] = []
    read = 0
    if not found and row["status"] == "ok":
        store = paths["store.zarr"]
        sizes, expected = place.sizes(store), _expected_files(store, tiles)
        strays = sorted(sizes.keys() - expected)
        found += _missing(store, expected - sizes.keys(), empty=not sizes)
        if not found:
            metadata = check_metadata(place, store, row, digests)
            found += [("metadata", what) for what in metadata.faults]
            if not found:
                read = tiles["nbytes"].to_numpy().sum(dtype=np.int64)
                for name, jpeg in metadata.jpeg.items():
                    found += _array_faults(place, sizes, tiles, name, jpeg, digests)
    for name in PICTURES:
        if row["status"] in _WITH_PICTURES or (digests is not None and name in digests):
            found += [("pictures", what) for what in picture_faults(place, paths[name], name, digests)]
    return SlideReport(
        slide_id, _counted(slide_id, found), tuple(strays), len(tiles), int(read), digests=digests is not None
    )


_Found = tuple[str, str]
"""A fault's kind, and what it is in words."""


def _counted(slide_id: str, found: list[_Found]) -> tuple[Fault, ...]:
    """One fault a kind, with the first of its kind in words."""
    kinds: dict[str, list[str]] = {}
    for kind, what in found:
        kinds.setdefault(kind, []).append(what)
    return tuple(Fault(kind, slide_id, whats[0], len(whats)) for kind, whats in kinds.items())


def _digests(row: SlideRow) -> tuple[dict[str, str] | None, list[_Found]]:
    """The digests of the slide's files, None where none were kept, and what is wrong with the column."""
    try:
        return from_column(row.get("digests")), []
    except (ValueError, TypeError):
        return None, [("rows", "its digests cannot be understood")]


def _row_faults(row: SlideRow, tiles: pa.Table) -> Iterator[_Found]:
    """What the catalog alone contradicts: counts, places in the arrays, names of files, positions."""
    status, counts = row["status"], tile_counts(row)
    total = sum(counts.values())
    if (status == "ok") != (total > 0):
        yield "rows", f"it is {status} with {counted(total, 'tile')}"
    if unknown := set(tiles["magnification"].unique().to_pylist()) - set(_NAMES):
        yield "rows", f"tiles at {str(next(iter(unknown)))[:20]!r}, which is no magnification"
    store = f"stores/{row['slide_id']}.zarr"
    for name in _NAMES:
        of_name = tiles.filter(pa.compute.equal(tiles["magnification"], name))
        if len(of_name) != counts[name]:
            yield (
                "rows",
                f"{counted(counts[name], 'tile')} at {name} by its row, {counted(len(of_name), 'row')} of tiles",
            )
            continue
        if any(of_name[column].null_count for column in _PLACE):
            yield "rows", f"tiles at {name} without a place in their shard"
            continue
        index = of_name["index"].to_numpy()
        if not np.array_equal(np.sort(index), np.arange(len(index))):
            yield "rows", f"tiles at {name} are not numbered 0 to {len(index) - 1}"
            continue
        shards = [f"{store}/{name}/c.{number}.0.0.0" for number in (index // TILES_PER_SHARD).tolist()]
        if of_name["shard"].to_pylist() != shards or of_name["array"].unique().to_pylist() not in (
            [],
            [f"{store}/{name}"],
        ):
            yield "rows", f"tiles at {name} are not in {store}/{name}"
        if misplaced := _misplaced(row, of_name):
            yield "rows", f"{counted(misplaced, 'tile')} at {name} not in place on the grid, or outside the slide"


def _misplaced(row: SlideRow, tiles: pa.Table) -> int:
    """How many tiles are not where row and column put them, in x, or not within the slide."""
    columns = ("x0", "y0", "span0", "col")
    width, height = row["width"], row["height"]
    if not len(tiles) or width is None or height is None or any(tiles[name].null_count for name in columns):
        return 0  # rows that do not say
    x0, y0, span0, col = (tiles[name].to_numpy() for name in columns)
    right = x0 != to_level0(col, float(span0[0]))
    outside = (x0 < 0) | (y0 < 0) | (x0 + span0 > width + 0.5) | (y0 >= height)
    return int((right | outside | (span0 != span0[0])).sum())


def _expected_files(store: str, tiles: pa.Table) -> set[str]:
    """The files of a slide's store, relative to OUT as the rows have them."""
    arrays = tiles["array"].unique().to_pylist()
    return {*(f"{folder}/zarr.json" for folder in (store, *arrays)), *tiles["shard"].unique().to_pylist()}


def _missing(store: str, gone: set[str], *, empty: bool) -> list[_Found]:
    if empty:
        return [("metadata", "its store is missing")]
    names = [path.removeprefix(f"{store}/") for path in sorted(gone)]
    return [("metadata" if name.endswith("zarr.json") else "index", f"{name} is missing") for name in names]


def _array_faults(
    storage: Storage,
    sizes: dict[str, int],
    tiles: pa.Table,
    name: str,
    settings: JpegSettings,
    digests: dict[str, str] | None,
) -> Iterator[_Found]:
    """Each shard file of one magnification against its index and its digest, and each of its tiles by itself."""
    of_name = tiles.filter(pa.compute.equal(tiles["magnification"], name)).sort_by("index")
    table = np.stack([of_name[column].to_numpy().astype(np.int64) for column in _PLACE], axis=1)
    per_shard = min(len(table), TILES_PER_SHARD)
    for start in range(0, len(table), per_shard):
        rows = table[start : start + per_shard]
        path = of_name["shard"][start].as_py()
        where = f"{name}/{path.rpartition('/')[2]}"
        try:
            index, wrong = _index(storage, path, sizes[path], rows, per_shard)
            if wrong:
                yield "index", f"{where} {wrong}"
                continue
            digest, sound = ShardDigest(), True
            jpegs = storage.spans(path, [(offset, nbytes) for _, offset, nbytes, _ in rows.tolist()])
            for (number, _, _, crc32), jpeg in zip(rows.tolist(), jpegs, strict=True):
                digest.update(jpeg)
                if wrong := _wrong_tile(jpeg, crc32, None if number else settings):
                    sound = False
                    yield "tiles", f"{name}[{number}] {wrong} (in {where})"
            digest.update(index)
            if sound and digests is not None and digest.text != digests.get(where):
                yield "index", f"{where} has another digest than its row"
        except OSError as error:
            yield "index", f"{where} cannot be read ({error.strerror or error})"


def _index(storage: Storage, path: str, size: int, rows: NDArray[np.int64], per_shard: int) -> tuple[bytes, str]:
    """The index at the end of a shard file, with its CRC-32C, and how it is not what the rows say, or an empty text."""
    length = per_shard * _ENTRY + _CHECKSUM
    if size < length:
        return b"", f"has {size:,} bytes, fewer than its index"
    (data,) = storage.spans(path, [(size - length, length)])
    return data, _wrong_index(data, size, rows, per_shard)


def _wrong_index(data: bytes, size: int, rows: NDArray[np.int64], per_shard: int) -> str:
    if google_crc32c.value(data[:-_CHECKSUM]) != int.from_bytes(data[-_CHECKSUM:], "little"):
        return "has an index whose CRC-32C is wrong"
    index = np.frombuffer(data[:-_CHECKSUM], "<u8").reshape(per_shard, 2)
    if (index[len(rows) :] != _MISSING).any():
        return "has an index with more tiles than there are rows"
    if not np.array_equal(index[: len(rows)], rows[:, 1:3].astype(np.uint64)):
        return "has an index of other offsets or lengths than the rows"
    ends, nbytes = np.cumsum(rows[:, 2]), rows[:, 2]
    possible = nbytes.min() > 0 and nbytes.max() <= LARGEST_JPEG
    if not possible or not np.array_equal(rows[:, 1], ends - nbytes) or ends[-1] + len(data) != size:
        return f"has tiles that do not lie one after another in its {size:,} bytes, or are larger than a tile can be"
    return ""


def _wrong_tile(jpeg: bytes, crc32: int, settings: JpegSettings | None) -> str:
    """In which way these bytes are no tile with that checksum (and compressed so, if given), or an empty text."""
    try:
        decode_stored(jpeg, crc32)
    except WrongBytes:
        return "has another checksum than its row"
    except (ValueError, RuntimeError) as error:
        return f"cannot be decoded ({one_line(error, 100)})"
    return "is compressed otherwise than zarr.json says" if settings and not same_settings(jpeg, settings) else ""
