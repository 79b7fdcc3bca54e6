"""PathoROB's sets of tiles, as they are downloaded, with the lists of tiles of its repository.

Koemen et al. 2025, arXiv 2507.17845. Its index is of the tiles of lists: of camelyon those of two hospitals, of
tolkach_esca 500 a class and hospital, of tcga 94 choices of two classes and two hospitals, and neighbours are sought
within each choice.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pretrain.data.labelled import EncodedTiles
from pretrain.errors import BadTask
from pretrain.evaluation.csv_rows import csv_rows
from pretrain.evaluation.robustness.sites import Site
from pretrain.evaluation.tasks import LabelledTiles, images_of, open_table
from wsi_prep.errors import counted

Ints = NDArray[np.int64]
PATHOROB = "https://huggingface.co/bifold-pathomics (PathoROB-camelyon, -tcga, -tolkach_esca)"
LISTS = "https://github.com/bifold-pathomics/PathoROB, folder data/metadata"
_COLUMNS = ("slide_id", "patch_id", "biological_class", "medical_center")
_ELSEWHERE = "OOD"  # the subset of tiles that the index leaves out
_SITE = "institution"
_PX = 224


@dataclass(frozen=True)
class _Set:
    """`list`: which tiles; `k`: the neighbours that count, the median over PathoROB's models of the best of each.

    `paired`: neighbours are sought within choices of two classes and two hospitals.
    """

    list: str
    k: int
    paired: bool = False


_SETS = {
    "camelyon": _Set("camelyon.csv", 11),
    "tcga": _Set("tcga_2x2.csv", 61, paired=True),
    "tolkach_esca": _Set("tolkach_esca_reduced.csv", 46),
}


@dataclass(frozen=True)
class _Tile:
    """A row of a list or of a table; `subset` is the choice that it is listed for."""

    slide: str
    patch: str
    kind: str
    hospital: str
    subset: str


def read_pathorob(folder: Path, option: str = "") -> dict[str, LabelledTiles]:
    """The sets of a folder, or those of `option` (`camelyon,tcga`), by name; BadTask where one cannot be read.

    `FOLDER/camelyon/data/*.parquet`, or `FOLDER/PathoROB-camelyon/...`; lists in `FOLDER/metadata/*.csv`. Without its
    list a set is taken whole, which is said.
    """
    if unknown := [name for name in option.split(",") if option and name not in _SETS]:
        raise BadTask(f"pathorob: has no set {unknown[0]}; name one of {', '.join(_SETS)}")
    there = {name: files for name in _SETS if (files := _tables(folder, name))}
    wanted = option.split(",") if option else list(there)
    if missing := [name for name in wanted or _SETS if name not in there]:
        raise BadTask(f"pathorob: {folder}/{missing[0]}/data holds no .parquet; get the data from {PATHOROB}")
    return {name: _read(folder, name, there[name]) for name in wanted}


def _tables(folder: Path, name: str) -> list[Path]:
    """The Parquet files of a set, where it is there."""
    places = [folder / part / below for part in (name, f"PathoROB-{name}") for below in ("data", "")]
    places += [folder / below for below in ("data", "") if folder.name in (name, f"PathoROB-{name}")]
    return next((files for place in places if (files := sorted(place.glob("*.parquet")))), [])


def _read(folder: Path, name: str, files: Sequence[Path]) -> LabelledTiles:
    rows = [tile for file in files for tile in _rows_of(file)]
    listed, notes = _listed(folder, name, rows)
    place = {(tile.slide, tile.patch): number for number, tile in enumerate(rows)}
    if absent := [tile for tile in listed if (tile.slide, tile.patch) not in place]:
        what = f"{absent[0].slide}, {absent[0].patch}"
        raise BadTask(
            f"pathorob: {files[0].parent} lacks {counted(len(absent), 'listed tile')}, as {what}; download it again"
        )
    at = np.array([place[tile.slide, tile.patch] for tile in listed], np.int64)
    kept, number = np.unique(at, return_inverse=True)
    told = {int(row): tile for row, tile in zip(at, listed, strict=True)}
    tiles = [told[int(row)] for row in kept]
    site = replace(Site.of(_SITE, [tile.hospital for tile in tiles]), k=_SETS[name].k)
    if _SETS[name].paired:
        of = np.array([tile.subset for tile in listed])
        site = replace(site, within=tuple(number[of == subset] for subset in np.unique(of)))
    return LabelledTiles(
        files[0].parent,
        _images(files, kept),
        [tile.kind for tile in tiles],
        [tile.slide for tile in tiles],
        None,
        "",
        notes=notes,
        sites=[site],
    )


def _rows_of(file: Path) -> list[_Tile]:
    """What a table says of its tiles."""
    table = open_table(file)
    has = table.schema_arrow.names
    if missing := [name for name in _COLUMNS if name not in has]:
        raise BadTask(f"{file}: has no column {missing[0]}, only {', '.join(has)}; download it again")
    names = [name for name in (*_COLUMNS, "subset") if name in has]
    return [_tile(row) for row in table.read(names).to_pylist()]


def _tile(row: dict[str, object]) -> _Tile:
    slide, patch, kind, hospital = (str(row[name]) for name in _COLUMNS)
    return _Tile(slide, patch, kind, hospital, str(row.get("subset") or ""))


def _listed(folder: Path, name: str, rows: Sequence[_Tile]) -> tuple[list[_Tile], list[str]]:
    """The tiles that are compared, a paired set's once for each choice, and what there is to say."""
    file = _SETS[name].list
    for place in (
        folder / "metadata",
        folder / "data" / "metadata",
        folder,
        folder / name,
        folder / f"PathoROB-{name}",
    ):
        if (place / file).is_file():
            found = [
                _tile(dict(row))
                for row in csv_rows(place / file, *_COLUMNS, *(["subset"] if _SETS[name].paired else []))
            ]
            return [tile for tile in found if tile.subset != _ELSEWHERE], []
    inside = [tile for tile in rows if tile.subset != _ELSEWHERE]
    notes = [
        f"metadata/{file} is missing ({LISTS}): the figures are of all tiles, and not those that PathoROB publishes"
    ]
    return (_choices(inside) if _SETS[name].paired else inside), notes


def _choices(rows: Sequence[_Tile]) -> list[_Tile]:
    """Every choice of two classes and two hospitals that has tiles of each class at each hospital."""
    cells: dict[tuple[str, str], list[_Tile]] = {}
    for tile in rows:
        cells.setdefault((tile.kind, tile.hospital), []).append(tile)
    kinds, hospitals = (sorted({key[axis] for key in cells}) for axis in (0, 1))
    found = []
    for pair in itertools.combinations(kinds, 2):
        for places in itertools.combinations(hospitals, 2):
            four = [cells.get(cell, []) for cell in itertools.product(pair, places)]
            if all(four):
                found += [replace(tile, subset=f"{pair} {places}") for cell in four for tile in cell]
    return found


def _images(files: Sequence[Path], rows: Ints) -> EncodedTiles:
    """The encoded tiles of these rows, numbered through all files."""
    images: list[bytes] = []
    begin = 0
    for file in files:
        table = open_table(file)
        end = begin + table.metadata.num_rows
        images += images_of(file, table, rows[(rows >= begin) & (rows < end)] - begin, _PX).images
        begin = end
    return EncodedTiles(images, str(files[0].parent), rows)
