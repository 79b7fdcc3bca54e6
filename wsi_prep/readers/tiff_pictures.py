"""Which pictures a TIFF holds, which of them is the slide, and which may be that slide reduced.

A file may hold several scenes of one glass, an overview or a label that stands first, and levels in any order. The
largest picture in colour is the slide. What has its proportions may be a level of it: whether it shows the same is
asked later, of its pixels (`wsi_prep.readers.levels`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wsi_prep.errors import UnreadableSlide
from wsi_prep.ranges import Span
from wsi_prep.readers.base import is_reduced
from wsi_prep.readers.bounds import MOST_DIRECTORIES, MOST_TILE_PX, require_small_tiles
from wsi_prep.readers.ome import OmeImage, colour_order

JPEG = 7
RGB, YCBCR = 2, 6
_GREY = 1  # photometric interpretations

_COMPRESSIONS = frozenset({1, 5, JPEG, 8, 32946, 50000, 33005, 34712})
"""None, LZW, JPEG, Deflate (two codes), Zstandard, JPEG 2000 of RGB (Aperio's code and the common one)."""

_INTERLEAVED, _APART = 1, 2  # planar configurations

_TISSUE_SIZE = 1 / 64
"""Of the slide's pixels: what is smaller is no other scene but a picture of the label, or of the whole glass."""

_LOOSE_SIZE = 1 / 4
"""The same for pictures that are not stored in tiles, as labels seldom are."""

_NOT_TILED = "not tiled"
_DAMAGED = "its list of tiles is damaged"

_DWARFED = 1 / 16
"""Of the pixels of a picture that is not read: what is smaller than that is hardly the slide."""

_ASIDE = frozenset({"label", "labels", "macro", "overview", "thumbnail", "thumb", "barcode", "preview"})
"""Words in the names that OME-TIFFs give to pictures of the whole glass, label and all."""

_ALONG = frozenset(
    {*("image", "img", "photo", "picture", "scan", "slide", "glass", "of", "the", "series", "camera", "area", "full")}
    | {"png", "jpg", "jpeg", "tif", "tiff", "bmp"}
)
"""Words that go with these and change nothing: "label-free" is another thing."""


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

    def corner(self, index: int) -> tuple[int, int]:
        """X and y of a tile's upper left pixel."""
        row, col = divmod(index, self.across)
        return col * self.tile_width, row * self.tile_height


@dataclass(frozen=True)
class Pyramid:
    """The slide: its `levels`, finest first; the image of the OME-XML that it is; and `notes` for its row's warning."""

    levels: tuple[Picture, ...]
    image: OmeImage | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Candidate:
    """A picture of the file: `sides` in px, `why_not` it cannot be read, what it `is` where it can, and its levels."""

    sides: tuple[int, int]
    why_not: str = ""
    levels: tuple[Picture, ...] = ()
    image: OmeImage | None = None

    @property
    def area(self) -> int:
        return self.sides[0] * self.sides[1]

    @property
    def is_aside(self) -> bool:
        """Whether its name says that it is a picture of the label or of the whole glass, and nothing else."""
        return self.may_be_aside and self._words <= _ASIDE | _ALONG

    @property
    def may_be_aside(self) -> bool:
        """Whether its name has a word for such pictures."""
        return not _ASIDE.isdisjoint(self._words)

    @property
    def _words(self) -> set[str]:
        return set(re.findall(r"[a-z]+", self.image.name.lower())) if self.image is not None else set()


def find_pyramid(tiff: Any, images: Sequence[OmeImage] | None) -> Pyramid:
    """The slide in an open TIFF. `images` are those of its OME-XML; None where it has none.

    Raises UnsupportedLayout where no picture can be read here, and UnreadableSlide where none is the slide.
    """
    found = list(_plain_candidates(tiff)) if images is None else list(_ome_candidates(tiff, images))
    readable = [one for one in found if not one.why_not and not one.is_aside]
    largest = max(found, key=lambda one: one.area, default=None)
    if largest is None or not readable:
        if any(one.is_aside and not one.why_not for one in found):
            raise UnreadableSlide("its only image in colour is named a label or macro image, which is never read")
        why = largest.why_not if largest else "it holds no picture"
        raise UnsupportedLayout(why, largest.sides if largest else None)
    slide = max(readable, key=lambda one: one.area)
    if found[0].why_not == _DAMAGED:  # who knows what it was
        raise UnsupportedLayout(_DAMAGED)
    if largest.why_not and (slide.area < _DWARFED * largest.area or is_reduced(*largest.sides, *slide.sides)):
        raise UnsupportedLayout(largest.why_not, largest.sides)
    require_small_tiles(slide.levels[0].page)
    own = [slide, *(one for one in found if one is not slide and _may_be_level(one, slide))]
    levels = [level for one in own for level in one.levels if level is slide.levels[0] or _fits(level, slide)]
    levels.sort(key=lambda level: -level.width)
    others = [one for one in found if one not in own and not one.may_be_aside]
    return Pyramid(tuple(levels), slide.image, tuple(_notes(slide, others)))


def _may_be_level(one: _Candidate, slide: _Candidate) -> bool:
    return not one.why_not and not one.is_aside and any(_fits(level, slide) for level in one.levels[:1])


def _fits(level: Picture, slide: _Candidate) -> bool:
    """Whether a picture has the slide's proportions, and is smaller."""
    small = level.width < slide.sides[0] and level.tile_width * level.tile_height <= MOST_TILE_PX
    return small and is_reduced(*slide.sides, *level.sides)


def _notes(slide: _Candidate, others: Sequence[_Candidate]) -> Iterator[str]:
    """What else of tissue size there is; what is another's level does not count again."""
    scenes: list[_Candidate] = []
    for one in sorted(others, key=lambda one: -one.area):
        repeats = any(one.area < s.area and is_reduced(*s.sides, *one.sides) for s in scenes)
        if one.area >= (_LOOSE_SIZE if one.why_not == _NOT_TILED else _TISSUE_SIZE) * slide.area and not repeats:
            scenes.append(one)
    if scenes:
        sizes = ", ".join(f"{width} x {height}" for width, height in (one.sides for one in scenes[:3]))
        more = ", ..." if len(scenes) > 3 else ""
        pictures = "1 more picture" if len(scenes) == 1 else f"{len(scenes)} more pictures"
        yield f"the file holds {pictures} of tissue size ({sizes}{more} px), left out: the largest is the slide"


def _plain_candidates(tiff: Any) -> Iterator[_Candidate]:
    """Every picture of a TIFF that is not OME's, each by itself."""
    for page in _pages(tiff):
        sides = int(page.imagewidth), int(page.imagelength)
        why = _why_not(page)
        if why or page.samplesperpixel != 3:
            yield _Candidate(sides, why or "not 8-bit RGB")
        else:
            yield _Candidate(sides, levels=(_in_colour(page),))


def _pages(tiff: Any) -> Iterator[Any]:
    """Every directory, those below others included."""
    count = 0
    for top in tiff.pages:
        page = top.aspage()
        below = page.pages if page.subifds else ()
        count += 1 + len(page.subifds or ())
        if count > MOST_DIRECTORIES:
            raise UnreadableSlide(f"it has more than {MOST_DIRECTORIES:,} TIFF directories, where a slide has some ten")
        yield page
        yield from (one.aspage() for one in below)


def _ome_candidates(tiff: Any, images: Sequence[OmeImage]) -> Iterator[_Candidate]:
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
        if isinstance(pictures[0], str):
            yield _Candidate(sides, pictures[0], image=image)
        else:
            yield _Candidate(sides, levels=tuple(p for p in pictures if isinstance(p, Picture)), image=image)


def _ome_picture(level: Any, axes: str, image: OmeImage) -> Picture | str:
    """One level of an OME image, or why it is not read."""
    if not level.pages or any(page is None for page in level.pages):
        return "some of its planes are missing"
    pages: list[Any] = [page.aspage() for page in level.pages]
    if axes in ("YXS", "SYX"):
        why = _why_not(pages[0])
        return why or (_in_colour(pages[0]) if pages[0].samplesperpixel == 3 else "not 8-bit RGB")
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


def _why_not(page: Any) -> str:
    """Why this reader does not take the page, or an empty text. Colours aside: one sample a pixel, or three."""
    if page.imagewidth < 1 or page.imagelength < 1:
        return _DAMAGED
    if not page.is_tiled and not {"TileWidth", "TileLength"}.isdisjoint(page.tags):
        return _DAMAGED
    if not page.is_tiled:
        return _NOT_TILED
    planes = page.samplesperpixel if page.planarconfig == _APART else 1
    count = _tile_count(page) * planes
    in_colour = page.photometric == RGB or (page.photometric, page.compression) == (YCBCR, JPEG)
    checks = (
        (page.dtype == np.uint8 and page.samplesperpixel in (1, 3), "not 8-bit RGB"),
        (page.planarconfig in (_INTERLEAVED, _APART), "planes stored in an unknown way"),
        (page.compression in _COMPRESSIONS, f"compression {page.compression!r}"),
        (page.samplesperpixel == 1 or in_colour, "neither RGB nor JPEG"),
        (planes == 1 or page.photometric == RGB, "planes of YCbCr stored apart"),
        (page.imagedepth == 1, "a volume"),
        (count == len(page.dataoffsets) == len(page.databytecounts), _DAMAGED),
        (all(_are_places(n) for n in (page.dataoffsets, page.databytecounts)), _DAMAGED),
    )
    return next((reason for fine, reason in checks if not fine), "")


def _are_places(numbers: Sequence[Any]) -> bool:
    """Whether these are whole numbers of 0 and more: a TIFF may say of what type they are."""
    found = np.asarray(numbers)
    return found.dtype.kind in "iu" and not (found < 0).any()


def _tile_count(page: Any) -> int:
    across, down = -(-page.imagewidth // page.tilewidth), -(-page.imagelength // page.tilelength)
    return int(across * down)
