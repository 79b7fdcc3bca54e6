"""What of a slide's picture is no tissue by its look alone: quiet background, and flat parts that nobody scanned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_prep.tissue.picture import deviation, largest

_DARK = 60
"""Brightness (0 to 255) below which nothing is looked at: borders, dark filling."""

_BLOCK_PX, _LARGE_PX, _SMALL_PX = 8, 1_000_000, 40_000
_QUIET_SHARE, _LEAST_QUIET = 0.01, 2.0
"""Of its brightness, how much a block of glass may differ from its neighbours; levels, which JPEG alone may."""

_LEVELS_AROUND = 4
"""Of 255: blocks that are so close in brightness are of one background."""

_LEAST_SHARE, _LEAST_PINK_SHARE, _PINK, _DYED = 0.01, 0.1, 0.025, 0.1
"""Share of the picture that must be quiet and of one brightness; where it is pink (log10 of the lesser of red and blue
over green), as tissue is and glass hardly ever, it must be more; and none is as pink as the last."""

_LEAST_TINT = 0.65
"""Of its strongest channel, what the weakest of glass has; that of old yellow glass 0.72, DAB less than half."""

_MOST_ABOVE = 0.25
"""Of the background's share, how much of the picture may be brighter."""

_EXACT_SPREAD = 0.35
_COUNTED_PX = 50_000
_LEAST_FLAT_SHARE, _MOST_FLATS = 0.01, 4
_STRAIGHT, _LEAST_BORDER_SHARE = 0.68, 0.05
"""Share of a flat part's edge that runs along rows and columns: a disc has 0.4, glass around tissue 0.3 to 0.65."""

WITHIN = (1, 12)
"""Levels by which pixels of filling may be off: as they are, and where JPEG spoils them."""

_LEAST_TILE_PX, _ON_GRID_PX, _ON_GRID, _LEAST_EDGE_TILES = 6, 1.5, 0.8, 4
"""Filling may end with the file's tiles: share of its edge that then lies so near their grid (by chance it is a half at
most), and how long the edge must be at least."""

_EVERY_LINE = 4
"""Of the rows and columns on which such edges are looked for."""

_RIM_FROM_PX, _RIM_TO_PX, RIM_SPREAD, _LEAST_RIM_SHARE, _RIM_ALIKE = 2, 6, 4.0, 0.1, 0.4
"""Beside filling there is glass, if only to the edge of a tile: where it is looked for, beyond what is mixed with
filling, how smooth it is, and its share of what lies there, and of what is smooth there."""

_HUGS = 3
"""Times as much of the edge of what was scanned that is filling's as is the picture's."""

_FAR_LEVELS = 8
_MIXED_PX = 5
"""Side of what resampling and JPEG mix at the edge of a flat part."""


@dataclass(frozen=True)
class Flat:
    """A `colour` that large straight-edged parts of a picture have exactly.

    `outer`: they reach the picture's edge. `tiled`: by how many levels a pixel may be off and count as theirs, so that
    they end with the tiles that the file stores; none, and they do not.
    """

    colour: tuple[int, int, int]
    outer: bool
    tiled: tuple[int, ...] = ()

    def shown(self, picture: NDArray[np.uint8], within: int = 1) -> NDArray[np.bool_]:
        """(h, w): where the picture has this colour, give or take `within` levels."""
        least, most = (np.clip(np.add(self.colour, by), 0, 255) for by in (-within, within))
        return np.asarray(cv2.inRange(picture, least, most), dtype=np.bool_)

    def is_colour(self, colour: NDArray[np.float64]) -> bool:
        """Whether a colour is this one, give or take what the mean of JPEG's pixels is off."""
        return bool(np.abs(colour - self.colour).max() <= _LEVELS_AROUND)

    @property
    def is_dyed(self) -> bool:
        """Whether tissue may have this colour, and glass hardly ever."""
        weakest, strongest = min(self.colour), max(self.colour)
        return strongest >= _DARK and (_pink(self.colour) > _PINK or weakest < _LEAST_TINT * strongest)

    def is_spoilt(self, colour: NDArray[np.float64]) -> bool:
        """Whether a colour may be what JPEG left of it, and not glass, which goes beyond whole tiles."""
        return self.is_colour(colour) and WITHIN[-1] in self.tiled

    def darkens(self, glass: NDArray[np.float64]) -> bool:
        """Whether it would pass for tissue on such glass: filling at the picture's edge, or black anywhere."""
        return (self.outer or max(self.colour) < _DARK) and bool((glass - self.colour).max() > _FAR_LEVELS)


