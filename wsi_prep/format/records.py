"""The catalog's two tables: their columns, types and units, for the slide stage and the trainer alike."""

from __future__ import annotations

from typing import TypedDict

import pyarrow as pa

_BETWEEN = "; "


STAINS = ("HE", "IHC", "SPECIAL", "FLUORESCENCE", "UNKNOWN")
"""What a slide's stain can be called."""


FORMAT_VERSION = 3
"""Changes when a reader of older output would be misled."""

TILES_PER_SHARD = 2048
"""Tile i of an array is in its shard file c.<i // TILES_PER_SHARD>.0.0.0."""

STATUSES = ("ok", "empty", "excluded", "failed")
"""ok: has tiles; empty: no tile has enough tissue, or passes the filter; excluded: by policy; failed: an error."""

SLIDE_SCHEMA = pa.schema(
    [
        ("slide_id", pa.string()),
        ("file", pa.string()),  # name as given, no folder; in private output the slide_id
        ("fingerprint", pa.string()),  # of the source's content: when it changes, the slide is done again
        ("vendor", pa.string()),
        ("scanner", pa.string()),  # model, never one machine
        ("mpp_x", pa.float64()),  # um per level-0 px
        ("mpp_y", pa.float64()),
        ("mpp_source", pa.string()),  # manifest, openslide, vendor, tiff-resolution, assumed
        ("objective", pa.float64()),  # as the file states it; never computed with
        ("width", pa.int64()),  # level-0 px
        ("height", pa.int64()),
        ("bounds_x0", pa.int64()),  # level-0 px at which OpenSlide's bounds begin, as in MRXS; 0 without bounds
        ("bounds_y0", pa.int64()),
        ("icc_profile", pa.string()),  # a mark of the colour profile in the file, which is not applied
        ("stain", pa.string()),  # HE, IHC, SPECIAL, FLUORESCENCE, UNKNOWN
        ("stain_confidence", pa.float32()),  # 0 to 1
        ("stain_source", pa.string()),  # pixels or manifest
        ("stain_pixels", pa.string()),  # what the pixels say, whatever the manifest says
        ("stain_pixels_confidence", pa.float32()),
        ("institution", pa.string()),
        ("institution_source", pa.string()),  # manifest, barcode, pattern or unknown
        ("tissue", pa.string()),
        ("patient_key", pa.string()),  # keyed hash of the patient's id
        ("tissue_mm2", pa.float64()),
        ("tissue_source", pa.string()),  # detected or mask
        ("tiles_5x", pa.int32()),
        ("tiles_10x", pa.int32()),
        ("tiles_20x", pa.int32()),
        ("tiles_40x", pa.int32()),
        ("tiles_filtered", pa.int32()),  # of all magnifications, with tissue but not made, by the filter
        ("status", pa.string()),
        ("error_type", pa.string()),
        ("error", pa.string()),
        ("warning", pa.string()),
        ("reader", pa.string()),  # which reader gave the pixels
        ("config_hash", pa.string()),  # of every setting that the tiles depend on
        ("version", pa.string()),  # of this package
        ("seconds", pa.float64()),  # wall time on one worker
        ("seconds_open", pa.float32()),  # of these, opening and scale; null for a stage that was not reached
        ("seconds_tissue", pa.float32()),  # thumbnail, tissue, stain, plan, overlay
        ("seconds_tiles", pa.float32()),  # pixels read, measured, encoded and written
        ("seconds_publish", pa.float32()),  # renaming into place
        ("bytes", pa.int64()),  # of the tile store
        ("files", pa.int32()),  # that the slide left in the output folder, catalog aside
        ("digests", pa.string()),  # of each of these files, as JSON by name (digests.py); null before they were kept
        (
            "file_folder",
            pa.string(),
        ),  # so much of its path as tells it from others of one name; null without, or private
        (
            "manifest",
            pa.string(),
        ),  # the manifest's further columns, as JSON by name; null without, and in private output
        ("source_bytes", pa.int64()),  # of the slide's own files
        ("tissue_certainty", pa.float32()),  # of the outline, 0 to 1; null where a mask was given, or none found
        ("source_seen", pa.string()),  # a mark of the sizes and times of the slide's files; null in private output
    ]
)


