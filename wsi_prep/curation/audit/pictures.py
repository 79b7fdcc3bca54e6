"""The audit's pictures: overlays of slides, and tiles of each stratum as they lie in the shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Generic, TypeVar, cast

import cv2
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from wsi_prep.curation.audit.numbers import Audit
from wsi_prep.curation.audit.slides import NAMES, in_turn, mark
from wsi_prep.errors import BadCatalog, BadOutput, StoreFailed
from wsi_prep.format.jpeg import JpegSettings, encode_tile
from wsi_prep.format.layout import output_places
from wsi_prep.format.magnifications import TILE_PX
from wsi_prep.format.records import TileRow
from wsi_prep.format.stored_tiles import WrongBytes, decode_stored, is_picture, place_of
from wsi_prep.format.strata import STRATUM_LEVELS
from wsi_prep.storage.base import Storage
from wsi_prep.storage.select import open_storage
from wsi_prep.tiles.overlay import Panel, panels_of

OVERLAY_PX = 4000
"""Widest overlay to show; what make shards draws is narrower."""

_FIRST_PANELS = 2  # the bare slide, and its outline with the tiles of the coarsest magnification
_OVERLAY_BYTES = 10_000_000
_TILE_BYTES = 7_000_000
_MOST_TILES = 800
_SMALL = JpegSettings(quality=80)

P = TypeVar("P", bound="Picture")


@dataclass(frozen=True)
class Picture:
    """A JPEG of the slide of that number in Audit.slides; where it is empty, `missing` says why."""

    slide: int
    jpeg: bytes
    missing: str = ""


@dataclass(frozen=True)
class Overlay(Picture):
    """The picture of a slide: `size` is (width, height) in px, `panels` where the slide, its outline and tiles are."""

    size: tuple[int, int] = (0, 0)
    panels: tuple[Panel, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TilePicture(Picture):
    """A tile: `index` in its array, position in level-0 px, mpp in um/px of the stored pixels."""

    magnification: str
    index: int
    x0: int
    y0: int
    mpp: float


@dataclass(frozen=True)
class Gallery(Generic[P]):
    """Pictures, how many of them were `available` to show, and the widest that one is, in px."""

    pictures: tuple[P, ...]
    available: int
    widest_px: int


def overlays(audited: Audit, most: int, seed: int, first: Sequence[int] = ()) -> Gallery[Overlay]:
    """At most `most` slides' overlays: those of the slides `first`, then others chosen by `seed`, one of each status
    and stratum in turn; by Audit's order.

    Where all of them take too much, each is cut to its first two panels, and the last ones are left out.
    """
    slides = audited.slides
    rest = slides.where(pc.not_equal(slides.table["status"], "failed"))
    rest = rest[~np.isin(rest, first)]
    groups, marks = slides.groups(("status", *STRATUM_LEVELS))[rest], slides.marks(seed)[rest]
    places = [open_storage(folder) for folder in audited.folders]
    whole: list[Overlay] = []
    short: list[Overlay] = []
    size = 0
    for number in [*first, *rest[in_turn(groups, marks)[:most]].tolist()][:most]:
        picture, cut = _overlay(places[audited.slides[number].folder], audited, number)
        size += len(cut.jpeg)
        if size > _OVERLAY_BYTES:
            break
        whole.append(picture)
        short.append(cut)
    found = whole if sum(len(picture.jpeg) for picture in whole) <= _OVERLAY_BYTES else short
    return Gallery(tuple(sorted(found, key=lambda picture: picture.slide)), len(rest) + len(first), OVERLAY_PX)


def tiles(audited: Audit, connection: duckdb.DuckDBPyConnection, each: int, seed: int) -> Gallery[TilePicture]:
    """`each` tiles of every stratum, drawn by `seed` from as many slides as there are, as stored or made smaller."""
    picks = _picks(audited, each, seed)
    rows = _rows(audited, connection, picks[:_MOST_TILES])
    side = TILE_PX if sum(row["nbytes"] or 0 for _, row in rows) <= _TILE_BYTES else TILE_PX // 2
    places = [open_storage(folder) for folder in audited.folders]
    found: list[TilePicture] = []
    size = 0
    for number, row in rows:
        jpeg, missing = _tile(places[audited.slides[number].folder], row, side)
        size += len(jpeg)
        if size > _TILE_BYTES:
            break
        found.append(
            TilePicture(
                number,
                jpeg,
                missing,
                magnification=row["magnification"],
                index=row["index"],
                x0=row["x0"],
                y0=row["y0"],
                mpp=row["mpp"],
            )
        )
    return Gallery(tuple(found), len(picks), side)


def _overlay(storage: Storage, audited: Audit, number: int) -> tuple[Overlay, Overlay]:
    """The slide's overlay, and its first panels alone; or why there is none, twice."""
    slide = audited.slides[number]
    pixels, missing = _pixels(storage, slide.slide_id)
    if pixels is None:
        never = slide.status not in ("ok", "empty") and missing == _GONE
        none = Overlay(number, b"", f"{slide.status} before an overlay was made" if never else missing)
        return none, none
    scale = min(1.0, OVERLAY_PX / pixels.shape[1])
    size = (round(pixels.shape[1] * scale), max(1, round(pixels.shape[0] * scale)))
    small = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)[..., ::-1], np.uint8)
    panels = panels_of(small, slide.tiles)
    whole = _encoded(number, small, panels)
    if len(panels) <= _FIRST_PANELS:
        return whole, whole
    return whole, _encoded(number, small[:, : panels[_FIRST_PANELS].x], panels[:_FIRST_PANELS])


