"""Magnifications: physical scales, never an objective's label, each twice as coarse as the one before.

All positions are level-0 pixels of the slide file (the OpenSlide frame, any bounds offset included).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsi_prep.errors import BadOption

TILE_PX = 392
"""Side of a tile in pixels, the same at every magnification (Virchow2, arXiv 2408.00738)."""


@dataclass(frozen=True)
class Magnification:
    """A physical scale: `mpp` um/px, known to pathologists as `name`."""

    name: str
    mpp: float


MAGNIFICATIONS = (
    Magnification("40x", 0.25),
    Magnification("20x", 0.5),
    Magnification("10x", 1.0),
    Magnification("5x", 2.0),
)
"""Finest first. Each is twice as coarse as the one before, which is what lets the grids nest."""

_BY_NAME = {m.name: m for m in MAGNIFICATIONS}


def parse_magnifications(text: str) -> tuple[Magnification, ...]:
    """The magnifications named in `text` ("5x 20x", spaces or commas), finest first; BadOption for an unknown name."""
    names = text.replace(",", " ").split()
    for name in names:
        if name not in _BY_NAME:
            raise BadOption(f"magnification {name!r} is not known; choose from {' '.join(_BY_NAME)}")
    if not names:
        raise BadOption(f"no magnification named; choose from {' '.join(_BY_NAME)}")
    return tuple(m for m in MAGNIFICATIONS if m.name in names)


def magnification(name: str) -> Magnification:
    """The magnification of that name; BadOption if there is none."""
    return parse_magnifications(name)[0]


def to_level0(index: ArrayLike, span: float) -> NDArray[np.int64]:
    """Level-0 position of the `index`-th of things that are each `span` level-0 px apart.

    The one rounding rule of the project: the product is rounded once, so nothing drifts.
    """
    return np.rint(np.asarray(index, dtype=np.float64) * span).astype(np.int64)
