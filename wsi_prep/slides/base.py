"""What every slide reader gives: facts from a short allow-list, and RGB pixels of any level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wsi_prep.slides.images import Planes

WHITE = (255, 255, 255)


def parse_colour(text: str | None) -> tuple[int, int, int]:
    """A background tag ("FFFFFF") as RGB; white where there is none."""
    try:
        red, green, blue = bytes.fromhex(text or "")
    except ValueError:
        return WHITE
    return red, green, blue


def blank(height: int, width: int, colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    """(height, width, 3) uint8 of one colour, filled a row at a time (pixel by pixel is ten times slower)."""
    out = np.empty((height, width * 3), np.uint8)
    out[:] = np.tile(np.array(colour, np.uint8), width)
    return out.reshape(height, width, 3)


def is_reduced(width0: int, height0: int, width: int, height: int) -> bool:
    """Whether a picture of these sides can be the slide reduced by one factor, give or take 2 px.

    A label or macro image that is stored in tiles looks like a level otherwise.
    """
    return abs(width0 * height - height0 * width) <= 2 * (width0 + height0)


@dataclass(frozen=True)
class Level:
    """One level of the pyramid; `downsample` is level-0 px per level px."""

    width: int
    height: int
    downsample: float


def steps0(level0: Level, level: Level) -> tuple[float, float]:
    """Level-0 px that a pixel of `level` covers in x and y.

    A whole number where that fits the sides to a pixel, since writers drop what is left at the right and lower edge;
    the quotients of the sides elsewhere.
    """
    factor = max(1, round(level0.width / level.width))
    if abs(level0.width / factor - level.width) < 1 and abs(level0.height / factor - level.height) < 1:
        return float(factor), float(factor)
    return level0.width / level.width, level0.height / level.height


@dataclass(frozen=True)
class SlideInfo:
    """What is taken from a slide's tags: nothing but these fields ever leaves a reader.

    `mpp_x`, `mpp_y` are um per level-0 px, or None together; `mpp_source` says where they came from ("openslide",
    "vendor" or "tiff-resolution"). `vendor` and `scanner` are as `tags.vendor_and_scanner` gives them. `objective` is
    the power that the file states, recorded and never computed with. `background` is the RGB colour for what lies
    outside the slide or is transparent. `bounds_x0`, `bounds_y0` are where the scanned part begins, in level-0 px, 0
    where the file does not say: viewers that crop to it count from there.

    `mpp_stated` is what the file says of its scale where that is not understood. `icc_profile` is a mark of the colour
    profile that the file carries, which is not applied. `tile_px` is the side of the tiles that level 0 is stored in;
    `filling` the colour of those that the file leaves out, None where it leaves out none or nobody knows. `notes` are
    what the slide's row warns of.
    """

    reader: str
    vendor: str
    scanner: str
    mpp_x: float | None
    mpp_y: float | None
    mpp_source: str | None
    objective: float | None
    levels: tuple[Level, ...]
    background: tuple[int, int, int] = WHITE
    bounds_x0: int = 0
    bounds_y0: int = 0
    mpp_stated: str = ""
    icc_profile: str | None = None
    tile_px: int = 256
    filling: tuple[int, int, int] | None = None
    notes: tuple[str, ...] = ()

    @property
    def width0(self) -> int:
        """Width in level-0 px."""
        return self.levels[0].width

    @property
    def height0(self) -> int:
        """Height in level-0 px."""
        return self.levels[0].height


class SlideReader(Protocol):
    """An open slide. Not safe to share between threads or processes: each opens its own.

    `keeps_edges`: what is decoded beyond a rectangle's edge is kept for its neighbours, so small ones cost no more.
    `lost`: reduced levels that are not to be made use of.
    """

    keeps_edges: bool
    lost: set[int]

    @property
    def warnings(self) -> list[str]:
        """What had to be done without, so far, for the slide's row."""
        ...

    @property
    def info(self) -> SlideInfo:
        """The slide's facts."""
        ...

    def read(
        self, level: int, x_level: int, y_level: int, width: int, height: int, boxes: NDArray[np.int64] | None = None
    ) -> NDArray[np.uint8]:
        """Pixels of a rectangle of one level, (height, width, 3) uint8 RGB.

        `x_level`, `y_level`, `width`, `height` are pixels of that level; what lies outside the slide, or is
        transparent, has the background colour. `boxes`, (n, 4) of x, y, width, height in the same frame, names the
        parts that will be used: a reader may leave the rest as background. Raises DamagedSlide where the file's own
        pixels cannot be decoded.
        """
        ...

    def planar_quality(self, level: int) -> int | None:
        """The JPEG quality (libjpeg's, 1 to 100) of a level that is stored as planes of YCbCr; None of any other.

        0 where these are JPEGs with quantisation tables that libjpeg has at no quality.
        """
        ...

    def read_planes(
        self, level: int, x_level: int, y_level: int, width: int, height: int, boxes: NDArray[np.int64] | None = None
    ) -> Planes:
        """As `read`, but as planes of YCbCr, which a level that has a `planar_quality` stores. Corners must be even."""
        ...

    @property
    def most_shrink(self) -> int:
        """By how much `read_shrunk` can reduce level 0 as it decodes it: 8, or 1 for not at all."""
        ...

    def read_shrunk(self, shrink: int, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """A rectangle of level 0 reduced by 2, 4 or 8, near its area mean, for a fraction of the time of `read`.

        (height, width, 3) uint8 RGB; all in px of the reduced picture, whose last column and row may be parts.
        """
        ...

    def expect(
        self, level: int, x_level: int, y_level: int, width: int, height: int, boxes: NDArray[np.int64] | None = None
    ) -> None:
        """Say what will be read after what is read now, in the words of `read`; a reader may begin to fetch it."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...
