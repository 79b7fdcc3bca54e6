"""One slide's tiles: read, measured, kept or left out, encoded and stored, with a catalog row of each."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from wsi_prep.compute.ahead import prefetch
from wsi_prep.compute.threads import ThreadPool
from wsi_prep.format.jpeg import JpegSettings, encode_planes, encode_tile
from wsi_prep.format.magnifications import MAGNIFICATIONS, TILE_PX
from wsi_prep.format.records import TILE_SCHEMA
from wsi_prep.format.zarr_metadata import store_attributes
from wsi_prep.slides.base import SlideReader
from wsi_prep.slides.images import Image, Planes
from wsi_prep.tiles.filters import TileFilter
from wsi_prep.tiles.pixels import TileGroup, read_groups, stored_planes
from wsi_prep.tiles.plan import TilePlan
from wsi_prep.tiles.quality import MEASURES, Measurer
from wsi_prep.tiles.store import StoreWriter, TileLocation


@dataclass(frozen=True)
class TileSettings:
    """How tiles are compressed, and which `filters` each has to pass.

    `own_quality`: where the slide stores JPEGs of YCbCr, its tiles are cut as planes, and those that are not scaled are
    of the slide's quality instead of that in `jpeg`.
    """

    jpeg: JpegSettings
    filters: tuple[TileFilter, ...] = ()
    own_quality: bool = False


_LEAST_QUALITY = 75
"""Of a slide whose own is kept: from 60 down colour loses more than brightness gains (docs/how-it-works.md, JPEG)."""

_REDUCED_QUALITY = 91
"""Of tiles that are reduced from planes: whose encoder rounds more, so that at 90 they would be a little less near."""


def write_tiles(
    store: Path,
    slide_id: str,
    reader: SlideReader,
    plan: TilePlan,
    settings: TileSettings,
    pool: ThreadPool,
) -> tuple[TilePlan, pa.Table, list[int], dict[str, str]]:
    """Write those tiles of `plan` that pass all filters into the folder `store`, none where none does.

    The pool measures and encodes side by side. Returns the plan of these tiles, their rows in TILE_SCHEMA,
    how many tiles of `plan` fail each filter, and the digests of the store's files.
    """
    planar, jpeg = _compression(reader, plan, settings)
    locations: list[TileLocation] = []
    measures = np.empty((len(plan), len(MEASURES)), np.float32)
    kept = np.zeros(len(plan), bool)
    with (
        contextlib.closing(prefetch(read_groups(reader, plan, planar=planar))) as groups,
        StoreWriter(store, jpeg, store_attributes(slide_id, plan.grid.mpp_by_magnification)) as writer,
    ):
        for group in groups:
            name = MAGNIFICATIONS[plan.mag[group.tiles.start]].name
            measurer = Measurer(group.corner, group.quarter, plan.pen[group.tiles], plan.fat[group.tiles])
            passes = functools.partial(_passes, settings.filters, name)
            make = functools.partial(_make, group, measurer, passes, jpeg[name])
            for index, (measured, data) in zip(group.tiles, pool.share(make, range(len(group.tiles))), strict=True):
                measures[index] = measured
                if data is not None:
                    kept[index] = True
                    locations.append(writer.append(name, data))
    failures = [condition.failures(measures, plan.mag) for condition in settings.filters]
    plan = plan.only(kept)
    return plan, _rows(slide_id, plan, measures[kept], locations), failures, writer.digests


def _compression(reader: SlideReader, plan: TilePlan, settings: TileSettings) -> tuple[bool, dict[str, JpegSettings]]:
    """Whether tiles are cut as planes, and how those of each magnification are compressed.

    Tiles that fit the slide's pixels are, where its quality is somewhat below the usual one: those that are not scaled
    keep it, and are nearer to the slide at fewer bytes, since their blocks are its blocks. Resampled tiles always are.
    """
    usual = settings.jpeg
    may_be = settings.own_quality and usual.subsampling == "420" and len(plan)
    stored = stored_planes(reader, plan) if may_be else None
    if stored is None or (stored.step is not None and not _LEAST_QUALITY <= stored.quality < usual.quality):
        return False, {m.name: usual for m in MAGNIFICATIONS}
    jpeg = {m.name: replace(usual, quality=_REDUCED_QUALITY) for m in MAGNIFICATIONS}
    if stored.step == 1:
        jpeg[MAGNIFICATIONS[int(plan.mag.min())].name] = replace(usual, quality=stored.quality)
    return True, jpeg


def _make(
    group: TileGroup,
    measurer: Measurer,
    passes: Callable[[NDArray[np.float32]], bool],
    jpeg: JpegSettings,
    numbers: Sequence[int],
) -> list[tuple[NDArray[np.float32], bytes | None]]:
    """The MEASURES of the group's tiles with these numbers, and the JPEG of each that passes."""
    tile = group.image.room(TILE_PX, TILE_PX)  # read from the large image once, then close at hand
    made = []
    for number in numbers:
        tile.fill(group.tile(number))
        measured = np.array(measurer.measure(number, tile), np.float32)  # as the catalog will have them
        made.append((measured, _encode(tile, jpeg) if passes(measured) else None))
    return made


def _passes(filters: Sequence[TileFilter], magnification: str, measured: NDArray[np.float32]) -> bool:
    return all(condition.passes(measured.tolist(), magnification) for condition in filters)


def _encode(tile: Image, settings: JpegSettings) -> bytes:
    if isinstance(tile, Planes):
        return encode_planes(tile.luma, tile.blue, tile.red, settings.quality)
    return encode_tile(tile.rgb(), settings)


def _rows(slide_id: str, plan: TilePlan, measures: NDArray[np.float32], locations: list[TileLocation]) -> pa.Table:
    names = np.array([m.name for m in MAGNIFICATIONS])
    usable = plan.grid.magnifications
    mpp = np.array([plan.grid.mpp(m) if m in usable else np.nan for m in MAGNIFICATIONS])
    span0 = np.array([plan.grid.span_x0(m) if m in usable else np.nan for m in MAGNIFICATIONS])
    store = f"stores/{slide_id}.zarr"
    columns = {
        "slide_id": np.full(len(plan), slide_id),
        "magnification": names[plan.mag],
        "mpp": mpp[plan.mag],
        "x0": plan.x0,
        "y0": plan.y0,
        "span0": span0[plan.mag],
        "row": plan.row,
        "col": plan.col,
        "tissue_fraction": plan.tissue_fraction,
        **{name: measures[:, i] for i, name in enumerate(MEASURES)},
        "shard": [f"{store}/{place.shard}" for place in locations],
        "array": np.array([f"{store}/{name}" for name in names])[plan.mag],
        "index": [place.index for place in locations],
        "offset": [place.offset for place in locations],
        "nbytes": [place.nbytes for place in locations],
        "crc32": [place.crc32 for place in locations],
    }
    return pa.table([pa.array(columns[f.name], f.type) for f in TILE_SCHEMA], schema=TILE_SCHEMA)
