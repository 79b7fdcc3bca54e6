"""Parquet files that hold a digest of themselves, so that any bit that changes in one is found.

The footer's key-value metadata holds `wsi_prep.digest`: "file-sha256:" and the SHA-256, in hex, of the whole file with
64 zeros in the place of these digits. A file and its digest appear by one rename and cannot get out of step. Other
readers of Parquet pass it by.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

KEY = b"wsi_prep.digest"

_ZEROS = b"0" * 64
_PREFIX = b"file-sha256:"
_SEAL = re.compile(_PREFIX + rb"([0-9a-f]{64})")
_TAIL = 8  # length of the footer, and Parquet's mark
_BLOCK = 1 << 20

Seal = Literal["sound", "broken", "none"]
"""Whether a file is as it was written; none: it says no digest, as those of earlier versions."""


@contextlib.contextmanager
def sealed_writer(file: BinaryIO, schema: pa.Schema, **settings: Any) -> Iterator[pq.ParquetWriter]:
    """A ParquetWriter into `file`, open for reading and writing and empty; at the end the file holds its digest.

    The digest is made while the rows are written: only the footer is read again.
    """
    sink = _Hashing(file)
    with pq.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, **settings) as writer:
        writer.add_key_value_metadata({KEY: _PREFIX + _ZEROS})
        yield writer
    size = file.tell()
    footer, start = _footer(file, size)
    file.seek(start + footer.rindex(_PREFIX + _ZEROS) + len(_PREFIX))
    file.write(sink.digest())
    file.flush()


def check_seal(source: Path | pa.NativeFile) -> Seal:
    """Whether the file, a path or what pyarrow reads it from, is as it was written. It is read once, a MB at a time."""
    file = pa.OSFile(str(source)) if isinstance(source, Path) else source
    size = file.size()
    footer, start = _footer(file, size)
    seals = list(_SEAL.finditer(footer))
    if not seals:
        return "broken" if KEY in footer or _PREFIX in footer else "none"
    at = start + seals[-1].start(1)
    digest = hashlib.sha256()
    file.seek(0)
    for until, instead in ((at, _ZEROS), (size, b"")):
        while (left := until - file.tell()) > 0 and (data := file.read(min(left, _BLOCK))):
            digest.update(data)
        digest.update(instead)
        file.seek(file.tell() + len(instead))
    return "sound" if digest.hexdigest().encode() == seals[-1][1] else "broken"


def _footer(file: BinaryIO | pa.NativeFile, size: int) -> tuple[bytes, int]:
    """The footer of a Parquet file of `size` bytes, as far as there is one, and where it begins."""
    file.seek(max(0, size - _TAIL))
    length = int.from_bytes(file.read(4), "little")
    start = max(0, size - _TAIL - length)
    file.seek(start)
    return file.read(size - start), start


class _Hashing(io.RawIOBase):
    """What is written to a file, and its SHA-256."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._sha256 = file, hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._sha256.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> bytes:
        return self._sha256.hexdigest().encode()
