"""Labelled tiles as tasks: what is learnt from, what is judged on, and that no slide or case is on both sides."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from pretrain.compute.randomness import Purpose, uniforms
from pretrain.data.labelled import EncodedTiles, TileFiles, Tiles
from pretrain.errors import BadTask
from pretrain.evaluation.class_folders import SIDES, GroupPattern, holds_images, read_classes
from pretrain.evaluation.robustness.sites import GROUPS, PATIENTS, SITES, Site, is_missing
from wsi_prep.errors import BadQuery, counted
from wsi_prep.format.magnifications import MAGNIFICATIONS
from wsi_prep.untrusted.sql import Condition

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
_HELD_OUT = 1 / 3
_SHOWN = 4  # names in a message
_PATIENT = "of a patient"  # among the columns that are kept
OFFICIAL = "the division is its authors'"
UNKNOWN = "which slide or case a tile is of is not known, so that one may be on both sides"


@dataclass(frozen=True)
class Task:
    """Tiles of n labels.

    `labels`: (n,) int64 numbers into `classes`. `groups`: (n,) int64, the slide or case, each tile for itself where
    they are not known; `grouped` is false where patients are not, either. `train`: (n,) bool; `valid`: (n,) bool, what
    choices are made on, None for a part of `train` that the judge holds out. The rest is judged on. `divided`: the
    data's own split, not one made here. `px`: the side that tiles are resized to, 0 for their own. `notes`: what a user
    should know of all this. `sites`: where tiles are from, by each column that says so. `patients`: (n,) int64, whose
    they are, a slide for itself where that is not known; None where no column says so.
    """

    name: str
    tiles: Tiles
    labels: Ints
    classes: tuple[str, ...]
    groups: Ints
    train: Bools
    valid: Bools | None = None
    divided: bool = False
    px: int = 0
    grouped: bool = True
    notes: tuple[str, ...] = ()
    sites: tuple[Site, ...] = ()
    patients: Ints | None = None

    @property
    def owners(self) -> Ints:
        """(n,) int64: patients where they are known, else slides or cases."""
        return self.groups if self.patients is None else self.patients

    @property
    def test(self) -> Bools:
        """(n,) bool: what is judged on."""
        return ~self.train if self.valid is None else ~(self.train | self.valid)


@dataclass(frozen=True)
class LabelledTiles:
    """Tiles of `place` with a label each, and what the data say besides: slide or case and side of each, or None.

    `official`: the split is the authors' own. `notes`: what a user should know of how they were read. `hint`: how one
    would say which slide or case a tile is of. `sites`: where each is from. `patients`: whose each is, None or blank
    where it is not known.
    """

    place: Path
    tiles: Tiles
    labels: Sequence[object]
    groups: Sequence[object] | None
    split: Sequence[object] | None
    hint: str
    official: bool = False
    notes: Sequence[str] = ()
    sites: Sequence[Site] = ()
    patients: Sequence[object] | None = None


@dataclass(frozen=True)
class Regression:
    """Tiles of n rows of `targets` (n, G) float32, named `names`; `folds` are pairs of (n,) bool: train and test."""

    name: str
    tiles: Tiles
    targets: NDArray[np.float32]
    names: tuple[str, ...]
    groups: Ints
    folds: tuple[tuple[Bools, Bools], ...]
    px: int = 0
    notes: tuple[str, ...] = ()


def load_tasks(
    spec: str,
    limit: int = 0,
    seed: int = 0,
    px: int = 0,
    pattern: GroupPattern | None = None,
    sites: Sequence[str] | None = None,
) -> list[Task]:
    """The tasks of a table or a folder of labelled tiles.

    `path.parquet`, or `path.parquet:labels` for labels that are not in `label`. `labels`: a column, or an expression
    over the columns in DuckDB's SQL (`... as name` names the task), null for rows to leave out, as in
    `atlas.parquet:if(stain = 'HE', organ, null) as organ`. Columns: `image` (encoded bytes), labels, and if there
    one of GROUPS (else each tile is one), and PATIENTS, `split` ("train", "valid" or "test"; else patients, or groups
    where these are not known, with about a third of the tiles are held out), `magnification` (a task each, where there
    are several), and where tiles are from: the columns that `sites` names, or else those of SITES.
    A folder: as class_folders.read_classes takes it, with `pattern`, or a folder or Parquet file of these named by a
    magnification (`20x/`, `10x.parquet`), a task each.
    Classes that cannot be on both sides are left out. `limit`: most tiles a side, drawn by `seed` in every class; 0 for
    all. `px`: the side that tiles are resized to, 0 for their own, which is then one size. Raises BadTask.
    """
    path, column = _names(spec)
    if column is None and path.is_dir():
        return _folder_tasks(path, limit, seed, px, pattern, sites)
    return _table_tasks(path, column or "label", limit, seed, px, sites)


def make_task(name: str, told: LabelledTiles, limit: int = 0, seed: int = 0, px: int = 0) -> Task:
    """A task of all tiles; `limit`, `seed` and `px` as in load_tasks.

    Raises BadTask, naming the place, where sides share a group (in an official split they may), or fewer than two
    classes are on both.
    """
    path, groups, split = told.place, told.groups, told.split
    if not len(told.labels):
        raise BadTask(f"{path}: {name} has no tile with a label; name other labels")
    names, numbers = np.unique(np.asarray(told.labels), return_inverse=True)
    group = numbered(groups if groups is not None else range(len(numbers)))
    patients = None if told.patients is None else _patients(told.patients, group)
    owner = group if patients is None else patients
    valid = None
    if split is not None:
        train, valid = _sides(path, split, None if told.official else group)
    else:
        train = ~hold_out(owner, numbers)
    test = ~train if valid is None else ~(train | valid)
    both = np.intersect1d(numbers[train], numbers[test])
    if len(both) < 2:
        raise BadTask(f"{path}: {name}: {_too_few(names, numbers, owner, train, test, split is not None)}")
    if limit and limit < len(both):
        raise BadTask(f"{path}: a limit of {limit} tiles is less than one of each of {len(both)} classes; allow more")
    keep = np.flatnonzero(np.isin(numbers, both))
    side = np.where(train, 1, np.where(test, 0, 2))
    notes = [*told.notes, *_on_one_side(names, numbers, both)]
    if groups is None and patients is None:
        notes.append(f"{UNKNOWN}: figures may be too high, and have no interval; {told.hint}")
    elif told.official and (shared := len(np.intersect1d(group[train], group[test]))):
        notes.append(f"{counted(shared, 'slide or case', 'slides or cases')} are on both sides; {OFFICIAL}")
    elif shared := len(np.intersect1d(owner[~test], owner[test])):
        both_sides = f"{counted(shared, 'patient is', 'patients are')} on both sides by the column split"
        notes.append(f"{both_sides}: figures may be too high; put each patient on one side, or leave split out")
    every, keep = keep, keep[_limited(numbers[keep], side[keep], limit or len(keep), seed)]
    if len(keep) < len(every):
        notes.append(f"{len(keep):,} of {len(every):,} tiles, by the limit of {limit} a side")
    return Task(
        name,
        told.tiles.take(keep),
        np.searchsorted(both, numbers[keep]),
        tuple(str(name) for name in names[both]),
        group[keep],
        train[keep],
        None if valid is None else valid[keep],
        split is not None,
        px,
        groups is not None or patients is not None,
        tuple(notes),
        tuple(site.take(keep) for site in told.sites),
        None if patients is None else patients[keep],
    )


def _patients(names: Sequence[object], groups: Ints) -> Ints:
    """Numbers of patients; a tile whose patient is not known is of its slide's own."""
    return numbered([f"slide {g}" if is_missing(p) else f"patient {p}" for p, g in zip(names, groups, strict=True)])


