"""One slide in a notebook: opened, its tissue found, its tiles planned, read and shown, without Dask or an output.

The steps are those of `make shards`, with the same results.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_prep.errors import BadOption, WsiPrepError
from wsi_prep.format.stored_tiles import decode_stored, place_of
from wsi_prep.slides.base import SlideInfo
from wsi_prep.slides.pyramid.thumbnail import Thumbnail
from wsi_prep.slides.pyramid.trusted import TrustedLevels
from wsi_prep.slides.readers.select import open_slide as open_reader
from wsi_prep.slides.scale import Scale, resolve_scale
from wsi_prep.stain.classify import StainCall
from wsi_prep.stain.classify import classify_stain as stain_of
from wsi_prep.storage.select import open_storage
from wsi_prep.tiles import plan as tile_plan
from wsi_prep.tiles.grid import Grid
from wsi_prep.tiles.overlay import draw_overlay
from wsi_prep.tiles.pixels import read_groups
from wsi_prep.tiles.plan import PlanSettings, TilePlan
from wsi_prep.tissue.detect import TissueSettings
from wsi_prep.tissue.find import FoundTissue, find_tissue

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INCHES = 4.0


class Slide:
    """An open slide; close it, or use it in a `with`.

    `info`: what its file says. `mpp_x`, `mpp_y`: um per level-0 px. Not safe to share between threads.

    >>> with open_slide("slide.svs") as slide:
    ...     slide.thumbnail.pixels.shape, slide.read(3000, 1500, 100, 50).shape, slide.warnings
    ((106, 206, 3), (50, 100, 3), [])
    """

    def __init__(self, path: str, reader: TrustedLevels, scale: Scale) -> None:
        self.path, self._reader, self._scale = path, reader, scale
        self.mpp_x, self.mpp_y = scale.mpp_x, scale.mpp_y

    def __enter__(self) -> Slide:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._reader.close()

    @property
    def info(self) -> SlideInfo:
        """What the file says: size, levels, scale, vendor, scanner."""
        return self._reader.info

    @property
    def warnings(self) -> list[str]:
        """What was assumed or done without so far, as `warning` of the catalog has it."""
        return [text for text in (self._scale.warning, *self.info.notes, *self._reader.warnings) if text]

    @property
    def grid(self) -> Grid:
        """The nested grid of its tiles. Raises TooCoarse for a slide that is coarser than 5x."""
        return Grid.of_slide(self.info.width0, self.info.height0, self.mpp_x, self.mpp_y)

    @property
    def thumbnail(self) -> Thumbnail:
        """The slide at 8 um/px: `pixels` (h, w, 3) uint8 RGB, and the level-0 px that each of them covers."""
        return self._found.thumbnail

    def read(self, x0: int, y0: int, width: int, height: int, level: int = 0) -> NDArray[np.uint8]:
        """Pixels (height, width, 3) uint8 RGB of a rectangle of a level.

        `x0`, `y0` are level-0 px of its upper left corner, `width` and `height` pixels of that level. What lies
        outside the slide has its background's colour. Raises DamagedSlide.
        """
        downsample = self.info.levels[level].downsample
        return self._reader.read(level, round(x0 / downsample), round(y0 / downsample), width, height)

    def tiles(self, plan: TilePlan) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Each tile of a plan: its number there, and (392, 392, 3) uint8 RGB. Each source pixel is decoded once."""
        for group in read_groups(self._reader, plan):
            for number, tile in enumerate(group.tiles):
                yield tile, group.tile(number).rgb().copy()

    @functools.cached_property
    def _found(self) -> FoundTissue:
        return self._find(TissueSettings())

    def _find(self, settings: TissueSettings) -> FoundTissue:
        return find_tissue(self._reader, self._scale, settings)


def open_slide(
    path: str | Path, *, mpp: float | None = None, assume_mpp: float | None = None, reader: str = "auto"
) -> Slide:
    """Open a slide file, with the reader that `make shards` would take.

    `mpp` is its scale in um per level-0 px, whatever the file says; `assume_mpp` where the file says none. `reader` is
    auto, tiff or openslide. Raises UnreadableSlide, DamagedSlide, MissingMpp, ImplausibleMpp, TooCoarse and BadOption.

    >>> with open_slide("slide.svs") as slide:
    ...     slide.info.width0, slide.info.height0, slide.mpp_x
    (6600, 3400, 0.25)
    """
    opened = open_reader(str(path), reader)
    try:
        return Slide(str(path), TrustedLevels(opened), resolve_scale(opened.info, mpp, assume_mpp))
    except WsiPrepError:
        opened.close()
        raise


