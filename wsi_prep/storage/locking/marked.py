"""A lock where the file system has none that all machines see: a file that says which process holds it.

All of it rests on one call, the making of a file that must not be there yet (O_EXCL), of which one process alone gets
its way on NFS (from version 3 on), Lustre, BeeGFS and GPFS. Nothing is renamed or deleted that another could take for
its own, and no clock is asked. The holder's file stays, and says at the end that it is free. Who wants to follow its
holder first makes a file that is called after that holder's token: so one alone follows, and writes into it.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wsi_prep.errors import BadOutput, OutputInUse
from wsi_prep.storage.locking.holder import ProcessMark
from wsi_prep.untrusted.below import open_below, read_below
from wsi_prep.untrusted.small_json import read_object

HOLDER = ".lock.holder"
"""File of an output that says who holds it, and in it `free` where nobody does."""

_FOLLOWS = ".lock.after-"
_BYTES = 1024
_TRIES = 3
_UNKNOWN: dict[str, Any] = {"token": "unknown"}
"""What is said of a file that was not written to its end, or not by us."""


class MarkedLock:
    """The lock of one output `folder`, which errors call `where`."""

    def __init__(self, folder: Path, where: str) -> None:
        self._folder, self._where = folder, where

    @contextlib.contextmanager
    def hold(self, token: str, *, take_over: bool) -> Iterator[None]:
        """Hold it; raises BadOutput where a process has it that is not known to be gone, unless `take_over`."""
        mark = {"token": token, **ProcessMark.own().as_dict()}
        self._take(mark, take_over=take_over)
        try:
            yield
        finally:
            with contextlib.suppress(OSError, BadOutput):  # then the mark says it: this process is gone
                self._follow(mark, {**mark, "free": True})

    def require_free(self, *, take_over: bool) -> None:
        """Raise BadOutput where somebody has it, as `hold` does."""
        self._free(take_over=take_over)

    def _free(self, *, take_over: bool) -> dict[str, Any]:
        """What the holder says of itself, where it may be followed; raises BadOutput."""
        if is_held(before := self.read()) and not take_over:
            raise BadOutput(f"another run ({ProcessMark.of(before)}) is writing to {self._where}; {_WHAT_TO_DO}")
        return before

    @contextlib.contextmanager
    def unchanged(self, *, take_over: bool) -> Iterator[None]:
        """For those who only look: OutputInUse where somebody has it, or took it while the block lasted."""
        before = self.read()
        if is_held(before) and not take_over:
            raise OutputInUse(
                f"a run ({ProcessMark.of(before)}) is writing to {self._where}; try again when it has ended, "
                "or add TAKE_OVER=1 if that run is gone for good"
            )
        yield
        if self.read() != before:
            raise OutputInUse(f"a run began to write to {self._where} meanwhile; try again when it has ended")

    def read(self) -> dict[str, Any]:
        """What the holder says of itself; nobody held it yet where there is no file."""
        try:
            return read_object(read_below(self._folder, HOLDER, _BYTES))
        except FileNotFoundError:
            return {"token": "", "free": True}
        except ValueError:
            return _UNKNOWN

    def _take(self, mark: dict[str, Any], *, take_over: bool) -> None:
        for _ in range(_TRIES):  # others may take it, or let it go, between reading and writing
            if self._follow(self._free(take_over=take_over), mark, take_over=take_over):
                return
            take_over = False  # which was said of the run that is gone, not of one that was quicker
        raise BadOutput(f"another run begins to write to {self._where}; wait for it, or name another OUT")

    def _follow(self, before: dict[str, Any], mark: dict[str, Any], *, take_over: bool = False) -> bool:
        """Write `mark` in place of `before`; False where that is not what is there, or somebody else is at it."""
        follows = f"{_FOLLOWS}{_plain(before.get('token'))}"
        try:
            os.close(open_below(self._folder, follows, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            if not take_over:
                raise BadOutput(
                    f"another run begins to write to {self._where}, or was killed while it began; {_WHAT_TO_DO}"
                ) from None
            (self._folder / follows).unlink(missing_ok=True)
            return self._follow(before, mark)
        try:
            if self.read() != before:
                return False
            file = open_below(self._folder, HOLDER, os.O_WRONLY | os.O_CREAT)
            try:
                if os.fstat(file).st_nlink > 1:  # what is written here, that other file has too
                    raise BadOutput(f"{self._folder / HOLDER} is a hard link, another name of a file; remove it")
                os.pwrite(file, json.dumps(mark).encode().ljust(_BYTES), 0)
                os.fsync(file)
            finally:
                os.close(file)
            return True
        finally:
            (self._folder / follows).unlink(missing_ok=True)


_WHAT_TO_DO = "wait for it, name another OUT, or add TAKE_OVER=1 if that run is gone for good"


def is_held(mark: dict[str, Any]) -> bool:
    """Whether a mark is of a process that may still run."""
    return not mark.get("free") and not ProcessMark.of(mark).is_gone()


def _plain(token: object) -> str:
    """A token as part of a file's name."""
    return token if isinstance(token, str) and token.isalnum() and len(token) <= 64 else "another"
