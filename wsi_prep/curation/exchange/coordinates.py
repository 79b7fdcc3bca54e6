"""Tissue outlines and tile places as other tools read them: QuPath's GeoJSON, TRIDENT's and CLAM's coordinate files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import h5py
import numpy as np
from numpy.typing import NDArray

from wsi_prep.errors import BadCatalog, BadMask
from wsi_prep.format.layout import output_places, require_names, require_slide_id
from wsi_prep.format.magnifications import TILE_PX
from wsi_prep.format.records import SlideRow
from wsi_prep.output.query import open_catalog
from wsi_prep.storage.atomic import aside, write_atomically
from wsi_prep.storage.base import Storage
from wsi_prep.storage.select import open_storage
from wsi_prep.tissue.geojson import QUPATH_FRAME, bounded_bytes, feature_collection, read_outlines
from wsi_prep.untrusted.sql import QUESTION_SECONDS, one_expression

_WIDEST = 1e6  # level-0 px of a tile

_OUTLINED = """SELECT DISTINCT slide_id, bounds_x0, bounds_y0, reader FROM slides LEFT JOIN tiles USING (slide_id)
WHERE status IN ('ok', 'empty') AND ({where}\n) ORDER BY slide_id"""

_ARRAYS = """SELECT slide_id, magnification, any_value(width) AS width, any_value(height) AS height,
any_value(mpp) AS mpp, any_value(span0) AS span0, list(x0 ORDER BY index) AS x0, list(y0 ORDER BY index) AS y0
FROM tiles JOIN slides USING (slide_id) WHERE status = 'ok' AND ({where}\n)
GROUP BY slide_id, magnification ORDER BY slide_id, magnification"""


class _Array(TypedDict):
    """A row of _ARRAYS, less the positions."""

    slide_id: str
    magnification: str
    width: int
    height: int
    mpp: float
    span0: float


@dataclass
class Written:
    """What was done: files written, tiles in them, and what was left out, by name with the reason."""

    files: int = 0
    tiles: int = 0
    left_out: dict[str, str] = field(default_factory=dict)


def write_qupath(out: str, where: str, to: Path, seconds: float = QUESTION_SECONDS) -> Written:
    """`to`/<slide_id>.geojson of each slide whose row, or one of whose tiles, fits `where`; `out` is a path or URL.
    `seconds` as in open_catalog.

    Coordinates count from the slide's bounds, which is where QuPath's begin.
    """
    storage = open_storage(out)
    with open_catalog([storage.where], seconds=seconds) as catalog:
        slides = catalog.ask(_OUTLINED.format(where=one_expression(where))).read_all().to_pylist()
    written = Written()
    to.mkdir(parents=True, exist_ok=True)
    for slide in slides:
        require_slide_id(slide["slide_id"])
        try:
            document = _for_qupath(storage, slide)
        except BadMask as error:
            written.left_out[slide["slide_id"]] = str(error)
            continue
        write_atomically(to / f"{slide['slide_id']}.geojson", json.dumps(document).encode())
        written.files += 1
    return written


def _for_qupath(storage: Storage, slide: SlideRow) -> dict[str, object]:
    x0, y0 = slide["bounds_x0"], slide["bounds_y0"]
    if (x0 is None or y0 is None) and slide["reader"] == "tiff":  # a row from before bounds; its reader knows none
        x0 = y0 = 0
    if x0 is None or y0 is None:
        raise BadMask("its row does not say where its bounds begin; make its shards again in another OUT")
    try:
        data = bounded_bytes(storage, output_places(slide["slide_id"])["tissue.geojson"])
    except FileNotFoundError as error:
        raise BadMask("its tissue/*.geojson is missing") from error
    outlines = read_outlines(data, x0, y0)
    return feature_collection([[ring - (x0, y0) for ring in polygon] for polygon in outlines.kept], QUPATH_FRAME)


def write_trident(out: str, where: str, to: Path, seconds: float = QUESTION_SECONDS) -> Written:
    """`to`/<magnification>_392px_0px_overlap/patches/<slide_id>_patches.h5 of the tiles that fit `where`.

    Dataset `coords`, (n, 2) int64 of x0, y0, with TRIDENT's attributes. TRIDENT takes patch_size * level0_magnification
    / target_magnification level-0 px for a tile, so level 0's is the true one: 43.8 where 40x has 0.2281 um/px.
    """

    def attributes(array: _Array) -> dict[str, object]:
        target = int(array["magnification"].removesuffix("x"))
        level0 = round(target * array["span0"] / TILE_PX, 6)
        return {
            "patch_size": TILE_PX,
            "patch_size_level0": round(array["span0"]),
            "level0_magnification": int(level0) if level0.is_integer() else level0,
            "target_magnification": target,
            "overlap": 0,
            "name": array["slide_id"],
            "level0_width": array["width"],
            "level0_height": array["height"],
            "mpp": array["mpp"],
        }

    files = _CoordFiles(f"{{magnification}}_{TILE_PX}px_0px_overlap/patches/{{slide_id}}_patches.h5", attributes)
    return _write_coords(out, where, to, files, seconds)


def write_clam(out: str, where: str, to: Path, seconds: float = QUESTION_SECONDS) -> Written:
    """`to`/<magnification>/patches/<slide_id>.h5 of the tiles that fit `where`.

    Dataset `coords`, (n, 2) int64 of x0, y0, with CLAM's attributes. CLAM reads patch_size px of level patch_level and
    scales them afterwards, so the level is 0 and the size what a tile covers there.
    """

    def attributes(array: _Array) -> dict[str, object]:
        return {
            "patch_size": round(array["span0"]),
            "patch_level": 0,
            "downsample": (1.0, 1.0),
            "downsampled_level_dim": (array["width"], array["height"]),
            "level_dim": (array["width"], array["height"]),
            "name": array["slide_id"],
            "mpp": array["mpp"],
        }

    return _write_coords(out, where, to, _CoordFiles("{magnification}/patches/{slide_id}.h5", attributes), seconds)


@dataclass(frozen=True)
class _CoordFiles:
    """Files of one tool: the `path` of a slide's at a magnification, and the `attributes` of its coordinates."""

    path: str
    attributes: Callable[[_Array], dict[str, object]]


def _write_coords(out: str, where: str, to: Path, files: _CoordFiles, seconds: float) -> Written:
    written = Written()
    with open_catalog([out], seconds=seconds) as catalog:
        for batch in catalog.ask(_ARRAYS.format(where=one_expression(where))):
            arrays: list[_Array] = batch.drop_columns(["x0", "y0"]).to_pylist()
            for array, x0, y0 in zip(arrays, batch["x0"], batch["y0"], strict=True):
                require_names(array["slide_id"], array["magnification"])
                known = None not in array.values() and x0.values.null_count + y0.values.null_count == 0
                if not (known and 0 < array["span0"] < _WIDEST):
                    raise BadCatalog(f"the catalog does not say where the tiles of {array['slide_id']} are")
                file = to / files.path.format(**array)
                file.parent.mkdir(parents=True, exist_ok=True)
                coords: NDArray[np.int64] = np.stack([x0.values.to_numpy(), y0.values.to_numpy()], axis=1)
                with aside(file) as unfinished, h5py.File(unfinished, "w") as h5:
                    h5["coords"] = coords
                    h5["coords"].attrs.update(files.attributes(array))
                written.files += 1
                written.tiles += len(coords)
    return written
