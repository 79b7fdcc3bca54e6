"""Which of a TIFF's pictures is the slide, and which may be that slide reduced.

A file may hold several scenes of one glass, an overview or a label anywhere, and levels in any order. The slide is the
largest picture in colour that others show reduced, and the largest of all where none is shown so. A name that says
label is not believed where all that the file shows besides is this picture, reduced. What has the slide's
proportions may be a level of it: whether it shows the same is asked again of all that is read of it
(`wsi_prep.slides.pyramid.trusted`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsi_prep.errors import UnreadableSlide, counted
from wsi_prep.slides.base import is_reduced
from wsi_prep.slides.pyramid.compare import alike, resized, striking
from wsi_prep.slides.readers.tiff.bounds import MOST_TILE_PX, require_small_tiles
from wsi_prep.slides.readers.tiff.ome import OmeImage
from wsi_prep.slides.readers.tiff.pictures import (
    DAMAGED,
    NOT_TILED,
    Candidate,
    Picture,
    UnsupportedLayout,
    candidates,
    has_more_samples,
)

Read = Callable[[Picture, tuple[int, int, int, int]], NDArray[np.uint8] | None]
"""Pixels of x, y, width, height of a picture, (height, width, 3); None where they do not decode."""

_TISSUE_SIZE = 1 / 64
"""Of the slide's pixels: what is smaller is no other scene but a picture of the label, or of the whole glass."""

_LOOSE_SIZE = 1 / 4
"""The same for pictures that are not stored in tiles, as labels seldom are."""

_DWARFED = 1 / 16
"""Of the pixels of a picture that stands alone: a pyramid smaller than that is hardly the slide."""

_RENAME = (
    "take that word out of a copy's ImageDescription or PageName (tiffset -s ImageDescription 'H&E' copy.tif), "
    "or out of its name in the OME-XML"
)

_LEVELS_ASKED, _LEVELS_SHOWN = 3, 8
_LOOKED_AT_PX = 2048
"""Of a level's sides, at most, when it is compared with what it may be reduced from."""

_PLACES = 4
"""In each direction, at most, where both are compared."""

_LEAST_PX, _MOST_FINE_PX = 8, 1024
"""Of a place's sides in the smaller picture, and in the larger one."""

_WRITTEN_COLOUR, _WRITTEN_GROUND, _WRITTEN_INK = 24, 170, 90
"""Grey values: between the colours of a pixel that has none; of paper, at least; of ink, at most."""


@dataclass(frozen=True)
class Pyramid:
    """The slide: its `levels`, finest first; the image of the OME-XML that it is; and `notes` for its row's warning.

    `finer` are pages that are not read, of larger pictures of the slide's proportions: its scale may be theirs.
    """

    levels: tuple[Picture, ...]
    image: OmeImage | None = None
    notes: tuple[str, ...] = ()
    finer: tuple[Any, ...] = ()


def find_pyramid(tiff: Any, images: Sequence[OmeImage] | None, read: Read) -> Pyramid:
    """The slide in an open TIFF. `images` are those of its OME-XML; None where it has none.

    Raises UnsupportedLayout where the slide cannot be read here, and UnreadableSlide where no picture is one.
    """
    found = _without_mere_words(candidates(tiff, images), read)
    _require_readable(found)
    slide = _slide(found, _Looks(found, read), is_aperio=bool(tiff.is_svs))
    require_small_tiles(slide.levels[0].page)
    own = [slide, *(one for one in found if one is not slide and _may_be_level(one, slide))]
    levels = [level for one in own for level in one.levels if level is slide.levels[0] or _fits(level, slide)]
    levels.sort(key=lambda level: -level.width)
    others = [one for one in found if one not in own and not one.is_aside]
    finer = [one for one in found if one.why_not and slide.reduces(one)] if slide.image is None else []
    return Pyramid(tuple(levels), slide.image, tuple(_notes(slide, others)), tuple(one.page for one in finer))


def _without_mere_words(found: Sequence[Candidate], read: Read) -> Sequence[Candidate]:
    """The pictures, one of which loses a name that says label, where the others of size are this one reduced.

    Where another may be the slide, by its levels or as far as anybody can tell, the name is believed, and what shows
    that picture has it, too. Raises UnreadableSlide where nothing tells whether the name or the structure is right.
    """
    looks = _Looks(found, read)
    doubted = sorted((one for one in found if one.is_aside and not one.why_not), key=lambda one: -one.area)
    for one in doubted[:_LEVELS_ASKED]:
        named = [other for other in found if not other.is_aside]
        if any(one.reduces(other) for other in named):
            continue
        levels = {id(other) for other in looks.shown_by(one, named)}
        rest = [n for n in named if id(n) not in levels and n.area >= _DWARFED * one.area]
        rest = [n for n in rest if not (n.why_not and n.reduces(one))]  # a level, for all that anybody can see of it
        if not levels:
            continue
        if not rest:
            found = [replace(n, name="") if n is one else n for n in found]
        elif any(n.why_not or looks.is_pyramid(n) for n in rest):
            found = [replace(n, name=one.name) if id(n) in levels else n for n in found]
        else:
            raise UnreadableSlide(
                f"a picture of {one.sides[0]} x {one.sides[1]} px is named a label or macro image, but others show it "
                f"reduced, as they do a slide: {_RENAME}"
            )
    return found


