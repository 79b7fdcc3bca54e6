"""One slide's tile store: a Zarr v3 group with one sharded array a magnification, written straight from the encoder.

A shard file is the JPEGs of its tiles one after another, then the index that Zarr's sharding codec defines (offset and
length of each tile, little-endian uint64) and the index's CRC-32C. So a tile can be had through `zarr.open`, or by
seeking to the offset that the catalog gives. Source: Zarr v3 specification, sharding codec 1.0.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import google_crc32c
import numpy as np

from wsi_prep.format.jpeg import JpegSettings
from wsi_prep.format.zarr_metadata import SHARD_TILES, array_metadata, group_metadata
from wsi_prep.storage.atomic import sync
from wsi_prep.storage.digests import ShardDigest, sha256

_MISSING = 2**64 - 1
_SYNCED_AT_ONCE = 8


@dataclass(frozen=True)
class TileLocation:
    """Where a tile is: `shard` is the file inside the store, `index` its place in the array, the rest in bytes."""

    shard: str
    index: int
    offset: int
    nbytes: int
    crc32: int


class StoreWriter:
    """Writes a store into `folder`, which must not exist. Complete, and on the disk, only after `close`.

    `jpeg` says of each magnification how its tiles are compressed.

    An array is made of each magnification that a tile comes for; a store that gets none leaves no folder. Use as a
    context manager: an error on the way closes the files and leaves the folder to whoever sweeps. After `close`,
    `digests` has one of each file by its path in the store.
    """

    def __init__(self, folder: Path, jpeg: Mapping[str, JpegSettings], attributes: dict[str, object]) -> None:
        if folder.exists():
            raise FileExistsError(f"{folder} is there already")
        self._folder, self._jpeg, self._attributes = folder, jpeg, attributes
        self.digests: dict[str, str] = {}
        self._disk = _Disk()
        self._arrays: dict[str, _ArrayWriter] = {}

    def append(self, magnification: str, jpeg: bytes) -> TileLocation:
        """Add one tile's JPEG to the array of that magnification."""
        if magnification not in self._arrays:
            self._arrays[magnification] = _ArrayWriter(self._disk, self._folder, magnification, self.digests)
        return self._arrays[magnification].append(jpeg)

    def close(self) -> None:
        """Finish every array, and say what is in them."""
        if not self._arrays:
            return
        for name, array in self._arrays.items():
            array.close(self._jpeg[name], self._attributes)
        group = group_metadata(self._attributes)
        self._disk.write(self._folder / "zarr.json", group)
        self.digests["zarr.json"] = sha256(group)
        self._disk.close()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            for array in self._arrays.values():
                array.abandon()
            self._disk.abandon()


class _Disk:
    """Files made durable in the background, all at once: a disk that syncs several takes hardly longer than for one."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_SYNCED_AT_ONCE)
        self._begun: list[Future[None]] = []
        self._folders: set[Path] = set()

    def write(self, path: Path, data: bytes) -> None:
        """Write a file whole."""
        path.write_bytes(data)
        self.keep(path)

    def keep(self, path: Path) -> None:
        """Begin to make a file durable that has been written."""
        self._folders.add(path.parent)
        self._begun.append(self._threads.submit(sync, path))

    def close(self) -> None:
        """Wait until all files are on the disk, with their names; raises what the disk refused."""
        self._begun += [self._threads.submit(sync, folder) for folder in self._folders]
        with self._threads:
            for each in self._begun:
                each.result()

    def abandon(self) -> None:
        """Begin nothing more."""
        self._threads.shutdown(cancel_futures=True)


class _ArrayWriter:
    """One array: its shards are of SHARD_TILES tiles, or the only one of as many as come."""

    def __init__(self, disk: _Disk, store: Path, name: str, digests: dict[str, str]) -> None:
        self._disk, self._digests = disk, digests
        self._folder, self._name = store / name, name
        self._written = 0
        self._file: BinaryIO | None = None
        self._index = np.empty(0, "<u8")
        self._offset = 0
        self._folder.mkdir(parents=True)

    def append(self, jpeg: bytes) -> TileLocation:
        number, place = divmod(self._written, SHARD_TILES)
        shard = f"c.{number}.0.0.0"
        if self._file is None:
            self._file = (self._folder / shard).open("wb")
            self._index = np.full((SHARD_TILES, 2), _MISSING, "<u8")
            self._offset = 0
            self._digest = ShardDigest()
        self._file.write(jpeg)
        self._digest.update(jpeg)
        self._index[place] = self._offset, len(jpeg)
        location = TileLocation(f"{self._name}/{shard}", self._written, self._offset, len(jpeg), zlib.crc32(jpeg))
        self._offset += len(jpeg)
        self._written += 1
        if place == SHARD_TILES - 1:
            self._finish_shard(SHARD_TILES)
        return location

    def close(self, jpeg: JpegSettings, attributes: dict[str, object]) -> None:
        if self._file is not None:
            self._finish_shard(min(self._written, SHARD_TILES))
        metadata = array_metadata(self._written, self._name, jpeg, attributes)
        self._disk.write(self._folder / "zarr.json", metadata)
        self._digests[f"{self._name}/zarr.json"] = sha256(metadata)

    def abandon(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _finish_shard(self, per_shard: int) -> None:
        assert self._file is not None
        index = self._index[:per_shard].tobytes()
        index += google_crc32c.value(index).to_bytes(4, "little")
        self._file.write(index)
        self._digest.update(index)
        self._file.close()
        path = Path(self._file.name)
        self._disk.keep(path)
        self._digests[f"{self._name}/{path.name}"] = self._digest.text
        self._file = None
