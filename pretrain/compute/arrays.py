"""Arrays in files, mapped into memory where the file system can; some of clusters and object stores cannot."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.lib import format as npy
from numpy.typing import NDArray

_CANNOT_MAP = (errno.ENODEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_ROWS_AT_ONCE = 1 << 20


def load_array(file: Path) -> NDArray[Any]:
    """An .npy file's array, not to be written to: mapped, or read whole where it cannot be mapped."""
    try:
        array: NDArray[Any] = np.load(file, mmap_mode="r")
    except OSError as error:
        if error.errno not in _CANNOT_MAP:
            raise
        array = np.load(file)
        array.setflags(write=False)
    return array


def load_column(file: Path, name: str) -> pa.ChunkedArray:
    """A column of an Arrow file, mapped or read whole likewise."""
    try:
        source: pa.NativeFile = pa.memory_map(str(file))
    except OSError as error:
        if error.errno not in _CANNOT_MAP:
            raise
        source = pa.OSFile(str(file))
    return pa.ipc.open_file(source).read_all()[name]


@contextlib.contextmanager
def new_array(file: Path, dtype: np.dtype[np.void], length: int) -> Iterator[BinaryIO]:
    """An .npy file of so many rows of `dtype`: write their bytes, in order, to what this gives."""
    header = {"descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    with file.open("wb") as opened:
        npy.write_array_header_1_0(opened, header)
        yield opened


def save_fields(file: Path, dtype: np.dtype[np.void], rows: NDArray[np.void]) -> None:
    """The fields of `dtype` of each of the `rows`, which may have more, as an .npy file; some rows at a time."""
    with new_array(file, dtype, len(rows)) as opened:
        for begin in range(0, len(rows), _ROWS_AT_ONCE):
            some = rows[begin : begin + _ROWS_AT_ONCE]
            packed = np.empty(len(some), dtype)
            for field in dtype.names or ():
                packed[field] = some[field]
            opened.write(packed.tobytes())
