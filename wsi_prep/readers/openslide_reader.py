"""Every format that OpenSlide knows, DICOM and MRXS included."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import openslide
from numpy.typing import NDArray

from wsi_prep.errors import DamagedSlide, UnreadableSlide
from wsi_prep.private import reason
from wsi_prep.readers.base import Level, SlideInfo, blank, is_reduced, parse_colour
from wsi_prep.readers.tags import parse_number, parse_objective, vendor_and_scanner

_UNSORTED = ("aperio", "generic-tiff")
"""Formats in which OpenSlide takes every picture stored in tiles for a level."""


def detect_vendor(path: str) -> str | None:
    """OpenSlide's name for the format of a local file, or None where it knows none."""
    vendor: str | None = openslide.OpenSlide.detect_format(path)
    return vendor


class OpenSlideReader:
    """Reads through OpenSlide; raises UnreadableSlide for a file that it refuses."""

    keeps_edges = False

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._slide = openslide.OpenSlide(path)
        except openslide.OpenSlideUnsupportedFormatError as error:
            raise UnreadableSlide("OpenSlide knows no such format") from error
        except (openslide.OpenSlideError, OSError) as error:
            raise UnreadableSlide(f"OpenSlide cannot open it ({reason(error, path)})") from error
        self._levels = _levels(self._slide)
        self._info = _describe(self._slide, self._levels)

    @property
    def info(self) -> SlideInfo:
        """The slide's facts."""
        return self._info

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
        if width > 0 and height > 0:
            top, left = y - y_level, x - x_level
            out[top : top + height, left : left + width] = self._read(level, x, y, width, height)
        return out

    def close(self) -> None:
        """Let go of the file."""
        self._slide.close()

    def _read(self, level: int, x_level: int, y_level: int, width: int, height: int) -> NDArray[np.uint8]:
        downsample = self._info.levels[level].downsample
        location0 = (round(x_level * downsample), round(y_level * downsample))
        try:
            rgba = np.asarray(self._slide.read_region(location0, self._levels[level], (width, height)))
        except openslide.OpenSlideError as error:
            where = f"x {location0[0]}, y {location0[1]} (level 0)"
            why = reason(error, self._path)
            raise DamagedSlide(f"pixels near {where} cannot be read ({why}); copy the slide again") from error
        return _over_background(rgba, self._info.background)


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


def _levels(slide: openslide.OpenSlide) -> list[int]:
    """Those of OpenSlide's levels that are the slide."""
    if slide.properties.get(openslide.PROPERTY_NAME_VENDOR) not in _UNSORTED:
        return list(range(slide.level_count))
    return [i for i, sides in enumerate(slide.level_dimensions) if is_reduced(*slide.dimensions, *sides)]


def _describe(slide: openslide.OpenSlide, levels: list[int]) -> SlideInfo:
    properties: Mapping[str, str] = slide.properties
    mpp_x, mpp_y = (
        parse_number(properties.get(key)) for key in (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)
    )
    known = mpp_x is not None and mpp_y is not None
    bounds_x0, bounds_y0 = _bounds_origin(properties)
    vendor, scanner = vendor_and_scanner(properties.get(openslide.PROPERTY_NAME_VENDOR, ""), properties)
    return SlideInfo(
        reader="openslide",
        vendor=vendor,
        scanner=scanner,
        mpp_x=mpp_x if known else None,
        mpp_y=mpp_y if known else None,
        mpp_source="openslide" if known else None,
        objective=parse_objective(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)),
        levels=tuple(
            Level(slide.level_dimensions[i][0], slide.level_dimensions[i][1], slide.level_downsamples[i])
            for i in levels
        ),
        background=parse_colour(properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR)),
        bounds_x0=bounds_x0,
        bounds_y0=bounds_y0,
    )


def _bounds_origin(properties: Mapping[str, str]) -> tuple[int, int]:
    """Where the bounds begin; they count where all four are there, as QuPath has it."""
    try:
        x0, y0, _, _ = (int(properties[f"openslide.bounds-{name}"]) for name in ("x", "y", "width", "height"))
    except (KeyError, ValueError):
        return 0, 0
    return x0, y0
