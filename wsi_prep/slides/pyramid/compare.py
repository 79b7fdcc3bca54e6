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

_GROUND = 90
"""Per cent of a picture's pixels that are no brighter than its ground."""


def alike(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """Whether two (h, w, 3) uint8 pictures of one size show the same: each patch by its mean colour and structure."""
    height, width = one.shape[:2]
    for top in _parts(height, height, _PATCH_PX):
        for left in _parts(width, width, _PATCH_PX):
            if not _patch_alike(one[top, left], other[top, left]):
                return False
    return True


def _parts(length: int, most: int, least: int) -> list[slice]:
    """A length in equal parts, `most` of them where each has `least` pixels then, or else fewer."""
    count = max(1, min(most, length // least))
    edges = [length * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


def _patch_alike(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    a, b = one.reshape(-1, 3).astype(np.float32), other.reshape(-1, 3).astype(np.float32)
    if np.abs(a.mean(0) - b.mean(0)).max() > _COLOUR_APART:
        return False
    a, b = a.mean(1), b.mean(1)
    a, b = a - a.mean(), b - b.mean()
    spread_a, spread_b = float(np.sqrt((a * a).mean())), float(np.sqrt((b * b).mean()))
    low, high = min(spread_a, spread_b), max(spread_a, spread_b)
    if high > _STRIKING and low < _FAINT * high:
        return False
    if low < _STRUCTURE:
        return True
    return float((a * b).mean()) >= _CORRELATED * spread_a * spread_b


def resized(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """(h, w, 3) at `size` (width, height), by area mean."""
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def striking(picture: NDArray[np.uint8], most: int, patch: int) -> list[tuple[int, int]]:
    """Places x, y that strike the eye, in each of up to `most` x `most` parts of a picture (h, w, 3) the first.

    A place is the middle of `patch` x `patch` pixels that differ from the picture's ground, which is bright: glass, or
    paper. Parts that show the ground alone have none.
    """
    colour = picture.astype(np.float32)
    ground = np.percentile(colour.reshape(-1, 3), _GROUND, axis=0)
    apart = cv2.blur(np.abs(colour - ground).max(axis=2), (patch, patch), borderType=cv2.BORDER_REFLECT)
    places = []
    for rows in _parts(apart.shape[0], most, patch):
        for cols in _parts(apart.shape[1], most, patch):
            part = apart[rows, cols]
            y, x = divmod(int(part.argmax()), part.shape[1])
            if part[y, x] > _COLOUR_APART:
                places.append((cols.start + x, rows.start + y))
    return places
