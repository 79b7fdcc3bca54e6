"""Small files that others wrote, read in bounded memory and never waited for."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

_MOST_JSON = 4 << 20


def open_plain(file: Path) -> IO[bytes]:
    """The file, open. ValueError where it is a folder, a pipe or a device, OSError where it cannot be opened."""
    opened = os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode):
        opened.close()
        raise ValueError("it is no plain file")
    return opened


def size_of(file: Path) -> int:
    """Bytes of a plain file. Raises as open_plain."""
    with open_plain(file) as opened:
        return os.fstat(opened.fileno()).st_size


def read_json(file: Path, most: int = _MOST_JSON) -> Any:
    """What a JSON file of at most so many bytes holds. ValueError where it is none, OSError as open_plain."""
    with open_plain(file) as opened:
        text = opened.read(most + 1)
    if len(text) > most:
        raise ValueError(f"it is longer than the {most:,} bytes that such a file has at most")
    return parse_json(text)


def parse_json(text: str | bytes) -> Any:
    """What JSON says, without NaN and infinities, which it does not know. Raises ValueError."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def json_lines(file: Path, most: int) -> Iterator[dict[str, Any]]:
    """The records of a file with one in each line, of at most so many bytes. Raises as read_json."""
    with open_plain(file) as opened:
        left = most
        while line := opened.readline(left + 1):
            left -= len(line)
            if left < 0:
                raise ValueError(f"it is longer than the {most:,} bytes that such a file has at most")
            if line.strip():
                yield parse_json(line)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")
