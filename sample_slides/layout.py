"""Where things lie on a synthetic slide: tissue, pen and dust, as smooth fields on a grid of 8 um.

A field is positive inside the thing and measures roughly the distance to its edge in um. The known mask and the pixels
are both read from the same field, so they agree without any detection.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

MASK_MPP = 8.0
"""um per pixel of the known masks, and per node of the fields."""

# (centre x, centre y, half width, half height) as shares of the slide: the tissue, and what is cut out of it
_PIECES = ((0.525, 0.49, 0.435, 0.445),)
_HOLES = ((0.27, 0.36, 0.045, 0.06), (0.66, 0.22, 0.05, 0.035))
_PEN = ((0.02, 0.66), (0.03, 0.99), (0.23, 0.965))  # control points of a quadratic Bezier curve
_DUST = ((0.035, 0.10, 22.0), (0.955, 0.045, 14.0), (0.965, 0.93, 30.0), (0.45, 0.985, 10.0), (0.02, 0.33, 12.0))
_PEN_WIDTH_UM = 70.0
_CLEARANCE_UM = 30.0


@dataclass(frozen=True)
class Layout:
    """The fields of one slide; node (i, j) is the centre of mask pixel (i, j).

    `tissue`, `pen`, `dust`: (rows, cols) float32, um, positive inside. `variation`: (rows, cols) float32, mean 0 and
    standard deviation 1, slow changes of the stain. `node_px` is the distance of nodes in level-0 px.
    """

    tissue: NDArray[np.float32]
    pen: NDArray[np.float32]
    dust: NDArray[np.float32]
    variation: NDArray[np.float32]
    node_px: float

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(rows, cols) tissue at MASK_MPP; pixel (i, j) covers level-0 px [j, j + 1) * node_px by [i, i + 1) * node_px.

        The last row and column may reach beyond the slide's edge.
        """
        return self.tissue > 0


def make_layout(width: int, height: int, mpp: float, seed: int, *, marks: bool) -> Layout:
    """The layout of a slide of `width` x `height` level-0 px at `mpp` um/px, with pen and dust if `marks`."""
    rng = np.random.default_rng(seed)
    node_px = MASK_MPP / mpp
    rows, cols = math.ceil(height / node_px), math.ceil(width / node_px)
    x, y = np.meshgrid((np.arange(cols) + 0.5) * MASK_MPP, (np.arange(rows) + 0.5) * MASK_MPP)
    size = (width * mpp, height * mpp)
    rough = 45 * noise(rng, (rows, cols), 170 / MASK_MPP) + 12 * noise(rng, (rows, cols), 30 / MASK_MPP)
    tissue = np.max([_oval(x, y, size, piece, power=3.0) for piece in _PIECES], axis=0) + rough
    for hole in _HOLES:
        tissue = np.minimum(tissue, -_oval(x, y, size, hole, power=2.0) - 0.5 * rough)
    far = -tissue - _CLEARANCE_UM
    nothing = np.full_like(tissue, -1e3)
    return Layout(
        tissue=tissue.astype(np.float32),
        pen=np.minimum(_stroke(x, y, size), far).astype(np.float32) if marks else nothing.astype(np.float32),
        dust=np.minimum(_specks(x, y, size), far).astype(np.float32) if marks else nothing.astype(np.float32),
        variation=noise(rng, (rows, cols), 260 / MASK_MPP).astype(np.float32),
        node_px=node_px,
    )


def noise(
    rng: np.random.Generator,
    shape: tuple[int, int],
    along_px: float,
    across_px: float | None = None,
    angle: float = 0.0,
) -> NDArray[np.float64]:
    """Smooth random field of `shape`, periodic, mean 0, standard deviation 1.

    Its grain is `along_px` long in the direction `angle` (radians from the x axis) and `across_px` thick.
    """
    across_px = along_px if across_px is None else across_px
    fy, fx = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None, :]
    along = fx * math.cos(angle) + fy * math.sin(angle)
    across = fy * math.cos(angle) - fx * math.sin(angle)
    gain = np.exp(-2 * (math.pi / 2.5) ** 2 * ((along_px * along) ** 2 + (across_px * across) ** 2))
    gain[0, 0] = 0
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal(shape)) * gain, s=shape)
    normalised: NDArray[np.float64] = field / field.std()
    return normalised


def interpolate(
    field: NDArray[np.float32], node_px: float, ys: NDArray[np.int64], xs: NDArray[np.int64]
) -> NDArray[np.float32]:
    """(len(ys), len(xs)) float32 values of `field` at the centres of level-0 pixels, bilinear between nodes."""
    top, down = _neighbours(ys, node_px, field.shape[0])
    left, right = _neighbours(xs, node_px, field.shape[1])
    rows = field[top] * (1 - down[:, None]) + field[np.minimum(top + 1, field.shape[0] - 1)] * down[:, None]
    below = rows[:, np.minimum(left + 1, field.shape[1] - 1)]
    values: NDArray[np.float32] = rows[:, left] * (1 - right) + below * right
    return values


def _neighbours(
    positions: NDArray[np.int64], node_px: float, count: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    at = np.clip((positions + 0.5) / node_px - 0.5, 0, count - 1)
    before = np.floor(at).astype(np.int64)
    return before, (at - before).astype(np.float32)


def _oval(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    size: tuple[float, float],
    shape: tuple[float, float, float, float],
    power: float,
) -> NDArray[np.float64]:
    half_x, half_y = shape[2] * size[0], shape[3] * size[1]
    u, v = np.abs(x - shape[0] * size[0]) / half_x, np.abs(y - shape[1] * size[1]) / half_y
    inside: NDArray[np.float64] = (1 - (u**power + v**power) ** (1 / power)) * min(half_x, half_y)
    return inside


def _stroke(x: NDArray[np.float64], y: NDArray[np.float64], size: tuple[float, float]) -> NDArray[np.float64]:
    start, middle, end = np.array(_PEN) * size
    t = np.linspace(0, 1, 25)[:, None]
    corners = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end
    distance = np.full(x.shape, np.inf)
    for (ax, ay), (bx, by) in pairwise(corners):
        dx, dy = bx - ax, by - ay
        share = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1)
        distance = np.minimum(distance, np.hypot(x - ax - share * dx, y - ay - share * dy))
    return _PEN_WIDTH_UM / 2 - distance


def _specks(x: NDArray[np.float64], y: NDArray[np.float64], size: tuple[float, float]) -> NDArray[np.float64]:
    fields = [r - np.hypot((x - cx * size[0]) * 0.8, y - cy * size[1]) for cx, cy, r in _DUST]
    nearest: NDArray[np.float64] = np.max(fields, axis=0)
    return nearest
