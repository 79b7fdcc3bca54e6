"""Real tissue whose stain is known: tables of labelled tiles, and slides with a manifest."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from wsi_prep.errors import NotBrightField, UsageError
from wsi_prep.slides.pyramid.thumbnail import Thumbnail, read_thumbnail
from wsi_prep.slides.readers.select import open_slide
from wsi_prep.slides.scale import resolve_scale
from wsi_prep.stain.classify import tissue_features
from wsi_prep.stain.fit.examples import REAL, Example, Tissue, mosaic
from wsi_prep.stain.fit.recolour import MAP_MPP, Map, stain_vectors, tissue_maps
from wsi_prep.tissue.background_model import BackgroundModel
from wsi_prep.tissue.detect import MASK_MPP, check_bright_field, detect_tissue
from wsi_prep.untrusted.csv_lines import read_csv

TILE_MPP = 1.0
"""um per pixel at which tiles are kept."""

_SLIDE_PIECE_PX, _MOST_PIECES, _LEAST_PIECES, _LEAST_MAP_PX = 31, 400, 4, 32

_COPIES = 6

# slides that are cut from the cases of the labelled tiles, by the manifest's patient
_SAME_CASE = {
    "atlas-celiac": "celiac-disease",
    "atlas-crohn": "crohn-colonoscopic-biopsy",
    "atlas-glycogenosis": "glycogenstorage",
    "atlas-bs13": "BS13",
    "atlas-melanosis": "melanosiscoli",
    "atlas-bs25": "BS25",
}


@dataclass(frozen=True)
class Cohort:
    """What there is: `tissues` to make pictures of, and the `tiles` and `slides` as they are, to be judged by.

    Every one names its case; what is of one case is held out together.
    """

    tissues: tuple[Tissue, ...]
    tiles: tuple[Example, ...]
    slides: tuple[Example, ...]

    def as_they_are(self) -> list[Example]:
        """The slides that may be fitted to, unchanged; each several times, as there are far more changed pictures."""
        fitted_to = {tissue.case for tissue in self.tissues}
        return [replace(slide, name=REAL) for slide in self.slides if slide.case in fitted_to] * _COPIES

    def __add__(self, other: Cohort) -> Cohort:
        return Cohort(self.tissues + other.tissues, self.tiles + other.tiles, self.slides + other.slides)


def class_of(stain: str) -> str:
    """HE, IHC or SPECIAL of a stain as tables of tiles name it."""
    return "HE" if stain == "HE" else "IHC" if stain.startswith("IHC") else "SPECIAL"


def read_tiles(file: Path) -> Cohort:
    """A Parquet table of columns image, group (the case), mpp, and slide and stain if there are any, else all is H&E.

    Where there is a column split, its test rows are judged by and the others fitted to; else every row is both, each
    case by a classifier that was fitted without it.
    """
    table = pq.read_table(file)
    if missing := {"image", "group", "mpp"} - set(table.column_names):
        raise UsageError(f"{file} lacks the columns {', '.join(sorted(missing))}")
    by_slide: dict[tuple[str, str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in table.to_pylist():
        key = (row["group"], row.get("slide") or row["group"], row.get("stain") or "HE", row.get("split") or "")
        by_slide[key].append(row)
    cohort = Cohort((), (), ())
    for (case, slide, stain, split), rows in by_slide.items():
        if len(rows) < _LEAST_PIECES:
            continue
        pictures = [_decoded(row["image"]) for row in rows]
        name, kind, mpp = f"{case} {slide}", class_of(stain), rows[0]["mpp"]
        fine = _shrunk(pictures, TILE_MPP / mpp)
        if split != "test":
            cohort += Cohort((_tissue(case, kind, fine),), (), ())
        if split in ("", "test"):
            tiles = _examples(list(fine), kind, case, name) if "stain" in table.column_names else ()
            coarse = _shrunk(pictures, MASK_MPP / mpp)
            cohort += Cohort((), tiles, _examples([mosaic(coarse)], kind, case, name))
    return cohort


def read_slides(folder: Path) -> Cohort:
    """The slides that `manifest.csv` in the folder gives a stain to, as the slide stage sees them."""
    header, rows = read_csv(str(folder / "manifest.csv"), (folder / "manifest.csv").read_bytes())
    cohort = Cohort((), (), ())
    for _, cells in rows:
        row = dict(zip(header, cells, strict=True))
        if not row["stain"]:
            continue
        thumbnail = _thumbnail(folder / row["slide"], float(row["mpp"]) if row["mpp"] else None)
        try:
            check_bright_field(thumbnail.pixels)
        except NotBrightField:
            continue
        case = _SAME_CASE.get(row["patient"], row["patient"])
        glass = BackgroundModel.of(thumbnail.pixels)
        mask = detect_tissue(thumbnail.pixels, thumbnail.mpp, glass=glass)
        features = tissue_features(thumbnail.pixels, mask, glass)
        if features is None:
            continue
        pieces = _pieces(glass.density(thumbnail.pixels), mask)
        tissue = (Tissue(case, row["stain"], thumbnail.mpp, pieces),) if len(pieces) else ()
        cohort += Cohort(tissue, (), (Example(features, row["stain"], case, row["slide"]),))
    return cohort


def _thumbnail(file: Path, mpp: float | None) -> Thumbnail:
    reader = open_slide(str(file), "auto")
    try:
        scale = resolve_scale(reader.info, mpp, None)
        return read_thumbnail(reader, scale.mpp_x, scale.mpp_y, MASK_MPP)
    finally:
        reader.close()


def _pieces(density: Map, mask: NDArray[np.bool_]) -> Map:
    """(n, side, side, 3) squares that are mostly tissue, of an (h, w, 3) picture; not more than 400."""
    side = _SLIDE_PIECE_PX
    corners = [(y, x) for y in range(0, len(mask) - side + 1, side) for x in range(0, mask.shape[1] - side + 1, side)]
    kept = [(y, x) for y, x in corners if mask[y : y + side, x : x + side].mean() > 0.5]
    kept = kept[:: max(1, len(kept) // _MOST_PIECES)]
    return np.array([density[y : y + side, x : x + side] for y, x in kept], np.float32)


def _decoded(image: bytes) -> NDArray[np.uint8]:
    decoded = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.ascontiguousarray(decoded[..., ::-1], np.uint8)


def _shrunk(pictures: list[NDArray[np.uint8]], factor: float) -> NDArray[np.uint8]:
    """(n, side, side, 3) of equal pictures reduced by the factor."""
    side = round(len(pictures[0]) / factor)
    return np.array([cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA) for picture in pictures])


def _tissue(case: str, stain: str, pictures: NDArray[np.uint8]) -> Tissue:
    """The tissue of tiles at TILE_MPP, against the glass that all of them show together; taken apart if H&E."""
    shown = BackgroundModel.of(np.ascontiguousarray(mosaic(pictures)))
    glass = BackgroundModel(shown.colour, np.zeros(6), shown.sampled, shown.stride)
    densities = np.array([glass.density(np.ascontiguousarray(picture)) for picture in pictures])
    side = round(densities.shape[1] * TILE_MPP / MAP_MPP)
    coarse = np.array([cv2.resize(density, (side, side), interpolation=cv2.INTER_AREA) for density in densities])
    vectors = stain_vectors(coarse.reshape(-1, 3)) if stain == "HE" and side >= _LEAST_MAP_PX else None
    maps = np.stack(tissue_maps(coarse, vectors), axis=-1) if vectors is not None else None
    return Tissue(case, stain, TILE_MPP, densities, maps)


def _examples(pictures: list[NDArray[np.uint8]], stain: str, case: str, name: str) -> tuple[Example, ...]:
    """Whole pictures as they are, but for those that show next to no tissue."""
    whole = [np.ascontiguousarray(picture) for picture in pictures]
    seen = [tissue_features(picture, np.ones(picture.shape[:2], bool)) for picture in whole]
    return tuple(Example(features, stain, case, name) for features in seen if features is not None)
