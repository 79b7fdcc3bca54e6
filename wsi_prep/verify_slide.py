"""Whether one slide's files are what its rows say, to the last byte of the last tile."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wsi_prep.errors import StoreFailed
from wsi_prep.geometry import MAGNIFICATIONS, to_level0
from wsi_prep.jpeg import CODEC_NAME, decode_tile
from wsi_prep.out_names import output_places
from wsi_prep.place import Place, open_place
from wsi_prep.records import TILES_PER_SHARD
from wsi_prep.small_json import read_object
from wsi_prep.stored_tiles import LARGEST_JPEG, SHAPE, WrongBytes, decode_stored, is_picture
from wsi_prep.verify_catalog import Fault, tiles_of

_NAMES = tuple(m.name for m in MAGNIFICATIONS)
_ENTRY, _CHECKSUM = 16, 4  # bytes in a shard's index
_MISSING = 2**64 - 1
_METADATA_BYTES = 2**20
_PLACE = ("index", "offset", "nbytes", "crc32")
_WITH_PICTURES = ("ok", "empty")


@dataclass(frozen=True)
class SlideCheck:
    """A slide to look at: its row (the columns SLIDE_COLUMNS), and the catalog file that its tiles' rows are in."""

    out: str
    row: dict[str, Any]
    name: str

    @property
    def slide_id(self) -> str:
        """Whose row it is."""
        return str(self.row["slide_id"])


@dataclass(frozen=True)
class SlideReport:
    """What was found of one slide, and how many tiles and bytes were read for it."""

    slide_id: str
    faults: tuple[Fault, ...]
    strays: tuple[str, ...] = ()
    tiles: int = 0
    bytes: int = 0


def check_slide(task: SlideCheck) -> SlideReport:
    """Look at everything of one slide. What cannot be read becomes a fault; StoreFailed where a store does not answer.

    Holds the slide's rows of tiles, one tile, and what Place.spans holds: of a shard in an object store 40 MB, however
    large it is.
    """
    place, row, slide_id = open_place(task.out), task.row, task.slide_id
    tiles = tiles_of(place, task.name, slide_id)
    found = list(_row_faults(row, tiles))
    paths = output_places(slide_id)
    strays: list[str] = []
    read = 0
    if not found and row["status"] == "ok":
        store = paths["store.zarr"]
        sizes, expected = place.sizes(store), _expected_files(store, tiles)
        strays = sorted(sizes.keys() - expected)
        found += _missing(store, expected - sizes.keys(), empty=not sizes) or _metadata_faults(place, store, row)
        if not found:
            read = tiles["nbytes"].to_numpy().sum(dtype=np.int64)
            found += [fault for name in _NAMES for fault in _array_faults(place, sizes, tiles, name)]
    if row["status"] in _WITH_PICTURES:
        found += _picture_faults(place, paths)
    return SlideReport(slide_id, _counted(slide_id, found), tuple(strays), len(tiles), int(read))


_Found = tuple[str, str]
"""A fault's kind, and what it is in words."""


def _counted(slide_id: str, found: list[_Found]) -> tuple[Fault, ...]:
    """One fault a kind, with the first of its kind in words."""
    kinds: dict[str, list[str]] = {}
    for kind, what in found:
        kinds.setdefault(kind, []).append(what)
    return tuple(Fault(kind, slide_id, whats[0], len(whats)) for kind, whats in kinds.items())


def _row_faults(row: dict[str, Any], tiles: pa.Table) -> Iterator[_Found]:
    """What the catalog alone contradicts: counts, places in the arrays, names of files, positions."""
    status = row["status"]
    total = sum(row[f"tiles_{name}"] or 0 for name in _NAMES)
    if (status == "ok") != (total > 0):
        yield "rows", f"it is {status} with {total:,} tiles"
    if unknown := set(tiles["magnification"].unique().to_pylist()) - set(_NAMES):
        yield "rows", f"tiles at {str(next(iter(unknown)))[:20]!r}, which is no magnification"
    store = f"stores/{row['slide_id']}.zarr"
    for name in _NAMES:
        of_name = tiles.filter(pa.compute.equal(tiles["magnification"], name))
        if len(of_name) != (row[f"tiles_{name}"] or 0):
            yield "rows", f"{row[f'tiles_{name}']} tiles at {name} by its row, {len(of_name)} rows of tiles"
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
            yield "rows", f"{misplaced} tiles at {name} lie beside their place in the grid, or outside the slide"