def flat_parts(
    picture: NDArray[np.uint8], stride: int, spread: NDArray[np.float32], tile: tuple[float, float] | None = None
) -> list[Flat]:
    """Colours that scanners and converters fill with what was not scanned, of every `stride`-th row and column.

    `spread` is the standard deviation of brightness around each. Bare glass after strong JPEG is flat too, but goes
    around the tissue, where filling has straight edges, or ends with the file's tiles, of so many pixels, width and
    height, of the picture.
    """
    sample = picture[::stride, ::stride]
    flat_px = sample[spread <= _EXACT_SPREAD]
    every = max(1, len(flat_px) // _COUNTED_PX)
    packed, counts = np.unique(flat_px[::every].astype(np.int64) @ [65536, 256, 1], return_counts=True)
    found: dict[Flat, NDArray[np.bool_]] = {}
    for at in counts.argsort()[::-1][:_MOST_FLATS]:
        if counts[at] * every < _LEAST_FLAT_SHARE * spread.size:
            break
        value = int(packed[at])
        flat = Flat((value >> 16, value >> 8 & 255, value & 255), False)
        shown = flat.shown(sample)
        tiled = ends_with_tiles(flat, picture, tile)
        if tiled or _straightness(shown) >= _STRAIGHT:
            found[replace(flat, tiled=tiled)] = shown
    return _outer_marked(found)


def _outer_marked(shown: dict[Flat, NDArray[np.bool_]]) -> list[Flat]:
    """The flats, `outer` where they reach the picture's edge, or that of what is left without the outer ones.

    One of a dye's colour is filling only at the picture's edge, or inside of darker filling: glass may be flat, too,
    and what lies on it is tissue.
    """
    outer: set[Flat] = set()
    filled = np.zeros(next(iter(shown.values())).shape if shown else (0, 0), np.uint8)
    left = (slice(None), slice(None))
    for _ in shown:
        lightest = max((sum(flat.colour) for flat in outer), default=0)
        reach = {
            flat
            for flat in shown.keys() - outer
            if _edge(shown[flat][left]).mean() >= _LEAST_BORDER_SHARE
            and not (flat.is_dyed and sum(flat.colour) < lightest)
        }
        if not reach:
            break
        outer |= reach
        for flat in reach:
            filled |= shown[flat]
        scanned = np.asarray(cv2.dilate(filled, np.ones((_MIXED_PX, _MIXED_PX), np.uint8))) == 0
        rows, cols = (np.flatnonzero(scanned.mean(axis=axis) > _LEAST_BORDER_SHARE) for axis in (1, 0))
        if not len(rows) or not len(cols):
            break
        left = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1))
    return [replace(flat, outer=flat in outer) for flat in shown if flat in outer or not flat.is_dyed]


def _edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The first and last rows and columns of a mask, one after another."""
    return np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])


def _straightness(shown: NDArray[np.bool_]) -> float:
    """Share of a mask's edge that goes on straight along its row or column; 0 where it has none."""
    even = np.asarray(cv2.blur(shown.astype(np.float32), (5, 5)) > 0.5, dtype=np.bool_)
    across, down = even[:, 1:] != even[:, :-1], even[1:] != even[:-1]
    straight = np.count_nonzero(across[1:] & across[:-1]) + np.count_nonzero(down[:, 1:] & down[:, :-1])
    edge = int(np.count_nonzero(across) + np.count_nonzero(down))
    return float(straight) / max(1, edge)


def ends_with_tiles(flat: Flat, picture: NDArray[np.uint8], tile: tuple[float, float] | None) -> tuple[int, ...]:
    """By how many levels a pixel may be off this colour, so that what has it ends on the grid of the file's tiles.

    `tile`: their width and height in pixels of the picture.
    """
    if tile is None or min(tile) < _LEAST_TILE_PX:
        return ()
    return tuple(within for within in WITHIN if _is_on_grid(flat, within, picture, tile))


