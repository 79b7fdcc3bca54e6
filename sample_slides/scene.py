"""Pixels of a synthetic slide, any rectangle of level 0 at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sample_slides.layout import Layout, interpolate, noise
from sample_slides.texture import Stain

_GLASS = np.array([243.5, 243.0, 244.0], np.float32)
_GRAIN_PX = 509  # a prime, so that the grain never falls in step with tiles
_EDGE_UM = 3.0
_PEN_DENSITY = np.array([1.9, 0.75, 1.35], np.float32)  # a green marker
_DUST_DENSITY = np.array([1.3, 1.35, 1.4], np.float32)


@dataclass(frozen=True)
class Scene:
    """A slide that is painted on demand; Beer-Lambert: glass * exp(-density).

    `grain` is the camera's noise, (n, n, 3) float32 in grey levels, periodic.
    """

    layout: Layout
    stain: Stain
    grain: NDArray[np.float32]

    def paint(self, x0: int, y0: int, width: int, height: int) -> NDArray[np.uint8]:
        """(height, width, 3) uint8 pixels of the rectangle whose upper left level-0 pixel is (`x0`, `y0`)."""
        ys, xs = np.arange(y0, y0 + height), np.arange(x0, x0 + width)
        variation = self._at(self.layout.variation, ys, xs)
        glass = _GLASS + 1.2 * variation[..., None]
        density = np.zeros((height, width, 3), np.float32)
        for field, stained in (
            (self.layout.tissue, None),
            (self.layout.pen, _PEN_DENSITY),
            (self.layout.dust, _DUST_DENSITY),
        ):
            inside = self._at(field, ys, xs)
            if inside.max() <= -_EDGE_UM:
                continue
            cover = np.clip(inside / (2 * _EDGE_UM) + 0.5, 0, 1)[..., None]
            density += cover * (self.stain.density(ys, xs, variation) if stained is None else stained)
        grain = self.grain[np.ix_(ys % len(self.grain), xs % len(self.grain))]
        pixels = glass * np.exp(-density) + grain
        painted: NDArray[np.uint8] = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
        return painted

    def _at(self, field: NDArray[np.float32], ys: NDArray[np.int64], xs: NDArray[np.int64]) -> NDArray[np.float32]:
        return interpolate(field, self.layout.node_px, ys, xs)


def make_scene(layout: Layout, stain: Stain, seed: int) -> Scene:
    """A scene with camera noise of about one grey level."""
    rng = np.random.default_rng(seed)
    grain = [noise(rng, (_GRAIN_PX, _GRAIN_PX), 1.0) for _ in range(3)]
    return Scene(layout, stain, (0.9 * np.stack(grain, axis=-1)).astype(np.float32))
