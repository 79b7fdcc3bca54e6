"""Tiles as tar shards of the kind that webdataset reads: JPEGs as they are stored, each beside its row as JSON."""

from __future__ import annotations

import io
import itertools
import json
import math
import tarfile
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from wsi_prep.curation.exchange.coordinates import Written
from wsi_prep.errors import BadOption
from wsi_prep.format.records import TILE_SCHEMA, TileRow
from wsi_prep.format.stored_tiles import TilePlace, place_of, require_whole
from wsi_prep.output.query import open_catalog
from wsi_prep.storage.atomic import aside
from wsi_prep.storage.base import Storage
from wsi_prep.storage.select import open_storage
from wsi_prep.untrusted.sql import QUESTION_SECONDS, one_expression

_BLOCK = 512
_STRATUM = ("stain", "institution", "tissue", "patient_key")
_TILES = "SELECT {columns} FROM tiles JOIN slides USING (slide_id) WHERE status = 'ok' AND ({where}\n) {order}"


def write_tars(
    out: str | Path,
    where: str,
    to: Path,
    most_bytes: int,
    shuffle: int | None = None,
    seconds: float = QUESTION_SECONDS,
) -> Written:
    """`to`/tiles-00000.tar, ... of the tiles that fit `where`, none larger than `most_bytes` unless one tile is.

    <key>.jpg holds the stored bytes, <key>.json the tile's row and its slide's stratum; the key is made of slide,
    magnification and index. Slide by slide, or in a random order that `shuffle` fixes. Raises BadOption where `to`
    holds tars already. A tile whose bytes are not what the catalog says is left out. `seconds` as in open_catalog.
    """
    if most_bytes < tarfile.RECORDSIZE:
        raise BadOption(f"tars of {most_bytes} bytes hold nothing; tar-mb 1000 is usual")
    if any(to.glob("tiles-*.tar")):
        raise BadOption(f"TO {to} holds tars already; remove them, or name another folder")
    to.mkdir(parents=True, exist_ok=True)
    keys = "slide_id, magnification, index"
    order = f"ORDER BY {keys}" if shuffle is None else f"ORDER BY hash({keys}, {shuffle:d}), {keys}"
    columns = ", ".join(f'"{name}"' for name in (*TILE_SCHEMA.names, *_STRATUM))
    written = Written()
    storage = open_storage(out)
    with (
        tempfile.TemporaryDirectory(dir=to, prefix=".sorting.") as spill,
        open_catalog([storage.where], Path(spill), seconds) as catalog,
        _Tars(to, most_bytes) as tars,
    ):
        for batch in catalog.ask(_TILES.format(columns=columns, where=one_expression(where), order=order)):
            placed = ((row, place_of(row)) for row in batch.to_pylist())
            for shard, tiles in itertools.groupby(placed, lambda tile: tile[1].shard):
                for row, jpeg in _stored(storage, shard, tiles):
                    if isinstance(jpeg, Exception):
                        written.left_out[f"{row['array']}[{row['index']}]"] = getattr(jpeg, "strerror", "") or str(jpeg)
                        continue
                    tars.add(_key(row), {"jpg": jpeg, "json": _json(row)})
                    written.tiles += 1
    written.files = tars.count
    return written


class _Tars:
    """Tar files of bounded size, one after another, each made aside and renamed when it is whole."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder = folder
        self._most_bytes = most_bytes
        self._stack = ExitStack()
        self._tar: tarfile.TarFile | None = None
        self.count = 0

    def __enter__(self) -> _Tars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def add(self, key: str, parts: dict[str, bytes]) -> None:
        """Add one sample, all of it to one tar."""
        size = sum(_BLOCK + -(-len(data) // _BLOCK) * _BLOCK for data in parts.values())
        if self._tar is not None and self._tar.offset + size + tarfile.RECORDSIZE > self._most_bytes:
            self._stack.close()
            self._tar = None
        if self._tar is None:
            file = self._stack.enter_context(aside(self._folder / f"tiles-{self.count:05d}.tar"))
            self._tar = self._stack.enter_context(tarfile.open(file, "w", format=tarfile.USTAR_FORMAT))  # noqa: SIM115
            self.count += 1
        for ending, data in parts.items():
            entry = tarfile.TarInfo(f"{key}.{ending}")
            entry.size = len(data)
            self._tar.addfile(entry, io.BytesIO(data))


def _stored(
    storage: Storage, shard: str, tiles: Iterable[tuple[TileRow, TilePlace]]
) -> Iterator[tuple[TileRow, bytes | Exception]]:
    """Rows of one shard file, each with its tile's JPEG, or with the reason where that is not there, or not whole."""
    waiting = deque(tiles)
    while waiting:
        jpegs = storage.spans(shard, [(place.offset, place.nbytes) for _, place in waiting])
        try:
            for jpeg in jpegs:
                row, place = waiting.popleft()
                yield row, _whole(jpeg, place.crc32)
        except OSError as error:
            yield waiting.popleft()[0], error


def _whole(jpeg: bytes, crc32: int) -> bytes | Exception:
    try:
        require_whole(jpeg, crc32)
    except ValueError:
        return ValueError("its bytes are not those that the catalog says")
    return jpeg


def _key(row: TileRow) -> str:
    """Without a dot: webdataset takes what follows the first one for the ending."""
    return f"{row['slide_id'].replace('.', '_')}_{row['magnification']}_{row['index']:06d}"


def _json(row: TileRow) -> bytes:
    """JSON has no NaN and no infinity."""
    plain = {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in row.items()}
    return json.dumps(plain, allow_nan=False).encode()
