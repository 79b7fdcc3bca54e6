"""Files held locked: whether another process has one, told apart from a file system that cannot lock."""

from __future__ import annotations

import errno
import fcntl
from typing import IO

_HELD = frozenset({errno.EWOULDBLOCK, errno.EACCES})
_WITHOUT_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


class CannotLock(OSError):
    """Whether somebody holds the file cannot be known; the text says why, and what helps.

    `for_all`: its file system locks no file at all.
    """

    def __init__(self, error: OSError) -> None:
        self.for_all = error.errno in _WITHOUT_LOCKS
        super().__init__(_why(error))


def try_lock(file: IO[str] | IO[bytes], *, shared: bool = False) -> bool:
    """Hold an open file until it is closed, alone or with others who share it; False where another process has it.

    Raises CannotLock.
    """
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        raise CannotLock(error) from error
    return True


def wait_for_lock(file: IO[str] | IO[bytes]) -> None:
    """Hold an open file alone until it is closed, as soon as no other process has it. Raises CannotLock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise CannotLock(error) from error


def _why(error: OSError) -> str:
    if error.errno in _WITHOUT_LOCKS:
        return f"its file system locks no files ({error.strerror}); mount it with locks (Lustre: flock, NFS: lock)"
    return f"its file system refuses to lock a file ({error.strerror}); fix this"
