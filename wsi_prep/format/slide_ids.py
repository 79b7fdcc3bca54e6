"""Slides' ids: made from a file's name and a hash of where it lies, and known again wherever a text claims to be one.

An id names files and objects in the output, so it is safe on Linux, macOS and Windows and in object stores.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from pathlib import PurePosixPath

from wsi_prep.errors import BadCatalog

_STEM = 64
_DEVICE = re.compile(r"(CON|PRN|AUX|NUL|(?:COM|LPT)[0-9])\.", re.IGNORECASE)
"""Windows takes a file for a device by what stands before the first dot."""

_ID = re.compile(r"(?!(?i:part)-[0-9]{5}\Z)[A-Za-z0-9_-](?:[A-Za-z0-9._-]{0,78}[A-Za-z0-9])?")
"""What versions up to now have made, and no more; `part-00000` is the name of a part of the catalog."""


def make_slide_id(name: str, identity: str) -> str:
    """The id of the file `name` (without its folder) at `identity`, which no other slide has: <name>-<10 hex digits>.

    Of the name it keeps ASCII letters, digits, dot, dash and underscore, at most 64, and begins with a letter or digit:
    what begins otherwise is hidden from many a tool, or taken for an option. Two identities give ids that differ, also
    without regard to case.
    """
    stem = _DEVICE.sub(r"\1_", _plain(name).lstrip("._-"), count=1)
    return f"{stem[:_STEM] or 'slide'}-{_digest(identity)}"


def former_slide_id(name: str, identity: str) -> str:
    """The id by which earlier versions knew the same file: another one only where its name begins in an odd way."""
    return f"{_plain(name).lstrip('.')[:_STEM] or 'slide'}-{_digest(identity)}"


def is_slide_id(text: object) -> bool:
    """Whether a text is an id, of this version or an earlier one: a plain name that leads out of no folder."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def require_slide_id(text: object) -> None:
    """Raise BadCatalog unless what a catalog names is a slide's id."""
    if not is_slide_id(text):
        raise BadCatalog(f"the catalog names a slide {str(text)[:60]!r}, which is no slide id")


def bare_name(name: str) -> str:
    """A file name without its ending, .ome.tif counting as one."""
    stem = PurePosixPath(name).stem
    return stem[:-4] if stem.lower().endswith(".ome") else stem


def _plain(name: str) -> str:
    """A file's name without its endings, in ASCII; what has no place in an id is an underscore."""
    ascii_alone = unicodedata.normalize("NFKD", bare_name(name)).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]", "_", ascii_alone)


def _digest(identity: str) -> str:
    try:
        data = os.fsencode(identity)
    except UnicodeEncodeError:  # no file system gives such a name
        data = identity.encode(errors="surrogatepass")
    return hashlib.blake2b(data, digest_size=5).hexdigest()