def _is_on_grid(flat: Flat, within: int, picture: NDArray[np.uint8], tile: tuple[float, float]) -> bool:
    """By some of the picture's rows, and where those do not rule it out, some of its columns."""
    least = _LEAST_EDGE_TILES * min(tile) / _EVERY_LINE
    across, on_grid = _edges(flat.shown(picture[::_EVERY_LINE], within), tile[0])
    if across >= least and on_grid < _ON_GRID / 2 * across:
        return False
    down, also_on_grid = _edges(flat.shown(np.ascontiguousarray(picture[:, ::_EVERY_LINE]), within).T, tile[1])
    return across + down >= least and on_grid + also_on_grid >= _ON_GRID * (across + down)


def _edges(lines: NDArray[np.bool_], pitch: float) -> tuple[int, int]:
    """Of (lines, px): how often what is three wide begins or ends, and how often near a grid of that pitch."""
    wide = cv2.morphologyEx(np.ascontiguousarray(lines).view(np.uint8), cv2.MORPH_OPEN, np.ones((1, 3), np.uint8))
    changes = np.count_nonzero(wide[:, 1:] != wide[:, :-1], axis=0)
    at = np.arange(1.0, len(changes) + 1)
    near = np.abs(at - np.rint(at / pitch) * pitch) <= _ON_GRID_PX
    return int(changes.sum()), int(changes[near].sum())


def rim_of_glass(picture: NDArray[np.uint8], flats: list[Flat]) -> NDArray[np.float64] | None:
    """(3,) the colour of the glass beside filling, be it a rim narrower than a block; None where nothing is even there.

    What was left out was glass, most likely, and so is what lies next to it.
    """
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32)
    smooth = deviation(grey, 3) <= RIM_SPREAD
    for within in sorted({within for flat in flats for within in flat.tiled}):
        filled = opened(picture, flats, within)
        near = cv2.dilate(filled, square(_RIM_TO_PX)) & ~cv2.dilate(filled, square(_RIM_FROM_PX)) > 0
        colours = picture[near].astype(np.float32)
        scanned = colours.max(axis=1, initial=0) >= _DARK
        quiet = scanned & smooth[near]
        colour = _brightest_even(colours, quiet, scanned, _LEAST_RIM_SHARE, _LEAST_RIM_SHARE)
        if colour is None or any(flat.is_spoilt(colour) for flat in flats):
            continue
        alike = np.abs(colours[quiet] - colour).max(axis=1) <= _LEVELS_AROUND
        if alike.mean() >= _RIM_ALIKE:
            return colour
    return None


def opened(picture: NDArray[np.uint8], flats: list[Flat], within: int = 1) -> NDArray[np.uint8]:
    """(h, w) 255 where a picture is filled, but for what is narrower than 3 px."""
    shown = np.zeros(picture.shape[:2], np.uint8)
    for flat in flats:
        shown |= flat.shown(picture, within)
    return np.asarray(cv2.morphologyEx(shown * 255, cv2.MORPH_OPEN, square(1), borderValue=255), dtype=np.uint8)


def hugs(filled: NDArray[np.uint8]) -> bool:
    """Whether filling is nearly all that goes around what was scanned, not the picture's edge."""
    shown = filled > 0
    between = np.count_nonzero(shown[:, 1:] != shown[:, :-1]) + np.count_nonzero(shown[1:] != shown[:-1])
    return bool(between > _HUGS * np.count_nonzero(~_edge(shown)))


def square(by: int) -> NDArray[np.uint8]:
    """A structuring element that reaches so far from its middle."""
    return np.ones((2 * by + 1, 2 * by + 1), np.uint8)


