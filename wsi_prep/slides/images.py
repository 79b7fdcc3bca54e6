"""Pictures in memory: as RGB, or as planes of brightness and colour, the way most JPEGs store them.

Decoded, reduced and encoded as planes, a tile is never turned into RGB and back: that would cost a third of the time,
and blur its colour twice. Both planes of colour lie centred on the 2 x 2 pixels that they cover (ITU-T T.871, 6.4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_prep.slides.pyramid.resample import area_resample, resample_planes

Plane = NDArray[np.uint8]
Starts = NDArray[np.float64]
One = TypeVar("One", bound="Image")


class Image(Protocol):
    """What both have. Several of one picture are all of one kind."""

    @property
    def sides(self) -> tuple[int, int]:
        """Rows and columns of pixels."""
        ...

    def room(self: One, height: int, width: int) -> One:
        """Memory for a picture of this kind, its contents undefined."""
        ...

    def window(self: One, x: int, y: int, width: int, height: int) -> One:
        """A part, a view; of planes, `x` and `y` must be even."""
        ...

    def fill(self: One, other: One) -> None:
        """Copy what another of the same sides holds."""
        ...

    def reduced(self: One, factor: int, out: One | None = None) -> One:
        """The mean of each block of `factor` x `factor`, rounded. Sides must be multiples, of planes of twice that.

        Written into `out`, where that is given and `factor` is not 1.
        """
        ...

    def resampled(self: One, start_x: Starts, start_y: Starts, step_x: float, step_y: float) -> One:
        """The area mean on a grid that need not meet the pixels, see `area_resample`.

        Of planes, pixels 2 n and 2 n + 1 must lie side by side for every n.
        """
        ...

    def brightness(self) -> Plane:
        """(h, w) uint8: 0.299 red + 0.587 green + 0.114 blue."""
        ...

    def rgb(self: One, finer: One | None = None) -> NDArray[np.uint8]:
        """(h, w, 3) uint8 RGB. `finer`: the same at twice the sides, whose planes of colour are as large as this."""
        ...


@dataclass(frozen=True)
class Rgb:
    """A picture as `pixels`, (h, w, 3) uint8 RGB."""

    pixels: NDArray[np.uint8]

    @property
    def sides(self) -> tuple[int, int]:
        """See `Image.sides`."""
        height, width = self.pixels.shape[:2]
        return height, width

    def room(self, height: int, width: int) -> Rgb:
        """See `Image.room`."""
        return Rgb(np.empty((height, width, 3), np.uint8))

    def window(self, x: int, y: int, width: int, height: int) -> Rgb:
        """See `Image.window`."""
        return Rgb(self.pixels[y : y + height, x : x + width])

    def fill(self, other: Rgb) -> None:
        """See `Image.fill`."""
        np.copyto(self.pixels, other.pixels)

    def reduced(self, factor: int, out: Rgb | None = None) -> Rgb:
        """See `Image.reduced`."""
        return Rgb(reduce_by(self.pixels, factor, None if out is None else out.pixels))

    def resampled(self, start_x: Starts, start_y: Starts, step_x: float, step_y: float) -> Rgb:
        """See `Image.resampled`."""
        return Rgb(area_resample(self.pixels, start_x, start_y, step_x, step_y))

    def brightness(self) -> Plane:
        """See `Image.brightness`."""
        return np.asarray(cv2.cvtColor(self.pixels, cv2.COLOR_RGB2GRAY), np.uint8)

    def rgb(self, finer: Rgb | None = None) -> NDArray[np.uint8]:
        """See `Image.rgb`."""
        return self.pixels


@dataclass(frozen=True)
class Planes:
    """A picture as full-range YCbCr 4:2:0 (ITU-T T.871): `luma` (h, w), `blue` and `red` (Cb and Cr) of half of each.

    Halves are rounded up: of an odd side, the last sample of colour covers one row or column. All uint8.
    """

    luma: Plane
    blue: Plane
    red: Plane

    @classmethod
    def empty(cls, height: int, width: int) -> Planes:
        """Memory for a picture of these sides, its contents undefined."""
        half = -(-height // 2), -(-width // 2)
        return cls(np.empty((height, width), np.uint8), np.empty(half, np.uint8), np.empty(half, np.uint8))

    @property
    def sides(self) -> tuple[int, int]:
        """See `Image.sides`."""
        height, width = self.luma.shape
        return height, width

    def room(self, height: int, width: int) -> Planes:
        """See `Image.room`."""
        return Planes.empty(height, width)

    @classmethod
    def of(cls, luma: Plane, blue: Plane, red: Plane) -> Planes:
        """Of planes of colour at any sides: they become the means of what they cover at half of `luma`'s.

        Raises ValueError where the sides do not divide so.
        """
        half = (luma.shape[0] + 1) // 2, (luma.shape[1] + 1) // 2
        if blue.shape == red.shape == half:
            return cls(luma, blue, red)
        return cls(luma, _reduced(blue, half), _reduced(red, half))

    @classmethod
    def of_rgb(cls, rgb: NDArray[np.uint8]) -> Planes:
        """(h, w, 3) uint8 RGB as planes."""
        height, width = rgb.shape[:2]
        # an odd side's last row or column counts twice, so that the last sample is its mean
        even = cv2.copyMakeBorder(rgb, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        luma, red, blue = cv2.split(cv2.cvtColor(even, cv2.COLOR_RGB2YCrCb))
        return cls(*(np.asarray(p, np.uint8) for p in (luma[:height, :width], reduce_by(blue, 2), reduce_by(red, 2))))

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.luma.nbytes + self.blue.nbytes + self.red.nbytes

    def brightness(self) -> Plane:
        """See `Image.brightness`."""
        return self.luma

    def rgb(self, finer: Planes | None = None) -> NDArray[np.uint8]:
        """See `Image.rgb`. Colour is interpolated between the middles of its samples, as libjpeg does."""
        height, width = self.luma.shape
        if finer is not None:
            colour = [finer.red, finer.blue]
        else:
            size = 2 * self.red.shape[1], 2 * self.red.shape[0]
            larger = (cv2.resize(plane, size, interpolation=cv2.INTER_LINEAR) for plane in (self.red, self.blue))
            colour = [np.asarray(plane, np.uint8)[:height, :width] for plane in larger]
        return np.asarray(cv2.cvtColor(cv2.merge([self.luma, *colour]), cv2.COLOR_YCrCb2RGB), np.uint8)

    def window(self, x: int, y: int, width: int, height: int) -> Planes:
        """See `Image.window`."""
        right, below = -(-(x + width) // 2), -(-(y + height) // 2)
        half = slice(y // 2, below), slice(x // 2, right)
        return Planes(self.luma[y : y + height, x : x + width], self.blue[half], self.red[half])

    def fill_with(self, colour: tuple[int, int, int]) -> None:
        """Make all of it one RGB colour."""
        one = Planes.of_rgb(np.full((2, 2, 3), colour, np.uint8))
        for plane, value in zip(self._all(), one._all(), strict=True):
            plane[:] = value[0, 0]

    def fill(self, other: Planes) -> None:
        """See `Image.fill`."""
        np.copyto(self.luma, other.luma)
        np.copyto(self.blue, other.blue)
        np.copyto(self.red, other.red)

    def reduced(self, factor: int, out: Planes | None = None) -> Planes:
        """See `Image.reduced`."""
        into = (None, None, None) if out is None else out._all()
        return Planes(*(reduce_by(plane, factor, to) for plane, to in zip(self._all(), into, strict=True)))

    def resampled(self, start_x: Starts, start_y: Starts, step_x: float, step_y: float) -> Planes:
        """See `Image.resampled`. A sample of colour covers what its 2 x 2 pixels cover, which is of the same step in
        samples of colour.
        """
        luma = resample_planes([self.luma], start_x, start_y, step_x, step_y)
        colour = resample_planes([self.blue, self.red], start_x[::2] / 2, start_y[::2] / 2, step_x, step_y)
        return Planes(*luma, *colour)

    def _all(self) -> tuple[Plane, Plane, Plane]:
        return self.luma, self.blue, self.red


def _reduced(plane: Plane, sides: tuple[int, int]) -> Plane:
    """A plane at these sides, each sample the mean of what it covers."""
    down, across = (-(-have // want) for have, want in zip(plane.shape, sides, strict=True))
    height, width = sides[0] * down, sides[1] * across
    if not (0 <= height - plane.shape[0] < down and 0 <= width - plane.shape[1] < across):
        raise ValueError(f"planes of {plane.shape} and {sides} samples do not fit")
    whole = cv2.copyMakeBorder(plane, 0, height - plane.shape[0], 0, width - plane.shape[1], cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(whole, sides[::-1], interpolation=cv2.INTER_AREA), np.uint8)


def reduce_by(image: NDArray[np.uint8], factor: int, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """(h, w) or (h, w, 3) uint8 at (h / factor, w / factor): the mean of each block, rounded. Sides must be multiples.

    Written into `out`, contiguous and of that shape, where it is given and `factor` is not 1.
    """
    height, width = image.shape[:2]
    if height % factor or width % factor:
        raise ValueError(f"{height} x {width} px is no multiple of {factor}")
    if factor == 1:
        return image
    size = (width // factor, height // factor)
    return np.asarray(cv2.resize(image, size, dst=out, interpolation=cv2.INTER_AREA), dtype=np.uint8)
