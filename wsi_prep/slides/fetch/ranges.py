"""Ranges of bytes of a file: by pread from a disk, by few and exact requests from elsewhere."""

from __future__ import annotations

import bisect
import contextlib
import io
import os
import stat
import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from fsspec import AbstractFileSystem

from wsi_prep.errors import DamagedSlide, FileServerFailed, StoreFailed, UnreadableSlide
from wsi_prep.slides.fetch.remote import file_system, local_path
from wsi_prep.slides.private import reason
from wsi_prep.storage.patience import patiently

_BLOCK_BYTES = 16 * 2**10
_GAP_SHARE, _MOST_BYTES = 0.2, 8 * 2**20
_SLOW_SECONDS, _AT_ONCE = 0.001, 16

KEPT_BYTES = 32 * 2**20
"""Of a file elsewhere, the latest that came are kept up to this size."""

Span = tuple[int, int]
"""Offset and count of bytes."""


class Ranges(Protocol):
    """A file's size in bytes, and any ranges of it."""

    size: int
    failure: StoreFailed | None
    """That a read of it failed for good, whatever became of the error on its way through a library."""

    @property
    def far(self) -> bool:
        """Whether a request takes long, so that it is worth asking early."""

    def read_ranges(self, spans: Sequence[Span]) -> list[bytes]:
        """The bytes of each span (offset, count), in order; fewer where the file ends."""

    def close(self) -> None:
        """Let go of the file."""


def open_ranges(path: str) -> Ranges:
    """A local file's or URL's ranges; raises UnreadableSlide."""
    try:
        local = local_path(path)
        return patiently(lambda: LocalRanges(local)) if local is not None else RemoteRanges(*file_system(path))
    except UnreadableSlide:
        raise
    except OSError as error:
        raise UnreadableSlide(f"cannot be opened ({error.strerror or reason(error, path)})") from error


def read_whole(path: str, most: int) -> bytes:
    """All of a local file or URL. Raises UnreadableSlide, also where it has more than `most` bytes."""
    with contextlib.closing(open_ranges(path)) as ranges:
        if ranges.size > most:
            raise UnreadableSlide(f"it has {ranges.size:,} bytes, which are more than {most:,}")
        return ranges.read_ranges([(0, ranges.size)])[0]


def require_served(ranges: Ranges) -> None:
    """Raise StoreFailed where a read failed for good, and a library may have gone on as if nothing were there."""
    if ranges.failure is not None:
        raise ranges.failure


