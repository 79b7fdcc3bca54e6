"""Slides' ids, and the names that may occur in an output folder: the one rule of all who make or read them.

A slide's id is made of its file's name and a hash of where it lies. It names files and objects, so it is safe on Linux,
macOS and Windows and in object stores. A name that an output gives, in its catalog, its journal or by being there, is
used only after this has known it again.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from pathlib import PurePosixPath
from typing import TypeGuard

import pyarrow as pa
import pyarrow.compute as pc

from wsi_prep.errors import BadCatalog
from wsi_prep.format.magnifications import MAGNIFICATIONS
from wsi_prep.format.records import TILES_PER_SHARD

_STEM = 64

_SAFE = re.compile(r"[A-Za-z0-9._-]*")
_DEVICE = re.compile(r"(CON|PRN|AUX|NUL|(?:COM|LPT)[0-9])\.", re.IGNORECASE)
"""Windows takes a file for a device by what stands before the first dot."""

_ID = re.compile(r"(?!(?i:part)-[0-9]{5}\Z)[A-Za-z0-9_-](?:[A-Za-z0-9._-]{0,78}[A-Za-z0-9])?")
"""What versions up to now have made, and no more; `part-00000` is the name of a part of the catalog."""


_ID_IN_FULL = r"\A[A-Za-z0-9_-](?:[A-Za-z0-9._-]{0,78}[A-Za-z0-9])?\z"
_PART_IN_FULL = r"\A(?i:part)-[0-9]{5}\z"
"""The same rule as `_ID` for Arrow, whose expressions cannot look ahead."""

PART_NAME = re.compile(r"part-(\d{5})\.parquet", re.ASCII)
"""No slide's own file has such a name: its id ends in more digits, whatever its stem."""

PLACES = {
    "store.zarr": ("stores", ".zarr"),
    "tissue.geojson": ("tissue", ".geojson"),
    "overlay.jpg": ("overlays", ".jpg"),
}
"""What a slide leaves: its name while it is made, the folder that it ends up in, and its ending there."""

_MAGNIFICATIONS = frozenset(m.name for m in MAGNIFICATIONS)
_ROWS = ".parquet"


def output_places(slide_id: object) -> dict[str, str]:
    """Where each thing of a slide ends up, relative to the output; BadCatalog for what is no slide's id."""
    require_slide_id(slide_id)
    return {name: f"{folder}/{slide_id}{ending}" for name, (folder, ending) in PLACES.items()}


def array_place(slide_id: object, magnification: object) -> str:
    """The Zarr array of a slide at a magnification, relative to the output; BadCatalog unless both are known."""
    require_names(slide_id, magnification)
    return f"{output_places(slide_id)['store.zarr']}/{magnification}"


def shard_place(slide_id: object, magnification: object, index: int) -> str:
    """The shard file that the tile `index` of that array is in."""
    return f"{array_place(slide_id, magnification)}/c.{index // TILES_PER_SHARD}.0.0.0"


def require_names(slide_id: object, magnification: object) -> None:
    """Raise BadCatalog unless these are a slide's id and a magnification, and so safe as parts of file names."""
    require_slide_id(slide_id)
    if magnification not in _MAGNIFICATIONS:
        raise BadCatalog(
            f"the catalog has tiles of {slide_id} at {str(magnification)[:20]!r}, which is no magnification"
        )


def is_slide_file(name: object) -> bool:
    """Whether a name is that of one slide's own file of the catalog."""
    return isinstance(name, str) and name.endswith(_ROWS) and is_slide_id(name.removesuffix(_ROWS))


def is_part(name: object) -> TypeGuard[str]:
    """Whether a name is that of a part of the catalog, which many slides share."""
    return isinstance(name, str) and PART_NAME.fullmatch(name) is not None


def slide_of(name: str, ending: str) -> str | None:
    """The slide's id that a name with that ending holds, or None."""
    slide_id = name.removesuffix(ending)
    return slide_id if name.endswith(ending) and is_slide_id(slide_id) else None


def slide_ids(name: str, identity: str) -> tuple[str, str]:
    """`make_slide_id` and `former_slide_id` of a file, which are nearly always one."""
    plain, digest = _plain(name), _digest(identity)
    was = f"{plain.lstrip('.')[:_STEM] or 'slide'}-{digest}"
    if plain[:1] in "._-" or ("." in plain and _DEVICE.search(plain)):
        return f"{_stem(plain)}-{digest}", was
    return was, was


def make_slide_id(name: str, identity: str) -> str:
    """The id of the file `name` (without its folder) at `identity`, which no other slide has: <name>-<10 hex digits>.

    Of the name it keeps ASCII letters, digits, dot, dash and underscore, at most 64, and begins with a letter or digit:
    what begins otherwise is hidden from many a tool, or taken for an option. Two identities give ids that differ, also
    without regard to case.
    """
    return slide_ids(name, identity)[0]


def former_slide_id(name: str, identity: str) -> str:
    """The id by which earlier versions knew the same file: another one only where its name begins in an odd way."""
    return slide_ids(name, identity)[1]


def is_slide_id(text: object) -> TypeGuard[str]:
    """Whether a text is an id, of this version or an earlier one: a plain name that leads out of no folder."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def require_slide_id(text: object) -> str:
    """What a catalog names, where it is a slide's id; else BadCatalog."""
    if not is_slide_id(text):
        raise BadCatalog(f"the catalog names a slide {str(text)[:60]!r}, which is no slide id")
    return text


def require_slide_ids(ids: pa.ChunkedArray) -> None:
    """The same for a column of ids, of which the first that is none is named."""
    is_id = pc.and_not(pc.match_substring_regex(ids, _ID_IN_FULL), pc.match_substring_regex(ids, _PART_IN_FULL))
    wrong = pc.index(is_id.fill_null(False), False).as_py()
    if wrong >= 0:
        require_slide_id(ids[wrong].as_py())


def name_in(path: str) -> str:
    """What PurePosixPath(path).name is, in a tenth of the time."""
    name = path.rpartition("/")[2]
    return PurePosixPath(path).name if name in ("", ".") else name


def suffix_in(name: str) -> str:
    """What PurePosixPath(name).suffix is, in a tenth of the time."""
    if "/" in name:
        name = name_in(name)
    at = name.rfind(".")
    return name[at:] if 0 < at < len(name) - 1 else ""


def bare_name(name: str) -> str:
    """A file name without its ending, .ome.tif counting as one."""
    name = name_in(name)
    at = name.rfind(".")
    stem = name[:at] if 0 < at < len(name) - 1 else name
    return stem[:-4] if stem[-4:].lower() == ".ome" else stem


def _stem(plain: str) -> str:
    return _DEVICE.sub(r"\1_", plain.lstrip("._-"), count=1)[:_STEM] or "slide"


def _plain(name: str) -> str:
    """A file's name without its endings, in ASCII; what has no place in an id is an underscore."""
    if _SAFE.fullmatch(stem := bare_name(name)):
        return stem
    ascii_alone = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]", "_", ascii_alone)


def _digest(identity: str) -> str:
    try:
        data = identity.encode() if identity.isascii() else os.fsencode(identity)
    except UnicodeEncodeError:  # no file system gives such a name
        data = identity.encode(errors="surrogatepass")
    return hashlib.blake2b(data, digest_size=5).hexdigest()