def _require_readable(found: Sequence[Candidate]) -> None:
    if any(not one.why_not and not one.is_aside for one in found):
        if found[0].why_not == DAMAGED:  # who knows what it was
            raise UnsupportedLayout(DAMAGED)
        return
    largest = max(found, key=lambda one: one.area, default=None)
    if largest is None:
        raise UnsupportedLayout("it holds no picture")
    asides = [one for one in found if one.is_aside and not one.why_not]
    is_other = not largest.is_aside and all(one.sides != largest.sides for one in asides)  # OpenSlide may read that
    if asides and not is_other:
        raise UnreadableSlide(
            "its only image in colour is named a label or macro image, which is never read; if it is the slide, "
            + _RENAME
        )
    raise _refusal(largest)


def _refusal(one: Candidate) -> UnreadableSlide:
    """Why the slide is not read here; where OpenSlide would read it wrongly, it is not read at all."""
    return UnreadableSlide(one.why_not) if one.misleads else UnsupportedLayout(one.why_not, one.sides)


class _Looks:
    """Which pictures of a file others show reduced, as far as that is asked."""

    def __init__(self, found: Sequence[Candidate], read: Read) -> None:
        self._found, self._read = found, read

    def is_pyramid(self, one: Candidate) -> bool:
        """Whether the file gives it levels, or others show what it shows."""
        if one.count > 1:
            return True
        if one.why_not:
            tiled = (other for other in self._found if other.why_not != NOT_TILED and not other.is_aside)
            return one.why_not != NOT_TILED and any(other.reduces(one) for other in tiled)
        smaller = [other for other in self._found if not other.why_not and not other.is_aside and other.reduces(one)]
        smaller.sort(key=lambda other: other.area)
        return any(self._shows(other.levels[0], one.levels[0]) for other in smaller[:_LEVELS_ASKED])

    def shown_by(self, one: Candidate, others: Sequence[Candidate]) -> list[Candidate]:
        """Those of the others, the largest at most, that show it reduced."""
        smaller = [other for other in others if not other.why_not and other.reduces(one)]
        smaller.sort(key=lambda other: -other.area)
        return [other for other in smaller[:_LEVELS_SHOWN] if self._shows(other.levels[0], one.levels[0])]

    def is_written(self, one: Candidate) -> bool:
        """Whether it is black and white, as a label is."""
        picture = one.levels[-1]
        pixels = self._read(picture, _middle(picture))
        if pixels is None:
            return False
        plain = pixels.max(axis=2).astype(int) - pixels.min(axis=2) <= _WRITTEN_COLOUR
        light, dark = pixels.min(axis=2) >= _WRITTEN_GROUND, pixels.max(axis=2) <= _WRITTEN_INK
        return bool(plain.mean() > 0.97 and light.mean() > 0.4 and dark.mean() > 0.02)

    def is_coloured(self, one: Candidate) -> bool:
        """Whether it shows colour, as a slide does that a label must give way to; a grey or empty one shows none."""
        picture = one.levels[-1]
        pixels = self._read(picture, _middle(picture))
        if pixels is None:
            return False
        return bool((pixels.max(axis=2).astype(int) - pixels.min(axis=2) > _WRITTEN_COLOUR).mean() >= 0.03)

    def is_part(self, small: Candidate, large: Candidate) -> bool:
        """Whether the small one is the large one reduced, but padded, cut or out of proportion."""
        across, down = (b / a for a, b in zip(small.sides, large.sides, strict=True))
        steps = {(f, f) for quotient in (across, down) for f in (math.floor(quotient), math.ceil(quotient), quotient)}
        pictures = small.levels[0], large.levels[0]
        return any(self._shows(*pictures, step) for step in {(across, down), *steps} if min(step) >= 1)

    def _shows(self, small: Picture, large: Picture, step: tuple[float, float] | None = None) -> bool:
        """Whether most of what strikes the eye in the small one is in the large one too, `step` px for one of its."""
        left, top, width, height = _middle(small)
        pixels = self._read(small, (left, top, width, height))
        if pixels is None or min(width, height) < _LEAST_PX:
            return False
        step = step or (large.width / small.width, large.height / small.height)
        side = min(max(_LEAST_PX, int(large.tile_width / 2 / step[0])), max(1, int(_MOST_FINE_PX / max(step))))
        places = striking(pixels, _PLACES, _LEAST_PX)
        agree = 0
        for number, middle in enumerate(places):
            x, y = (min(max(0, m - side // 2), most - side) for m, most in zip(middle, (width, height), strict=True))
            there = round((left + x) * step[0]), round((top + y) * step[1])
            fine = self._read(large, (*there, round(side * step[0]), round(side * step[1])))
            agree += fine is not None and alike(resized(fine, (side, side)), pixels[y : y + side, x : x + side])
            if agree * 2 > len(places) or (agree + len(places) - number - 1) * 2 <= len(places):
                break  # whatever the others show
        return agree * 2 > len(places)


def _middle(picture: Picture) -> tuple[int, int, int, int]:
    """All of a picture, or its middle."""
    width, height = min(picture.width, _LOOKED_AT_PX), min(picture.height, _LOOKED_AT_PX)
    return (picture.width - width) // 2, (picture.height - height) // 2, width, height


def _slide(found: Sequence[Candidate], looks: _Looks, *, is_aperio: bool) -> Candidate:
    """The largest that is a pyramid, or else the largest of all; UnsupportedLayout where that cannot be read."""
    named = sorted((one for one in found if not one.is_aside), key=lambda one: -one.area)
    slide = named[0]
    pyramid = next((one for one in named if looks.is_pyramid(one)), None)
    is_base = is_aperio and slide.is_base
    if pyramid not in (None, slide) and pyramid.area >= _DWARFED * slide.area:
        slide = _of_two(slide, pyramid, looks, is_base=is_base)
    if slide.why_not:
        raise _refusal(slide)
    is_shown = pyramid is not None and slide.count == 1
    return _rather(slide, named, looks, is_shown=is_shown or (is_base and slide is named[0]))


def _of_two(alone: Candidate, pyramid: Candidate, looks: _Looks, *, is_base: bool) -> Candidate:
    """Whether the slide is the largest picture, which nothing shows reduced, or a smaller one that others do.

    Where both have the same proportions, all levels of the slide may be wrong instead, and only the format can tell
    (`is_base`: it says that this one is the slide). Raises UnreadableSlide where nothing does.
    """
    if not alone.why_not and not pyramid.why_not and looks.is_part(pyramid, alone):
        return alone
    if alone.why_not or pyramid.count > 1 or not pyramid.reduces(alone):
        return pyramid
    if looks.is_written(alone) and looks.is_coloured(pyramid):
        return pyramid
    if is_base:
        return alone
    raise UnreadableSlide(
        f"its largest picture, {alone.sides[0]} x {alone.sides[1]} px, is not what smaller ones of its proportions "
        "show: one may be a label or a macro image, so write the slide's own pictures to a file by themselves"
    )


def _rather(slide: Candidate, named: Sequence[Candidate], looks: _Looks, *, is_shown: bool) -> Candidate:
    """Another picture of tissue size where the slide looks like a label, and that one does not.

    Where the slide `is_shown` reduced by others, or the file says that it is the slide, those of its proportions need
    no look.
    """
    large = (one for one in named if one is not slide and not one.why_not and one.area >= _DWARFED * slide.area)
    rivals = [one for one in large if not (is_shown and one.reduces(slide))]
    if not rivals or not looks.is_written(slide):
        return slide
    least = looks.is_pyramid(slide)
    return next((one for one in rivals if looks.is_coloured(one) and looks.is_pyramid(one) >= least), slide)


def _may_be_level(one: Candidate, slide: Candidate) -> bool:
    return not one.why_not and not one.is_aside and any(_fits(level, slide) for level in one.levels[:1])


def _fits(level: Picture, slide: Candidate) -> bool:
    """Whether a picture has the slide's proportions, and is smaller."""
    small = level.width < slide.sides[0] and level.tile_width * level.tile_height <= MOST_TILE_PX
    return small and is_reduced(*slide.sides, *level.sides)


def _notes(slide: Candidate, others: Sequence[Candidate]) -> Iterator[str]:
    """What else of tissue size there is; what is another's level does not count again. And what samples it has."""
    if slide.image is None and has_more_samples(slide.page):
        more = slide.page.samplesperpixel - 3
        yield f"its pixels have {counted(more, 'sample')} beside red, green and blue, skipped"
    scenes: list[Candidate] = []
    for one in sorted(others, key=lambda one: -one.area):
        repeats = any(one.reduces(scene) for scene in scenes)
        if one.area >= (_LOOSE_SIZE if one.why_not == NOT_TILED else _TISSUE_SIZE) * slide.area and not repeats:
            scenes.append(one)
    if scenes:
        sizes = ", ".join(f"{width} x {height}" for width, height in (one.sides for one in scenes[:3]))
        more = ", ..." if len(scenes) > 3 else ""
        pictures = "1 more picture" if len(scenes) == 1 else f"{len(scenes)} more pictures"
        why = "the largest" if scenes[0].area <= slide.area else "one that others show reduced, or that has colour,"
        yield f"the file holds {pictures} of tissue size ({sizes}{more} px), skipped: {why} is the slide"
