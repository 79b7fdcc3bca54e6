"""Slides with a label each, and the features of their tiles in a folder of h5 files."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from pretrain.compute.plain_files import read_json, size_of
from pretrain.compute.randomness import Purpose, uniforms
from pretrain.data.labelled import open_h5
from pretrain.errors import BadTask
from pretrain.evaluation.csv_rows import csv_rows
from pretrain.features.kept_features import RECORD
from wsi_prep.errors import counted
from wsi_prep.format.layout import bare_name
from wsi_prep.format.magnifications import MAGNIFICATIONS

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
SLIDES = ("slide_id", "slide")
"""Columns that name a slide: by its id, its file, or its file without the ending."""
PATIENTS = ("patient", "patient_id", "patient_key", "case")
"""Columns that name its patient; the first that there is counts."""
LABEL = "label"
_MOST_CSV = 256 << 20
_MOST_BYTES = 4 << 30  # of one slide's features
_WIDEST = 1 << 16


@dataclass(frozen=True)
class LabelledSlides:
    """n slides. `labels`: (n,) int64 into `classes`; `patients`: (n,) int64, a slide for itself where that is unknown.

    `notes`: what a user should know of how they were read.
    """

    name: str
    slides: tuple[str, ...]
    labels: Ints
    classes: tuple[str, ...]
    patients: Ints
    notes: tuple[str, ...] = ()

    def take(self, rows: Ints) -> LabelledSlides:
        """These alone, in this order."""
        slides = tuple(self.slides[row] for row in rows)
        return LabelledSlides(self.name, slides, self.labels[rows], self.classes, self.patients[rows], self.notes)


@dataclass(frozen=True)
class Bags:
    """The features of tiles of slides by one model: (tiles, F) float32 of each slide, in the order of their names."""

    name: str
    slides: tuple[str, ...]
    features: tuple[Floats, ...]
    notes: tuple[str, ...] = ()


def read_labels(file: Path) -> LabelledSlides:
    """A CSV file with a column of SLIDES, `label`, and perhaps one of PATIENTS; rows without a label are skipped.

    Raises BadTask.
    """
    try:
        if size_of(file) > _MOST_CSV:
            raise BadTask(f"{file}: is larger than a table of labels can be")
    except (OSError, ValueError) as error:
        raise BadTask(f"{file}: cannot be read ({error})") from error
    rows = csv_rows(file, LABEL)
    there = rows[0].keys() if rows else ()
    slide, patient = (next((n for n in names if n in there), None) for names in (SLIDES, PATIENTS))
    if slide is None:
        raise BadTask(f"{file}: has no column {' or '.join(SLIDES)} with names of slides; add it")
    kept = [row for row in rows if (row[LABEL] or "").strip() and (row[slide] or "").strip()]
    names = [row[slide].strip() for row in kept]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise BadTask(f"{file}: {twice[0]} has several rows; leave one")
    if not names:
        raise BadTask(f"{file}: no row has a slide and a label")
    notes = [f"{counted(len(rows) - len(kept), 'row')} without slide or label skipped"] if len(kept) < len(rows) else []
    if patient is None:
        notes.append(f"no column {' or '.join(PATIENTS)}: each slide counts as a patient, and figures may be too high")
    told = [(row[patient] or "").strip() if patient else "" for row in kept]
    owners = [f"patient {who}" if who else f"slide {name}" for who, name in zip(told, names, strict=True)]
    classes, labels = np.unique([row[LABEL].strip() for row in kept], return_inverse=True)
    return LabelledSlides(
        file.stem,
        tuple(names),
        labels.astype(np.int64),
        tuple(map(str, classes)),
        np.unique(owners, return_inverse=True)[1].astype(np.int64),
        tuple(notes),
    )


def read_bags(folder: Path, wanted: Sequence[str], magnification: str, most: int) -> Bags:
    """The features of the wanted slides that a folder has, as `make embed` leaves them, or `SLIDE.h5` right in it.

    `magnification`: which of h5/20x, ...; "" for the only one. `most`: tiles of a slide, drawn by chance, always the
    same ones; 0 for all. Raises BadTask.
    """
    place, about = _place(folder, magnification)
    files = {file.name.removesuffix(".h5"): file for file in sorted(place.glob("[!.]*.h5"))}
    by_name = {bare_name(name): file for name, file in files.items()} | files
    slides, features, drawn = [], [], 0
    for slide in wanted:
        file = by_name.get(slide) or by_name.get(bare_name(slide)) or _by_id(files, slide)
        if file is None:
            continue
        read, all_tiles = _features(file, most)
        drawn += len(read) < all_tiles
        slides.append(slide)
        features.append(read)
    if not slides:
        raise BadTask(f"{place}: has features of none of {counted(len(wanted), 'slide')}, as {wanted[0]}.h5")
    if len(widths := {each.shape[1] for each in features}) > 1:
        raise BadTask(f"{place}: features are of several widths, {sorted(widths)}; make them by one model")
    notes = []
    if missing := len(wanted) - len(slides):
        notes.append(f"{about}: {counted(missing, 'slide')} without features skipped")
    if drawn:
        notes.append(f"{about}: of {counted(drawn, 'slide')}, {most:,} tiles are drawn")
    return Bags(about, tuple(slides), tuple(features), tuple(notes))


def _place(folder: Path, magnification: str) -> tuple[Path, str]:
    """Where a folder's h5 files are, and what its features are called."""
    if not folder.is_dir():
        raise BadTask(f"{folder}: there is no such folder of features; make embed writes one")
    name = folder.resolve().name
    if (folder / RECORD).is_file():
        try:
            name = str(read_json(folder / RECORD).get("model_name") or name)
        except (OSError, ValueError, AttributeError) as error:
            raise BadTask(f"{folder / RECORD}: cannot be read ({error})") from error
    there = [m.name for m in MAGNIFICATIONS if (folder / "h5" / m.name).is_dir()]
    if magnification:
        if magnification not in there:
            raise BadTask(f"{folder}: has no features at {magnification}, only at {', '.join(there) or 'none'}")
        return folder / "h5" / magnification, name
    if len(there) > 1:
        raise BadTask(f"{folder}: has features at {', '.join(there)}; name one as MAGNIFICATION")
    return (folder / "h5" / there[0] if there else folder), name


