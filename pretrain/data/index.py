"""The index: every tile of any number of shard folders, memory-mapped, in parts made from the catalog and kept."""

from __future__ import annotations

import bisect
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pretrain.data.parts import INDEX_VERSION, Part, build_part, open_part, read_filter
from pretrain.data.sources import ShardSource, TileSource, digest, folders_of
from pretrain.data.tables.folder import TableFolder, open_any
from pretrain.data.tables.part import build_table_part
from pretrain.errors import BadFilter, BadShards
from wsi_prep.errors import counted
from wsi_prep.format.copies import which_count
from wsi_prep.format.magnifications import MAGNIFICATIONS
from wsi_prep.format.records import FORMAT_VERSION, TILES_PER_SHARD
from wsi_prep.format.strata import STRATUM_LEVELS
from wsi_prep.untrusted.sql import CONDITION_SECONDS

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TileAddress:
    """Where one tile is: `path` relative to the source's folder; `index` in its array, or row in its table."""

    source: TileSource
    path: str
    offset: int
    nbytes: int
    crc32: int
    index: int

    @property
    def name(self) -> str:
        """For people: the array, or table, and the tile's place in it."""
        return f"{self.source.where}/{self.path.rpartition('/c.')[0] or self.path}[{self.index}]"


class Index:
    """All parts as one: slides and cells numbered through, tiles by one row number over all parts.

    `slides`: the fields of parts.SLIDE, strata numbers into `names[level]`, and `part`.
    `cells`: the fields of parts.CELL with `slide` and `start` in the numbering of the whole index.

    >>> index = open_index("shards", where="magnification = '20x'")
    >>> index.tiles, len(index.slides)
    (36, 3)
    >>> index.address(3).name
    'shards/stores/slide1-00000001.zarr/20x[3]'
    """

    def __init__(self, parts: Sequence[tuple[ShardSource | TableFolder, Part]]) -> None:
        self._sources = [source for source, _ in parts]
        self._parts = [part for _, part in parts]
        self._tile_base = _bases(len(part.tiles) for part in self._parts)
        self._slide_base = _bases(len(part.slides) for part in self._parts)
        self.names = {level: sorted({n for p in self._parts for n in p.names[level]}) for level in STRATUM_LEVELS}
        self.slides = self._join_slides()
        self.copies = which_count(pa.array(self.slides["id_hash"]), pa.array(np.ones(len(self.slides), bool)))
        self.cells = self._join_cells()
        self._cell_ends = self.cells["start"] + self.cells["count"]
        if not len(self.cells):
            raise BadShards("the shards hold no tile; see status and error in their catalog/slides")

    @property
    def parts(self) -> list[tuple[ShardSource | TableFolder, Part]]:
        """What it was put together from, in the order of its slides and tiles."""
        return list(zip(self._sources, self._parts, strict=True))

    @property
    def warnings(self) -> list[str]:
        """What a user should know of these shards."""
        found = [*self.copies.notes]
        if packed := sum(part.packed for part in self._parts):
            found.append(
                f"{counted(packed, 'tile of tables', 'tiles of tables')} can be read only with the whole row group; "
                "docs/interchange.md says how to write them for reading at random"
            )
        if alone := int((self.slides["by_patient"][self._shown()] == 0).sum()):
            found.append(
                f"{counted(alone, 'slide has', 'slides have')} no patient_key: each is split as a patient of its own"
            )
        return found

    @property
    def tiles(self) -> int:
        """Tiles that can be drawn."""
        return int(self.cells["count"].sum(dtype=np.int64))

    @property
    def slides_with_tiles(self) -> int:
        """Slides that these tiles are of, each counted once, wherever else it is."""
        return len(self._shown())

    def _shown(self) -> NDArray[np.int64]:
        return np.unique(self.cells["slide"])

    def in_parts(self, tiles: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of tiles of these row numbers: the number of the part that each is in, and its row there."""
        parts = np.searchsorted(self._tile_base, tiles, side="right") - 1
        return parts, tiles - self._tile_base[parts]

    def source(self, tile: int) -> TileSource:
        """Which of the folders holds the tile of this row number."""
        return self._sources[self._part(tile)]

    def address(self, tile: int) -> TileAddress:
        """Where the tile of this row number is."""
        return self.addresses(np.array([tile]))[0]

    def addresses(self, tiles: NDArray[np.int64]) -> list[TileAddress]:
        """Where the tiles of these row numbers are."""
        parts, rows = self.in_parts(tiles)
        cells = self.cells[np.searchsorted(self._cell_ends, tiles.astype(np.uint64), side="right")]
        arrays = map(self._array, cells["slide"].tolist(), cells["magnification"].tolist())
        return [self._address(*at) for at in zip(parts.tolist(), rows.tolist(), arrays, strict=True)]

    def _address(self, part: int, row: int, array: str) -> TileAddress:
        offset, nbytes, crc32, index = self._parts[part].tiles[row]
        if tables := self._parts[part].tables:
            name, first = tables[bisect.bisect_right(tables, index, key=itemgetter(1)) - 1]
            return TileAddress(self._sources[part], name, offset, nbytes, crc32, index - first)
        shard = f"{array}/c.{index // TILES_PER_SHARD}.0.0.0"
        return TileAddress(self._sources[part], shard, offset, nbytes, crc32, index)

    def slide_id(self, slide: int) -> str:
        """The id of the slide of this number."""
        part = int(np.searchsorted(self._slide_base, slide, side="right")) - 1
        return str(self._parts[part].slide_ids[slide - int(self._slide_base[part])].as_py())

    def _part(self, tile: int) -> int:
        return int(np.searchsorted(self._tile_base, tile, side="right")) - 1

    def _array(self, slide: int, magnification: int) -> str:
        return f"stores/{self.slide_id(slide)}.zarr/{MAGNIFICATIONS[magnification].name}"

    def _join_slides(self) -> NDArray[np.void]:
        joined = np.concatenate([part.slides for part in self._parts])
        for part, base in zip(self._parts, self._slide_base, strict=False):
            rows = joined[base : base + len(part.slides)]
            for level, names in part.names.items():
                rows[level] = np.searchsorted(self.names[level], names)[rows[level]] if names else rows[level]
        return joined

    def _join_cells(self) -> NDArray[np.void]:
        """Cells of all parts; of a slide that is there twice, those of the copy that counts."""
        joined = np.concatenate([part.cells for part in self._parts])
        at = 0
        for part, slide_base, tile_base in zip(self._parts, self._slide_base, self._tile_base, strict=False):
            rows = joined[at : at + len(part.cells)]
            rows["slide"] += np.uint32(slide_base)
            rows["start"] += np.uint64(tile_base)
            at += len(part.cells)
        if not self.copies.doubled:
            return joined
        kept: NDArray[np.void] = joined[self.copies.counts.to_numpy(zero_copy_only=False)[joined["slide"]]]
        return kept


def open_index(
    shards: str | Path | Sequence[str | Path],
    folder: str | Path | None = None,
    where: str | None = None,
    progress: Progress = lambda done, of: None,
    seconds: float = CONDITION_SECONDS,
) -> Index:
    """The index over the OUT folders or URLs `shards`, or one of them; parts that `folder` lacks are made first.

    `folder`: where parts are kept, the user's cache where it is left out. `where`: a condition on the catalog's
    columns, slides' and tiles' alike; `seconds` as in read_filter. Raises BadShards and BadFilter.

    >>> open_index("shards").tiles
    54
    >>> open_index(["shards"], where="magnification = '20x' and focus > 0").tiles
    33
    """
    kept = Path(folder) if folder is not None else default_folder()
    condition = read_filter(where, seconds)
    told = condition.text if condition else ""
    todo = [(source, *pair) for source in map(open_any, folders_of(shards)) for pair in _pairs(source)]
    parts: list[tuple[ShardSource | TableFolder, Part]] = []
    for done, (source, name, has_tiles, stamp) in enumerate(todo):
        key = digest(str(INDEX_VERSION), str(FORMAT_VERSION), os.path.abspath(source.where), name, stamp, told)  # noqa: PTH100
        progress(done, len(todo))
        if not (kept / key).is_dir():
            if isinstance(source, TableFolder):
                build_table_part(source, condition, kept / key)
            else:
                build_part(source, name, has_tiles, condition, kept / key)
        parts.append((source, open_part(kept / key, name)))
    progress(len(todo), len(todo))
    if condition and not any(len(part.tiles) for _, part in parts):
        raise BadFilter(f"the filter {told!r} leaves no tile; compare it with the catalog")
    return Index(parts)


def default_folder() -> Path:
    """Where the parts of indices are kept: they can be shared by all runs, and deleted at any time."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "mixed-magnification" / "index"


def _pairs(source: ShardSource | TableFolder) -> list[tuple[str, bool, str]]:
    """Catalog files of one name: the name, whether it has tiles, and what changes when either file does.

    Tables are one part: a slide may have tiles in each.
    """
    if isinstance(source, TableFolder):
        return [("tables", True, " ".join(f"{file.name} {file.stamp}" for file in source.names))]
    tiles = {file.name: file.stamp for file in source.files("tiles")}
    return [(f.name, f.name in tiles, f"{f.stamp} {tiles.get(f.name)}") for f in source.files("slides")]


def _bases(counts: Iterable[int]) -> NDArray[np.int64]:
    """Where each part begins in the numbering of the whole, and the end of the last."""
    return np.concatenate([[0], np.cumsum(np.fromiter(counts, np.int64))])
