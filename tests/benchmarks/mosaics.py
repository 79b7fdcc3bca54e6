"""Large slides of real compressed tiles, in several layouts: CMU-1-Small-Region's own, laid out again and again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Layout:
    """How a mosaic is stored: `tile_px` a side, `compression` as tifffile names it, `mpp` as its description says."""

    tile_px: int = 240
    compression: str = "jpeg-rgb"
    mpp: float = 0.25
    tissue: float = 0.5


LAYOUTS = {
    "svs": Layout(),
    "svs, dense": Layout(tissue=1.0),
    "generic": Layout(tile_px=256, compression="jpeg-ycbcr"),
    "svs, 0.2281": Layout(mpp=0.2281),
    "generic, 0.2281": Layout(tile_px=256, compression="jpeg-ycbcr", mpp=0.2281),
    "svs, JPEG 2000": Layout(compression="jpeg2000"),
}


def make_mosaic(file: Path, source: Path, layout: Layout, side_px: int) -> None:
    """Write a pyramid of about `side_px` a side, a share of it tissue in blobs, the rest the source's palest tile."""
    encoded, decoded, tables = _tiles(source, layout)
    palest = max(decoded, key=lambda place: decoded[place].mean())
    across = side_px // layout.tile_px
    tissue = _blobs(across, layout.tissue)
    rows, cols = 1 + np.array(max(decoded))

    def place(y: int, x: int) -> tuple[int, int]:
        return (int(y % rows), int(x % cols)) if tissue[y, x] else palest

    def level(factor: int) -> Pixels:
        px = layout.tile_px // factor
        small = {at: _reduced(tile, factor) for at, tile in decoded.items()}
        return _laid(small, place, across, px)

    size = across * layout.tile_px
    about = f"Aperio Image Library v11.2.1 \n{size}x{size} JPEG/RGB Q=30|AppMag = 40|MPP = {layout.mpp}"
    aperio = layout.compression != "jpeg-ycbcr"
    options: dict[str, Any] = {"tile": (layout.tile_px, layout.tile_px), "metadata": None}
    codec: dict[str, Any] = {
        "jpeg-rgb": {"photometric": "rgb", "compression": "jpeg", "compressionargs": {"outcolorspace": "rgb"}},
        "jpeg-ycbcr": {"photometric": "ycbcr", "compression": "jpeg", "subsampling": (2, 2)},
        "jpeg2000": {"photometric": "rgb", "compression": 33005},  # Aperio's
    }[layout.compression]
    if tables:
        codec["jpegtables"] = tables
    resolution = {} if aperio else {"resolution": (1e4 / layout.mpp,) * 2, "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(file, bigtiff=True) as writer:
        description = about if aperio else None
        tiles = (encoded[place(y, x)] for y in range(across) for x in range(across))
        first = {"shape": (size, size, 3), "dtype": np.uint8, "subifds": 0 if aperio else 2, "subfiletype": 0}
        writer.write(tiles, **first, **options, **codec, **resolution, description=description)
        lower = {**options, "photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 75}}
        if aperio:
            writer.write(level(16), photometric="rgb", compression="jpeg", rowsperstrip=16, metadata=None)
        for factor in (4, 16):
            writer.write(level(factor), **lower, subfiletype=0 if aperio else 1, description=description)


def _tiles(source: Path, layout: Layout) -> tuple[dict[Any, bytes], dict[Any, Pixels], bytes | None]:
    """The source's whole tiles by row and column: compressed as the layout has them, their pixels, JPEG tables."""
    with tifffile.TiffFile(source) as tiff:
        page: Any = tiff.pages[0]
        tables = page.jpegtables
        across = -(-page.imagewidth // page.tilewidth)
        raw = {}
        for number, (offset, count) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
            tiff.filehandle.seek(offset)
            raw[divmod(number, across)] = tiff.filehandle.read(count)
        whole = page.imagelength // page.tilelength, page.imagewidth // page.tilewidth
        picture = page.asarray()
    raw = {place: data for place, data in raw.items() if place[0] < whole[0] and place[1] < whole[1]}
    if layout.compression == "jpeg-rgb":
        decoded = {place: _rgb(data, tables) for place, data in raw.items()}
        return raw, decoded, tables
    px = layout.tile_px
    rows, cols = (side // px for side in picture.shape[:2])
    cut = {(y, x): picture[y * px : (y + 1) * px, x * px : (x + 1) * px] for y in range(rows) for x in range(cols)}
    encode: Callable[[Pixels], bytes] = (
        (lambda tile: bytes(imagecodecs.jpeg2k_encode(np.ascontiguousarray(tile), level=40, codecformat="j2k")))
        if layout.compression == "jpeg2000"
        else (lambda tile: bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(tile), level=80, subsampling="420")))
    )
    return {place: encode(tile) for place, tile in cut.items()}, cut, None


def _rgb(data: bytes, tables: bytes | None) -> Pixels:
    return imagecodecs.jpeg8_decode(data, tables=tables, colorspace="RGB", outcolorspace="RGB")


def _reduced(tile: Pixels, factor: int) -> Pixels:
    px = tile.shape[0] // factor
    return tile.reshape(px, factor, px, factor, 3).mean((1, 3)).round().astype(np.uint8)


def _laid(small: dict[Any, Pixels], place: Callable[[int, int], tuple[int, int]], across: int, px: int) -> Pixels:
    out = np.empty((across * px, across * px, 3), np.uint8)
    for y in range(across):
        for x in range(across):
            out[y * px : (y + 1) * px, x * px : (x + 1) * px] = small[place(y, x)]
    return out


def _blobs(across: int, share: float) -> NDArray[np.bool_]:
    """(across, across): ellipses at random until they cover the share."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:across, :across] / across
    found = np.zeros((across, across), bool)
    while found.mean() < min(share, 0.999):
        cy, cx, ry, rx = *rng.uniform(0, 1, 2), *rng.uniform(0.08, 0.2, 2)
        found |= ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
    return found if share < 1 else np.ones_like(found)
