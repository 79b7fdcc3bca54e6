"""Tiled TIFF slides (SVS, generic pyramids, OME-TIFF), their compressed tiles taken straight from the file.

tiffslide reads the metadata, tifffile finds and decodes the tiles; the file may be local or any fsspec URL. What this
reader does not take, it refuses with `UnsupportedLayout`, and OpenSlide is asked instead, which knows no OME-TIFF.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from wsi_prep.compute.threads import ThreadPool
from wsi_prep.errors import DamagedSlide, SlideError, StoreFailed, counted
from wsi_prep.slides.base import WHITE, SlideInfo, blank
from wsi_prep.slides.fetch.ranges import ExpectedRanges, open_ranges, require_served
from wsi_prep.slides.images import Planes
from wsi_prep.slides.private import reason
from wsi_prep.slides.pyramid.levels import finer_level, from_finer
from wsi_prep.slides.readers.tiff.bounds import MOST_TILE_PX
from wsi_prep.slides.readers.tiff.decode import EdgeTiles, SampledTiles, Tile, TileDecoder, paste, planar_quality
from wsi_prep.slides.readers.tiff.opening import open_tiffslide, understand
from wsi_prep.slides.readers.tiff.pictures import Picture, UnsupportedLayout, has_more_samples

CACHE_BYTES = 96 * 2**20
"""Decoded tiles that the next block will want again are kept up to this size."""

_Missing = DamagedSlide | None
"""Why a tile of a reduced level is not there: it does not decode, or the file leaves it out."""


class TiffReader:
    """Reads a tiled 8-bit RGB TIFF pyramid; raises UnsupportedLayout for anything else, DamagedSlide if truncated.

    A tile of a reduced level that the file leaves out, or that does not decode, is made of the next finer level.
    """

    keeps_edges = True

    def __init__(self, path: str, pool: ThreadPool | None = None) -> None:
        """`pool` decodes tiles side by side."""
        self._path = path
        self._pool = pool or ThreadPool()
        self._bytes = open_ranges(path)
        self._sampled = SampledTiles()
        self._decoder = TileDecoder(path)
        self._planar: dict[tuple[int, int], int | None] = {}
        try:
            self._slide = open_tiffslide(path, self._bytes)
            self._coming = ExpectedRanges(self._bytes)
            self._info, self._levels = understand(self._slide, self._look)
            self._require_whole()
            require_served(self._bytes)
        except (SlideError, StoreFailed):
            self._let_go()
            require_served(self._bytes)
            raise
        except Exception as error:  # a directory of nonsense fails anywhere in tifffile's lazy properties
            self._let_go()
            require_served(self._bytes)
            raise UnsupportedLayout(f"its TIFF directory is damaged ({reason(error, path)})") from error
        self._edges = EdgeTiles(CACHE_BYTES)
        self._coming_top: tuple[int, int] | None = None
        self._background = blank(0, 0, self._info.background)
        self.lost: set[int] = set()
        self._left_out: dict[int, set[int]] = defaultdict(set)
        self._broken: dict[int, set[int]] = defaultdict(set)

    @property
    def info(self) -> SlideInfo:
        """The slide's facts."""
        return self._info

    @property
    def is_ome(self) -> bool:
        """Whether the file is an OME-TIFF."""
        return bool(self._slide.ts_tifffile.is_ome)

    @property
    def warnings(self) -> list[str]:
        """Tiles of reduced levels that had to be made of finer ones."""
        said = ((self._left_out, "missing"), (self._broken, "damaged"))
        return [
            f"{counted(len(some), 'tile')} {what} in the level {self._levels[level].width} px wide: a finer one is used"
            for found, what in said
            for level, some in sorted(found.items())
        ]

    @property
    def leaves_out_samples(self) -> bool:
        """Whether its pixels have samples beside red, green and blue, of which OpenSlide would make transparency."""
        return has_more_samples(self._levels[0].page)

    def add_notes(self, notes: Sequence[str]) -> None:
        """Add to what the slide's row warns of."""
        self._info = replace(self._info, notes=(*self._info.notes, *notes))

    @property
    def cached_bytes(self) -> int:
        """Memory held by decoded tiles that a neighbouring rectangle will want again."""
        return self._edges.nbytes

    def planar_quality(self, level: int) -> int | None:
        """See `SlideReader.planar_quality`."""
        return self._planar_quality(self._levels[level])

    def read(
        self, level: int, x_level: int, y_level: int, width: int, height: int, boxes: NDArray[np.int64] | None = None
    ) -> NDArray[np.uint8]:
        """Pixels of a rectangle of one level, (height, width, 3) uint8 RGB; see `SlideReader.read`."""
        rectangle = x_level, y_level, width, height
        wanted, fully = self._wanted(level, rectangle, boxes)
        out = np.empty((height, width, 3), np.uint8) if fully else blank(height, width, self._info.background)
        self._read(level, rectangle, wanted, out)
        return out

    def read_planes(
        self, level: int, x_level: int, y_level: int, width: int, height: int, boxes: NDArray[np.int64] | None = None
    ) -> Planes:
        """See `SlideReader.read_planes`."""
        self._sampled.clear()  # which are RGB
        rectangle = x_level, y_level, width, height
        wanted, fully = self._wanted(level, rectangle, boxes)
        out = Planes.empty(height, width)
        if not fully:
            out.fill_with(self._info.background)
        self._read(level, rectangle, wanted, out)
        return out

    @property
    def most_shrink(self) -> int:
        """8 where level 0 is JPEG of YCbCr, of a known quality, whose tiles begin at multiples of 8."""
        picture = self._levels[0]
        even = picture.tile_width % 8 == picture.tile_height % 8 == 0
        return 8 if even and self._planar_quality(picture) else 1

    def read_shrunk(self, shrink: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """See `SlideReader.read_shrunk`."""
        picture, out = self._levels[0], blank(height, width, self._info.background)
        wanted = _tiles_touched(picture, (x * shrink, y * shrink, width * shrink, height * shrink), None)
        stored = [i for i in wanted if not picture.is_missing(i)]
        found = self._fetched(picture, stored)

        def decode(indices: Sequence[int]) -> list[None]:
            for index in indices:
                tile = self._decoder.decode_shrunk(picture, index, found[index][0], shrink)
                x_tile, y_tile = picture.corner(index)
                paste(out, tile, x_tile // shrink, y_tile // shrink, x, y)
            return []

        self._pool.share(decode, stored)
        return out

    def _wanted(
        self, level: int, rectangle: tuple[int, int, int, int], boxes: NDArray[np.int64] | None
    ) -> tuple[list[int], bool]:
        """Indices of the tiles under `boxes`, and whether these leave nothing of the rectangle without a tile."""
        picture, (x, y, width, height) = self._levels[level], rectangle
        wanted = _tiles_touched(picture, rectangle, boxes)
        inside = min(x, y) >= 0 and x + width <= picture.width and y + height <= picture.height
        return wanted, inside and (boxes is None or len(wanted) == len(_tiles_touched(picture, rectangle, None)))

    def _read(self, level: int, rectangle: tuple[int, int, int, int], wanted: Sequence[int], out: Tile) -> None:
        """Paste these tiles of one level into `out`, which is a rectangle of it."""
        picture, (x, y) = self._levels[level], rectangle[:2]
        planar = isinstance(out, Planes)
        edges, corner = self._edges, picture.corner
        held = [i for i in wanted if edges.has((level, i, planar), picture, rectangle)]
        others = sorted(set(wanted).difference(held)) if held else wanted
        stored = [i for i in others if not picture.is_missing(i)]
        found = self._fetched(picture, stored)
        absent: list[tuple[int, _Missing]] = []
        for index in others:
            if index not in found and level > 0:
                absent.append((index, None))
            elif index not in found:
                paste(out, self._bare(picture), *corner(index), x, y)
        for index in held:
            edges.paste((level, index, planar), out, x, y)
            if not picture.reaches_beyond(index, rectangle):
                edges.drop((level, index, planar))

        def decode(indices: Sequence[int]) -> list[tuple[int, _Missing]]:
            """Decode and paste these tiles; returns those that are damaged."""
            # decoded to memory that is still in the processor's cache when it is copied
            scratch = None if planar else np.empty((picture.tile_height, picture.tile_width, 3), np.uint8)
            damaged: list[tuple[int, _Missing]] = []
            for index in indices:
                try:
                    if planar:
                        tile: Tile = self._decoder.decode_planes(picture, index, found[index][0])
                    else:
                        tile = self._decode(picture, index, found[index], scratch)
                except DamagedSlide as error:
                    if level == 0:
                        raise
                    damaged.append((index, error))
                    continue
                paste(out, tile, *corner(index), x, y)
                if level == 0 and not isinstance(tile, Planes):
                    self._sampled.keep(picture.key(index), tile)
                if picture.reaches_beyond(index, rectangle):
                    edges.keep((level, index, planar), tile, corner(index), rectangle)
            return damaged

        absent += self._pool.share(decode, stored)
        for index, why in absent:
            paste(out, self._made_of_finer(level, index, why), *corner(index), x, y)
        edges.trim()

    def expect(
        self, level: int, x_level: int, y_level: int, width: int, height: int, boxes: NDArray[np.int64] | None = None
    ) -> None:
        """See `SlideReader.expect`. What is asked for comes in rows, from the top: what lies above is let go of."""
        self._sampled.end()
        if self._coming_top is not None:
            self._forget_above(*self._coming_top)
        self._coming_top = level, y_level
        picture = self._levels[level]
        rectangle = x_level, y_level, width, height
        wanted = _tiles_touched(picture, rectangle, boxes)
        has = self._edges.has
        stored = [
            i
            for i in wanted
            if not picture.is_missing(i)
            and not has((level, i, False), picture, rectangle)
            and not has((level, i, True), picture, rectangle)
        ]
        self._coming.expect([span for i in stored for span in picture.spans(i)])

    def close(self) -> None:
        """Let go of the file."""
        self._slide.close()
        self._coming.close()

    def _let_go(self) -> None:
        """Close what was opened of a file that is refused."""
        self._bytes.close()
        if hasattr(self, "_slide"):
            self._slide.close()

    def _look(self, picture: Picture, rectangle: tuple[int, int, int, int]) -> NDArray[np.uint8] | None:
        """Pixels of a rectangle of any picture of the file, white where it lacks tiles; None where one is damaged."""
        x, y, width, height = rectangle
        if picture.tile_width * picture.tile_height > MOST_TILE_PX:
            return None
        out = blank(height, width, WHITE)
        try:
            stored = [i for i in _tiles_touched(picture, rectangle, None) if not picture.is_missing(i)]
            for index, data in self._fetched(picture, stored).items():
                self._sampled.keep(picture.key(index), tile := self._decode(picture, index, data, None))
                paste(out, tile, *picture.corner(index), x, y)
        except DamagedSlide:
            return None
        return out

    def _planar_quality(self, picture: Picture) -> int | None:
        """The same of a picture, as the first tile that the file has says."""
        key = picture.key(0)
        if key not in self._planar:
            first = next((i for i in range(picture.count) if not picture.is_missing(i)), None)
            data = b"" if first is None else self._fetched(picture, [first])[first][0]
            self._planar[key] = planar_quality(picture, data)
        return self._planar[key]

    def _fetched(self, picture: Picture, indices: Sequence[int]) -> dict[int, list[bytes]]:
        """The compressed data of tiles, a piece for each plane."""
        planes = len(picture.planes)
        pieces = self._coming.read([span for i in indices for span in picture.spans(i)])
        return {index: pieces[n * planes : (n + 1) * planes] for n, index in enumerate(indices)}

    def _made_of_finer(self, level: int, index: int, why: _Missing) -> NDArray[np.uint8]:
        """A tile of a reduced level, clipped to the picture, out of the next finer level."""
        picture = self._levels[level]
        x, y = picture.corner(index)
        width, height = min(picture.tile_width, picture.width - x), min(picture.tile_height, picture.height - y)
        if why is None and not self._is_stored_below(level, index):
            return self._bare(picture)[:height, :width]
        (self._left_out if why is None else self._broken)[level].add(index)
        finer = finer_level(level, self.lost)
        return from_finer(self.read, self._info.levels, finer, level, (x, y, width, height))

    def _is_stored_below(self, level: int, index: int) -> bool:
        """Whether any finer level has tiles where a tile of this one is: none has them where there is bare glass."""
        picture = self._levels[level]
        x, y = picture.corner(index)
        for finer in self._levels[:level]:
            scale = finer.width / picture.width
            rectangle = (x * scale, y * scale, picture.tile_width * scale, picture.tile_height * scale)
            left, top, width, height = (round(side) for side in rectangle)
            if not all(map(finer.is_missing, _tiles_touched(finer, (left, top, width, height), None))):
                return True
        return False

    def _bare(self, picture: Picture) -> NDArray[np.uint8]:
        """A tile of background, for one that the file leaves out or nobody asks for."""
        size = picture.tile_height, picture.tile_width
        if self._background.shape[:2] != size:
            self._background = blank(*size, self._info.background)
        return self._background

    def _decode(
        self, picture: Picture, index: int, data: Sequence[bytes], out: NDArray[np.uint8] | None
    ) -> NDArray[np.uint8]:
        """The tile as RGB, clipped to the picture; in `out`, where that is possible."""
        sampled = self._sampled.take(picture.key(index))
        return self._decoder.decode(picture, index, data, out) if sampled is None else sampled

    def _forget_above(self, level: int, top: int) -> None:
        picture = self._levels[level]
        self._edges.drop_before(level, top // picture.tile_height * picture.across)  # the first that reaches below it

    def _require_whole(self) -> None:
        pages = [page for picture in self._levels for page, _ in picture.planes]
        end = max(max(map(sum, zip(p.dataoffsets, p.databytecounts, strict=True)), default=0) for p in pages)
        size = self._bytes.size
        if end > size:
            raise DamagedSlide(
                f"the file is truncated: its tiles reach to byte {end:,}, it has {size:,}; copy the slide again"
            )


def _tiles_touched(
    picture: Picture, rectangle: tuple[int, int, int, int], boxes: NDArray[np.int64] | None
) -> list[int]:
    """Indices, in file order, of the picture's tiles under `boxes` (or the whole rectangle), inside the picture."""
    x, y, width, height = rectangle
    wanted = np.zeros((-(-picture.height // picture.tile_height), picture.across), bool)
    for bx, by, bw, bh in [(x, y, width, height)] if boxes is None else boxes.tolist():
        left, top = max(bx, x, 0), max(by, y, 0)
        right, bottom = min(bx + bw, x + width), min(by + bh, y + height)
        if right > left and bottom > top:
            wanted[
                top // picture.tile_height : -(-bottom // picture.tile_height),
                left // picture.tile_width : -(-right // picture.tile_width),
            ] = True
    return [int(i) for i in np.flatnonzero(wanted)]
