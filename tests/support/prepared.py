"""One slide through the slide stage, in this process; and what was stored, beside what was painted."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import zarr

from wsi_prep.output.catalog import Catalog
from wsi_prep.run.slide import prepare_slide
from wsi_prep.run.task import PrepareSettings, SlideTask
from wsi_prep.slides.find.manifest import EMPTY_ROW
from wsi_prep.slides.find.sources import find_slides
from wsi_prep.storage.base import LOCK
from wsi_prep.storage.select import open_storage
from wsi_prep.tiles.plan import PlanSettings
from wsi_prep.tissue.masks import MaskFile


@dataclass
class Prepared:
    """A slide's row, the rows of its tiles, and the folder that it is in."""

    row: dict
    tiles: list[dict]
    out: Path

    def pixels(self, tile: dict) -> np.ndarray:
        """A stored tile, (392, 392, 3)."""
        return zarr.open(self.out / tile["array"], mode="r")[tile["index"]]

    def worst_colour(self, painted: np.ndarray) -> float:
        """The greatest difference of a tile's mean colour from that of the pixels painted there."""
        return max(float(np.abs(a.mean((0, 1)) - b.mean((0, 1))).max()) for a, b in self._pairs(painted))

    def worst_match(self, painted: np.ndarray) -> float:
        """The lowest correlation of a tile's pixels with those painted there: sees what is shifted or swapped."""
        return min(float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in self._pairs(painted))

    def _pairs(self, painted):
        assert self.tiles
        for tile in self.tiles:
            side = round(tile["span0"])
            part = painted[tile["y0"] : tile["y0"] + side, tile["x0"] : tile["x0"] + side]
            yield self.pixels(tile).astype(float), cv2.resize(part, (392, 392), interpolation=cv2.INTER_AREA)


def prepare(path: Path, out: Path, mags: str = "5x 10x", mask: MaskFile | None = None, **settings) -> Prepared:
    """Make the slide at `path`, with a tissue mask if one is given, in the folder `out`."""
    (source,) = find_slides(str(path))
    storage = open_storage(str(out))
    storage.create()
    Catalog(storage).create()
    (out / LOCK).write_text("test")
    wanted = PrepareSettings(plan=PlanSettings(tuple(mags.split())), **settings)
    row = prepare_slide(SlideTask(source, EMPTY_ROW, None, wanted, str(out), "test", mask=mask))
    tiles = [tile for part in (out / "catalog/tiles").glob("*.parquet") for tile in pq.read_table(part).to_pylist()]
    return Prepared(row, tiles, out)