def _misplaced(row: dict[str, Any], tiles: pa.Table) -> int:
    """How many tiles are not where row and column put them, in x, or not within the slide."""
    columns = ("x0", "y0", "span0", "col")
    if not len(tiles) or row["width"] is None or any(tiles[name].null_count for name in columns):
        return 0  # rows that do not say
    x0, y0, span0, col = (tiles[name].to_numpy() for name in columns)
    right = x0 != to_level0(col, float(span0[0]))
    outside = (x0 < 0) | (y0 < 0) | (x0 + span0 > row["width"] + 0.5) | (y0 >= row["height"])
    return int((right | outside | (span0 != span0[0])).sum())


def _expected_files(store: str, tiles: pa.Table) -> set[str]:
    """The files of a slide's store, relative to OUT as the rows have them."""
    arrays = tiles["array"].unique().to_pylist()
    return {*(f"{folder}/zarr.json" for folder in (store, *arrays)), *tiles["shard"].unique().to_pylist()}


def _missing(store: str, gone: set[str], *, empty: bool) -> list[_Found]:
    if empty:
        return [("metadata", "its store is not there")]
    names = [path.removeprefix(f"{store}/") for path in sorted(gone)]
    return [("metadata" if name.endswith("zarr.json") else "index", f"{name} is not there") for name in names]


def _metadata_faults(place: Place, store: str, row: dict[str, Any]) -> list[_Found]:
    """What zarr.json of the group and of each array says that the rows do not, and codecs that are not ours."""
    found = []
    for name in ("", *(name for name in _NAMES if row[f"tiles_{name}"])):
        try:
            given = read_object(place.read("/".join(filter(None, (store, name, "zarr.json"))), _METADATA_BYTES))
            wrong = _wrong_array(given, row[f"tiles_{name}"]) if name else _wrong_group(given)
        except StoreFailed:
            raise
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            wrong = f"cannot be understood ({type(error).__name__})"
        if wrong:
            found.append(("metadata", f"{name or 'group'}: zarr.json {wrong}"))
    return found


def _wrong_group(given: dict[str, Any]) -> str:
    kind = given["zarr_format"], given["node_type"]
    return "" if kind == (3, "group") else f"is of {kind}"


def _wrong_array(given: dict[str, Any], count: int) -> str:
    """In which way the metadata is not that of `count` tiles as docs/format.md has them, or an empty text."""
    (codec,) = given["codecs"]
    sharding = codec["configuration"]
    wanted = {
        "format": ((given["zarr_format"], given["node_type"], given["data_type"]), (3, "array", "uint8")),
        "shape": (given["shape"], [count, *SHAPE]),
        "shards": (given["chunk_grid"]["configuration"]["chunk_shape"], [min(count, TILES_PER_SHARD), *SHAPE]),
        "keys": (given["chunk_key_encoding"], {"name": "default", "configuration": {"separator": "."}}),
        "codec": ((codec["name"], sharding["codecs"][0]["name"]), ("sharding_indexed", CODEC_NAME)),
        "chunks": ((sharding["chunk_shape"], sharding["index_location"]), ([1, *SHAPE], "end")),
    }
    wrong = [f"has {name} {is_now}, not {right}" for name, (is_now, right) in wanted.items() if is_now != right]
    return wrong[0] if wrong else ""


