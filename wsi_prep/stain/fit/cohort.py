"""Real tissue whose stain is known: tables of labelled tiles, and folders of slides or pictures with a manifest."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
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
from wsi_prep.stain.classify import tissue_densities
from wsi_prep.stain.fit.examples import Base, Example, Picture, as_it_is, laboratory_of, mosaic
from wsi_prep.stain.fit.recolour import MAP_MPP, stain_vectors, tissue_maps
from wsi_prep.stain.model import CLASSES
from wsi_prep.tissue.background_model import BackgroundModel
from wsi_prep.tissue.detect import MASK_MPP, check_bright_field, detect_tissue
from wsi_prep.untrusted.csv_lines import read_csv

_LEAST_PIECES, _LEAST_MAP_PX, _ROWS_OF_A_PICTURE = 4, 32, 10
_NONE = np.empty((0, 3), np.float32)
_PICTURES = (".jpg", ".jpeg", ".png")
_SHARPER = 0.9
"""Pictures whose pixels are smaller than so much of MASK_MPP are reduced to it."""

# slides that are cut from the cases of the labelled tiles, by the manifest's patient
_SAME_CASE = {
    "atlas-celiac": "celiac-disease",
    "atlas-crohn": "crohn-colonoscopic-biopsy",
    "atlas-glycogenosis": "glycogenstorage",
    "atlas-bs13": "bs13",
    "atlas-melanosis": "melanosiscoli",
    "atlas-bs25": "bs25",
}


@dataclass(frozen=True)
class Cohort:
    """What there is: `pictures` to fit to and to judge by, `bases` to dye, single `tiles` to judge by alone.

    Every one names its case; what is of one case is held out together.
    """

    pictures: tuple[Picture, ...] = ()
    bases: tuple[Base, ...] = ()
    tiles: tuple[Example, ...] = ()

    def __add__(self, other: Cohort) -> Cohort:
        return Cohort(self.pictures + other.pictures, self.bases + other.bases, self.tiles + other.tiles)


def class_of(stain: str) -> str:
    """HE, IHC or SPECIAL of a stain as tables of tiles name it."""
    return "HE" if stain == "HE" else "IHC" if stain.startswith("IHC") else "SPECIAL"


def read_tiles(file: Path) -> Cohort:
    """A Parquet table of columns image, group (the case), mpp, and slide and stain if there are any, else all is H&E.

    The tiles of a slide together are one picture. Rows without a group are one case, and every ten of them a picture;
    a column `source` names their laboratory.
    """
    table = pq.read_table(file)
    if missing := {"image", "group", "mpp"} - set(table.column_names):
        raise UsageError(f"{file} lacks the columns {', '.join(sorted(missing))}")
    by_slide: dict[tuple[str, str, str, str], list[dict[str, Any]]] = defaultdict(list)
    for number, row in enumerate(table.to_pylist()):
        case = (row["group"] or file.stem).lower()
        slide = row.get("slide") or (case if row["group"] else f"{number // _ROWS_OF_A_PICTURE}")
        laboratory = (row.get("source") or laboratory_of(case)).lower()
        by_slide[case, slide, row.get("stain") or "HE", laboratory].append(row)
    cohort = Cohort()
    for (case, slide, stain, laboratory), rows in by_slide.items():
        if len(rows) >= _LEAST_PIECES:
            about = Picture(f"{case} {slide}", case, laboratory, class_of(stain), _NONE)
            cohort += _slide_of_tiles(rows, about, single="stain" in table.column_names)
    return cohort


def _slide_of_tiles(rows: list[dict[str, Any]], about: Picture, *, single: bool) -> Cohort:
    """What the tiles of one slide are good for; `single`: to judge each by itself, too."""
    pictures, mpp = [_decoded(row["image"]) for row in rows], rows[0]["mpp"]
    coarse = list(_shrunk(pictures, MASK_MPP / mpp))
    tiles = [_with(about, picture) for picture in coarse] if single else []
    shown = tuple(example for tile in tiles if (example := as_it_is(tile)))
    bases: tuple[Base, ...] = ()
    if about.stain == "HE" and (maps := _maps(_shrunk(pictures, MAP_MPP / mpp))) is not None:
        bases = (Base(about.case, about.laboratory, maps),)
    return Cohort((_with(about, mosaic(np.array(coarse)), whole=False),), bases, shown)


def _with(about: Picture, pixels: NDArray[np.uint8], whole: bool = True) -> Picture:
    """The picture of these pixels, all of them tissue."""
    pixels = np.ascontiguousarray(pixels)
    densities = tissue_densities(pixels, np.ones(pixels.shape[:2], bool))
    return Picture(about.name, about.case, about.laboratory, about.stain, densities, whole)


def _maps(pictures: NDArray[np.uint8]) -> NDArray[np.float32] | None:
    """(n, side, side, 2) nuclei and the rest of H&E at MAP_MPP, against the glass that all of it shows together."""
    if pictures.shape[1] < _LEAST_MAP_PX:
        return None
    shown = BackgroundModel.of(np.ascontiguousarray(mosaic(pictures)))
    glass = BackgroundModel(shown.colour, np.zeros(6), shown.sampled, shown.stride)
    densities = np.array([glass.density(np.ascontiguousarray(picture)) for picture in pictures])
    vectors = stain_vectors(densities.reshape(-1, 3))
    return None if vectors is None else np.stack(tissue_maps(densities, vectors), axis=-1)


def read_slides(folder: Path) -> Cohort:
    """The slides or pictures that `manifest.csv` in the folder gives a stain to, as the slide stage sees them.

    Columns: slide or file, mpp or um_per_px, class or stain, patient or case.
    """
    header, rows, _ = read_csv(str(folder / "manifest.csv"), (folder / "manifest.csv").read_bytes())
    if missing := [" or ".join(names) for names in _COLUMNS if not set(names) & set(header)]:
        raise UsageError(f"{folder / 'manifest.csv'} lacks the columns {', '.join(missing)}")
    found = []
    for _, cells in rows:
        row = dict(zip(header, cells, strict=True))
        name, mpp, stain, patient = (next((row[n] for n in names if row.get(n)), "") for names in _COLUMNS)
        if not stain:
            continue
        case = _SAME_CASE.get(patient, patient).lower()
        if stain not in CLASSES:
            raise UsageError(f"{folder / 'manifest.csv'}: {name} is {stain}, where {', '.join(CLASSES)} are understood")
        densities = _slide_densities(_thumbnail(folder / name, float(mpp) if mpp else None))
        if densities is not None:
            found.append(Picture(name, case, laboratory_of(case), stain, densities))
    return Cohort(tuple(found))


_COLUMNS = (("slide", "file"), ("mpp", "um_per_px"), ("class", "stain"), ("case", "patient"))


def _slide_densities(thumbnail: Thumbnail) -> NDArray[np.float32] | None:
    """(n, 3) of the slide's tissue; None where it is no bright field."""
    try:
        check_bright_field(thumbnail.pixels)
    except NotBrightField:
        return None
    glass = BackgroundModel.of(thumbnail.pixels)
    mask = detect_tissue(thumbnail.pixels, thumbnail.mpp, glass=glass)
    return tissue_densities(thumbnail.pixels, np.asarray(mask, bool), glass)


def _thumbnail(file: Path, mpp: float | None) -> Thumbnail:
    if file.suffix.lower() in _PICTURES:
        pixels, mpp = _decoded(file.read_bytes()), mpp or MASK_MPP
        factor = MASK_MPP / mpp if mpp < _SHARPER * MASK_MPP else 1.0
        size = (round(pixels.shape[1] / factor), round(pixels.shape[0] / factor))
        reduced = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        return Thumbnail(reduced, mpp * factor, factor, factor)
    reader = open_slide(str(file), "auto")
    try:
        scale = resolve_scale(reader.info, mpp, None)
        return read_thumbnail(reader, scale.mpp_x, scale.mpp_y, MASK_MPP)
    finally:
        reader.close()


def _decoded(image: bytes) -> NDArray[np.uint8]:
    decoded = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    if decoded is None:
        raise UsageError("a picture cannot be decoded: give JPEG or PNG")
    return np.ascontiguousarray(decoded[..., ::-1], np.uint8)


def _shrunk(pictures: list[NDArray[np.uint8]], factor: float) -> NDArray[np.uint8]:
    """(n, side, side, 3) of equal pictures reduced by the factor."""
    side = round(len(pictures[0]) / factor)
    return np.array([cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA) for picture in pictures])
