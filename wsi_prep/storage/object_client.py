"""Object stores: S3, Google's and Azure's, through obstore.

Credentials and endpoint come from the environment (AWS_ENDPOINT_URL, ...). A request that is refused or cut off is
tried again by obstore a few times, after longer and longer pauses; then StoreFailed says so.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Protocol, TypeVar

import obstore
import obstore.store
from obstore.exceptions import BaseError, GenericError

from wsi_prep.errors import StoreFailed, first_line

_RETRIES, _RETRY_SECONDS = 7, 60  # after 0.1 s, then twice as long each time
PAUSES = (0.1, 0.4, 1.6)  # s, likewise, for what obstore itself does not try again
IN_FLIGHT = 16
OUTSIDE = "416 Range Not Satisfiable"
"""What is said of a range that begins behind the end of the object."""
_CUT_OFF = ("body", "Got invalid list response", "Content-Range header not present", OUTSIDE)

Result = TypeVar("Result")


class _Sized(Protocol):
    def __len__(self) -> int: ...


def open_store(url: str, timeout_s: int = 60, retries: int | None = None) -> obstore.store.ObjectStore:
    """The store behind a URL, its paths relative to the URL's own; StoreFailed where the URL names none.

    An answer may take `timeout_s`, and is asked for again so many times.
    """
    again = retries_of(retries)
    try:
        return obstore.store.from_url(url, client_options=client_options(timeout_s), retry_config=again)
    except (BaseError, ValueError) as error:
        raise StoreFailed(f"{url} cannot be opened ({_first_line(error)})") from error


def client_options(timeout_s: int = 60) -> dict[str, object]:
    """How obstore talks to a store: an answer may take `timeout_s`."""
    return {"connect_timeout": "5s", "timeout": f"{timeout_s}s", "allow_http": s3_endpoint().startswith("http://")}


def retries_of(most: int | None = None) -> dict[str, object]:
    """How often obstore asks again."""
    return {"max_retries": _RETRIES if most is None else most, "retry_timeout": timedelta(seconds=_RETRY_SECONDS)}


def s3_endpoint() -> str:
    """The URL of another S3 than Amazon's, if the environment names one."""
    return os.environ.get("AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL", ""))


def _first_line(error: BaseException) -> str:
    """What obstore says before it shows the details, in one line; of the URL its server, since the rest has names."""
    if "NoSuchBucket" in str(error):
        return "there is no such bucket"
    line = first_line(error).partition(": <")[0]
    return " ".join(re.sub(r"(https?://[^/\s]+)\S*", r"\1", line).split())[:300]


def failed(where: str, error: BaseError) -> StoreFailed:
    """What the store behind `where` refuses for good, as users are told."""
    return StoreFailed(
        f"{where} cannot be used ({_first_line(error)}); finished slides are kept: fix this and repeat the command"
    )


def is_cut_off(error: BaseError) -> bool:
    """Whether an answer broke off, or was not as long as it said, where obstore does not ask again by itself.

    In a listing, an error's details, or where obstore asked for a rest that is not there.
    """
    return isinstance(error, GenericError) and any(words in _first_line(error) for words in _CUT_OFF)


def require_length(data: _Sized, count: int) -> None:
    """Raise what `is_cut_off` knows where not so many bytes came: some stores and proxies state a wrong length."""
    if len(data) != count:
        raise GenericError(f"the answer's body has {len(data):,} bytes in place of {count:,}")


def ask(where: str, work: Callable[..., Result], *arguments: object) -> Result:
    """Do what may be done twice; raises StoreFailed for what is refused for good, FileNotFoundError as a disk does."""
    for pause in (*PAUSES, None):
        try:
            return work(*arguments)
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), where) from error
        except BaseError as error:
            if pause is None or not is_cut_off(error):
                raise failed(where, error) from error
            time.sleep(pause)
    raise AssertionError