class SlideRow(TypedDict, total=False):
    """A row of SLIDE_SCHEMA, or some of its columns; None where a slide did not get so far, or nobody says."""

    slide_id: str
    file: str | None
    fingerprint: str | None
    vendor: str | None
    scanner: str | None
    mpp_x: float | None
    mpp_y: float | None
    mpp_source: str | None
    objective: float | None
    width: int | None
    height: int | None
    bounds_x0: int | None
    bounds_y0: int | None
    icc_profile: str | None
    stain: str | None
    stain_confidence: float | None
    stain_source: str | None
    stain_pixels: str | None
    stain_pixels_confidence: float | None
    institution: str | None
    institution_source: str | None
    tissue: str | None
    patient_key: str | None
    tissue_mm2: float | None
    tissue_source: str | None
    tiles_5x: int | None
    tiles_10x: int | None
    tiles_20x: int | None
    tiles_40x: int | None
    tiles_filtered: int | None
    status: str
    error_type: str | None
    error: str | None
    warning: str | None
    reader: str | None
    config_hash: str | None
    version: str | None
    seconds: float | None
    seconds_open: float | None
    seconds_tissue: float | None
    seconds_tiles: float | None
    seconds_publish: float | None
    bytes: int | None
    files: int | None
    digests: str | None
    file_folder: str | None
    manifest: str | None
    source_bytes: int | None
    tissue_certainty: float | None
    source_seen: str | None


def shown_name(row: SlideRow) -> str:
    """What people may call a slide: its file's name, behind its folder's where others have the same."""
    return "/".join(filter(None, (row.get("file_folder"), str(row["file"]))))


TILE_SCHEMA = pa.schema(
    [
        ("slide_id", pa.string()),
        ("magnification", pa.string()),  # 5x, 10x, 20x, 40x
        ("mpp", pa.float64()),  # um/px of the stored pixels
        ("x0", pa.int64()),  # upper left corner, level-0 px
        ("y0", pa.int64()),
        ("span0", pa.float64()),  # level-0 px covered from left to right
        ("row", pa.int32()),  # place in this magnification's grid; the parent is at row // 2, col // 2
        ("col", pa.int32()),
        ("tissue_fraction", pa.float32()),
        ("focus", pa.float32()),
        ("pen", pa.float32()),
        ("dark", pa.float32()),
        ("white", pa.float32()),
        ("saturation", pa.float32()),
        ("od_haematoxylin", pa.float32()),  # mean optical density
        ("od_eosin", pa.float32()),
        ("od_dab", pa.float32()),
        ("shard", pa.string()),  # shard file, relative to the output folder
        ("array", pa.string()),  # Zarr array, relative to the output folder
        ("index", pa.int32()),  # in the array
        ("offset", pa.int64()),  # of the tile's JPEG inside the shard file
        ("nbytes", pa.int32()),
        ("crc32", pa.uint32()),  # of the JPEG, as zlib computes it
        ("fat", pa.float32()),  # share of the tile, by the slide's overview
    ]
)


class TileRow(TypedDict, total=False):
    """A row of TILE_SCHEMA, or some of its columns, as written today; an older output may have nulls."""

    slide_id: str
    magnification: str
    mpp: float
    x0: int
    y0: int
    span0: float
    row: int
    col: int
    tissue_fraction: float
    focus: float
    pen: float
    dark: float
    white: float
    saturation: float
    od_haematoxylin: float
    od_eosin: float
    od_dab: float
    shard: str
    array: str
    index: int
    offset: int
    nbytes: int
    crc32: int
    fat: float


def tile_counts(slide: SlideRow) -> dict[str, int]:
    """Tiles of a slide by magnification, finest first; 0 where its row has no number."""
    return {
        "40x": slide.get("tiles_40x") or 0,
        "20x": slide.get("tiles_20x") or 0,
        "10x": slide.get("tiles_10x") or 0,
        "5x": slide.get("tiles_5x") or 0,
    }


def is_table_file(name: str) -> bool:
    """Whether a file of catalog/slides or catalog/tiles holds rows: a dot alone hides what is unfinished."""
    return name.endswith(".parquet") and not name.startswith(".")


def warned(*said: str | None) -> str | None:
    """What is said, each thing once, in one line; None where nothing is. Takes earlier lines as well as single texts.

    A single text holds no semicolon followed by a space, which stands between two.
    """
    texts = [text for line in said if line for text in told(line)]
    return _BETWEEN.join(dict.fromkeys(texts)) or None


def told(line: str | None) -> list[str]:
    """The single texts of a line that `warned` made."""
    return [text for text in (line or "").split(_BETWEEN) if text]