class LocalRanges:
    """Ranges of a local file, read without moving a file position. UnreadableSlide for what is none, as a pipe.

    A read that a file server refuses is tried again with the file opened anew, for its handle may be stale.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._fds = [_opened(path)]
        try:
            about = os.fstat(self._fds[0])
            if not stat.S_ISREG(about.st_mode):
                raise UnreadableSlide("it is no file but a folder, pipe, socket or device")
        except OSError:
            self.close()
            raise
        self.size = about.st_size
        self.far = False
        self.failure: StoreFailed | None = None

    def read_ranges(self, spans: Sequence[Span]) -> list[bytes]:
        """See Ranges. What lies together is one request; where requests take long, as on a network, all go at once."""
        requests = joined(spans)
        if self.far and len(requests) > 1:
            with ThreadPoolExecutor(min(_AT_ONCE, len(requests))) as pool:
                blocks = list(pool.map(self._block, requests))
        else:
            blocks = [self._block(request) for request in requests]
        return _cut(spans, requests, blocks)

    def close(self) -> None:
        """See Ranges."""
        while self._fds:
            os.close(self._fds.pop())

    def _block(self, request: Span) -> bytes:
        start, end = request
        began = time.perf_counter()
        try:
            data = patiently(lambda: os.pread(self._fds[-1], end - start, start), self._open_anew)
        except FileServerFailed as error:
            self.failure = error
            raise
        self.far = time.perf_counter() - began > _SLOW_SECONDS
        return data

    def _open_anew(self) -> None:
        opened = _opened(self._path)
        if (size := os.fstat(opened).st_size) != self.size:
            os.close(opened)
            raise DamagedSlide(f"it has {size:,} bytes now, and had {self.size:,}; was the file changed meanwhile?")
        self._fds.append(opened)  # others may be reading by the one before


def _opened(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # not to wait for a pipe's other end


class RemoteRanges:
    """Ranges of a file of an fsspec file system. What lies close together is one request; requests run side by side.

    Some of what came is kept: a slide of one level is read twice, for its thumbnail and for its tiles.
    """

    def __init__(self, files: AbstractFileSystem, path: str) -> None:
        self._files, self._path = files, path
        self.far = True
        self.failure: StoreFailed | None = None
        self.size = int(files.size(path))
        self._kept: OrderedDict[Span, bytes] = OrderedDict()
        self._kept_bytes = 0

    def read_ranges(self, spans: Sequence[Span]) -> list[bytes]:
        """See Ranges."""
        found = {span: self._kept[span] for span in spans if span in self._kept}
        found |= self._fetched([span for span in spans if span not in found])
        return [found[span] for span in spans]

    def close(self) -> None:
        """See Ranges."""
        self._kept.clear()

    def _fetched(self, spans: Sequence[Span]) -> dict[Span, bytes]:
        requests = joined(spans)
        starts, ends = [start for start, _ in requests], [end for _, end in requests]
        paths = [self._path] * len(requests)
        blocks = self._files.cat_ranges(paths, starts, ends, on_error="raise") if requests else []
        for block, (start, end) in zip(blocks, requests, strict=True):
            if len(block) != min(end, self.size) - start:
                raise DamagedSlide(f"{len(block):,} of {end - start:,} bytes came; was the file changed meanwhile?")
        found = dict(zip(spans, _cut(spans, requests, blocks), strict=True))
        for span, data in found.items():
            self._keep(span, data)
        return found

    def _keep(self, span: Span, data: bytes) -> None:
        if span not in self._kept:
            self._kept[span] = data
            self._kept_bytes += len(data)
        while self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= len(self._kept.popitem(last=False)[1])


class ExpectedRanges:
    """Ranges of a file that may be asked for before they are needed; where the file is near, nothing is.

    A thread of its own asks. What the last two calls of `expect` named is kept; so two parts of a slide's compressed
    bytes are held, the one that is decoded and the next.
    """

    def __init__(self, ranges: Ranges) -> None:
        self._ranges = ranges
        self._thread = ThreadPoolExecutor(1)
        self._coming: deque[tuple[set[Span], Future[dict[Span, bytes]]]] = deque(maxlen=2)

    def expect(self, spans: Sequence[Span]) -> None:
        """Begin to get these, as far as they are not on their way."""
        if self._ranges.far:
            new = [span for span in spans if not any(span in named for named, _ in self._coming)]
            self._coming.append((set(new), self._thread.submit(self._get, new)))

    def read(self, spans: Sequence[Span]) -> list[bytes]:
        """The bytes of each span, in order; what was expected is waited for, the rest is asked for now."""
        if not self._coming:
            return self._ranges.read_ranges(spans)
        found: dict[Span, bytes] = {}
        for named, future in self._coming:
            if not named.isdisjoint(spans):
                found |= future.result()
        missing = [span for span in spans if span not in found]
        if missing:
            found |= self._thread.submit(self._get, missing).result()
        return [found[span] for span in spans]

    def close(self) -> None:
        """Ask for nothing more, and let go of the file."""
        self._thread.shutdown(cancel_futures=True)
        self._coming.clear()
        self._ranges.close()

    def _get(self, spans: list[Span]) -> dict[Span, bytes]:
        return dict(zip(spans, self._ranges.read_ranges(spans), strict=True))


def _cut(spans: Sequence[Span], requests: Sequence[Span], blocks: Sequence[bytes]) -> list[bytes]:
    """The bytes of each span, out of the blocks that came for the requests."""
    starts = [start for start, _ in requests]
    found: list[bytes] = []
    for offset, count in spans:
        number = bisect.bisect_right(starts, offset) - 1
        found.append(bytes(memoryview(blocks[number])[offset - starts[number] :][:count]) if count else b"")
    return found


def joined(spans: Sequence[Span]) -> list[Span]:
    """Requests (start, end) that cover all spans, and at most a fifth more bytes than these, however they lie."""
    requests: list[list[int]] = []
    for offset, count in sorted(span for span in spans if span[1] > 0):
        if requests:
            start, end = requests[-1]
            near = offset - end <= _GAP_SHARE * count and offset + count - start <= _MOST_BYTES
            if near or offset + count <= end:
                requests[-1][1] = max(end, offset + count)
                continue
        requests.append([offset, offset + count])
    return [(start, end) for start, end in requests]


def seekable(ranges: Ranges, most_bytes: int | None = None) -> io.BufferedReader:
    """The file, or no more than its first bytes, as Python's own files are, for what parses headers."""
    return io.BufferedReader(_RangeFile(ranges, ranges.size if most_bytes is None else min(ranges.size, most_bytes)))


class _RangeFile(io.RawIOBase):
    """A file to seek and read in: got in blocks, each once. Libraries ask for a name, and get none."""

    name = ""

    def __init__(self, ranges: Ranges, size: int) -> None:
        super().__init__()
        self._ranges, self._size = ranges, size
        self._position = 0
        self._blocks: dict[int, bytes] = {}

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position; returns it."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as the file goes; returns the count of bytes."""
        view = memoryview(buffer).cast("B")
        start, end = self._position, min(self._position + len(view), self._size)
        if end <= start:
            return 0
        first, last = start // _BLOCK_BYTES, (end - 1) // _BLOCK_BYTES
        missing = [n for n in range(first, last + 1) if n not in self._blocks]
        spans = [(n * _BLOCK_BYTES, min(_BLOCK_BYTES, self._size - n * _BLOCK_BYTES)) for n in missing]
        self._blocks.update(zip(missing, self._ranges.read_ranges(spans), strict=True))
        data = b"".join(self._blocks[n] for n in range(first, last + 1))
        skipped = start - first * _BLOCK_BYTES
        view[: end - start] = data[skipped : skipped + end - start]
        self._position = end
        return end - start