def detect_tissue(slide: Slide, settings: TissueSettings | None = None) -> NDArray[np.bool_]:
    """Where the slide has tissue: (h, w) bool, in the pixels of `slide.thumbnail`. Raises NotBrightField.

    >>> with open_slide("slide.svs") as slide:
    ...     tissue = detect_tissue(slide)
    >>> tissue.dtype, bool(0.05 < tissue.mean() < 1)
    (dtype('bool'), True)
    """
    return slide._find(settings).tissue if settings else slide._found.tissue


def plan_tiles(slide: Slide, tissue: NDArray[np.bool_] | None = None, settings: PlanSettings | None = None) -> TilePlan:
    """Which tiles the slide gives; `tissue` as `detect_tissue` gives it, which is called where it is left out.

    Raises TooCoarse, NotBrightField, and BadOption for a mask of another shape.

    >>> with open_slide("slide.svs") as slide:
    ...     plan = plan_tiles(slide, settings=PlanSettings(("20x",)))
    ...     number, pixels = next(slide.tiles(plan))
    >>> len(plan) > 10, pixels.shape
    (True, (392, 392, 3))
    """
    thumbnail = slide.thumbnail
    tissue = detect_tissue(slide) if tissue is None else tissue
    if tissue.shape != thumbnail.pixels.shape[:2]:
        raise BadOption(f"a mask of {tissue.shape} pixels is not of the thumbnail's {thumbnail.pixels.shape[:2]}")
    steps = thumbnail.step_x0, thumbnail.step_y0
    return tile_plan.plan_tiles(slide.grid, tissue, *steps, settings or PlanSettings(), Path(slide.path).name)


def classify_stain(slide: Slide) -> StainCall:
    """The slide's stain by its pixels, and how likely that is right: HE, IHC, ..., or UNKNOWN. Raises NotBrightField.

    >>> with open_slide("slide.svs") as slide:
    ...     classify_stain(slide).stain
    'HE'
    """
    found = slide._found
    return stain_of(found.thumbnail.pixels, found.tissue, found.glass)


def read_tile(shards: str | Path, row: Mapping[str, object]) -> NDArray[np.uint8]:
    """The tile of a row of the catalog's tiles, (392, 392, 3) uint8 RGB.

    `row` has slide_id, magnification, index, offset, nbytes and crc32. Raises BadCatalog where these name no tile,
    WrongBytes where its bytes are not those that were written, and OSError.

    >>> with open_catalog("shards") as catalog:
    ...     rows = catalog.ask("SELECT * FROM tiles WHERE magnification = '20x' LIMIT 1").read_all().to_pylist()
    >>> read_tile("shards", rows[0]).shape
    (392, 392, 3)
    """
    at = place_of(row)  # type: ignore[arg-type]  # which asks of each value what it is
    [jpeg] = open_storage(shards).spans(at.shard, [(at.offset, at.nbytes)])
    return decode_stored(jpeg, at.crc32)


def show(slide: Slide, tissue: NDArray[np.bool_] | None = None, plan: TilePlan | None = None) -> Figure:
    """A figure of the slide, its tissue's outline and the tiles of each magnification, as in OUT/overlays.

    What is left out is detected and planned. Raises BadOption where matplotlib is not installed.

    >>> with open_slide("slide.svs") as slide:
    ...     figure = show(slide)
    >>> figure.savefig("slide.png")
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise BadOption("show draws with matplotlib, which is not installed: pip install matplotlib")
    from matplotlib.figure import Figure  # noqa: PLC0415 - only this needs it

    tissue = detect_tissue(slide) if tissue is None else tissue
    plan = plan_tiles(slide, tissue) if plan is None else plan
    jpeg = draw_overlay(slide.thumbnail, tissue, plan, Path(slide.path).name)
    picture = cv2.cvtColor(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    height, width = picture.shape[:2]
    figure = Figure((_INCHES * width / height, _INCHES), dpi=height / _INCHES)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(picture)
    axes.axis("off")
    return figure
