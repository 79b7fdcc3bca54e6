"""The nested grid of tiles that a slide gets.

It depends on the slide alone, not on which magnifications are asked for, so a tile keeps its place whatever the run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from wsi_prep.errors import TooCoarse
from wsi_prep.format.magnifications import MAGNIFICATIONS, TILE_PX, Magnification

TOLERANCE = 0.05
"""Relative distance from a magnification's scale within which native pixels stand as they are."""

_EPSILON = 1e-9


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

    @property
    def mpp_by_magnification(self) -> dict[str, float]:
        """um/px of each magnification that this slide can give, by name, finest first."""
        return {m.name: self.mpp(m) for m in self.magnifications}

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