def _array_faults(place: Place, sizes: dict[str, int], tiles: pa.Table, name: str) -> Iterator[_Found]:
    """Each shard file of one magnification against its index, and each of its tiles by itself."""
    of_name = tiles.filter(pa.compute.equal(tiles["magnification"], name)).sort_by("index")
    if not len(of_name):
        return
    table = np.stack([of_name[column].to_numpy().astype(np.int64) for column in _PLACE], axis=1)
    per_shard = min(len(table), TILES_PER_SHARD)
    for start in range(0, len(table), per_shard):
        rows = table[start : start + per_shard]
        path = of_name["shard"][start].as_py()
        where = f"{name}/{path.rpartition('/')[2]}"
        try:
            if wrong := _wrong_index(place, path, sizes[path], rows, per_shard):
                yield "index", f"{where} {wrong}"
                continue
            jpegs = place.spans(path, [(offset, nbytes) for _, offset, nbytes, _ in rows.tolist()])
            for (index, _, _, crc32), jpeg in zip(rows.tolist(), jpegs, strict=True):
                if wrong := _wrong_tile(jpeg, crc32):
                    yield "tiles", f"{name}[{index}] {wrong}"
        except OSError as error:
            yield "index", f"{where} cannot be read ({error.strerror or error})"


def _wrong_index(place: Place, path: str, size: int, rows: NDArray[np.int64], per_shard: int) -> str:
    """In which way the index at the end of a shard file is not what the rows say, or an empty text."""
    length = per_shard * _ENTRY + _CHECKSUM
    if size < length:
        return f"has {size:,} bytes, fewer than its index"
    (data,) = place.spans(path, [(size - length, length)])
    if google_crc32c.value(data[:-_CHECKSUM]) != int.from_bytes(data[-_CHECKSUM:], "little"):
        return "has an index whose CRC-32C is wrong"
    index = np.frombuffer(data[:-_CHECKSUM], "<u8").reshape(per_shard, 2)
    if (index[len(rows) :] != _MISSING).any():
        return "has an index with more tiles than there are rows"
    if not np.array_equal(index[: len(rows)], rows[:, 1:3].astype(np.uint64)):
        return "has an index of other offsets or lengths than the rows"
    ends, nbytes = np.cumsum(rows[:, 2]), rows[:, 2]
    possible = nbytes.min() > 0 and nbytes.max() <= LARGEST_JPEG
    if not possible or not np.array_equal(rows[:, 1], ends - nbytes) or ends[-1] + length != size:
        return f"has tiles that do not lie one after another in its {size:,} bytes, or are larger than a tile can be"
    return ""


def _wrong_tile(jpeg: bytes, crc32: int) -> str:
    """In which way these bytes are no tile with that checksum, or an empty text."""
    try:
        decode_stored(jpeg, crc32)
    except WrongBytes:
        return "has another checksum than its row"
    except (ValueError, RuntimeError) as error:
        return f"cannot be decoded ({' '.join(str(error).split())[:100]})"
    return ""


def _picture_faults(place: Place, paths: dict[str, str]) -> Iterator[_Found]:
    for name, check in (("tissue.geojson", _require_outlines), ("overlay.jpg", _require_picture)):
        path = paths[name]
        try:
            check(place.read(path))
        except StoreFailed:
            raise
        except OSError as error:
            yield "pictures", f"{path}: {error.strerror or error}"
        except (ValueError, RuntimeError, KeyError, TypeError, IndexError) as error:
            yield "pictures", f"{path} is damaged ({type(error).__name__})"


def _require_outlines(data: bytes) -> None:
    """Raise ValueError, KeyError, IndexError or TypeError unless this is GeoJSON of closed rings."""
    document = read_object(data)
    if document["type"] != "FeatureCollection":
        raise ValueError(document["type"])
    for feature in document["features"]:
        for ring in feature["geometry"]["coordinates"]:
            if ring[0] != ring[-1] or not all(math.isfinite(value) for point in ring for value in point):
                raise ValueError("a ring that is open")


def _require_picture(data: bytes) -> None:
    if not is_picture(data) or decode_tile(data).ndim != len(SHAPE):
        raise ValueError("not a picture in colours")
