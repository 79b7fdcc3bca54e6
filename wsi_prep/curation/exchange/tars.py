"""Tiles as tar shards of the kind that webdataset reads: JPEGs as they are stored, each beside its row as JSON."""

from __future__ import annotations

import io
import json
import tarfile
from contextlib import ExitStack
from pathlib import Path

from wsi_prep.curation.exchange.coordinates import Written
from wsi_prep.curation.exchange.stored import Wanted, pack_tiles, plain, tile_key
from wsi_prep.errors import BadOption
from wsi_prep.format.records import TileRow
from wsi_prep.storage.atomic import aside

_BLOCK = 512


def write_tars(wanted: Wanted, to: Path, most_bytes: int) -> Written:
    """`to`/tiles-00000.tar, ... of the tiles, none larger than `most_bytes` unless one tile is.

    <key>.jpg holds the stored bytes, <key>.json the tile's row and its slide's stratum; the key is made of slide,
    magnification and index. Raises BadOption where `to` holds tars already. A tile whose bytes are not what the catalog
    says is left out.
    """
    if most_bytes < tarfile.RECORDSIZE:
        raise BadOption(f"tars of {most_bytes} bytes hold nothing; file-mb 1000 is usual")
    if any(to.glob("tiles-*.tar")):
        raise BadOption(f"TO {to} holds tars already; remove them, or name another folder")
    to.mkdir(parents=True, exist_ok=True)
    with _Tars(to, most_bytes) as tars:
        written = pack_tiles(wanted, to, tars.add_tile)
    written.files = tars.count
    return written


class _Tars(ExitStack):
    """Tar files of bounded size, one after another, each made aside and renamed when it is whole."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        super().__init__()
        self._folder = folder
        self._most_bytes = most_bytes
        self._tar: tarfile.TarFile | None = None
        self.count = 0

    def add_tile(self, row: TileRow, jpeg: bytes) -> None:
        """Add a tile and its row."""
        self.add(tile_key(row), {"jpg": jpeg, "json": json.dumps(plain(row), allow_nan=False).encode()})

    def add(self, key: str, parts: dict[str, bytes]) -> None:
        """Add one sample, all of it to one tar."""
        size = sum(_BLOCK + -(-len(data) // _BLOCK) * _BLOCK for data in parts.values())
        if self._tar is not None and self._tar.offset + size + tarfile.RECORDSIZE > self._most_bytes:
            self.close()
            self._tar = None
        if self._tar is None:
            file = self.enter_context(aside(self._folder / f"tiles-{self.count:05d}.tar"))
            self._tar = self.enter_context(tarfile.open(file, "w", format=tarfile.USTAR_FORMAT))  # noqa: SIM115
            self.count += 1
        for ending, data in parts.items():
            entry = tarfile.TarInfo(f"{key}.{ending}")
            entry.size = len(data)
            self._tar.addfile(entry, io.BytesIO(data))
