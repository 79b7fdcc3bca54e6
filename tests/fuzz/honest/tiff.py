"""TIFF files page by page, each tile with its own lie."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tifffile

from tests.fuzz.honest.coding import Coding, broken

SPARSE, BLACK, WHITE, GARBLED, CUT = "missing", "black", "white", "garbled", "cut"


@dataclass
class Page:
    """One picture of a file, (h, w, 3), or (h, w) where grey, or planes (n, h, w) that lie apart.

    `lies`: what a tile, by its number, is instead: one of the words above, or the number of another tile. `tile` 0:
    stored in strips. `factor`: level-0 px along one of its pixels. `sub`: pages in its SubIFDs.
    """

    pixels: np.ndarray
    coding: Coding = field(default_factory=Coding)
    tile: int = 256
    lies: dict = field(default_factory=dict)
    description: str | bytes | None = None
    resolution: tuple[float, float] | None = None
    unit: int | None = None
    reduced: int = 0
    planes_apart: bool = False
    factor: float = 1.0
    sub: list["Page"] = field(default_factory=list)

    @property
    def planes(self) -> list[np.ndarray]:
        return list(self.pixels) if self.planes_apart else [self.pixels]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        height, width = self.planes[0].shape[:2]
        return -(-height // self.tile), -(-width // self.tile)


def write_pages(path: Path, pages: list[Page], rng, *, big: bool = False) -> None:
    """The pages in this order, each followed by its SubIFDs."""
    with tifffile.TiffWriter(path, bigtiff=big) as tiff:
        for page in pages:
            _write(tiff, page, rng, subifds=len(page.sub) or None)
            for sub in page.sub:
                _write(tiff, sub, rng, subfiletype=1)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        for page in (p for top in tiff.pages for p in (top, *(top.pages or ()))):
            if page.is_tiled and 0 in page.databytecounts:
                places = [n if k else 0 for n, k in zip(page.dataoffsets, page.databytecounts, strict=True)]
                page.tags["TileOffsets"].overwrite(places)


def _write(tiff, page, rng, **more):
    common = {"metadata": None, "software": False, "subfiletype": page.reduced, "photometric": page.coding.photometric}
    common |= {"compression": page.coding.compression or None, "description": page.description}
    if page.resolution:
        common |= {"resolution": page.resolution, "resolutionunit": page.unit}
    if page.planes_apart:
        common["planarconfig"] = "separate"
    if page.pixels.ndim == 3 and page.pixels.shape[2] == 4:
        common["extrasamples"] = ["unassalpha"]
    if page.coding.compression == "jpeg" and page.coding.photometric == "rgb":
        common["compressionargs"] = {"outcolorspace": "rgb"}  # else tifffile would tag it as YCbCr
    if page.coding.photometric == "ycbcr":
        common["subsampling"] = (2, 2) if page.coding.subsampling == "420" else (1, 1)
    common |= more
    if not page.tile:
        tiff.write(
            page.pixels,
            rowsperstrip=16,
            **common | {"photometric": "rgb", "subsampling": None, "compressionargs": None},
        )
        return
    shape = {"shape": page.pixels.shape, "dtype": page.pixels.dtype, "tile": (page.tile, page.tile)}
    tiff.write(_tiles(page, rng), **shape, **common)


def _tiles(page, rng):
    across = page.grid[1]
    for plane in page.planes:
        for index in range(page.grid[0] * across):
            lie = page.lies.get(index)
            if lie == SPARSE:
                yield b""
                continue
            tile = _cut_out(page, plane, lie if isinstance(lie, int) else index)
            if lie in (BLACK, WHITE):
                tile = np.full_like(tile, 0 if lie == BLACK else 255)
            data = page.coding.encode(tile)
            yield broken(data, lie, rng) if lie in (GARBLED, CUT) else data


def _cut_out(page, plane, index):
    row, col = divmod(index, page.grid[1])
    side = page.tile
    piece = plane[row * side : (row + 1) * side, col * side : (col + 1) * side]
    missing = ((0, side - piece.shape[0]), (0, side - piece.shape[1]), *((0, 0),) * (piece.ndim - 2))
    return np.pad(piece, missing, mode="edge")
