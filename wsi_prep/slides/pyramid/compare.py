"""Whether two pictures show the same thing."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

_PATCH_PX = 8
"""Pictures are compared in patches of so many pixels a side."""

_COLOUR_APART = 14.0
"""Grey values by which the mean colours of a patch may differ: levels are sharpened, and compressed anew."""

_STRUCTURE, _CORRELATED = 6.0, 0.12
"""Where both patches vary by so much (standard deviation of brightness), they must correlate by so much."""

_STRIKING, _FAINT = 45.0, 0.25
"""Where one varies by so much, the other must vary by this share of it: letters on a label are not on the glass."""

_LEAST_EDGE_PX, _BESIDE_EDGE_PX = 5, 2
"""How long the edge of a tile has to be to be looked at, and how far from it that is done: edges are blurred."""

_MEAN_OF_CHANNELS = np.full((1, 3), 1 / 3, np.float32)

_GROUND = 90
"""Per cent of a picture's pixels that are no brighter than its ground."""


def alike(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Whether two (h, w, 3) uint8 pictures of one size show the same: each patch by its mean colour and structure."""
    height, width = one.shape[:2]
    for rows in _parts(height, height, _PATCH_PX):
        for cols in _parts(width, width, _PATCH_PX):
            if not _patch_alike(one[rows, cols], other[rows, cols]):
                return False
    return True


def _parts(length: int, most: int, least: int) -> list[slice]:
    """A length in equal parts, `most` of them where each has `least` pixels then, or else fewer."""
    count = max(1, min(most, length // least))
    edges = [length * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


def _patch_alike(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    # OpenCV's sums of a small patch take a tenth of NumPy's time, and each slide that is opened waits for thousands
    if max(abs(a - b) for a, b in zip(cv2.mean(one)[:3], cv2.mean(other)[:3], strict=True)) > _COLOUR_APART:
        return False
    a, b = _brightness(one), _brightness(other)
    spread_a, spread_b = float(np.sqrt(a @ a / a.size)), float(np.sqrt(b @ b / b.size))
    low, high = min(spread_a, spread_b), max(spread_a, spread_b)
    if high > _STRIKING and low < _FAINT * high:
        return False
    if low < _STRUCTURE:
        return True
    return float(a @ b / a.size) >= _CORRELATED * spread_a * spread_b


def _brightness(patch: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(n,): mean of the channels of each pixel, less the patch's own."""
    grey = cv2.transform(patch, _MEAN_OF_CHANNELS).astype(np.float32).ravel()
    return np.asarray(grey - grey.mean(), dtype=np.float32)


def resized(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """(h, w, 3) at `size` (width, height), by area mean."""
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def striking(picture: NDArray[np.uint8], most: int, patch: int) -> list[tuple[int, int]]:
    """Places x, y that strike the eye, in each of up to `most` x `most` parts of a picture (h, w, 3) the first.

    A place is the middle of about `patch` x `patch` pixels that differ from the picture's ground, which is bright:
    glass, or paper. Parts that show the ground alone have none.
    """
    height, width = picture.shape[:2]
    step = max(1, min(patch // 2, height, width))  # half the patch: no patch lies between two
    small = resized(picture, (max(1, width // step), max(1, height // step)))
    apart = cv2.boxFilter(_apart_from_ground(small), cv2.CV_32F, (2, 2), borderType=cv2.BORDER_REPLICATE)
    places = []
    for rows in _parts(small.shape[0], most, -(-patch // step)):
        for cols in _parts(small.shape[1], most, -(-patch // step)):
            part = apart[rows, cols]
            y, x = divmod(int(part.argmax()), part.shape[1])
            if part[y, x] > _COLOUR_APART:
                there = (cols.start + x) * width / small.shape[1], (rows.start + y) * height / small.shape[0]
                places.append((int(there[0]), int(there[1])))
    return places


def cut_off(picture: NDArray[np.uint8], most: int, patch: int) -> list[tuple[int, int]]:
    """Places x, y where what strikes the eye may end for want of data, in each of up to `most` x `most` parts one.

    A place lies in at least `patch` x `patch` pixels of exactly one colour, beside pixels that differ from the ground:
    a tile that is missing, and reads as white, cuts tissue off so.
    """
    height, width = picture.shape[:2]
    if min(height, width) < patch:
        return []
    square, beside = np.ones((patch, patch), np.uint8), np.ones((2 * patch + 1, 2 * patch + 1), np.uint8)
    even = (cv2.dilate(picture, square) == cv2.erode(picture, square)).all(-1)
    struck = (_apart_from_ground(picture) > _COLOUR_APART).astype(np.uint8)
    found = even & cv2.dilate(struck, beside).astype(bool)
    places = []
    for rows in _parts(height, most, patch):
        for cols in _parts(width, most, patch):
            part = found[rows, cols]
            if part.any():
                y, x = divmod(int(part.argmax()), part.shape[1])
                places.append((cols.start + x, rows.start + y))
    return places


def jumps_along(picture: NDArray[np.uint8], pitch_x: float, pitch_y: float) -> list[tuple[int, int]]:
    """Places x, y on both sides of where a picture jumps along half of a tile's edge, of tiles of so many pixels.

    A tile that lies in another one's place does, and tissue hardly ever.
    """
    apart = _apart_from_ground(picture).astype(np.int16)
    across = _jumps(apart, pitch_x, pitch_y)
    return across + [(x, y) for y, x in _jumps(apart.T, pitch_y, pitch_x)]


def _jumps(apart: NDArray[np.int16], pitch: float, length: float) -> list[tuple[int, int]]:
    """The same of the edges between columns of tiles: `pitch` apart, and of that length."""
    height, width = apart.shape
    found = []
    if min(pitch, length) >= _LEAST_EDGE_PX:
        for x in np.rint(np.arange(pitch, width - _BESIDE_EDGE_PX, pitch)).astype(int).tolist():
            jump = np.abs(apart[:, x - _BESIDE_EDGE_PX] - apart[:, x + 1]) > 2 * _COLOUR_APART
            for y in np.arange(0, height, length).astype(int).tolist():
                edge = jump[y : y + int(length)]
                if 2 * np.count_nonzero(edge) >= len(edge) >= _LEAST_EDGE_PX:
                    at = y + int(np.median(np.flatnonzero(edge)))
                    found += [(x - _BESIDE_EDGE_PX, at), (x + 1, at)]
    return found


def _apart_from_ground(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(h, w): how far each pixel is from the picture's ground, in the channel where that is most.

    By a table of the 256 values: the picture may be large, and each slide that is opened waits for it.
    """
    tables = np.empty((256, 1, 3), np.uint8)
    for channel in range(3):
        counts = cv2.calcHist([picture], [channel], None, [256], [0, 256]).cumsum(dtype=np.float64)
        ground = np.searchsorted(counts, _GROUND / 100 * counts[-1])
        tables[:, 0, channel] = np.abs(np.arange(256) - ground)
    red, green, blue = cv2.split(cv2.LUT(picture, tables))
    return np.asarray(cv2.max(cv2.max(red, green), blue), dtype=np.uint8)
