"""A TIFF slide's compressed tiles as pixels: RGB, or the planes that a JPEG of YCbCr holds; some are kept for later."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from wsi_prep.errors import DamagedSlide
from wsi_prep.format.jpeg import first_frame, ijg_quality, is_ycc, tables_and_sampling
from wsi_prep.slides.images import Planes, reduce_by
from wsi_prep.slides.private import reason
from wsi_prep.slides.readers.tiff.bounds import MOST_TILE_PX, coded_size
from wsi_prep.slides.readers.tiff.pictures import JPEG, RGB, Picture

Tile = NDArray[np.uint8] | Planes
"""A tile's pixels: (h, w, 3) RGB, or planes."""

_PLANAR = ("yuvj420p", "yuvj422p", "yuvj444p")
"""FFmpeg's names for full-range YCbCr, whose planes of colour are halved in both directions, across, or not."""

_FRAMES = (0xC0, 0xC1, 0xC2)
"""Baseline, extended and progressive, in Huffman's code: what both decoders know."""

_SAMPLINGS = (b"\x22\x11\x11", b"\x21\x11\x11", b"\x11\x11\x11")
"""The factors of the components of 4:2:0, 4:2:2 and 4:4:4, as a frame header has them."""


TileKey = tuple[int, int]
"""Where its page begins in the file, and the tile's index there. Not where its data lie: tiles may share those."""

Rectangle = tuple[int, int, int, int]
"""X, y, width and height in px of a level."""

EdgeKey = tuple[int, int, bool]
"""Level, the tile's index there, and whether it was decoded to planes."""

_MOST_BYTES = 16 * 2**20


