"""Magnifications, and the nested grid of tiles that a slide gets from them.

A magnification is a physical scale, never an objective's label. All positions are level-0 pixels of the slide file (the
OpenSlide frame, any bounds offset included). The grid depends on the slide alone, not on which magnifications are asked
for, so a tile keeps its place whatever the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wsi_prep.errors import BadOption, TooCoarse

TILE_PX = 392
"""Side of a tile in pixels, the same at every magnification (Virchow2, arXiv 2408.00738)."""

TOLERANCE = 0.05
"""Relative distance from a magnification's scale within which native pixels stand as they are."""


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
_EPSILON = 1e-9


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


@dataclass(frozen=True)
class Grid:
    """The tile grid of one slide.

    `base` is the finest magnification that the slide can give; one base pixel covers `step_x0` by `step_y0` level-0
    pixels (1.0 where the native pixels stand) and measures `base_mpp` um.
    """

    width0: int
    height0: int
    base: Magnification
    base_mpp: float
    step_x0: float
    step_y0: float

    @classmethod
    def of_slide(cls, width0: int, height0: int, mpp_x: float, mpp_y: float) -> Grid:
        """Grid of a slide of `width0` x `height0` level-0 px at `mpp_x`, `mpp_y` um/px; TooCoarse if none fits."""
        coarser = max(mpp_x, mpp_y)
        base = next((m for m in MAGNIFICATIONS if coarser <= m.mpp * (1 + TOLERANCE) + _EPSILON), None)
        if base is None:
            last = MAGNIFICATIONS[-1]
            raise TooCoarse(
                f"{coarser:.4g} um/px is coarser than {last.name} ({last.mpp} um/px), and tiles are never upsampled; "
                "use a scan of higher resolution"
            )
        if all(abs(mpp - base.mpp) <= TOLERANCE * base.mpp + _EPSILON for mpp in (mpp_x, mpp_y)):
            return cls(width0, height0, base, math.sqrt(mpp_x * mpp_y), 1.0, 1.0)
        return cls(width0, height0, base, base.mpp, base.mpp / mpp_x, base.mpp / mpp_y)

    @property
    def magnifications(self) -> tuple[Magnification, ...]:
        """What this slide can give, finest first."""
        return tuple(m for m in MAGNIFICATIONS if m.mpp >= self.base.mpp)

    @property
    def cell_px(self) -> int:
        """Side, in base pixels, of the block that one tile of the coarsest magnification covers."""
        return TILE_PX * self.factor(MAGNIFICATIONS[-1])

    def factor(self, mag: Magnification) -> int:
        """Base pixels along one side of a pixel at `mag`: 1, 2, 4 or 8."""
        return round(mag.mpp / self.base.mpp)

    def mpp(self, mag: Magnification) -> float:
        """um/px that tiles at `mag` really have."""
        return self.base_mpp * self.factor(mag)

    def span_x0(self, mag: Magnification) -> float:
        """Level-0 px that a tile at `mag` covers from left to right."""
        return TILE_PX * self.factor(mag) * self.step_x0

    def span_y0(self, mag: Magnification) -> float:
        """Level-0 px that a tile at `mag` covers from top to bottom."""
        return TILE_PX * self.factor(mag) * self.step_y0

    def shape(self, mag: Magnification) -> tuple[int, int]:
        """(rows, cols) of the tiles at `mag` that lie wholly inside the slide."""
        rows = math.floor(self.height0 / self.span_y0(mag) + _EPSILON)
        cols = math.floor(self.width0 / self.span_x0(mag) + _EPSILON)
        return rows, cols