def _on_one_side(names: NDArray[Any], numbers: Ints, both: Ints) -> list[str]:
    """Which classes are left out."""
    if not len(gone := np.setdiff1d(np.arange(len(names)), both)):
        return []
    said = [f"{names[n]} ({counted(int((numbers == n).sum()), 'tile')})" for n in gone]
    return [f"skipped, because they are on one side only: {_some(said)}"]


def _too_few(names: NDArray[Any], numbers: Ints, group: Ints, train: Bools, test: Bools, divided: bool) -> str:
    """Why fewer than two classes are on both sides."""
    every = counted(len(numbers), "tile")
    learn, judge = "nothing to learn from", "nothing to judge on"
    for is_so, where in (
        (train.all(), f"all {every} are of split train: {judge}"),
        (test.all(), f"all {every} are of split test: {learn}"),
        (not (train | test).any(), f"all {every} are of split valid: {learn}, {judge}"),
        (not test.any(), f"no tile is of split test: {judge}"),
        (not train.any(), f"no tile is of split train: {learn}"),
    ):
        if divided and is_so:
            return where
    few = "fewer than 2 classes"
    if len(names) == 1:
        return f"{few}: all {every} are of class {names[0]}; name other labels"
    if divided:
        there = [_some([str(names[n]) for n in np.unique(numbers[side])]) for side in (train, test)]
        return f"{few} are in both splits: train has {there[0]}, test has {there[1]}; divide otherwise"
    if len(np.unique(group)) == 1:
        return f"{few} can be on both sides: all {every} are of one slide or case; add others"
    counts = [len(np.unique(group[numbers == n])) for n in range(len(names))]
    said = _some([f"{name} is in {count}" for name, count in zip(names, counts, strict=True)])
    return f"{few} are in two slides or cases, one for each side: {said}; add others, or name other labels"


