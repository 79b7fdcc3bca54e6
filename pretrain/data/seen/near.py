"""Tiles of shards by what they look like: a hash of each, kept with the index, among which others are looked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from pretrain.compute.arrays import load_array, new_array
from pretrain.data.index import Index, TileAddress, default_folder, open_index
from pretrain.data.labelled import Pixels, Tiles
from pretrain.data.loader import read_jpeg
from pretrain.data.sources import digest
from wsi_prep.compute.ahead import ahead
from wsi_prep.errors import BadOption
from wsi_prep.format.stored_tiles import require_whole
from wsi_prep.storage.atomic import sync
from wsi_prep.storage.overlap.likeness import (
    HASH_VERSION,
    LIKENESS,
    UNREADABLE,
    Likenesses,
    likeness_of_image,
    likeness_of_pixels,
    likenesses,
)
from wsi_prep.storage.overlap.near import NearCopies, near_copies

Ints = NDArray[np.int64]
Progress = Callable[[int, int], None]
_BLOCK = 1 << 16
_AHEAD = 64


@dataclass(frozen=True)
class Alike:
    """`copies`: what looks like tiles of shards, and `slides`, the ids of the slides that those are of."""

    copies: NearCopies
    slides: tuple[str, ...]


class SeenTiles:
    """The tiles of some shards that pass the filter `where`, as training would see them; `folder` keeps the index.

    Raises BadShards and BadFilter.
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path],
        folder: Path | None = None,
        where: str | None = None,
        threads: int = 2,
        progress: Progress = lambda done, of: None,
    ) -> None:
        if threads < 1:
            raise BadOption("threads must be at least 1")
        self._index = open_index(shards, folder, where)
        self._hashes = _kept(self._index, folder or default_folder(), threads, progress)

    def alike(self, tiles: Likenesses) -> Alike:
        """Which of these look like tiles of the shards."""
        copies = near_copies(tiles, self._blocks())
        return Alike(copies, tuple(sorted({self._index.slide_id(int(slide)) for slide in copies.slides})))

    def _blocks(self) -> Iterator[tuple[Likenesses, Ints]]:
        slides = np.repeat(self._index.cells["slide"].astype(np.int64), self._index.cells["count"])
        for begin in range(0, len(slides), _BLOCK):
            end = begin + _BLOCK
            yield Likenesses.of(self._hashes[begin:end]), slides[begin:end]


def likenesses_of_tiles(tiles: Tiles, threads: int) -> Likenesses:
    """Of labelled tiles, wherever they are. Raises BadTask."""

    def likeness(number: int) -> NDArray[np.void]:
        pixels: Pixels = tiles.read(number)
        return likeness_of_pixels(pixels)

    return Likenesses.of(likenesses(range(len(tiles)), likeness, threads))


def _kept(index: Index, folder: Path, threads: int, progress: Progress) -> NDArray[np.void]:
    """(n,) LIKENESS of the index's tiles, in the order of its cells; read from the file where it is kept.

    Where tiles cannot be read it is not kept: the way to them may have failed.
    """
    parts = [part.folder.name for _, part in index.parts]
    file = folder / f"likeness-{digest(str(HASH_VERSION), *parts)}.npy"
    if file.is_file():
        kept: NDArray[np.void] = load_array(file)
        if kept.dtype == LIKENESS and kept.shape == (index.tiles,):
            return kept
    unfinished = file.with_name(f".{file.name}.{uuid4().hex}")
    try:
        with new_array(unfinished, LIKENESS, index.tiles) as file_of_all:
            for done, likeness in enumerate(_made(index, threads)):
                file_of_all.write(likeness.tobytes())
                if done % _BLOCK == 0:
                    progress(done, index.tiles)
        made = load_array(unfinished)
        progress(index.tiles, index.tiles)
        if not (made["state"] == UNREADABLE).any():
            sync(unfinished)
            unfinished.rename(file)
        return made
    finally:
        unfinished.unlink(missing_ok=True)


def _made(index: Index, threads: int) -> Iterator[NDArray[np.void]]:
    with closing(ahead(_likeness, _addresses(index), threads, most=_AHEAD * threads)) as found:
        yield from found


def _addresses(index: Index) -> Iterator[TileAddress]:
    for start, count in zip(index.cells["start"].tolist(), index.cells["count"].tolist(), strict=True):
        for begin in range(start, start + count, _BLOCK):
            yield from index.addresses(np.arange(begin, min(begin + _BLOCK, start + count)))


def _likeness(address: TileAddress) -> NDArray[np.void]:
    try:
        jpeg = bytes(read_jpeg(address))
        require_whole(jpeg, address.crc32)
    except (OSError, ValueError):
        return likeness_of_image(None)
    return likeness_of_image(jpeg)
