"""Features by region: one array for each slide, for models that look at all magnifications of a place together."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pretrain.data.regions import LEVELS, PLACES, SIDES, places_of
from wsi_prep.storage.atomic import aside

_LEVEL = np.repeat(LEVELS, [SIDES[name] ** 2 for name in LEVELS])
_PLACE = np.concatenate([np.stack(np.divmod(np.arange(s * s), s), axis=1) for s in SIDES.values()])


def regions_are_of(file: Path, parquet: Path) -> bool:
    """Whether an h5 file of regions was made from the slide's Parquet file as it is now."""
    if not file.is_file():
        return False
    said = pq.read_metadata(parquet).metadata or {}
    try:
        with h5py.File(file, "r") as opened:
            told = {str(name).encode(): str(value).encode() for name, value in opened.attrs.items()}
            return {"features", "there", "place"} <= set(opened) and told.items() <= said.items() and len(told) > 0
    except (OSError, KeyError):
        return False


def write_regions(file: Path, parquet: Path) -> int:
    """Put a slide's features, (n, F) in its Parquet file, in regions; returns how many.

    The h5 file has `features` (r, 85, F) float32: 5x, then 10x, 20x and 40x, each row by row, 0 where there is no tile;
    `there` (r, 85) bool; `place` (r, 2) int32, row and col of the 5x grid; `coords` (r, 2) int64, upper left corner in
    level-0 px; and, of the 85, `magnification` and `cell` (85, 2), row and col within the region.
    """
    table = pq.read_table(parquet)
    width = table.schema.field("features").type.list_size
    features = table["features"].combine_chunks().flatten().to_numpy().reshape(len(table), width)
    rows, cols, places = places_of(table)
    regions, number = np.unique(np.stack([rows, cols], axis=1), axis=0, return_inverse=True)
    number = number.reshape(-1)
    there = np.zeros((len(regions), PLACES), bool)
    there[number, places] = True
    corners = _corners(table, places, number, len(regions))
    file.parent.mkdir(parents=True, exist_ok=True)
    with aside(file) as unfinished, h5py.File(unfinished, "w") as opened:
        shape = (len(regions), PLACES, width)
        by_region = opened.create_dataset(
            "features", shape, np.float32, chunks=(1, *shape[1:]), compression="gzip", compression_opts=1
        )
        for region in range(len(regions)):  # of a large slide all would be some GB
            mine = np.flatnonzero(number == region)
            held = np.zeros(shape[1:], np.float32)
            held[places[mine]] = features[mine]
            by_region[region] = held
        opened["there"], opened["place"], opened["coords"] = there, regions.astype(np.int32), corners
        opened["magnification"], opened["cell"] = _LEVEL.astype("S3"), _PLACE.astype(np.int32)
        for name, value in (table.schema.metadata or {}).items():
            if name in (b"made_by", b"tiles", b"left_out"):
                opened.attrs[name.decode()] = value.decode()
    return len(regions)


def _corners(table: pa.Table, places: NDArray[np.int64], number: NDArray[np.int64], regions: int) -> NDArray[np.int64]:
    """(regions, 2): x0 and y0, from each region's coarsest tile: to the px where that is the 5x tile, else within 1."""
    corners = np.zeros((regions, 2), np.int64)
    order = np.argsort(-places, kind="stable")  # the coarsest last
    for axis, (of, index) in enumerate((("x0", "col"), ("y0", "row"))):
        within = _PLACE[places, 1 - axis]
        at, tile = table[index].to_numpy().astype(np.int64), table[of].to_numpy()
        begin = np.rint(tile * ((at - within) / np.maximum(at, 1))).astype(np.int64)
        corners[number[order], axis] = begin[order]
    return corners
