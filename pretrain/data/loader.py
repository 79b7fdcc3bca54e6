"""Batches of tiles, read by offset and decoded by threads ahead of whoever takes them.

Threads, not processes: reading, checking and decoding release the interpreter's lock, a batch is decoded in place, and
nothing is copied between processes or forked (docs/benchmarks.md has both measured).
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import imagecodecs
import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.compute.devices import own_cores
from pretrain.data.index import Index, TileAddress
from pretrain.data.sampler import Draw, DrawnCounts, Sampler
from pretrain.data.scales.cut import BLOCK_PX, shrink
from pretrain.errors import TooManyBadTiles
from wsi_prep.errors import BadOption
from wsi_prep.format.magnifications import MAGNIFICATIONS, TILE_PX
from wsi_prep.format.stored_tiles import decode_stored

_CHUNK = 8  # tiles a task: few enough to share a small batch, enough to make the task's own cost small
_TRIES = 64
_USUAL_JPEG = 1 << 17  # bytes; memory for larger ones grows
_NAMED = 100
_Reads = list[Future[bytes | memoryview] | None]
Pixels = NDArray[np.uint8]
UNREADABLE = (OSError, ValueError, RuntimeError, imagecodecs.Jpeg8Error)


MOST_THREADS = 4096


@dataclass(frozen=True)
class LoaderSettings:
    """`threads` of a process decode (0: one for each core that is its share), `ahead` batches are in work, `requests`
    reads are in flight in object stores.

    The run stops when more than `bad_share` of the tiles read are bad, once there are more than `bad_allowed` of them.

    >>> LoaderSettings(threads=8).ahead
    3
    """

    threads: int = 0
    ahead: int = 3
    requests: int = 64
    bad_share: float = 0.001
    bad_allowed: int = 20

    def __post_init__(self) -> None:
        most = {"threads": MOST_THREADS, "ahead": 1024, "requests": 65_536}
        for name, least in (("threads", 0), ("ahead", 1), ("requests", 1), ("bad_allowed", 0)):
            if getattr(self, name) < least:
                raise BadOption(f"{name} {getattr(self, name)} is below {least}")
            if getattr(self, name) > most.get(name, math.inf):
                raise BadOption(f"{name} {getattr(self, name)} is above {most[name]:,}")
        if not 0 <= self.bad_share <= 1:
            raise BadOption(f"bad_share {self.bad_share} is not between 0 and 1")


@dataclass
class BadTiles:
    """Tiles that could not be read and were replaced: how many, of how many, and the first by name with the reason."""

    read: int = 0
    bad: int = 0
    named: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)


@dataclass(frozen=True)
class Batch:
    """Tiles of one rank at one step; `pixels` may be overwritten once the next batch is asked for.

    `pixels` (B, 3, 392, 392) uint8 RGB, in channels-last memory, pinned where CUDA is. `mpp` (B,) float32 um/px.
    `wanted` (B,) float32 um/px, that at which crops are wanted: `mpp`, unless any um/px is drawn. `magnification` (B,)
    int64, number into magnifications.MAGNIFICATIONS, of the stored tiles. `position` (B,) int64 in the global batch.
    `draw` says which tiles they are.
    """

    step: int
    pixels: torch.Tensor
    mpp: torch.Tensor
    wanted: torch.Tensor
    magnification: torch.Tensor
    position: torch.Tensor
    draw: Draw


class Loader:
    """Reads what the sampler draws. One loader a process; close it, or use it in a `with`.

    It reads ahead by itself, not by wsi_prep.compute.ahead: its items are batches, whose tiles all threads decode in
    place, into memory that is used again.

    >>> sampler = Sampler(open_index("shards"), SamplingSettings(batch=8))
    >>> with Loader(sampler) as loader:
    ...     [(batch.step, *batch.pixels.shape) for batch in loader.batches(start=100, stop=102)]
    [(100, 8, 3, 392, 392), (101, 8, 3, 392, 392)]
    """

    def __init__(self, sampler: Sampler, settings: LoaderSettings | None = None, rank: int = 0, world: int = 1) -> None:
        self._sampler, self._settings = sampler, settings or LoaderSettings()
        self._index: Index = sampler.index
        self._rank, self._world = rank, world
        if sampler.settings.batch % world:
            raise BadOption(f"a batch of {sampler.settings.batch} does not divide by {world} processes")
        self._size = sampler.settings.batch // world
        self._free: list[torch.Tensor] = []
        self._decoders = ThreadPoolExecutor(self._settings.threads or own_cores(), "decode")
        self._readers = ThreadPoolExecutor(self._settings.requests, "read")
        self._own = threading.local()
        self.bad = BadTiles()
        self.drawn = DrawnCounts(sampler)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads; what they had begun is thrown away."""
        for pool in (self._decoders, self._readers):
            pool.shutdown(wait=True, cancel_futures=True)

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
        """The batches of steps `start` up to `stop`, in order. Raises TooManyBadTiles."""
        pending: deque[_Pending] = deque()
        step = start
        while True:
            while len(pending) < self._settings.ahead and (stop is None or step < stop):
                pending.append(self._begin(step))
                step += 1
            if not pending:
                return
            batch = self._finish(pending.popleft())
            self.drawn.add(batch.draw.stratum)
            yield batch
            self._free.append(batch.pixels)

    def _begin(self, step: int) -> _Pending:
        draw = self._sampler.draw(step).share(self._rank, self._world)
        pixels = self._free.pop() if self._free else self._buffer()
        arrays = pixels.permute(0, 2, 3, 1).numpy()
        order = np.argsort(draw.tile, kind="stable")  # tiles of one file one after another
        reads = [self._ahead(draw.needed(row)) for row in order.tolist()]
        work = []
        for at in range(0, len(order), _CHUNK):
            some = slice(at, at + _CHUNK)
            task = _Task(order[some].tolist(), reads[some])
            work.append(self._decoders.submit(self._fill, draw, arrays, task))
        return _Pending(draw, pixels, work)

    def _finish(self, pending: _Pending) -> Batch:
        draw = pending.draw
        for work in pending.work:
            for row, other in work.result():
                draw = draw.replaced(row, other)
        return Batch(
            draw.step,
            pending.pixels,
            torch.from_numpy(draw.mpp),
            torch.from_numpy(draw.wanted),
            torch.from_numpy(self._sampler.magnification_of(draw.stratum)),
            torch.from_numpy(draw.position),
            draw,
        )

    def _ahead(self, tiles: NDArray[np.int64]) -> _Reads:
        """Reads of tiles of one slide, under way where they are in an object store."""
        if not self._index.source(int(tiles[0])).remote:
            return [None] * len(tiles)
        return [self._readers.submit(self._read, int(tile)) for tile in tiles]

    def _read(self, tile: int) -> bytes | memoryview:
        return read_jpeg(self._index.address(tile))

    def _fill(self, draw: Draw, arrays: NDArray[np.uint8], task: _Task) -> list[tuple[int, Draw]]:
        """Decode some tiles in place; returns the rows that had to take another tile, with it."""
        replaced = []
        bad = read = 0
        addresses = iter(self._index.addresses(np.concatenate([draw.needed(row) for row in task.rows])))
        for row, reads in zip(task.rows, task.reads, strict=True):
            read += len(reads)
            if self._decoded(draw, row, list(zip(reads, addresses, strict=False)), arrays[row]):
                continue
            other, more, again = self._replace(draw, row, arrays[row])
            replaced.append((row, other))
            bad += 1 + more
            read += again
        with self.bad.lock:
            self.bad.read += read
            self.bad.bad += bad
            self._check_share()
        return replaced

    def _decoded(
        self, draw: Draw, row: int, parts: list[tuple[Future[bytes | memoryview] | None, TileAddress]], out: Pixels
    ) -> bool:
        """Whether the tile, or the block of tiles, of a row of the draw could be read; a bad one is noted."""
        of_block = draw.any_mpp if len(parts) > 1 else None
        picture = self._picture(int(of_block.side[row])) if of_block else out
        for number, (read, address) in enumerate(parts):
            try:
                decode_stored(read.result() if read else read_jpeg(address, self._memory()), address.crc32, out)
            except UNREADABLE as error:
                self._note(address, error)
                return False
            if of_block:
                of_block.put(row, number, out, picture)
        if of_block:
            shrink(picture, out)
        return True

    def _picture(self, side: int) -> Pixels:
        """Where this thread puts the tiles of a block together."""
        if not hasattr(self._own, "picture"):
            self._own.picture = np.empty(3 * BLOCK_PX**2, np.uint8)
        memory: Pixels = self._own.picture
        return memory[: 3 * side**2].reshape(side, side, 3)

    def _memory(self) -> bytearray:
        """Where this thread reads to."""
        if not hasattr(self._own, "memory"):
            self._own.memory = bytearray(_USUAL_JPEG)
        memory: bytearray = self._own.memory
        return memory

    def _replace(self, draw: Draw, row: int, pixels: Pixels) -> tuple[Draw, int, int]:
        """Another tile that can be read, not one of this batch; how many could not, and how many tiles were read."""
        bad = read = 0
        position, stratum = int(draw.position[row]), int(draw.stratum[row])
        wanted = draw.wanted[row] if draw.any_mpp else None
        taken = set(self._sampler.draw(draw.step).tile.tolist())
        for attempt in range(_TRIES):
            other = self._sampler.replacement(draw.step, position, stratum, attempt, wanted)
            if int(other.tile[0]) in taken:
                continue
            tiles = other.needed(0)
            read += len(tiles)
            if self._decoded(other, 0, [(None, address) for address in self._index.addresses(tiles)], pixels):
                return other, bad, read
            bad += 1
        raise TooManyBadTiles(f"no tile can be read in place of a bad one; the first bad ones: {self._first_bad()}")

    def _note(self, address: TileAddress, error: Exception) -> None:
        with self.bad.lock:
            if len(self.bad.named) < _NAMED:
                self.bad.named[address.name] = unreadable_reason(error)

    def _check_share(self) -> None:
        bad, read, settings = self.bad.bad, self.bad.read, self._settings
        if bad > settings.bad_allowed and bad > settings.bad_share * read:
            raise TooManyBadTiles(
                f"{bad} of {read} tiles cannot be read, more than {settings.bad_share:.1%}: {self._first_bad()}; "
                "run make shards on the folder again, or allow more"
            )

    def _first_bad(self) -> str:
        return ", ".join(f"{name} ({reason})" for name, reason in list(self.bad.named.items())[:3])

    def _buffer(self) -> torch.Tensor:
        shape = (self._size, TILE_PX, TILE_PX, 3)
        return torch.empty(shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available()).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class _Task:
    rows: list[int]
    reads: list[_Reads]


