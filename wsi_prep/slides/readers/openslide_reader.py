"""Every format that OpenSlide knows, DICOM and MRXS included."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import cv2
import numpy as np
import openslide
from numpy.typing import NDArray
from PIL import ImageCms

from wsi_prep.errors import DamagedSlide, UnreadableSlide
from wsi_prep.slides.base import Level, SlideInfo, blank, is_reduced, parse_colour
from wsi_prep.slides.dicom import is_ycc_called_rgb
from wsi_prep.slides.images import Planes, reduce_by
from wsi_prep.slides.private import bare_text
from wsi_prep.slides.readers.aperio import require_openslide_survives
from wsi_prep.slides.readers.tags import parse_number, parse_objective, vendor_and_scanner
from wsi_prep.slides.readers.tiff.facts import DAMAGED_PROFILE, profile_mark
from wsi_prep.slides.scale import is_plausible
from wsi_prep.storage.patience import PAUSES

_UNSORTED = ("aperio", "generic-tiff")
"""Formats in which OpenSlide takes every picture stored in tiles for a level, a label's too."""

_SCALE_TAGS = ("openslide.mpp-x", "openslide.mpp-y", "aperio.MPP", "tiff.XResolution")
_WHOLE = 1e-3
_USUAL_TILE_PX = 256
_OPAQUE = 255
_TRANSPARENT = "parts of it are transparent: the background shows through there, its colours were laid over that"
_MOST_TILE_PX = 2048


def detect_vendor(path: str) -> str | None:
    """OpenSlide's name for the format of a local file, or None where it knows none.

    It passes over errors of a file server, and takes the next format then: so what it takes last is asked for twice.
    """
    vendor: str | None = openslide.OpenSlide.detect_format(path)
    for pause in PAUSES if vendor in (None, "generic-tiff") else ():
        again: str | None = openslide.OpenSlide.detect_format(path)
        if again == vendor:
            break
        vendor = again
        time.sleep(pause)
    return vendor


def _opened(path: str) -> openslide.OpenSlide:
    """The slide as OpenSlide opens it, on the second try if need be: it does not say which errors pass."""
    try:
        return openslide.OpenSlide(path)
    except (openslide.OpenSlideError, OSError):
        time.sleep(PAUSES[0])
        return openslide.OpenSlide(path)


