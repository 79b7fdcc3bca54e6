"""Tissue outlines and tile places as other tools read them: QuPath's GeoJSON, TRIDENT's and CLAM's coordinate files."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict

import h5py
import numpy as np
from numpy.typing import NDArray

from wsi_prep.curation.exchange.slide_names import SlideName, slide_names, write_csv, write_slides
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

_NEEDED: tuple[Literal["width", "height", "mpp", "span0"], ...] = ("width", "height", "mpp", "span0")

_OUTLINED = """SELECT DISTINCT slide_id, bounds_x0, bounds_y0, reader FROM slides LEFT JOIN tiles USING (slide_id)
WHERE status IN ('ok', 'empty') AND ({where}\n) ORDER BY slide_id"""

_ARRAYS = """SELECT slide_id, magnification, any_value(width) AS width, any_value(height) AS height,
any_value(mpp) AS mpp, any_value(mpp_x) AS mpp_x, any_value(span0) AS span0,
list(x0 ORDER BY index) AS x0, list(y0 ORDER BY index) AS y0
FROM tiles JOIN slides USING (slide_id) WHERE status = 'ok' AND ({where}\n)
GROUP BY slide_id, magnification ORDER BY slide_id, magnification"""


class _Array(TypedDict):
    """A row of _ARRAYS, less the positions."""

    slide_id: str
    magnification: str
    width: int
    height: int
    mpp: float
    mpp_x: float | None
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
    """`to`/<magnification>_392px_0px_overlap/patches/<stem>_patches.h5 of the tiles that fit `where`, where
    TRIDENT/trident/Processor.py looks for them, and `to`/list_of_wsis.csv for its --custom_list_of_wsis.

    Dataset `coords`, (n, 2) int64 of x0, y0, with TRIDENT's attributes. TRIDENT takes patch_size * level0_magnification
    / target_magnification level-0 px for a tile, so level 0's is the true one: 43.8 where 40x has 0.2281 um/px.
    `list_of_wsis.csv` has a column `mpp`, the um/px of level 0, where each slide's row says it.
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
            "level0_width": array["width"],
            "level0_height": array["height"],
            "mpp": array["mpp"],
        }

    def lists(exported: Sequence[_Exported]) -> None:
        scales = {slide.link: array["mpp_x"] for slide, array in exported}
        rows = [{"wsi": link, "mpp": mpp} for link, mpp in scales.items()]
        if None in scales.values():  # TRIDENT passes an empty cell by, and takes the next slide's
            rows = [{"wsi": link} for link in scales]
        write_csv(to / "list_of_wsis.csv", rows)

    path = f"{{magnification}}_{TILE_PX}px_0px_overlap/patches/{{stem}}_patches.h5"
    return _write_coords(out, where, to, _CoordFiles(path, attributes, lists), seconds)


_PROCESSED: dict[str, object] = {
    "process": 0,
    "status": "processed",
    "seg_level": -1,
    "sthresh": 8,
    "mthresh": 7,
    "close": 4,
    "use_otsu": False,
    "keep_ids": "none",
    "exclude_ids": "none",
    "a_t": 100.0,
    "a_h": 16.0,
    "max_n_holes": 8,
    "vis_level": -1,
    "line_thickness": 250,
    "use_padding": True,
    "contour_fn": "four_pt",
}
"""What CLAM/create_patches_fp.py writes of a slide that it is done with, by its own defaults."""


def write_clam(out: str, where: str, to: Path, seconds: float = QUESTION_SECONDS) -> Written:
    """`to`/<magnification>/patches/<stem>.h5 of the tiles that fit `where`, and beside each folder `patches` the
    process_list_autogen.csv that CLAM/extract_features_fp.py takes as --csv_path.

    Dataset `coords`, (n, 2) int64 of x0, y0, with CLAM's attributes. CLAM reads patch_size px of level patch_level and
    scales them afterwards, so the level is 0 and the size what a tile covers there. CLAM knows one ending of slides a
    call: where there are several, each has a list of its own, as in process_list_svs.csv.
    """

    def attributes(array: _Array) -> dict[str, object]:
        return {
            "patch_size": round(array["span0"]),
            "patch_level": 0,
            "downsample": (1.0, 1.0),
            "downsampled_level_dim": (array["width"], array["height"]),
            "level_dim": (array["width"], array["height"]),
            "mpp": array["mpp"],
        }

    def lists(exported: Sequence[_Exported]) -> None:
        slides = defaultdict(list)
        for slide, array in exported:
            slides[to / array["magnification"]].append(slide)
        for folder, those in slides.items():
            rows = [(slide.ending, {"slide_id": slide.link, **_PROCESSED}) for slide in those]
            write_csv(folder / "process_list_autogen.csv", [row for _, row in rows])
            endings = {ending for ending, _ in rows}
            for ending in endings if len(endings) > 1 else ():
                some = [row for has, row in rows if has == ending]
                write_csv(folder / f"process_list_{ending.lstrip('.') or 'none'}.csv", some)

    return _write_coords(out, where, to, _CoordFiles("{magnification}/patches/{stem}.h5", attributes, lists), seconds)


_Exported = tuple[SlideName, _Array]


@dataclass(frozen=True)
class _CoordFiles:
    """Files of one tool: the `path` of a slide's at a magnification, the `attributes` of its coordinates, and what
    `lists` writes when all of them, at least one, are there.
    """

    path: str
    attributes: Callable[[_Array], dict[str, object]]
    lists: Callable[[Sequence[_Exported]], None]


def _write_coords(out: str, where: str, to: Path, files: _CoordFiles, seconds: float) -> Written:
    written = Written()
    exported: list[_Exported] = []
    storage = open_storage(out)
    with open_catalog([storage.where], seconds=seconds) as catalog:
        condition = one_expression(where)
        names = slide_names(catalog)
        for batch in catalog.ask(_ARRAYS.format(where=condition)):
            arrays: list[_Array] = batch.drop_columns(["x0", "y0"]).to_pylist()
            for array, x0, y0 in zip(arrays, batch["x0"], batch["y0"], strict=True):
                require_names(array["slide_id"], array["magnification"])
                known = all(array[each] is not None for each in _NEEDED)
                if not (known and x0.values.null_count + y0.values.null_count == 0 and 0 < array["span0"] < _WIDEST):
                    raise BadCatalog(f"the catalog does not say where the tiles of {array['slide_id']} are")
                slide = names[array["slide_id"]]
                file = to / files.path.format(magnification=array["magnification"], stem=slide.stem)
                file.parent.mkdir(parents=True, exist_ok=True)
                coords: NDArray[np.int64] = np.stack([x0.values.to_numpy(), y0.values.to_numpy()], axis=1)
                with aside(file) as unfinished, h5py.File(unfinished, "w") as h5:
                    h5["coords"] = coords
                    h5["coords"].attrs.update({"name": slide.stem, **files.attributes(array)})
                exported.append((slide, array))
                written.files += 1
                written.tiles += len(coords)
    if exported:
        files.lists(exported)
        write_slides(to, {slide.slide_id: slide for slide, _ in exported}.values(), storage)
    return written