@dataclass(frozen=True)
class _Pending:
    draw: Draw
    pixels: torch.Tensor
    work: list[Future[list[tuple[int, Draw]]]]


def magnification_names(numbers: torch.Tensor) -> list[str]:
    """Names ("20x") of a batch's magnification numbers."""
    return [MAGNIFICATIONS[int(n)].name for n in numbers]


def read_jpeg(address: TileAddress, memory: bytearray | None = None) -> bytes | memoryview:
    """The bytes of one tile as they lie there, in `memory` where that saves something; OSError if they do not come."""
    at = (address.path, address.offset, address.nbytes)
    try:
        return address.source.read(*at) if memory is None else address.source.read_into(memory, *at)
    except OSError:
        raise
    except Exception as error:  # object stores raise errors of their own
        raise OSError(unreadable_reason(error)) from error


def unreadable_reason(error: Exception) -> str:
    """Why a tile cannot be read, in a line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return next(iter(text.splitlines()), type(error).__name__)


def read_tile(address: TileAddress) -> NDArray[np.uint8]:
    """(392, 392, 3) uint8 RGB of one tile; OSError, ValueError or RuntimeError if it cannot be read."""
    pixels = np.empty((TILE_PX, TILE_PX, 3), np.uint8)
    decode_stored(read_jpeg(address), address.crc32, pixels)
    return pixels


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Batches with their pixels on the device.

    On a GPU they are copied beside the computation that is still under way; only the copy is waited for, since the
    loader writes into the same memory again.
    """
    if device.type != "cuda":
        yield from ((batch, batch.pixels) for batch in batches)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for batch in batches:
        with torch.cuda.stream(stream):
            tiles = batch.pixels.to(device, non_blocking=True)
        stream.synchronize()
        tiles.record_stream(torch.cuda.current_stream(device))
        yield batch, tiles