class TileDecoder:
    """Decodes tiles of one file, whose `path` no message repeats. Threads may share it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._own = threading.local()

    def decode(
        self, picture: Picture, index: int, data: Sequence[bytes], out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """The tile, (h, w, 3) uint8 RGB, clipped to the picture; in `out`, if that is given and it is a colour JPEG.

        `data` is a piece for each plane of the file. Raises DamagedSlide where the tile cannot be decoded.
        """
        x, y = picture.corner(index)
        if len(data) == 1:
            tile = self._piece(picture.page, index, data[0], (x, y), out)[..., :3]
        else:
            pieces = [
                self._piece(page, first + index, piece, (x, y), None)[..., 0]
                for (page, first), piece in zip(picture.planes, data, strict=True)
            ]
            tile = np.stack(pieces, axis=-1)
        return tile[: picture.height - y, : picture.width - x]

    def decode_planes(self, picture: Picture, index: int, data: bytes) -> Planes:
        """The tile of a picture that has a `planar_quality`, clipped to it; what it holds is not to be written to.

        Raises DamagedSlide where the tile cannot be decoded, or is no whole JPEG.
        """
        page, (x, y) = picture.page, picture.corner(index)
        if page.photometric == RGB and not is_ycc(data):  # the file's other tiles say of themselves that they are not
            return Planes.of_rgb(self.decode(picture, index, [data]))
        whole = data if page.jpegtables is None else page.jpegtables[:-2] + data[2:]
        context = self._context()
        try:
            (frame,) = context.decode(self._own.packet(whole))
        except Exception:  # of dozens of kinds; FFmpeg knows fewer kinds of JPEG than libjpeg
            return Planes.of_rgb(self.decode_shrunk(picture, index, data, 1))
        size = picture.tile_height, picture.tile_width
        if (frame.height, frame.width) != size or frame.format.name not in _PLANAR:
            return Planes.of_rgb(self.decode(picture, index, [data]))
        planes = Planes.of(*map(_samples, frame.planes))
        inside = x + size[1] <= picture.width and y + size[0] <= picture.height
        return planes if inside else planes.window(0, 0, picture.width - x, picture.height - y)

    def decode_shrunk(self, picture: Picture, index: int, data: bytes, shrink: int) -> NDArray[np.uint8]:
        """The tile of a picture that has a `planar_quality`, reduced by 1, 2, 4 or 8 as it is decoded, RGB.

        libjpeg makes each block of 8 x 8 px of the first coefficients alone. Raises DamagedSlide where the tile is no
        JPEG from begin to end: here libjpeg's warnings are errors, too.
        """
        import simplejpeg  # noqa: PLC0415 - few other files need it

        page, (x, y) = picture.page, picture.corner(index)
        height, width = picture.tile_height // shrink, picture.tile_width // shrink
        rows, cols = -(-(picture.height - y) // shrink), -(-(picture.width - x) // shrink)
        if page.photometric == RGB and not is_ycc(data):
            return reduce_by(self._piece(page, index, data, (x, y), None), shrink)[:rows, :cols]
        self._require_jpeg(page, data, (x, y))
        try:
            whole = data if page.jpegtables is None else page.jpegtables[:-2] + data[2:]
            tile = simplejpeg.decode_jpeg(whole, min_height=height, min_width=width)
        except ValueError as error:
            raise DamagedSlide(f"{_where(page, (x, y))} is not a complete JPEG; copy the slide again") from error
        if tile.shape != (height, width, 3):
            return reduce_by(self._piece(page, index, data, (x, y), None), shrink)[:rows, :cols]
        return np.asarray(tile[:rows, :cols], np.uint8)

    def _context(self) -> Any:
        """The decoder of this thread. It refuses a JPEG that ends early, of which libjpeg makes the rest grey."""
        if not hasattr(self._own, "context"):
            import av  # noqa: PLC0415 - a hundred libraries, which few other files need

            av.logging.set_level(av.logging.PANIC)  # what matters becomes an error here
            context = av.CodecContext.create("mjpeg", "r")
            context.thread_count = 1
            context.options = {"err_detect": "explode", "max_pixels": str(MOST_TILE_PX)}
            self._own.context, self._own.packet = context, av.Packet
        return self._own.context

    def _piece(
        self, page: Any, index: int, data: bytes, corner: tuple[int, int], out: NDArray[np.uint8] | None
    ) -> NDArray[np.uint8]:
        """(h, w, samples) of a tile of one page; raises DamagedSlide where it does not decode."""
        self._require_jpeg(page, data, corner)
        try:
            in_colour = page.compression == JPEG and page.samplesperpixel == 3 and page.planarconfig == 1
            decoded = _decode_jpeg(page, data, out) if in_colour else None
            if decoded is None:
                decoded = page.decode(data, index, jpegtables=page.jpegtables)[0][0]
        except Exception as error:  # each codec has errors of its own
            why = reason(error, self._path)
            raise DamagedSlide(f"{_where(page, corner)} cannot be decoded ({why}); copy the slide again") from error
        return np.asarray(decoded, dtype=np.uint8)

    @staticmethod
    def _require_jpeg(page: Any, data: bytes, corner: tuple[int, int]) -> None:
        """Raise DamagedSlide for what is no JPEG from its begin to its end, or says that it is larger than any tile."""
        if page.compression == JPEG and not (data[:2] == b"\xff\xd8" and data.rfind(b"\xff\xd9") > 0):
            raise DamagedSlide(f"{_where(page, corner)} is not a complete JPEG; copy the slide again from its source")
        height, width = coded_size(data)
        if height * width > MOST_TILE_PX:
            said = f"{_where(page, corner)} says that it is {width} x {height} px"
            raise DamagedSlide(f"{said}; copy the slide again from its source")


def planar_quality(picture: Picture, first: bytes) -> int | None:
    """The quality of a picture's tiles, of which `first` is one, where they are JPEGs of YCbCr; None where not.

    0 where their quantisation tables are no quality's.
    """
    page = picture.page
    if page.compression != JPEG or len(picture.planes) != 1 or page.samplesperpixel != 3:
        return None
    said, frame = is_ycc(first), first_frame(first)
    as_ycc = said or (said is None and page.photometric != RGB)
    even = picture.tile_width % 2 == 0 and picture.tile_height % 2 == 0
    if not as_ycc or not even or frame is None or frame[0] not in _FRAMES:
        return None
    if frame[1:] != (picture.tile_height, picture.tile_width) or _sampling(first) not in _SAMPLINGS:
        return None
    return ijg_quality(first) or ijg_quality(page.jpegtables or b"") or 0


def _sampling(jpeg: bytes) -> bytes:
    """The sampling factors of a JPEG's three components, a byte each; nothing where they are not three."""
    components = next((c for c in tables_and_sampling(jpeg)[::-1] if c[:1] == b"\x03" and len(c) == 10), b"")
    return components[2::3]


def _where(page: Any, corner: tuple[int, int]) -> str:
    return f"the tile at x {corner[0]}, y {corner[1]} of the level {page.imagewidth} px wide"


def _samples(plane: Any) -> NDArray[np.uint8]:
    """(h, w) samples of one of FFmpeg's planes, in its memory."""
    padded = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return padded[: plane.height, : plane.width]


