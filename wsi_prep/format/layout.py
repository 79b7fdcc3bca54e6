"""Which names may occur in an output folder: the one rule of all who make them, and of all who read one.

A name that an output gives, in its catalog, its journal or by being there, is used only after this has known it again.
"""

from __future__ import annotations

import re
from typing import Any

from wsi_prep.errors import BadCatalog
from wsi_prep.format.magnifications import MAGNIFICATIONS
from wsi_prep.format.records import TILES_PER_SHARD
from wsi_prep.format.slide_ids import is_slide_id, require_slide_id

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


def require_names(slide_id: Any, magnification: Any) -> None:
    """Raise BadCatalog unless these are a slide's id and a magnification, and so safe as parts of file names."""
    require_slide_id(slide_id)
    if magnification not in _MAGNIFICATIONS:
        raise BadCatalog(
            f"the catalog has tiles of {slide_id} at {str(magnification)[:20]!r}, which is no magnification"
        )


def is_slide_file(name: object) -> bool:
    """Whether a name is that of one slide's own file of the catalog."""
    return isinstance(name, str) and name.endswith(_ROWS) and is_slide_id(name.removesuffix(_ROWS))


def is_part(name: object) -> bool:
    """Whether a name is that of a part of the catalog, which many slides share."""
    return isinstance(name, str) and PART_NAME.fullmatch(name) is not None


def slide_of(name: str, ending: str) -> str | None:
    """The slide's id that a name with that ending holds, or None."""
    slide_id = name.removesuffix(ending)
    return slide_id if name.endswith(ending) and is_slide_id(slide_id) else None
