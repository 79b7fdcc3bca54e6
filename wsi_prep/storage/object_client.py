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
_OUTSIDE = ("416 Range Not Satisfiable", "Wanted range starting at", "bytes 0--1/0")
"""What obstore says of a range that begins behind an object's end: the store's own words, its own, or what it does not
understand of Azurite's answer for an empty object.
"""
_CUT_OFF = ("body", "Got invalid list response", "Content-Range header not present", *_OUTSIDE)

Result = TypeVar("Result")

_AZURE_KEY = "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
_AZURE = ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": _AZURE,
    "abfs": _AZURE,
}
"""By the begin of a URL, the variables that name another server, as obstore reads them; the first that is set is it."""

_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": _AZURE_KEY,
    "abfs": _AZURE_KEY,
}
"""Likewise, the variables that most people set."""

_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound")
_ASKS_MACHINE = re.compile(r"https?://(169\.254\.|metadata\.google)")
"""Services of machines in a cloud, which obstore asks for credentials when the environment has none."""

_REFUSED = re.compile(r"status code: (40[13] [A-Za-z]+)")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")


class _Sized(Protocol):
    def __len__(self) -> int: ...


def open_store(url: str, timeout_s: int = 60, retries: int | None = None) -> obstore.store.ObjectStore:
    """The store behind a URL, its paths relative to the URL's own; StoreFailed where the URL names none.

    An answer may take `timeout_s`, and is asked for again so many times.
    """
    again = retries_of(retries)
    try:
        return obstore.store.from_url(url, client_options=client_options(url, timeout_s), retry_config=again)
    except (BaseError, ValueError) as error:
        raise StoreFailed(f"{url} cannot be opened ({reason_of(url, error)})") from error


def client_options(url: str, timeout_s: int = 60) -> dict[str, object]:
    """How obstore talks to the store behind a URL: an answer may take `timeout_s`."""
    plain = endpoint_of(url).startswith("http://")
    return {"connect_timeout": "5s", "timeout": f"{timeout_s}s", "allow_http": plain}


def retries_of(most: int | None = None) -> dict[str, object]:
    """How often obstore asks again."""
    return {"max_retries": _RETRIES if most is None else most, "retry_timeout": timedelta(seconds=_RETRY_SECONDS)}


def endpoint_of(url: str) -> str:
    """The server that the environment names for stores of this URL's kind; empty where it is the provider's own."""
    scheme = url.partition("://")[0]
    names = next((names for begin, names in _ENDPOINTS.items() if scheme.startswith(begin)), ())
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def reason_of(where: str, error: BaseException) -> str:
    """Why the store behind `where` does not do what is asked, in one line, and without paths, which may be names."""
    said = str(error)
    if _NO_BUCKET.search(said):
        return "there is no such bucket"
    if _ASKS_MACHINE.search(said):
        names = next((names for begin, names in _CREDENTIALS.items() if where.startswith(begin)), "them")
        return f"no credentials are in the environment, and this machine's own service gives none: set {names}"
    if "Account must be specified" in said:
        return "no account is named: set AZURE_STORAGE_ACCOUNT_NAME"
    if refused := _REFUSED.search(said):
        code = _CODE.search(said)
        why = f"{refused[1]}, {code[1]}" if code else refused[1]
        return f"the store refuses this, {why}: the credentials in the environment are wrong, or do not allow it"
    return _first_line(error)


def _first_line(error: BaseException) -> str:
    """What obstore says before it shows the details, in one line; of the URL its server."""
    line = first_line(error).partition(": <")[0]
    return " ".join(re.sub(r"(https?://[^/\s]+)\S*", r"\1", line).split())[:300]


def failed(where: str, error: BaseException) -> StoreFailed:
    """What the store behind `where` refuses for good, as users are told."""
    why = reason_of(where, error)
    return StoreFailed(f"{where} cannot be used ({why}); finished slides are kept: fix this and repeat the command")


def is_cut_off(error: BaseError) -> bool:
    """Whether an answer broke off, or was not as long as it said, where obstore does not ask again by itself.

    In a listing, an error's details, or where obstore asked for a rest that is not there.
    """
    return isinstance(error, GenericError) and any(words in _first_line(error) for words in _CUT_OFF)


def is_outside(error: BaseError) -> bool:
    """Whether a range was asked for that begins behind the end of the object."""
    return any(words in str(error) for words in _OUTSIDE)


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
