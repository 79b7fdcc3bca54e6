"""Tiled TIFF slides (SVS, generic pyramids, OME-TIFF), their compressed tiles taken straight from the file.

tiffslide reads the metadata, tifffile finds and decodes the tiles; the file may be local or any fsspec URL. What this
reader does not take, it refuses with `UnsupportedLayout`, and OpenSlide is asked instead.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from tiffslide import TiffSlide

from wsi_prep.crew import Crew
from wsi_prep.errors import DamagedSlide, SlideError, StoreFailed, UnreadableSlide
from wsi_prep.private import reason
from wsi_prep.ranges import ExpectedRanges, Ranges, Span, open_ranges, seekable
from wsi_prep.readers.base import Level, SlideInfo, blank, is_reduced, parse_colour
from wsi_prep.readers.bounds import MOST_TILE_PX, coded_size, require_few_directories, require_small_tiles
from wsi_prep.readers.tags import parse_number, parse_objective, vendor_and_scanner
from wsi_prep.remote import local_path

CACHE_BYTES = 96 * 2**20
"""Decoded tiles that the next block will want again are kept up to this size."""

_JPEG = 7
_COMPRESSIONS = frozenset({1, 5, _JPEG, 8, 32946, 50000, 33005, 34712})
"""None, LZW, JPEG, Deflate (two codes), Zstandard, JPEG 2000 of RGB (Aperio's code and the common one)."""

_BESIDE_THE_SLIDE = re.compile(r"\s*(label|macro|overview|thumbnail)(\s+image)?\s*", re.IGNORECASE)
"""Names that OME-TIFFs give to pictures of the whole glass, label and all."""

_TRESTLE = "MedScan"
"""How the software tag of Trestle's slides begins, whose tiles overlap."""

_RGB, _YCBCR = 2, 6  # photometric interpretations
_UM_PER_UNIT = {"µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}


class UnsupportedLayout(UnreadableSlide):
    """A TIFF, or another file, whose layout this reader leaves to OpenSlide."""


class TiffReader:
    """Reads a tiled 8-bit RGB TIFF pyramid; raises UnsupportedLayout for anything else, DamagedSlide if truncated."""

    keeps_edges = True

    def __init__(self, path: str, crew: Crew | None = None) -> None:
        """`crew` decodes tiles side by side."""
        self._path = path
        self._crew = crew or Crew()
        self._bytes = open_ranges(path)
        try:
            self._slide = _open_tiffslide(path, self._bytes)
            self._pages = _tiled_levels(self._slide)
            self._require_whole(path)
            self._info = _describe(self._slide, self._pages)
        except (SlideError, StoreFailed):
            self._bytes.close()
            raise
        except Exception as error:  # a directory of nonsense fails anywhere in tifffile's lazy properties
            self._bytes.close()
            raise UnsupportedLayout(f"its TIFF directory is damaged ({reason(error, path)})") from error
        self._coming = ExpectedRanges(self._bytes)
        self._cache: OrderedDict[tuple[int, int], NDArray[np.uint8]] = OrderedDict()
        self._cached = 0
        self._background = blank(0, 0, self._info.background)

    @property
    def info(self) -> SlideInfo:
        """The slide's facts."""
        return self._info

    @property
    def cached_bytes(self) -> int:
        """Memory held by decoded tiles that a neighbouring rectangle will want again."""
        return self._cached

    def read(
        self, level: int, x_level: int, y_level: int, width: int, height: int, boxes: NDArray[np.int64] | None = None
    ) -> NDArray[np.uint8]:
        """Pixels of a rectangle of one level, (height, width, 3) uint8 RGB; see `SlideReader.read`."""
        page = self._pages[level]
        rectangle = (x_level, y_level, width, height)
        wanted = _tiles_touched(page, rectangle, boxes)
        missing = [i for i in wanted if (level, i) not in self._cache and page.databytecounts[i] > 0]
        found = dict(zip(missing, self._coming.read(_spans(page, missing)), strict=True))
        inside = min(x_level, y_level) >= 0 and x_level + width <= page.imagewidth
        if inside and y_level + height <= page.imagelength:  # tiles cover all of it
            out = np.empty((height, width, 3), np.uint8)
            for index in set(_tiles_touched(page, rectangle, None)).difference(wanted):
                _paste(out, self._bare(page), *self._corner(page, index), x_level, y_level)
        else:
            out = blank(height, width, self._info.background)
        for index in (i for i in wanted if i not in found):
            tile = self._cache.get((level, index), None)
            _paste(out, self._bare(page) if tile is None else tile, *self._corner(page, index), x_level, y_level)
            if tile is not None and not self._is_shared(page, index, rectangle):
                self._drop((level, index))

        def decode(indices: Sequence[int]) -> list[tuple[int, NDArray[np.uint8]]]:
            """Decode and paste these tiles; returns those that a neighbouring rectangle will want again."""
            scratch = np.empty((page.tilelength, page.tilewidth, 3), np.uint8)
            shared = []
            for index in indices:
                again = self._is_shared(page, index, rectangle)
                # decoded to memory that is still in the processor's cache when it is copied
                tile = self._decode(page, index, found[index], None if again else scratch)
                _paste(out, tile, *self._corner(page, index), x_level, y_level)
                if again:
                    shared.append((index, tile))
            return shared

        for index, tile in self._crew.share(decode, missing):
            self._put(level, index, tile)
        while self._cached > CACHE_BYTES:
            self._drop(next(iter(self._cache)))
        return out

    def expect(
        self, level: int, x_level: int, y_level: int, width: int, height: int, boxes: NDArray[np.int64] | None = None
    ) -> None:
        """See `SlideReader.expect`."""
        page = self._pages[level]
        wanted = _tiles_touched(page, (x_level, y_level, width, height), boxes)
        missing = [i for i in wanted if (level, i) not in self._cache and page.databytecounts[i] > 0]
        self._coming.expect(_spans(page, missing))

    def close(self) -> None:
        """Let go of the file."""
        self._slide.close()
        self._coming.close()

    def _bare(self, page: Any) -> NDArray[np.uint8]:
        """A tile of background, for one that the file leaves out or nobody asks for."""
        size = page.tilelength, page.tilewidth
        if self._background.shape[:2] != size:
            self._background = blank(*size, self._info.background)
        return self._background

    def _decode(self, page: Any, index: int, data: bytes, out: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
        """The tile, clipped to the picture; in `out`, if that is given and it is a JPEG."""
        x_tile, y_tile = self._corner(page, index)
        where = f"the tile at x {x_tile}, y {y_tile} of the level {page.imagewidth} px wide"
        if page.compression == _JPEG and not (data[:2] == b"\xff\xd8" and data.rfind(b"\xff\xd9") > 0):
            raise DamagedSlide(f"{where} is no whole JPEG; copy the slide again from its source")
        height, width = coded_size(data)
        if height * width > MOST_TILE_PX:
            raise DamagedSlide(f"{where} says that it is {width} x {height} px; copy the slide again from its source")
        try:
            decoded = _decode_jpeg(page, data, out) if page.compression == _JPEG else None
            if decoded is None:
                decoded = page.decode(data, index, jpegtables=page.jpegtables)[0][0]
        except Exception as error:  # each codec has errors of its own
            why = reason(error, self._path)
            raise DamagedSlide(f"{where} cannot be decoded ({why}); copy the slide again") from error
        tile: NDArray[np.uint8] = decoded[: page.imagelength - y_tile, : page.imagewidth - x_tile]
        return tile

    @staticmethod
    def _corner(page: Any, index: int) -> tuple[int, int]:
        row, col = divmod(index, -(-page.imagewidth // page.tilewidth))
        return col * page.tilewidth, row * page.tilelength

    def _is_shared(self, page: Any, index: int, rectangle: tuple[int, int, int, int]) -> bool:
        """Whether a tile reaches beyond the rectangle's right or lower edge."""
        x_tile, y_tile = self._corner(page, index)
        x, y, width, height = rectangle
        return bool(x_tile + page.tilewidth > x + width or y_tile + page.tilelength > y + height)

    def _put(self, level: int, index: int, tile: NDArray[np.uint8]) -> None:
        self._cache[(level, index)] = tile
        self._cached += tile.nbytes

    def _drop(self, key: tuple[int, int]) -> None:
        tile = self._cache.pop(key, None)
        if tile is not None:
            self._cached -= tile.nbytes

    def _require_whole(self, path: str) -> None:
        end = max(max(map(sum, zip(p.dataoffsets, p.databytecounts, strict=True)), default=0) for p in self._pages)
        size = self._bytes.size
        if end > size:
            raise DamagedSlide(
                f"the file is truncated: its tiles reach to byte {end:,}, it has {size:,}; copy the slide again"
            )


def _open_tiffslide(path: str, ranges: Ranges) -> Any:
    local = local_path(path)
    name = PurePosixPath(path).name
    source = local if local is not None else seekable(ranges)
    options = {} if local is not None else {"name": name}
    try:
        with warnings.catch_warnings():
            logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what matters becomes an error here
            warnings.simplefilter("ignore")  # tiffslide warns of metadata it reads only in part; we take few fields
            slide = TiffSlide(source, tifffile_options=options)
            require_few_directories(slide.ts_tifffile)
            _ = slide.properties  # they are parsed at first use: now, where errors are caught
            return slide
    except (StoreFailed, UnreadableSlide):
        raise
    except Exception as error:  # tiffslide and tifffile raise a dozen kinds for a file that is not theirs
        raise UnsupportedLayout(f"not a TIFF slide ({reason(error, path)})") from error


def _tiled_levels(slide: Any) -> list[Any]:
    """The tiled pages of the slide's pyramid, finest first; UnreadableSlide where a label or macro stands first."""
    tiff = slide.ts_tifffile
    if not (tiff.is_svs or tiff.is_ome or _is_generic(tiff)):
        raise UnsupportedLayout("a vendor's TIFF that is left to OpenSlide")
    series = tiff.series[slide.properties["tiffslide.series-index"]]
    if tiff.is_ome and _BESIDE_THE_SLIDE.fullmatch(str(series.name)):
        raise UnreadableSlide("its first image is a label or macro image, which is never read; put the slide first")
    if series.axes != "YXS":
        raise UnsupportedLayout(f"axes {series.axes}, where one RGB plane (YXS) is needed")
    pages = [level.pages[0].aspage() for level in series.levels]
    first = pages[0]
    require_small_tiles(first)
    if why := _unsupported(first):
        raise UnsupportedLayout(why)
    sides = first.imagewidth, first.imagelength
    kept = [p for p in pages if not _unsupported(p) and is_reduced(*sides, p.imagewidth, p.imagelength)]
    return [p for p in kept if p.tilewidth * p.tilelength <= MOST_TILE_PX]


def _is_generic(tiff: Any) -> bool:
    if str(tiff.pages[0].software).startswith(_TRESTLE):
        return False
    return not any((tiff.is_ndpi, tiff.is_scn, tiff.is_bif, tiff.is_philips, tiff.is_qpi, tiff.is_stk, tiff.is_lsm))


def _unsupported(page: Any) -> str:
    """Why this reader does not take the page, or an empty text."""
    if not page.is_tiled:
        return "not tiled"
    checks = (
        (page.dtype == np.uint8 and page.samplesperpixel == 3, "not 8-bit RGB"),
        (page.planarconfig == 1, "planes stored apart"),
        (page.compression in _COMPRESSIONS, f"compression {page.compression!r}"),
        (page.photometric == _RGB or (page.photometric, page.compression) == (_YCBCR, _JPEG), "neither RGB nor JPEG"),
        (page.imagedepth == 1, "a volume"),
        (_tile_count(page) == len(page.dataoffsets) == len(page.databytecounts), "its list of tiles is damaged"),
        (all(_are_places(n) for n in (page.dataoffsets, page.databytecounts)), "its list of tiles is damaged"),
    )
    return next((reason for fine, reason in checks if not fine), "")


def _are_places(numbers: Sequence[Any]) -> bool:
    """Whether these are whole numbers of 0 and more: a TIFF may say of what type they are."""
    found = np.asarray(numbers)
    return found.dtype.kind in "iu" and not (found < 0).any()


def _tile_count(page: Any) -> int:
    across, down = -(-page.imagewidth // page.tilewidth), -(-page.imagelength // page.tilelength)
    return int(across * down)


def _describe(slide: Any, pages: list[Any]) -> SlideInfo:
    properties = slide.properties
    mpp_x, mpp_y, source = _mpp(slide.ts_tifffile, properties, pages[0])
    width0 = pages[0].imagewidth
    vendor, scanner = vendor_and_scanner(*_format_and_tags(slide.ts_tifffile, properties, pages[0]))
    return SlideInfo(
        reader="tiff",
        vendor=vendor,
        scanner=scanner,
        mpp_x=mpp_x,
        mpp_y=mpp_y,
        mpp_source=source,
        objective=parse_objective(properties.get("tiffslide.objective-power")),
        levels=tuple(Level(p.imagewidth, p.imagelength, width0 / p.imagewidth) for p in pages),
        background=parse_colour(properties.get("tiffslide.background-color")),
    )


def _mpp(tiff: Any, properties: Any, page: Any) -> tuple[float | None, float | None, str | None]:
    """um/px in x and y and where it stands: the vendor's own tags before TIFF's resolution tags."""
    if tiff.is_ome:
        ome = _ome_mpp(tiff)
        if ome is not None:
            return *ome, "vendor"
    mpp_x, mpp_y = (parse_number(properties.get(f"tiffslide.mpp-{axis}")) for axis in "xy")
    if mpp_x is None or mpp_y is None:
        return None, None, None
    if properties.get("tiffslide.vendor"):
        return mpp_x, mpp_y, "vendor"
    return mpp_x, mpp_y, "tiff-resolution"


def _format_and_tags(tiff: Any, properties: Any, page: Any) -> tuple[str, dict[str, str]]:
    """OpenSlide's word for the format, and the tags of which a scanner may be named, by OpenSlide's names."""
    tags = {f"tiff.{name}": str(page.tags[name].value) for name in ("Make", "Model") if name in page.tags}
    if properties.get("aperio.ScannerType"):
        tags["aperio.ScannerType"] = str(properties["aperio.ScannerType"])
    if tiff.is_ome:
        return "ome", tags | _ome_microscope(tiff)
    return str(properties.get("tiffslide.vendor") or "generic-tiff"), tags


def _ome_microscope(tiff: Any) -> dict[str, str]:
    """Maker and model of the first instrument of the OME-XML."""
    try:
        instrument = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Instrument"]
        microscope = (instrument[0] if isinstance(instrument, list) else instrument)["Microscope"]
        given = [name for name in ("Manufacturer", "Model") if name in microscope]
        return {f"ome.Microscope.{name}": str(microscope[name]) for name in given}
    except (KeyError, IndexError, TypeError, ValueError, SyntaxError):
        return {}


def _ome_mpp(tiff: Any) -> tuple[float, float] | None:
    """PhysicalSizeX and PhysicalSizeY of the first image of the OME-XML, in um/px."""
    try:
        image = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]
        pixels = (image[0] if isinstance(image, list) else image)["Pixels"]
        sizes = [
            float(pixels[f"PhysicalSize{axis}"]) * _UM_PER_UNIT[pixels.get(f"PhysicalSize{axis}Unit", "µm")]
            for axis in "XY"
        ]
    except (KeyError, IndexError, TypeError, ValueError, SyntaxError):
        return None
    return sizes[0], sizes[1]


def _tiles_touched(page: Any, rectangle: tuple[int, int, int, int], boxes: NDArray[np.int64] | None) -> list[int]:
    """Indices, in file order, of the tiles of `page` under `boxes` (or the whole rectangle), inside the picture."""
    x, y, width, height = rectangle
    across, down = -(-page.imagewidth // page.tilewidth), -(-page.imagelength // page.tilelength)
    wanted = np.zeros((down, across), bool)
    for bx, by, bw, bh in [(x, y, width, height)] if boxes is None else boxes.tolist():
        left, top = max(bx, x, 0), max(by, y, 0)
        right, bottom = min(bx + bw, x + width), min(by + bh, y + height)
        if right > left and bottom > top:
            wanted[
                top // page.tilelength : -(-bottom // page.tilelength),
                left // page.tilewidth : -(-right // page.tilewidth),
            ] = True
    return [int(i) for i in np.flatnonzero(wanted)]


def _spans(page: Any, indices: Sequence[int]) -> list[Span]:
    return [(page.dataoffsets[i], page.databytecounts[i]) for i in indices]


def _decode_jpeg(page: Any, data: bytes, out: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
    """A JPEG tile as tifffile decodes it, without what that does around it; None where its size is not the page's."""
    jfif = data[6:10] == b"JFIF"  # which is YCbCr by definition, whatever the TIFF's tag says: Bio-Formats writes such
    stored = "RGB" if page.photometric == _RGB and not jfif else "YCBCR"
    try:
        tile: NDArray[np.uint8] = imagecodecs.jpeg8_decode(
            data, tables=page.jpegtables, colorspace=stored, outcolorspace="RGB", out=out
        )
    except ValueError:  # it does not fit
        return None
    return tile if tile.shape == (page.tilelength, page.tilewidth, 3) else None


def _paste(out: NDArray[np.uint8], tile: NDArray[np.uint8], x_tile: int, y_tile: int, x: int, y: int) -> None:
    """Copy the part of `tile` (its corner at x_tile, y_tile) that lies in `out` (its corner at x, y)."""
    height, width = out.shape[:2]
    left, top = max(x_tile, x), max(y_tile, y)
    right, bottom = min(x_tile + tile.shape[1], x + width), min(y_tile + tile.shape[0], y + height)
    if right > left and bottom > top:
        out[top - y : bottom - y, left - x : right - x] = tile[
            top - y_tile : bottom - y_tile, left - x_tile : right - x_tile
        ]
