"""Writing slide files: an Aperio SVS layout and a generic pyramidal TIFF, level 0 tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Paint = Callable[[int, int, int, int], Pixels]
"""(x0, y0, width, height) in level-0 px -> (height, width, 3) uint8."""

_JPEG: dict[str, Any] = {"compression": "jpeg", "compressionargs": {"level": 75}, "photometric": "rgb"}


def paint_levels(
    paint: Paint, width: int, height: int, factors: Sequence[int], tile: int
) -> tuple[Iterator[Pixels], list[Pixels]]:
    """Level 0 as tiles, and the reduced levels: arrays that fill while the tiles are taken.

    Each pixel of a reduced level is the mean of `factor` x `factor` level-0 pixels; what is left at the right and lower
    edge is dropped, as scanners do. `tile` must be divisible by every factor.
    """
    assert all(tile % factor == 0 for factor in factors)
    levels = [np.empty((height // f, width // f, 3), np.uint8) for f in factors]

    def tiles() -> Iterator[Pixels]:
        for y0 in range(0, height, tile):
            for x0 in range(0, width, tile):
                pixels = paint(x0, y0, min(tile, width - x0), min(tile, height - y0))
                for factor, level in zip(factors, levels, strict=True):
                    part = _reduced(pixels, factor)
                    y, x = y0 // factor, x0 // factor
                    level[y : y + part.shape[0], x : x + part.shape[1]] = part
                yield padded(pixels, tile)

    return tiles(), levels


def write_svs(path: Path, paint: Paint, width: int, height: int, mpp: float, tile: int = 256) -> None:
    """Aperio's layout: tiled JPEG, a thumbnail, levels reduced 4 and 16 times; `mpp` um/px in the description."""
    tiles, levels = paint_levels(paint, width, height, (4, 16), tile)
    size = f"{width}x{height}"
    about = f"Aperio Image Library v11.2.1 \n{size} ({tile}x{tile}) JPEG/RGB Q=75|AppMag = 40|MPP = {mpp:.4f}"
    with tifffile.TiffWriter(path) as tif:
        common: dict[str, Any] = {**_JPEG, "metadata": None, "description": about}
        tif.write(tiles, shape=(height, width, 3), dtype=np.uint8, tile=(tile, tile), **common)
        tif.write(levels[-1], rowsperstrip=16, **common)
        for level in levels:
            tif.write(level, tile=(tile, tile), **common)


def write_tiff(
    path: Path,
    tiles: Iterator[Pixels],
    size: tuple[int, int],
    levels: Sequence[Pixels],
    tile: int,
    *,
    mpp: float | None = None,
    lossless: bool = False,
) -> None:
    """A generic pyramidal TIFF of `size` (width, height); `mpp` um/px becomes resolution tags, None leaves no scale."""
    kind: dict[str, Any] = {"compression": "deflate", "photometric": "rgb"} if lossless else _JPEG
    common: dict[str, Any] = {**kind, "metadata": None, "tile": (tile, tile)}
    scale = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as tif:
        tif.write(tiles, shape=(size[1], size[0], 3), dtype=np.uint8, **common, **scale)
        for level in levels:
            tif.write(level, subfiletype=1, **common)


def padded(pixels: Pixels, tile: int) -> Pixels:
    """`pixels` as a whole tile, edge pixels repeated."""
    missing = ((0, tile - pixels.shape[0]), (0, tile - pixels.shape[1]), (0, 0))
    return np.pad(pixels, missing, mode="edge")


def _reduced(pixels: Pixels, factor: int) -> Pixels:
    rows, cols = pixels.shape[0] // factor, pixels.shape[1] // factor
    blocks = pixels[: rows * factor, : cols * factor].reshape(rows, factor, cols, factor, 3)
    mean: Pixels = np.rint(blocks.mean(axis=(1, 3), dtype=np.float32)).astype(np.uint8)
    return mean