_GONE = "the overlay is missing"


def _pixels(storage: Storage, slide_id: str) -> tuple[NDArray[np.uint8] | None, str]:
    """(h, w, 3) BGR, or None and why."""
    try:
        data = storage.read(output_places(slide_id)["overlay.jpg"])
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if is_picture(data) else None
    except StoreFailed:
        raise
    except BadOutput:
        return None, "the overlay is a link, no file, or too large"
    except (OSError, ValueError, cv2.error):
        return None, _GONE
    return (None, "the overlay cannot be decoded") if pixels is None else (np.asarray(pixels, np.uint8), "")


def _encoded(number: int, pixels: NDArray[np.uint8], panels: tuple[Panel, ...]) -> Overlay:
    jpeg = encode_tile(np.ascontiguousarray(pixels), _SMALL)
    return Overlay(number, jpeg, size=(pixels.shape[1], pixels.shape[0]), panels=panels)


def _picks(audited: Audit, each: int, seed: int) -> list[tuple[int, str, int]]:
    """Slide, magnification and index of tiles: first one of every stratum, then a second, ..."""
    slides = audited.slides
    groups, marks = slides.groups(STRATUM_LEVELS), slides.marks(seed)
    cells: list[tuple[int, int, NDArray[np.int64]]] = []
    for place, name in enumerate(NAMES):
        having = np.flatnonzero(slides.tiles(name))
        numbers = having[np.lexsort((marks[having], groups[having]))]
        of_stratum = np.split(numbers, np.flatnonzero(np.diff(groups[numbers])) + 1) if len(numbers) else []
        cells += [(int(of.min()), place, of[:each]) for of in of_stratum]
    picks = []
    for _, place, chosen in sorted(cells, key=lambda cell: cell[:2]):
        for at, slide in enumerate(slides.some(chosen)):
            count, name = slide.tiles[place], NAMES[place]
            wanted = len(range(at, each, len(chosen)))
            drawn = np.random.default_rng(mark(seed, f"{slide.slide_id} {name}"))
            indices = drawn.choice(count, min(wanted, count), replace=False).tolist()
            numbered = ((int(chosen[at]), name, index) for index in indices)
            picks += [(at + turn * len(chosen), pick) for turn, pick in enumerate(numbered)]
    return [pick for _, pick in sorted(picks, key=itemgetter(0))]


def _rows(
    audited: Audit, connection: duckdb.DuckDBPyConnection, picks: list[tuple[int, str, int]]
) -> list[tuple[int, TileRow]]:
    """Rows of the catalog's tiles for the picks, in their order, with the slide's number."""
    wanted = {
        "slide_id": pa.array([audited.slides[number].slide_id for number, _, _ in picks], pa.string()),
        "magnification": pa.array([name for _, name, _ in picks], pa.string()),
        "index": pa.array([index for _, _, index in picks], pa.int32()),
        "place": pa.array(range(len(picks)), pa.int64()),
    }
    connection.register("wanted", pa.table(wanted))
    names = ("slide_id", "magnification", "index", "x0", "y0", "mpp", "shard", "offset", "nbytes", "crc32")
    columns = ", ".join(f'tiles."{name}"' for name in names)
    found = connection.execute(
        f'SELECT place, {columns} FROM tiles JOIN wanted USING (slide_id, magnification, "index") ORDER BY place'  # noqa: S608
    ).fetchall()
    return [(picks[place][0], cast("TileRow", dict(zip(names, row, strict=True)))) for place, *row in found]


def _tile(storage: Storage, row: TileRow, side: int) -> tuple[bytes, str]:
    """The tile's JPEG as it lies in its shard file, or `side` px wide; or nothing, and why."""
    try:
        at = place_of(row)
        if row["shard"] != at.shard:
            return b"", "the tile cannot be read"
        (jpeg,) = storage.spans(at.shard, [(at.offset, at.nbytes)])
        if len(jpeg) < at.nbytes:
            return b"", "the tile's bytes are gone"
        pixels = decode_stored(jpeg, at.crc32)
    except StoreFailed:
        raise
    except BadCatalog:
        return b"", "the catalog states no place and size of a tile"
    except WrongBytes:
        return b"", "the tile's bytes are not those that were written"
    except (OSError, ValueError, RuntimeError, cv2.error):
        return b"", "the tile cannot be read"
    return (jpeg if side == TILE_PX else _smaller(pixels, side)), ""


def _smaller(pixels: NDArray[np.uint8], side: int) -> bytes:
    small = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA)
    return encode_tile(np.asarray(small, np.uint8), _SMALL)
