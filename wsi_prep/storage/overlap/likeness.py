"""A perceptual hash of a tile: the signs of its lowest spatial frequencies.

The tile's luma is averaged to 32 x 32 cells, and transformed by a discrete cosine transform (DCT-II). A bit says
whether one of the 16 x 16 lowest frequencies is positive; the mean, which is always, has none. Signs stand JPEG, a
change of brightness or contrast, a shift by a pixel, and another size in px of the same field of view. They do not
stand another field of view: a crop, or another um/px. A flip of a tile changes known signs, and a quarter turn
transposes them.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from wsi_prep.compute.ahead import ahead
from wsi_prep.format.jpeg import first_frame

Item = TypeVar("Item")
Words = NDArray[np.uint64]
Floats = NDArray[np.float32]

WORDS = 4
"""Of 64 bits, in a hash: first the 8 x 8 lowest frequencies, then the other quarters of 16 x 16."""

GOOD, PLAIN, UNREADABLE = 0, 1, 2
"""What a tile can be: compared; too smooth to be told from others; no image that can be read."""

LIKENESS = np.dtype([("words", "<u8", (WORDS,)), ("state", "u1")])
"""A tile's hash, and what it is."""

LEAST_STRENGTH = 2.0
"""Grey levels: median of the 63 lowest frequencies' amplitudes below which a tile is plain (the DCT is orthonormal)."""

HASH_VERSION = 1
_CELLS, _KEPT, _LOWEST = 32, 16, 8
_MOST_PX = 1 << 24  # of a tile
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as JPEG has it
_PNG = b"\x89PNG\r\n\x1a\n"
_AHEAD = 64


@dataclass(frozen=True)
class Likenesses:
    """Of n tiles. `words`: (n, 4) uint64; `state`: (n,) uint8, one of GOOD, PLAIN and UNREADABLE."""

    words: Words
    state: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.state)

    @staticmethod
    def of(rows: NDArray[np.void]) -> Likenesses:
        """From (n,) LIKENESS."""
        return Likenesses(np.ascontiguousarray(rows["words"]), np.ascontiguousarray(rows["state"]))

    def count(self, state: int) -> int:
        """How many are so."""
        return int((self.state == state).sum())


def likenesses(items: Iterable[Item], likeness: Callable[[Item], NDArray[np.void]], threads: int) -> NDArray[np.void]:
    """(n,) LIKENESS of items in order, each by `likeness`, which threads call ahead."""
    with closing(ahead(likeness, items, threads, most=_AHEAD * threads)) as found:
        rows = list(found)
    return np.array(rows, LIKENESS)


def likeness_of_image(image: bytes | None) -> NDArray[np.void]:
    """() LIKENESS of an encoded JPEG or PNG; UNREADABLE for anything else, and for more than 16 million px."""
    try:
        return likeness_of_grey(_grey_of(image or b""))
    except (ValueError, RuntimeError, OSError, struct.error):
        return _without(UNREADABLE)


def likeness_of_pixels(pixels: NDArray[np.uint8]) -> NDArray[np.void]:
    """() LIKENESS of (h, w, 3) uint8 RGB."""
    return likeness_of_grey(pixels @ _LUMA)


def likeness_of_grey(grey: NDArray[np.uint8] | Floats) -> NDArray[np.void]:
    """() LIKENESS of (h, w) luma, 0 to 255."""
    waves = frequencies(grey)
    lowest = np.abs(waves[:_LOWEST, :_LOWEST]).ravel()[1:]
    if min(grey.shape) < _KEPT or not np.median(lowest) >= LEAST_STRENGTH:
        return _without(PLAIN)
    found = np.zeros((), LIKENESS)
    found["words"] = pack((waves > 0)[None])[0]
    return found


def frequencies(grey: NDArray[np.uint8] | Floats) -> Floats:
    """(16, 16) float32 amplitudes of the lowest frequencies of (h, w) luma, the mean first; rows go with y."""
    rows, columns = (_cosines() @ _means(side) for side in grey.shape)
    found: Floats = rows @ grey.astype(np.float32) @ columns.T
    return found