def _by_id(files: dict[str, Path], slide: str) -> Path | None:
    """The file of a slide whose id begins with the file name that is wanted: NAME-12345678."""
    wanted = bare_name(slide)
    found = [file for name, file in files.items() if name.rpartition("-")[0] == wanted]
    return found[0] if len(found) == 1 else None


def _features(file: Path, most: int) -> tuple[Floats, int]:
    """(tiles, F) float32, and how many tiles there are."""
    with open_h5(file, "features") as opened:
        found = opened["features"]
        shape: tuple[int, ...] = found.shape if isinstance(found, h5py.Dataset) else ()
        if len(shape) == 3 and shape[0] == 1:  # as some tools write a bag
            shape = shape[1:]
        if len(shape) != 2 or not shape[0] or not 0 < shape[1] <= _WIDEST or found.dtype.kind != "f":
            raise BadTask(f"{file}: features are {getattr(found, 'dtype', 'none')} {shape}, not floats (tiles, width)")
        if math.prod(shape) * found.dtype.itemsize > _MOST_BYTES:
            raise BadTask(f"{file}: features of {shape[0]:,} x {shape[1]:,} are larger than 4 GiB; leave tiles out")
        try:
            read = np.asarray(found, np.float32).reshape(shape)
        except (OSError, MemoryError) as error:
            raise BadTask(f"{file}: features cannot be read ({error}); make them again") from error
    if most and len(read) > most:
        order = np.argsort(uniforms(0, Purpose.BAG, 0, range(len(read)), 1)[:, 0], kind="stable")
        read = read[np.sort(order[:most])]
    if not np.isfinite(read).all():
        raise BadTask(f"{file}: features are not finite numbers; make them again")
    return read, shape[0]
