"""Whole-slide images to magnification-true tile shards.

What is in `__all__` is for everybody, and is imported when it is first used; all else may change without notice.
"""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from wsi_prep.curation.verify.store import verify
    from wsi_prep.errors import SlideError, UsageError, WsiPrepError
    from wsi_prep.format.magnifications import MAGNIFICATIONS, TILE_PX
    from wsi_prep.notebook import Slide, classify_stain, detect_tissue, open_slide, plan_tiles, read_tile, show
    from wsi_prep.output.query import open_catalog
    from wsi_prep.run.call import run_shards
    from wsi_prep.run.request import RunRequest
    from wsi_prep.tiles.plan import PlanSettings, TilePlan

_PLACES = {
    "curation.verify.store": ("verify",),
    "errors": ("SlideError", "UsageError", "WsiPrepError"),
    "format.magnifications": ("MAGNIFICATIONS", "TILE_PX"),
    "notebook": ("Slide", "classify_stain", "detect_tissue", "open_slide", "plan_tiles", "read_tile", "show"),
    "output.query": ("open_catalog",),
    "run.call": ("run_shards",),
    "run.request": ("RunRequest",),
    "tiles.plan": ("PlanSettings", "TilePlan"),
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names}

__all__ = [
    "MAGNIFICATIONS",
    "TILE_PX",
    "PlanSettings",
    "RunRequest",
    "Slide",
    "SlideError",
    "TilePlan",
    "UsageError",
    "WsiPrepError",
    "classify_stain",
    "detect_tissue",
    "open_catalog",
    "open_slide",
    "plan_tiles",
    "read_tile",
    "run_shards",
    "show",
    "verify",
]


def __getattr__(name: str) -> object:
    if name not in _PLACE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
