"""A slide whose pixels store their own position, so that a test sees swapped axes, shifts and wrong scales.

Red depends on x alone, green on y alone: triangle waves that change by one grey level every two pixels or so, with
different periods. Blue is the sum of two far slower waves, one of x and one of y, and tells the periods of the fast
ones apart in slides of up to some 9000 px. All channels stay in the range of stained tissue. The steps are small, so
that averaging, or JPEG, blurs little; and because every channel is a function of x plus a function of y, the mean over
any rectangle, whole pixels or not, is known exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sample_slides.pyramid import Pixels, padded, write_tiff

_LOW, _HIGH = 70, 230
_PX_PER_LEVEL = 2.0
_PERIOD_SHIFT_Y = 50.0
_BLUE_PX_PER_LEVEL = (61.0, 89.0)


def coordinate_slide(
    path: Path,
    width: int,
    height: int,
    mpp: float | None,
    tile: int = 256,
    factors: Sequence[int] = (3,),
) -> Path:
    """Write a lossless pyramidal TIFF of `width` x `height` px whose levels are reduced by `factors`; returns `path`.

    `factors` may be any whole numbers. A size that a factor does not divide loses its last pixels in that level, so
    that level's true scale is the factor, not the ratio of sizes that OpenSlide reports.
    """

    def tiles() -> Iterator[Pixels]:
        for y0 in range(0, height, tile):
            for x0 in range(0, width, tile):
                w, h = min(tile, width - x0), min(tile, height - y0)
                yield padded(_rounded(expected(x0, y0, w, h, (w, h))), tile)

    sizes = [(width // f, height // f) for f in factors]
    levels = [_rounded(expected(0, 0, w * f, h * f, (w, h))) for f, (w, h) in zip(factors, sizes, strict=True)]
    write_tiff(path, tiles(), (width, height), levels, tile, mpp=mpp, lossless=True)
    return path


def expected(x0: float, y0: float, span_x: float, span_y: float, out_px: int | tuple[int, int]) -> NDArray[np.float64]:
    """Exact area means of the slide's level-0 pixels: (out height, out width, 3) float64.

    The rectangle starts at (`x0`, `y0`) and is `span_x` by `span_y` level-0 px, fractions allowed; it is cut into
    `out_px` (a side, or (width, height)) equal pieces. The caller keeps it inside the slide.
    """
    out_w, out_h = (out_px, out_px) if isinstance(out_px, int) else out_px
    along_x = _means(x0, span_x, out_w, axis=0)
    along_y = _means(y0, span_y, out_h, axis=1)
    return along_x[None, :, :] + along_y[:, None, :]


def _means(start: float, span: float, count: int, axis: int) -> NDArray[np.float64]:
    """(count, 3) means of one axis's share of the channels over `count` equal pieces from `start`."""
    edges = start + span * np.arange(count + 1) / count
    values = _channels(np.arange(int(np.ceil(edges[-1] + 1e-6)) + 1), axis)
    integral = np.concatenate([np.zeros((1, 3)), values.cumsum(axis=0)])
    whole = np.floor(edges).astype(np.int64)
    at_edges = integral[whole] + values[whole] * (edges - whole)[:, None]
    means: NDArray[np.float64] = np.diff(at_edges, axis=0) / (span / count)
    return means


def _channels(position: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
    """(n, 3) whole numbers: what x (axis 0) or y (axis 1) adds to red, green and blue at each pixel."""
    values = np.zeros((len(position), 3))
    period = (_HIGH - _LOW) * _PX_PER_LEVEL + axis * _PERIOD_SHIFT_Y
    values[:, axis] = _triangle(position, period, _LOW, _HIGH)
    values[:, 2] = _triangle(position, (_HIGH - _LOW) / 2 * _BLUE_PX_PER_LEVEL[axis], _LOW / 2, _HIGH / 2)
    return values


def _triangle(position: NDArray[np.int64], half_period: float, low: float, high: float) -> NDArray[np.float64]:
    phase = (position / half_period) % 2
    wave: NDArray[np.float64] = np.rint(low + (high - low) * np.minimum(phase, 2 - phase))
    return wave


def _rounded(values: NDArray[np.float64]) -> Pixels:
    pixels: Pixels = np.rint(values).astype(np.uint8)
    return pixels
