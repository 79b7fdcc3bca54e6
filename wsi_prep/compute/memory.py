"""Memory: a worker keeps what it freed for the next tile; a client gives it back, and lets millions of objects be."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
from collections.abc import Iterator

import pyarrow as pa

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8  # glibc's malloc.h
_MIB = 1 << 20


@functools.cache
def keep_freed_memory() -> None:
    """Tell glibc to keep up to 128 MiB of freed memory; nothing elsewhere.

    By default each picture of some hundred kB is given back when freed and fetched again as fresh zeroed pages, which
    costs as much as decoding a tenth of it.
    """
    try:
        change = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for parameter, value in (
        (_ARENA_MAX, 1),
        (_MMAP_THRESHOLD, 8 * _MIB),
        (_TRIM_THRESHOLD, 128 * _MIB),
        (_TOP_PAD, 16 * _MIB),
    ):
        change(parameter, value)


def give_back_freed_memory() -> None:
    """What Arrow and glibc hold after large tables: some 200 MB that a client of days would carry along."""
    pa.default_memory_pool().release_unused()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Within, Python does not look for cycles of objects, which it would do in vain, over and over, among millions."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