class OpenSlideReader:
    """Reads through OpenSlide; raises UnreadableSlide for a file that it refuses."""

    keeps_edges = False

    def __init__(self, path: str, files: Sequence[str] = ()) -> None:
        """`files` are those of a DICOM series, where they are several."""
        self._path = path
        if detect_vendor(path) == "aperio":
            require_openslide_survives(path)
        try:
            self._slide = _opened(path)
        except openslide.OpenSlideUnsupportedFormatError as error:
            raise UnreadableSlide("OpenSlide knows no such format") from error
        except (openslide.OpenSlideError, OSError) as error:
            raise UnreadableSlide(
                f"OpenSlide cannot open it ({bare_text(error, path) or type(error).__name__})"
            ) from error
        levels = _levels(self._slide)
        self._levels = list(levels)
        self._info = _describe(self._slide, levels)
        self._is_ycc = _vendor(self._slide) == "dicom" and is_ycc_called_rgb(files or [path])
        self._says_transparent = self._is_transparent = False
        self.lost: set[int] = set()

    @property
    def info(self) -> SlideInfo:
        """The slide's facts."""
        return self._info

    @property
    def warnings(self) -> list[str]:
        """Transparency, where that is looked for; OpenSlide does not say what it does without."""
        return [_TRANSPARENT] if self._is_transparent else []

    def look_for_transparency(self) -> None:
        """Warn from here on where the slide's own pixels are not opaque."""
        self._says_transparent = True

    def add_notes(self, notes: Sequence[str]) -> None:
        """Add to what the slide's row warns of."""
        self._info = replace(self._info, notes=(*self._info.notes, *notes))

    def expect(
        self, level: int, x_level: int, y_level: int, width: int, height: int, boxes: NDArray[np.int64] | None = None
    ) -> None:
        """Nothing: OpenSlide cannot be told."""

    def read(
        self, level: int, x_level: int, y_level: int, width: int, height: int, boxes: NDArray[np.int64] | None = None
    ) -> NDArray[np.uint8]:
        """Pixels of a rectangle of one level, (height, width, 3) uint8 RGB; see `SlideReader.read`."""
        out = blank(height, width, self._info.background)
        x, y, width, height = _bounding_box((x_level, y_level, width, height), boxes)
        # of a region that begins outside, OpenSlide cuts off a whole number of pixels, where a level's are no whole
        # multiple of level 0's: all of it would be shifted
        x, y, width, height = max(x, 0), max(y, 0), width + min(x, 0), height + min(y, 0)
        if width > 0 and height > 0:
            top, left = y - y_level, x - x_level
            out[top : top + height, left : left + width] = self._read(level, x, y, width, height)
        return out

    def planar_quality(self, level: int) -> int | None:
        """None: OpenSlide gives RGB."""
        return None

    def read_planes(
        self, level: int, x_level: int, y_level: int, width: int, height: int, boxes: NDArray[np.int64] | None = None
    ) -> Planes:
        """The same as planes, made of RGB."""
        return Planes.of_rgb(self.read(level, x_level, y_level, width, height, boxes))

    @property
    def most_shrink(self) -> int:
        """1: OpenSlide decodes all of it."""
        return 1

    def read_shrunk(self, shrink: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """See `SlideReader.read_shrunk`."""
        return reduce_by(self.read(0, x * shrink, y * shrink, width * shrink, height * shrink), shrink)

    def close(self) -> None:
        """Let go of the file."""
        self._slide.close()

    def _read(self, level: int, x_level: int, y_level: int, width: int, height: int) -> NDArray[np.uint8]:
        downsample = self._info.levels[level].downsample
        location0 = (round(x_level * downsample), round(y_level * downsample))
        region = location0, self._levels[level], (width, height)
        try:
            rgba = np.asarray(self._slide.read_region(*region))
        except openslide.OpenSlideError:
            try:  # again: the error may be a file server's
                self._open_anew()
                rgba = np.asarray(self._slide.read_region(*region))
            except openslide.OpenSlideError as error:
                where = f"x {location0[0]}, y {location0[1]} (level 0)"
                why = bare_text(error, self._path) or type(error).__name__
                self._open_anew()
                raise DamagedSlide(f"pixels near {where} cannot be read ({why}); copy the slide again") from error
        if self._says_transparent and not self._is_transparent:
            own = self._info.levels[level]
            down, across = own.height - y_level - 1, own.width - x_level - 1  # the last ones may be parts of pixels
            self._is_transparent = bool((rgba[: max(0, down), : max(0, across), 3] < _OPAQUE).any())
        if self._is_ycc:
            rgba = _from_ycc(rgba)
        return _over_background(rgba, self._info.background)

    def _open_anew(self) -> None:
        """After an error an open slide refuses everything, and its handle may be stale."""
        self._slide.close()
        self._slide = _opened(self._path)


def _from_ycc(rgba: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(h, w, 4) whose first three are Y, Cb and Cr of JFIF, as RGBA; transparent pixels stay as they are."""
    luma, blue, red, alpha = cv2.split(rgba)
    rgb = cv2.cvtColor(cv2.merge([luma, red, blue]), cv2.COLOR_YCrCb2RGB)
    return np.asarray(cv2.merge([*cv2.split(rgb), alpha]), dtype=np.uint8)


def _over_background(rgba: NDArray[np.uint8], background: tuple[int, int, int]) -> NDArray[np.uint8]:
    """RGB of (h, w, 4) RGBA with straight alpha laid over the background colour."""
    alpha = rgba[..., 3:]
    rgb = rgba[..., :3]
    if alpha.min(initial=255) == 255:
        return rgb
    weight = alpha.astype(np.uint16)
    mixed = rgb * weight + np.array(background, np.uint16) * (255 - weight)
    return ((mixed + 127) // 255).astype(np.uint8)


def _bounding_box(rectangle: tuple[int, int, int, int], boxes: NDArray[np.int64] | None) -> tuple[int, int, int, int]:
    """x, y, width, height around `boxes`, clipped to the rectangle; all of it where no boxes are named."""
    if boxes is None:
        return rectangle
    if not len(boxes):
        return rectangle[0], rectangle[1], 0, 0
    x, y, width, height = rectangle
    left, top = max(x, int(boxes[:, 0].min())), max(y, int(boxes[:, 1].min()))
    right = min(x + width, int((boxes[:, 0] + boxes[:, 2]).max()))
    bottom = min(y + height, int((boxes[:, 1] + boxes[:, 3]).max()))
    return left, top, right - left, bottom - top


def _vendor(slide: openslide.OpenSlide) -> str:
    return str(slide.properties.get(openslide.PROPERTY_NAME_VENDOR, ""))


def _levels(slide: openslide.OpenSlide) -> dict[int, Level]:
    """Those of OpenSlide's levels that lie on level 0's grid, by their numbers.

    Where a format says by what a level is reduced, what pads it to the right and below is cut off. Where it does not, a
    padded level is none: nothing tells how far the picture in it reaches.
    """
    width0, height0 = slide.dimensions
    found = {}
    for number, (width, height) in enumerate(slide.level_dimensions):
        downsample = slide.level_downsamples[number]
        if is_reduced(width0, height0, width, height):
            found[number] = Level(width, height, downsample)
        elif abs(downsample - round(downsample)) < _WHOLE:
            inside = math.ceil(width0 / downsample - _WHOLE), math.ceil(height0 / downsample - _WHOLE)
            if inside[0] <= width and inside[1] <= height:
                found[number] = Level(*inside, round(downsample))
    return found


def _notes(slide: openslide.OpenSlide, levels: Mapping[int, Level]) -> tuple[str, ...]:
    """What the slide's row warns of."""
    notes = []
    off_grid = slide.level_count - len(levels)
    if off_grid and _vendor(slide) not in _UNSORTED:
        notes.append(
            f"{off_grid} of {slide.level_count} levels do not lie on level 0's grid (padded?) and are not used"
        )
    if slide.properties.get("dicom.ImageType[3]") == "RESAMPLED":
        notes.append("its finest file is a reduced copy, by its ImageType: is the file of the scan missing?")
    return tuple(notes)


def _tile_px(properties: Mapping[str, str]) -> int:
    """Side of the tiles that level 0 is stored in, where the format tells."""
    sides = [parse_number(properties.get(f"openslide.level[0].tile-{side}")) for side in ("width", "height")]
    return int(min(_MOST_TILE_PX, max(side or _USUAL_TILE_PX for side in sides)))


def _describe(slide: openslide.OpenSlide, levels: Mapping[int, Level]) -> SlideInfo:
    properties: Mapping[str, str] = slide.properties
    mpp_x, mpp_y = (
        parse_number(properties.get(key)) for key in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)
    )
    known = mpp_x is not None and mpp_y is not None
    if known and _vendor(slide) == "generic-tiff":  # TIFF's resolution, which may be meant for printers
        known = all(is_plausible(mpp) for mpp in (mpp_x, mpp_y) if mpp is not None)
    mark, damaged = _icc_profile(slide)
    bounds_x0, bounds_y0 = _bounds_origin(properties)
    vendor, scanner = vendor_and_scanner(_vendor(slide), properties)
    return SlideInfo(
        reader="openslide",
        vendor=vendor,
        scanner=scanner,
        mpp_x=mpp_x if known else None,
        mpp_y=mpp_y if known else None,
        mpp_source="openslide" if known else None,
        objective=parse_objective(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)),
        levels=tuple(levels.values()),
        background=parse_colour(properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR)),
        bounds_x0=bounds_x0,
        bounds_y0=bounds_y0,
        mpp_stated=_stated(properties) if not known else "",
        icc_profile=mark,
        tile_px=_tile_px(properties),
        notes=(*_notes(slide, levels), *filter(None, [damaged])),
    )


def _stated(properties: Mapping[str, str]) -> str:
    """What the file says of its scale, in OpenSlide's and the vendors' own words; empty where it says nothing."""
    said = (f"{key} = {properties[key]}" for key in _SCALE_TAGS if properties.get(key))
    return next(said, "")


def _icc_profile(slide: openslide.OpenSlide) -> tuple[str | None, str]:
    """A mark of the colour profile, and what is wrong with it."""
    for _ in range(2):  # the error may be a file server's
        with contextlib.suppress(OSError, openslide.OpenSlideError, ImageCms.PyCMSError):  # a profile of nonsense
            profile = slide.color_profile
            return (profile_mark(profile.tobytes()) if profile is not None else None), ""
    return None, DAMAGED_PROFILE


def _bounds_origin(properties: Mapping[str, str]) -> tuple[int, int]:
    """Where the bounds begin; they count where all four are there, as QuPath has it."""
    try:
        x0, y0, _, _ = (int(properties[f"openslide.bounds-{name}"]) for name in ("x", "y", "width", "height"))
    except (KeyError, ValueError):
        return 0, 0
    return x0, y0