def _decode_jpeg(page: Any, data: bytes, out: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
    """A JPEG tile as tifffile decodes it, without what that does around it; None where its size is not the page's."""
    said = is_ycc(data)  # what the tile says counts before the TIFF's tag: Bio-Formats and others get the tag wrong
    stored = "YCBCR" if said or (said is None and page.photometric != RGB) else "RGB"
    try:
        tile: NDArray[np.uint8] = imagecodecs.jpeg8_decode(
            data, tables=page.jpegtables, colorspace=stored, outcolorspace="RGB", out=out
        )
    except ValueError:  # it does not fit
        return None
    return tile if tile.shape == (page.tilelength, page.tilewidth, 3) else None


def paste(out: Tile, tile: Tile, x_tile: int, y_tile: int, x: int, y: int) -> None:
    """Copy the part of `tile` (its corner at x_tile, y_tile) that lies in `out` (its corner at x, y).

    A tile becomes what `out` is. Planes lie at even corners.
    """
    if isinstance(out, Planes):
        planes = tile if isinstance(tile, Planes) else Planes.of_rgb(tile)
        x, y = x_tile - x, y_tile - y
        _copy(out.luma, planes.luma, x, y)
        _copy(out.blue, planes.blue, x // 2, y // 2)
        _copy(out.red, planes.red, x // 2, y // 2)
    else:
        _copy(out, tile.rgb() if isinstance(tile, Planes) else tile, x_tile - x, y_tile - y)


def _copy(out: NDArray[np.uint8], tile: NDArray[np.uint8], x: int, y: int) -> None:
    """Copy the part of `tile`, whose corner is at x, y of `out`, that lies in it."""
    left, top = max(x, 0), max(y, 0)
    right, bottom = min(x + tile.shape[1], out.shape[1]), min(y + tile.shape[0], out.shape[0])
    if right > left and bottom > top:
        out[top:bottom, left:right] = tile[top - y : bottom - y, left - x : right - x]


class SampledTiles:
    """Decoded tiles, clipped to their picture; each is given out once."""

    def __init__(self) -> None:
        self._tiles: dict[TileKey, NDArray[np.uint8]] = {}
        self._bytes = 0
        self._ended = False

    def keep(self, key: TileKey, tile: NDArray[np.uint8]) -> None:
        """Keep a copy of a tile, as long as there is room and the looks have not ended."""
        if not self._ended and key not in self._tiles and self._bytes + tile.nbytes <= _MOST_BYTES:
            self._tiles[key] = tile.copy()
            self._bytes += tile.nbytes

    def take(self, key: TileKey) -> NDArray[np.uint8] | None:
        """That tile, if it was kept; it is kept no longer."""
        tile = self._tiles.pop(key, None)
        if tile is not None:
            self._bytes -= tile.nbytes
        return tile

    def end(self) -> None:
        """From here on each tile is cut once."""
        self._ended = True

    def clear(self) -> None:
        """Keep none of them, as nobody will take one."""
        self._tiles.clear()
        self._bytes = 0


@dataclass(frozen=True)
class _Part:
    """What is kept of a tile, and the upper left pixel of that in the level."""

    pixels: Tile
    x: int
    y: int

    def covers(self, left: int, top: int) -> bool:
        """Whether nothing of the tile, from there on down and to the right, is missing."""
        return self.x <= left and self.y <= top


class EdgeTiles:
    """Tiles that reach beyond what they were decoded for: of those beyond one edge the part that lies there.

    `nbytes` of memory in all; past `most_bytes` the oldest are dropped by `trim`. Threads may keep tiles side by side.
    """

    def __init__(self, most_bytes: int) -> None:
        self.nbytes = 0
        self._most_bytes = most_bytes
        self._parts: OrderedDict[EdgeKey, _Part] = OrderedDict()
        self._lock = threading.Lock()

    def has(self, key: EdgeKey, picture: Picture, rectangle: Rectangle) -> bool:
        """Whether all is here that a rectangle wants of that tile of the level, which is this `picture`."""
        part = self._parts.get(key)
        if part is None:
            return False
        x, y = picture.corner(key[1])
        return part.covers(max(x, rectangle[0]), max(y, rectangle[1]))

    def paste(self, key: EdgeKey, out: Tile, x: int, y: int) -> None:
        """Copy what is here of a tile into `out`, whose corner is at x, y."""
        part = self._parts[key]
        paste(out, part.pixels, part.x, part.y, x, y)

    def keep(self, key: EdgeKey, tile: Tile, corner: tuple[int, int], rectangle: Rectangle) -> None:
        """Keep a copy of what a `tile` at `corner` holds for the neighbours of the rectangle."""
        self.drop(key)
        height, width = tile.sides if isinstance(tile, Planes) else tile.shape[:2]
        right, below = rectangle[0] + rectangle[2] - corner[0], rectangle[1] + rectangle[3] - corner[1]
        left = right // 2 * 2 if below >= height else 0  # planes are cut at even pixels
        top = below // 2 * 2 if right >= width else 0
        pixels = _copied(tile, left, top)
        with self._lock:
            self._parts[key] = _Part(pixels, corner[0] + left, corner[1] + top)
            self.nbytes += pixels.nbytes

    def drop(self, key: EdgeKey) -> None:
        """Let go of a tile, if it is here."""
        with self._lock:
            part = self._parts.pop(key, None)
            if part is not None:
                self.nbytes -= part.pixels.nbytes

    def drop_before(self, level: int, index: int) -> None:
        """Let go of the tiles of a level with lower indices."""
        for key in [key for key in self._parts if key[0] == level and key[1] < index]:
            self.drop(key)

    def trim(self) -> None:
        """Let go of the oldest, while there are too many."""
        while self.nbytes > self._most_bytes:
            self.drop(next(iter(self._parts)))


def _copied(tile: Tile, left: int, top: int) -> Tile:
    """A copy of a tile from that pixel on, to the right and down; the rest of its memory is free to go."""
    if not isinstance(tile, Planes):
        return tile[top:, left:].copy()
    height, width = tile.sides
    copy = Planes.empty(height - top, width - left)
    copy.fill(tile.window(left, top, width - left, height - top))
    return copy
