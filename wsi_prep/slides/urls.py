"""URLs as they may be written down: without a user's name and password, and without what a signature is part of.

The whole URL is what fetches a file. What stays of it here is where the file lies, so two signatures of one object are
one slide.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from wsi_prep.format.layout import name_in

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*"
_USER = re.compile(rf"({_SCHEME})://[^/\s]*@")
_CHAINED = re.compile(rf"::(?={_SCHEME}://)")
"""Between the URLs of fsspec's chains; an address of IPv6 has colons too."""

_WEB = re.compile(r"(?i)https?://")
_WEB_REST = re.compile(r"(?s)[?#].*")
_REST = re.compile(r"(?s)(?<=.)\?[\w.~%$-]+=.*")
"""In other URLs a name may hold a question mark; a query has names and values."""

_CONTAINERS = ("abfs", "abfss")
"""What stands before the @ of their URLs is a container, no user."""

_IN_TEXT = re.compile(rf"{_SCHEME}://\S+")
_PUNCTUATION = ")]}>'\",;:."
_SHORTEST_SECRET = 4


def bare_url(path: str) -> str:
    """Where a file lies. A local path stays as it is."""
    if "://" not in path:
        return path
    return "::".join(map(_bare_one, _CHAINED.split(path)))


def name_of(path: str) -> str:
    """A file's name, without its folder."""
    return name_in(path if "://" not in path else bare_url(path))


def has_user(url: str) -> bool:
    """Whether a user, perhaps with a password, stands before the server's name."""
    return _USER.match(url) is not None and url.partition("://")[0].lower() not in _CONTAINERS


def without_secrets(text: str, path: str = "") -> str:
    """A text in which URLs are bare, that of `path` and what it keeps to itself in particular."""
    if "://" in path:
        text = text.replace(path, bare_url(path))
        for secret in _secrets(path):
            text = text.replace(secret, "...")
    return _IN_TEXT.sub(lambda found: _bare_in_text(found[0]), text) if "://" in text else text


def _bare_one(url: str) -> str:
    scheme = url.partition("://")[0].lower()
    if "://" not in url or scheme == "file":
        return url
    plain = url if scheme in _CONTAINERS else _USER.sub(r"\1://", url, count=1)
    return (_WEB_REST if _WEB.match(plain) else _REST).sub("", plain)


def _bare_in_text(url: str) -> str:
    """A URL as a sentence has it, with the punctuation behind it."""
    plain = url.rstrip(_PUNCTUATION)
    return bare_url(plain) + url[len(plain) :]


def _secrets(path: str) -> list[str]:
    """What a URL holds beside the place, as it stands there and decoded, the longest first."""
    bare, found = bare_url(path), set()
    for url in _CHAINED.split(path):
        user = _USER.match(url)
        words = [*re.split(r"[:@]", user[0].partition("://")[2])] if user else []
        rest = re.search(r"(?s)[?#](.*)", url)
        words += (
            [word for part in re.split(r"[?&#;]", rest[1]) for word in (part, part.partition("=")[2])] if rest else []
        )
        found |= {form for word in words for form in (word, unquote(word)) if len(form) >= _SHORTEST_SECRET}
    return sorted((word for word in found if word not in bare), key=len, reverse=True)