def _some(words: Sequence[str]) -> str:
    return ", ".join(words[:_SHOWN]) + (f" and {len(words) - _SHOWN} more" if words[_SHOWN:] else "")


def numbered(names: Sequence[object]) -> Ints:
    """Names as numbers that do not depend on their order, and tell nothing of them."""
    hashes = [hashlib.blake2b(str(name).encode()).hexdigest() for name in names]
    return np.unique(hashes, return_inverse=True)[1]


def hold_out(groups: Ints, labels: Ints) -> Bools:
    """(n,) true on the held-out side: whole groups, with as many classes on both sides as can be found.

    Next to that, near a third of all tiles and of each class; a class of a single group does not matter.
    """
    (_, group), (_, label) = (np.unique(values, return_inverse=True) for values in (groups, labels))
    tiles = np.zeros((group.max(initial=-1) + 1, label.max(initial=-1) + 1))
    np.add.at(tiles, (group, label), 1)
    tiles = tiles[:, (tiles > 0).sum(0) > 1]
    if not tiles.size:
        return np.zeros(len(groups), bool)
    tries = min(4096, 1 + 2**20 // len(tiles))
    held = uniforms(0, Purpose.TASK_GROUPS, 0, range(tries), len(tiles)) < _HELD_OUT
    found = held @ tiles  # (tries, classes)
    both = ((found > 0) & (found < tiles.sum(0))).sum(1)
    miss = np.abs(found / tiles.sum(0) - _HELD_OUT).mean(1) + np.abs(found.sum(1) / tiles.sum() - _HELD_OUT)
    return held[np.lexsort((miss, -both))[0]][group]  # type: ignore[no-any-return]


def table_of(spec: str) -> Path | None:
    """The Parquet file that a task is read from; None where it is no table."""
    return path if (path := _names(spec)[0]).suffix == ".parquet" and path.is_file() else None


def _names(spec: str) -> tuple[Path, str | None]:
    name, found, column = spec.partition(".parquet:")
    return (Path(f"{name}.parquet"), column) if found else (Path(spec), None)


def _folder_tasks(
    folder: Path, limit: int, seed: int, px: int, pattern: GroupPattern | None, sites: Sequence[str] | None
) -> list[Task]:
    by_name = {m.name: folder / m.name for m in MAGNIFICATIONS}
    by_name |= {n: f.with_suffix(".parquet") for n, f in by_name.items() if f.with_suffix(".parquet").is_file()}
    if found := [(name, path) for name, path in by_name.items() if path.exists()]:
        tasks = [task for _, path in found for task in load_tasks(str(path), limit, seed, px, pattern, sites)]
        others = [p.name for p in sorted(folder.iterdir()) if p.is_dir() and p.name not in by_name and holds_images(p)]
        beside = (f"skipped, because its name is no magnification: {_some(others)}",) if others else ()
        return [replace(task, name=f"{folder.name}:{task.name}", notes=(*task.notes, *beside)) for task in tasks]
    read = read_classes(folder, pattern)
    hint = "put tiles into CLASS/SLIDE/, or give a group pattern"
    sides = (read.labels, read.groups, read.split)
    told = LabelledTiles(folder, TileFiles(read.files), *sides, hint, notes=read.notes)
    return [make_task(folder.name, told, limit, seed, px)]


def _table_tasks(path: Path, column: str, limit: int, seed: int, px: int, sites: Sequence[str] | None) -> list[Task]:
    file = open_table(path)
    whole = file.read([name for name in file.schema_arrow.names if name != "image"])
    if named := re.fullmatch(r"(.+)\s+as\s+(\w+)", column, re.DOTALL | re.IGNORECASE):
        expression, column = named.groups()
    else:
        expression = column
    if not len(whole):
        raise BadTask(f"{path}: the table has no rows")
    labels = _labels(path, expression, whole)
    rows = np.flatnonzero([label is not None and label == label for label in labels])  # noqa: PLR0124 - NaN
    if not len(rows):
        raise BadTask(
            f"{path}: {expression} is null in every row, so there are fewer than 2 classes; name other labels"
        )
    by_site = [name for name in _site_columns(path, sites, whole.column_names) if name not in (column, expression)]
    table = {"labels": [labels[row] for row in rows]} | _columns(whole, rows, by_site)
    if nulls := sum(value is None for value in table.get("group", [])):
        raise BadTask(f"{path}: column group is null in {nulls} rows; name a slide or case in every row")
    images = images_of(path, file, rows, px)
    name = path.stem if column == "label" else f"{path.stem}:{column}"
    by = np.array([str(value) for value in table.get("magnification", [""] * len(rows))])
    tasks = []
    for one in (several := np.unique(by)):
        at = np.flatnonzero(by == one)
        part = {key: [values[row] for row in at] for key, values in table.items()}
        of_one = name if len(several) == 1 else f"{name}:{one}"
        sides = (part["labels"], part.get("group"), part.get("split"))
        from_where = [Site.of(name, part[f"by {name}"]) for name in by_site]
        told = LabelledTiles(
            path, images.take(at), *sides, "add a column group", sites=from_where, patients=part.get(_PATIENT)
        )
        tasks.append(make_task(of_one, told, limit, seed, px))
    return tasks


def _columns(whole: pa.Table, rows: Ints, by_site: Sequence[str]) -> dict[str, list[object]]:
    """What these rows say besides their labels, by what it is."""
    names = {name: name for name in ("split", "magnification")} | {f"by {name}": name for name in by_site}
    first = {"group": GROUPS, _PATIENT: PATIENTS}
    names |= {what: next((n for n in any_of if n in whole.column_names), "") for what, any_of in first.items()}
    told = {what: whole[name].to_pylist() for what, name in names.items() if name in whole.column_names}
    return {what: [values[row] for row in rows] for what, values in told.items()}


def _site_columns(path: Path, wanted: Sequence[str] | None, has: Sequence[str]) -> list[str]:
    """The columns of the table that say where tiles are from; BadTask where one that was asked for is not there."""
    if missing := [name for name in wanted or () if name not in has]:
        raise BadTask(f"{path}: has no column {missing[0]}, only {', '.join(has)}; name one of these as the site")
    return list(dict.fromkeys(wanted)) if wanted else [name for name in SITES if name in has]


def open_table(path: Path) -> pq.ParquetFile:
    """A table of labelled tiles; BadTask where it is none."""
    try:
        file = pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise BadTask(f"{path}: is no Parquet file; name one, as path.parquet or path.parquet:column") from error
    if "image" not in (has := file.schema_arrow.names):
        raise BadTask(f"{path}: has no column image, only {', '.join(has)}; add it, with encoded tiles")
    return file


def _labels(path: Path, labels: str, table: pa.Table) -> list[object]:
    """The column, or the expression's values; DuckDB has no access to anything but these rows."""
    if labels in table.column_names:
        return table[labels].to_pylist()  # type: ignore[no-any-return]
    has = ", ".join(table.column_names)
    try:
        return Condition(labels).values(table)
    except BadQuery as error:
        raise BadTask(
            f"{path}: has no column {labels}, and it is no expression over {has} ({error}); name one"
        ) from error


def _sides(path: Path, split: Sequence[object], groups: Ints | None) -> tuple[Bools, Bools | None]:
    """Which rows are trained on, and which choices are made on; no group is on two sides."""
    if unknown := {str(side) for side in split if side not in SIDES}:
        raise BadTask(f"{path}: column split holds {sorted(unknown)}; write train, valid or test in every row")
    side = np.array([SIDES[str(s)] for s in split])
    train, valid = side == "train", side == "valid"
    for one, other in (("train", "test"), ("valid", "test"), ("train", "valid")):
        if groups is not None and (shared := len(np.intersect1d(groups[side == one], groups[side == other]))):
            raise BadTask(f"{path}: split has {one} and {other} in {shared} groups; put each group on one side")
    return train, valid if valid.any() else None


def _limited(labels: Ints, side: Ints, limit: int, seed: int) -> Ints:
    """At most `limit` rows of each side, by chance, the first of each class before any second."""
    kind = 3 * labels + side
    order = np.lexsort((uniforms(seed, Purpose.TASK_LIMIT, 0, range(len(labels)), 1)[:, 0], kind))
    place = np.arange(len(order)) - np.searchsorted(kind[order], kind[order])
    order = order[np.argsort(place / np.bincount(kind)[kind[order]], kind="stable")]
    return np.sort(np.concatenate([order[side[order] == one][:limit] for one in np.unique(side)]))


def images_of(path: Path, file: pq.ParquetFile, rows: Ints, px: int) -> EncodedTiles:
    """The encoded tiles of these rows, whose headers are looked at."""
    images: list[bytes] = []
    wanted = rows
    for part in file.iter_batches(1024, columns=["image"]):
        encoded = part.column(0)
        if pa.types.is_struct(encoded.type) and encoded.type.get_field_index("bytes") >= 0:  # as Hugging Face has it
            encoded = encoded.field("bytes")
        images += encoded.take(rows[rows < len(part)]).to_pylist()
        rows = rows[rows >= len(part)] - len(part)
    try:
        sizes = {Image.open(io.BytesIO(image)).size for image in images}
    except (OSError, TypeError, Image.DecompressionBombError) as error:
        raise BadTask(f"{path}: column image has rows that hold no JPEG or PNG; leave them out") from error
    if len(sizes) > 1 and not px:
        raise BadTask(
            f"{path}: tiles are of several sizes, {sorted(sizes)} px; make them one size, or ask for one by --px"
        )
    return EncodedTiles(images, str(path), wanted)