def brightest_quiet(picture: NDArray[np.uint8], flats: list[Flat]) -> NDArray[np.float64] | None:
    """(3,) the colour of the brightest large part of the picture that is as even as bare glass; None where none is.

    Neighbouring blocks of glass hardly differ, whatever its colour and the noise of single pixels; those of tissue do.
    Parts of a flat colour do not count, nor does what a good share of the picture outshines. On a small picture, glass
    may be left in its corners alone, so smaller blocks are tried where the usual ones find none.
    """
    blocks = (_BLOCK_PX,) if picture.shape[0] * picture.shape[1] > _SMALL_PX else (_BLOCK_PX, _BLOCK_PX // 2)
    colours = (_brightest_quiet(picture, flats, block_px) for block_px in blocks)
    found = next((colour for colour in colours if colour is not None), None)
    if found is not None and _pink(found.tolist()) > _PINK and any(min(flat.colour) > found.max() for flat in flats):
        return None  # pale tissue on glass that is flat
    return found


def _brightest_quiet(picture: NDArray[np.uint8], flats: list[Flat], block_px: int) -> NDArray[np.float64] | None:
    mean, differs, side = _blocks(picture, block_px)
    top = largest(mean)
    scanned = top >= _DARK
    if flats:
        beside = np.ones((2 * side + 1, 2 * side + 1), np.uint8)  # what is mixed with filling
        scanned &= np.asarray(cv2.dilate(_filled_blocks(picture, flats, top.shape), beside)) == 0
    quiet = scanned & (differs <= np.maximum(_LEAST_QUIET, _QUIET_SHARE * top))
    return _brightest_even(mean, quiet, scanned, _LEAST_SHARE, _LEAST_PINK_SHARE)


def _brightest_even(
    mean: NDArray[np.float32],
    quiet: NDArray[np.bool_],
    scanned: NDArray[np.bool_],
    least_share: float,
    least_pink_share: float,
) -> NDArray[np.float64] | None:
    """(3,) the brightest colour, of `quiet` ones, that a share of all `scanned` ones have, give or take."""
    level = np.rint(mean.mean(axis=-1)).astype(np.int64)
    total = max(1, int(np.count_nonzero(scanned)))
    if not quiet.any():
        return None
    # dim glass and pale tissue on it lie as much closer together as they are darker
    around = max(1, round(_LEVELS_AROUND * int(level[quiet].max()) / 255))
    window = np.ones(2 * around + 1)
    share = np.convolve(np.bincount(level[quiet], minlength=256), window, mode="same") / total
    outshone = np.bincount(level[scanned], minlength=256)[::-1].cumsum()[::-1] / total
    above = np.append(outshone[around + 3 :], np.zeros(around + 3))
    good = np.flatnonzero((share >= least_share) & (above <= _MOST_ABOVE * share))
    if not len(good):
        return None
    best = int(good[-1])
    while share[best - 1] >= share[best]:
        best -= 1
    colour = np.median(mean[quiet & (np.abs(level - best) <= around)], axis=0).astype(np.float64)
    pink = _pink(colour.tolist())
    dyed = pink > _DYED or colour.min() < _LEAST_TINT * colour.max()
    return None if dyed or (pink > _PINK and share[best] < least_pink_share) else colour


def _pink(colour: Sequence[float]) -> float:
    """log10 of the lesser of red and blue over green."""
    red, green, blue = colour
    return math.log10(max(min(red, blue), 1.0) / max(green, 1.0))


def _filled_blocks(picture: NDArray[np.uint8], flats: list[Flat], blocks: tuple[int, ...]) -> NDArray[np.uint8]:
    """Above 0 for the blocks of a picture, so many rows and columns of them, in which there is filling."""
    filled = opened(picture, flats)
    step = min(picture.shape[0] // blocks[0], picture.shape[1] // blocks[1])
    return np.asarray(
        cv2.resize(
            filled[: blocks[0] * step, : blocks[1] * step], (blocks[1], blocks[0]), interpolation=cv2.INTER_AREA
        ),
        dtype=np.uint8,
    )


def _blocks(picture: NDArray[np.uint8], block_px: int) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
    """(rows, cols, 3) means of blocks of a picture, (rows, cols) how far each is from its neighbours at most, and how
    many rows or columns further a neighbour is.

    The blocks of a small picture overlap, so that there are enough of them.
    """
    height, width = picture.shape[:2]
    step = min(block_px if height * width > _LARGE_PX else 2, height, width)
    rows, cols = height // step, width // step
    small = cv2.resize(picture[: rows * step, : cols * step], (cols, rows), interpolation=cv2.INTER_AREA)
    side = max(1, block_px // step)
    mean = np.asarray(cv2.blur(small.astype(np.float32), (side, side)), dtype=np.float32)
    padded = cv2.copyMakeBorder(mean, side, side, side, side, cv2.BORDER_REPLICATE)
    differs = np.zeros((rows, cols), np.float32)
    for y, x in ((0, side), (2 * side, side), (side, 0), (side, 2 * side)):
        apart = cv2.absdiff(padded[y : y + rows, x : x + cols], mean)
        cv2.max(differs, largest(apart), dst=differs)
    return mean, differs, side