def pack(signs: NDArray[np.bool_]) -> Words:
    """(n, 16, 16) signs -> (n, 4) words; the first, which is the mean's, counts as false."""
    quarters = signs.reshape(-1, 2, _LOWEST, 2, _LOWEST).transpose(0, 1, 3, 2, 4).reshape(len(signs), WORDS, 64).copy()
    quarters[:, 0, 0] = False
    return np.packbits(quarters, axis=-1).view(np.uint64)[..., 0]


def unpack(words: Words) -> NDArray[np.bool_]:
    """(n, 4) words -> (n, 16, 16) signs."""
    bits = np.unpackbits(np.ascontiguousarray(words)[..., None].view(np.uint8), axis=-1)
    quarters = bits.reshape(-1, 2, 2, _LOWEST, _LOWEST).transpose(0, 1, 3, 2, 4)
    return quarters.reshape(len(words), _KEPT, _KEPT).astype(bool)


def turned(words: Words) -> Words:
    """(8, n, 4): the same tiles in all flips and quarter turns, as they are first."""
    signs = unpack(words)
    odd = np.arange(_KEPT) % 2 == 1
    rows, columns = np.broadcast_to(odd[:, None], (_KEPT, _KEPT)), np.broadcast_to(odd, (_KEPT, _KEPT))
    flips = [np.zeros_like(rows), rows, columns, rows ^ columns]  # a flip changes the sign of odd frequencies
    found = [pack(each ^ flip) for each in (signs, signs.transpose(0, 2, 1)) for flip in flips]
    return np.stack(found)


def _without(state: int) -> NDArray[np.void]:
    found = np.zeros((), LIKENESS)
    found["state"] = state
    return found


@functools.cache
def _cosines() -> Floats:
    """(16, 32): an orthonormal DCT-II's first rows."""
    wave, cell = np.arange(_KEPT)[:, None], np.arange(_CELLS)
    rows = np.cos(np.pi * wave * (2 * cell + 1) / (2 * _CELLS)) * np.sqrt(2 / _CELLS)
    rows[0] /= np.sqrt(2)
    cosines: Floats = rows.astype(np.float32)
    return cosines


@functools.lru_cache(maxsize=64)
def _means(side: int) -> Floats:
    """(32, side): the mean of each of 32 cells over a line of px, of which some count in part."""
    edges, px = np.linspace(0, side, _CELLS + 1), np.arange(side)
    share = np.minimum(edges[1:, None], px + 1) - np.maximum(edges[:-1, None], px)
    share = np.clip(share, 0, None)
    means: Floats = (share / share.sum(1, keepdims=True)).astype(np.float32)
    return means


def _grey_of(image: bytes) -> NDArray[np.uint8] | Floats:
    """(h, w) luma of a JPEG or PNG; ValueError or RuntimeError where it is none."""
    if image[:2] == b"\xff\xd8":
        frame = first_frame(image)
        _require_small(*(frame[1:] if frame else (0, 0)))
        if image.rfind(b"\xff\xd9") < image.rfind(b"\xff\xda"):
            raise ValueError("its end is missing")
        luma: NDArray[np.uint8] = imagecodecs.jpeg8_decode(image, outcolorspace="GRAYSCALE")
        return luma.reshape(luma.shape[:2])
    if image[:8] != _PNG:
        raise ValueError("it is neither JPEG nor PNG")
    width, height = struct.unpack(">II", image[16:24])
    _require_small(height, width)
    pixels: NDArray[Any] = np.asarray(imagecodecs.png_decode(image)).astype(np.float32)
    pixels = pixels.reshape(*pixels.shape[:2], -1) / (257 if image[24] == 16 else 1)
    if pixels.shape[2] in (2, 4):  # what is transparent is white
        alpha = pixels[..., -1:] / 255
        pixels = pixels[..., :-1] * alpha + 255 * (1 - alpha)
    grey = pixels @ _LUMA if pixels.shape[2] == 3 else pixels[..., 0]
    return grey.astype(np.float32)


def _require_small(height: int, width: int) -> None:
    if not 0 < height * width <= _MOST_PX:
        raise ValueError(f"it has {width:,} x {height:,} px")
