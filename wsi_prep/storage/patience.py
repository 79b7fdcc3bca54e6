"""Errors of a file server that pass: what is asked is asked again, after a pause, before it counts as failed."""

from __future__ import annotations

import errno
import functools
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from wsi_prep.errors import FileServerFailed

PAUSES = (0.1, 0.5, 2.0)
"""Seconds before each further try. Clients of NFS and Lustre have waited for their server for minutes by then."""

_PASSING = frozenset(
    {
        errno.EIO,
        errno.ESTALE,  # another machine replaced the file that a handle stood for, or the server was restarted
        errno.ETIMEDOUT,
        errno.ENOTCONN,
        errno.ESHUTDOWN,  # Lustre's server has thrown the client out, which then joins again
        errno.EREMOTEIO,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ECONNRESET,
    }
)

Result = TypeVar("Result")
What = ParamSpec("What")


def passes(error: BaseException) -> bool:
    """Whether an error is one that a file server gives, and may not give again."""
    return isinstance(error, OSError) and error.errno in _PASSING


def server_failed(error: OSError, where: str = "") -> FileServerFailed:
    """What is said where such an error has come again and again, of the file `where` if that is known."""
    at = where or error.filename
    return FileServerFailed(
        f"the file server gives an error again and again{f' for {at}' if at else ''} ({error.strerror}); "
        "have it looked at (the kernel's log says more), then repeat the command"
    )


def patiently(work: Callable[[], Result], renew: Callable[[], object] = lambda: None, where: str = "") -> Result:
    """Do what may be done twice, as often as PAUSES says while the error is one that passes; `renew` before each.

    Raises FileServerFailed, which names the file `where`, if it does not pass, and any other error at once.
    """
    anew = False
    for pause in (*PAUSES, None):
        try:
            if anew:
                renew()
            return work()
        except OSError as error:
            if not passes(error):
                raise
            if pause is None:
                raise server_failed(error, where) from error
        anew = True
        time.sleep(pause)
    raise AssertionError


def patient(method: Callable[What, Result]) -> Callable[What, Result]:
    """Make a method, or a function, of one that may be called twice: called patiently."""

    @functools.wraps(method)
    def calling(*arguments: What.args, **named: What.kwargs) -> Result:
        return patiently(lambda: method(*arguments, **named), where=_named_by(*arguments))

    return calling


def _named_by(*arguments: object) -> str:
    """The file that a method of a Storage is about."""
    if len(arguments) < 2 or not isinstance(arguments[1], str):
        return ""
    return f"{getattr(arguments[0], 'where', '')}/{arguments[1]}"
