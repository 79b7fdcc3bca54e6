"""Which pictures a TIFF holds, what each is called, and which of them can be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from wsi_prep.errors import UnreadableSlide, counted
from wsi_prep.slides.base import is_reduced
from wsi_prep.slides.fetch.ranges import Span
from wsi_prep.slides.readers.tiff.aside import is_aside, name_in
from wsi_prep.slides.readers.tiff.bounds import MOST_DIRECTORIES
from wsi_prep.slides.readers.tiff.ome import OmeImage, colour_order

JPEG = 7
RGB, YCBCR = 2, 6
_GREY = 1  # photometric interpretations

_LOSSLESS = frozenset({1, 5, 8, 32946, 50000})
"""None, LZW, Deflate (two codes), Zstandard."""

_COMPRESSIONS = _LOSSLESS | {JPEG, 33005, 34712}
"""JPEG, and JPEG 2000 of RGB (Aperio's code and the common one)."""

_METHODS = {
    **{JPEG: "JPEG", 6: "JPEG of the old style", 34892: "JPEG", 22610: "JPEG XR", 34934: "JPEG XR"},
    **{33003: "JPEG 2000 of YCbCr", 33005: "JPEG 2000", 33007: "JPEG 2000", 34712: "JPEG 2000"},
    **{
        50002: "JPEG XL",
        52546: "JPEG XL",
        50001: "WebP",
        34887: "LERC",
        34925: "LZMA",
        34933: "PNG",
        32773: "PackBits",
    },
}
"""Of compression, by the codes that TIFF's writers agree on."""

_INTERLEAVED, _APART = 1, 2  # planar configurations
_TO = "'out.tif[tile,pyramid,bigtiff,compression=jpeg,Q=90]'"

NOT_TILED = "not tiled"
DAMAGED = "its list of tiles is damaged"
COMPRESSED = "its tiles are compressed by "
TRANSPARENT = "its samples are red, green, blue and transparency"

_ALPHA = (1, 2)
"""TIFF's extra samples that are transparency, with colours multiplied by it or not; others, and 0, are not."""


class UnsupportedLayout(UnreadableSlide):
    """A TIFF, or another file, whose layout the TIFF reader leaves to OpenSlide.

    `largest` is width and height of the largest picture in it, if that is known: OpenSlide must find the same.
    """

    def __init__(self, message: str, largest: tuple[int, int] | None = None) -> None:
        super().__init__(message)
        self.largest = largest


@dataclass(frozen=True)
class Picture:
    """A picture that is stored in tiles: red, green and blue of each tile together, or in three `planes`.

    A plane is a page of the TIFF and the number that its first tile has there. `page` is the first one's.
    """

    planes: tuple[tuple[Any, int], ...]
    width: int = field(init=False)
    height: int = field(init=False)
    tile_width: int = field(init=False)
    tile_height: int = field(init=False)
    across: int = field(init=False)

    def __post_init__(self) -> None:
        page = self.page
        put = object.__setattr__  # tifffile's own attributes cost more each time
        put(self, "width", int(page.imagewidth))
        put(self, "height", int(page.imagelength))
        put(self, "tile_width", int(page.tilewidth))
        put(self, "tile_height", int(page.tilelength))
        put(self, "across", -(-self.width // self.tile_width))

    @property
    def page(self) -> Any:
        """The page that says how the picture is stored."""
        return self.planes[0][0]

    @property
    def sides(self) -> tuple[int, int]:
        """Width and height in px."""
        return self.width, self.height

    @property
    def count(self) -> int:
        """How many tiles it has."""
        return self.across * -(-self.height // self.tile_height)

    def key(self, index: int) -> tuple[int, int]:
        """What tells a tile from all others of the file: where its page begins, and its index there."""
        page, first = self.planes[0]
        return page.offset, first + index

    def spans(self, index: int) -> list[Span]:
        """Where the data of a tile are, a span for each plane."""
        return [(page.dataoffsets[first + index], page.databytecounts[first + index]) for page, first in self.planes]

    @property
    def lacks_tiles(self) -> bool:
        """Whether the file leaves any tile out."""
        return any(0 in page.databytecounts for page, _ in self.planes)

    def is_missing(self, index: int) -> bool:
        """Whether the file leaves the tile out."""
        return any(page.databytecounts[first + index] == 0 for page, first in self.planes)

    def reaches_beyond(self, index: int, rectangle: tuple[int, int, int, int]) -> bool:
        """Whether a tile, clipped to the picture, reaches beyond the right or lower edge of x, y, width, height."""
        x_tile, y_tile = self.corner(index)
        x, y, width, height = rectangle
        right, below = min(x_tile + self.tile_width, self.width), min(y_tile + self.tile_height, self.height)
        return right > x + width or below > y + height

    def corner(self, index: int) -> tuple[int, int]:
        """X and y of a tile's upper left pixel."""
        row, col = divmod(index, self.across)
        return col * self.tile_width, row * self.tile_height


@dataclass(frozen=True)
class Candidate:
    """A picture of the file: `sides` in px, `why_not` it cannot be read; where it can, its levels, itself the first.

    `name` is what the file calls it, `count` how many levels the file gives it, read or not, and `is_base` whether the
    file begins with it and says its size, as Aperio's do of the slide. `page` is its own in a TIFF that is not OME's.
    Where it `misleads`, OpenSlide would read it, and wrongly.
    """

    sides: tuple[int, int]
    why_not: str = ""
    levels: tuple[Picture, ...] = ()
    image: OmeImage | None = None
    name: str = ""
    count: int = 1
    is_base: bool = False
    page: Any = None
    misleads: bool = False

    @property
    def area(self) -> int:
        """Pixels."""
        return self.sides[0] * self.sides[1]

    @cached_property
    def is_aside(self) -> bool:
        """Whether its name says that it is a picture of the label or of the whole glass."""
        return is_aside(self.name)

    def reduces(self, other: Candidate) -> bool:
        """Whether by its sides it may be a level of another one."""
        return self.area < other.area and is_reduced(*other.sides, *self.sides)


def candidates(tiff: Any, images: Sequence[OmeImage] | None) -> list[Candidate]:
    """Every picture in an open TIFF. `images` are those of its OME-XML; None where it has none."""
    return list(_plain_candidates(tiff) if images is None else _ome_candidates(tiff, images))


def _plain_candidates(tiff: Any) -> Iterator[Candidate]:
    """Every picture of a TIFF that is not OME's, each by itself; those below another bear its name too."""
    for number, (page, name) in enumerate(_pages(tiff)):
        sides = int(page.imagewidth), int(page.imagelength)
        wrong = _why_openslide_misreads(page)
        why = wrong or _why_not(page)
        if not why and page.samplesperpixel == 1:
            why = "not 8-bit RGB"
        levels = () if why else (_in_colour(page),)
        is_base = number == 0 and f"{sides[0]}x{sides[1]}" in str(page.description)
        yield Candidate(sides, why, levels, name=name, is_base=is_base, page=page, misleads=bool(wrong))


def _pages(tiff: Any) -> Iterator[tuple[Any, str]]:
    """Every directory, those below others included, and what they are called."""
    count = 0
    for top in tiff.pages:
        page = top.aspage()
        below = page.pages if page.subifds else ()
        count += 1 + len(page.subifds or ())
        if count > MOST_DIRECTORIES:
            raise UnreadableSlide(f"it has more than {MOST_DIRECTORIES:,} TIFF directories, where a slide has some ten")
        name = _name_of(page)
        yield page, name
        yield from ((one.aspage(), f"{name} {_name_of(one.aspage())}") for one in below)


def _name_of(page: Any) -> str:
    """What the page's tags call it."""
    said = [page.tags[tag].value for tag in ("ImageDescription", "PageName") if tag in page.tags]
    return " ".join(name_in(one.decode("latin-1") if isinstance(one, bytes) else str(one)) for one in said)


def _ome_candidates(tiff: Any, images: Sequence[OmeImage]) -> Iterator[Candidate]:
    """Every image of an OME-TIFF, with the levels that are stored below it."""
    series = [one for one in tiff.series if one.kind == "ome"]
    if not series:
        raise UnsupportedLayout("its OME-XML does not say what the file holds, or spans several files")
    coming = iter(images)
    for one in series:
        sides = int(one.keyframe.imagewidth), int(one.keyframe.imagelength)
        image = next((image for image in coming if image.sides == sides), None)  # some have nothing in the file
        if image is None:
            raise UnsupportedLayout("its OME-XML does not fit what the file holds")
        pictures = [_ome_picture(level, one.axes, image) for level in one.levels]
        why = pictures[0] if isinstance(pictures[0], str) else ""
        levels = () if why else tuple(p for p in pictures if isinstance(p, Picture))
        yield Candidate(sides, why, levels, image, image.name, len(pictures))


def _ome_picture(level: Any, axes: str, image: OmeImage) -> Picture | str:
    """One level of an OME image, or why it is not read."""
    if not level.pages or any(page is None for page in level.pages):
        return "some of its planes are missing"
    pages: list[Any] = [page.aspage() for page in level.pages]
    if axes in ("YXS", "SYX"):
        why = _why_not(pages[0])
        samples = pages[0].samplesperpixel
        return why or (
            _in_colour(pages[0]) if samples == 3 else f"not 8-bit RGB, but {counted(samples, 'sample')} a pixel"
        )
    if axes != "CYX" or len(pages) != 3:
        return f"axes {axes}, where one RGB plane (YXS), or red, green and blue apart (SYX, CYX), is needed"
    if why := next(filter(None, map(_why_not, pages)), ""):
        return why
    if any(page.samplesperpixel != 1 or page.photometric != _GREY for page in pages):
        return "its channels are not single 8-bit planes"
    order = colour_order(image.channels)
    return order if isinstance(order, str) else Picture(tuple((pages[i], 0) for i in order))


def _in_colour(page: Any) -> Picture:
    if page.planarconfig == _INTERLEAVED:
        return Picture(((page, 0),))
    return Picture(tuple((page, plane * _tile_count(page)) for plane in range(3)))


def has_more_samples(page: Any) -> bool:
    """Whether a pixel has samples beside red, green and blue, the first of which is no transparency."""
    extra = tuple(page.extrasamples or ())
    return page.photometric in (RGB, YCBCR) and page.samplesperpixel > 3 and not (extra and extra[0] in _ALPHA)


def _why_openslide_misreads(page: Any) -> str:
    """What is wrong with a page that OpenSlide opens, but whose pixels it makes wrong or not at all; or an empty text.

    libtiff takes the fourth sample for transparency, whatever it is, and refuses floating point as it reads.
    """
    if page.dtype is not None and (page.dtype.kind == "f" or page.dtype.itemsize > 2):
        kind = "floating-point numbers" if page.dtype.kind == "f" else "whole numbers"
        return (
            f"its samples are {page.dtype.itemsize * 8}-bit {kind}: convert them to 8 bits, where they run from 0 to 1 "
            f"so: vips linear in.tif {_TO} 255 0 --uchar"
        )
    if has_more_samples(page) and page.compression not in _LOSSLESS:
        return (
            f"its pixels have {page.samplesperpixel} samples, of which only the first three are colours, compressed by "
            f"{_compression(page)}: write the three alone: vips extract_band in.tif {_TO} 0 --n 3"
        )
    return ""


def _why_not(page: Any) -> str:
    """Why this reader does not take the page, or an empty text. It may have one sample a pixel, or three and more."""
    if page.imagewidth < 1 or page.imagelength < 1:
        return DAMAGED
    if not page.is_tiled and not {"TileWidth", "TileLength"}.isdisjoint(page.tags):
        return DAMAGED
    if not page.is_tiled:
        return NOT_TILED
    planes = page.samplesperpixel if page.planarconfig == _APART else 1
    count = _tile_count(page) * planes
    in_colour = page.photometric == RGB or (page.photometric, page.compression) == (YCBCR, JPEG)
    more = has_more_samples(page)
    is_transparent = page.photometric in (RGB, YCBCR) and page.samplesperpixel > 3 and not more
    checks = (
        (not is_transparent, TRANSPARENT),
        (page.dtype == np.uint8 and (page.samplesperpixel in (1, 3) or more), "not 8-bit RGB"),
        (page.planarconfig in (_INTERLEAVED, _APART), "planes stored in an unknown way"),
        (page.compression in _COMPRESSIONS, COMPRESSED + _compression(page)),
        (page.samplesperpixel == 1 or in_colour, "neither RGB nor JPEG"),
        (planes == 1 or page.photometric == RGB, "planes of YCbCr stored apart"),
        (page.imagedepth == 1, "a volume"),
        (count == len(page.dataoffsets) == len(page.databytecounts), DAMAGED),
        (all(_are_places(n) for n in (page.dataoffsets, page.databytecounts)), DAMAGED),
    )
    return next((reason for fine, reason in checks if not fine), "")


def _compression(page: Any) -> str:
    code = int(page.compression)
    return _METHODS.get(code, f"a method that is not read (TIFF's number {code})")


def _are_places(numbers: Sequence[object]) -> bool:
    """Whether these are whole numbers of 0 and more: a TIFF may say of what type they are."""
    found = np.asarray(numbers)
    return found.dtype.kind in "iu" and not (found < 0).any()


def _tile_count(page: Any) -> int:
    across, down = -(-page.imagewidth // page.tilewidth), -(-page.imagelength // page.tilelength)
    return int(across * down)
