"""What an output is written to and read from: one contract, kept by a disk and by an object store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from wsi_prep.untrusted.below import MOST_BYTES

LOCK = ".lock"
"""File of the output that the running client holds locked; it contains the run's token."""

STAGING = ".staging"
"""Folder of an output on a disk in which slides are made before they are renamed into place."""

Span = tuple[int, int]
"""Offset and count of bytes."""


class Storage(Protocol):
    """Files by relative path, which appear whole or not at all. One client changes them at a time, and its workers.

    `where` is what errors call it. `staging` is a folder from which `publish` can move; None where it copies, from any.
    Reading what is not there raises FileNotFoundError. What the system refuses is an OSError, or StoreFailed.
    Nothing is reached through a link below the folder, or opened that is no file: BadOutput.
    """

    where: str
    staging: Path | None

    def create(self) -> None:
        """Make the folder where it is missing; BadOutput where nothing can be written."""

    def make_folders(self, *paths: str) -> None:
        """Make folders, where there is such a thing."""

    def locked(self, token: str, *, take_over: bool) -> AbstractContextManager[None]:
        """Held against every other run while the block lasts; BadOutput where one is at work."""

    def undisturbed(self, *, take_over: bool) -> AbstractContextManager[None]:
        """For those who only look: BadOutput where a run is at work, or begins if it cannot be kept from that."""

    def dismiss_workers(self) -> None:
        """While `locked`: from here on a worker that still finishes a slide finds another token, and writes nothing."""

    def holder(self) -> str:
        """The token of the run that holds the lock, or was the last to hold it."""

    def read(self, path: str, most: int = MOST_BYTES) -> bytes:
        """What a file holds; BadOutput where that is more than `most` bytes."""

    def spans(self, path: str, spans: Iterable[Span]) -> Iterator[bytes]:
        """The bytes of each of these spans of one file, in order, fewer where it ends; not all are held at once."""

    def exists(self, path: str) -> bool:
        """Whether there is such a file."""

    def version(self, path: str) -> str:
        """A text that changes with the file."""

    def sizes(self, path: str) -> dict[str, int]:
        """Bytes of the file `path`, or of every file below that folder, by path; none where there is neither."""

    def names(self, folder: str) -> list[str]:
        """Names of the files and folders in a folder, sorted, hidden ones too; none where there is no folder."""

    def rows(self, folder: str, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
        """The rows of all of a folder's files that records.is_table_file takes; BadCatalog as tables.require_table."""

    def tables(self, paths: Sequence[str], schema: pa.Schema) -> Iterator[pa.Table]:
        """The rows of these Parquet files in order, of some files at once; columns that a file lacks are null."""

    def sources(self, paths: Iterable[str]) -> Iterator[Path | pa.BufferReader]:
        """What pyarrow reads each file from, in order; got ahead of need where that takes time."""

    def write(self, path: str, data: bytes) -> None:
        """Write a file, in place of the one that is there."""

    def making(self, path: str) -> AbstractContextManager[Path]:
        """A local name to write to; what is there at the end becomes the file `path`."""

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, in place of what has it; nothing happens where there is no `old`."""

    def publish(self, staged: Path, path: str) -> None:
        """Bring a staged file or folder to `path`, in place of what is there."""

    def delete(self, paths: Iterable[str]) -> None:
        """Delete files; those that are not there are passed by."""

    def remove(self, path: str) -> None:
        """Remove a file, or a folder with all it holds; nothing happens where there is none."""
