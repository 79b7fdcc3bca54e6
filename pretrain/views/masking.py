"""Which patches of the global crops iBOT hides: blocks (Bao et al. 2021, arXiv 2106.08254), planned on the host.

A pure function of (seed, step, place in the global batch). Which crops are masked, and how far, follows a sequence of
low discrepancy, so that every batch hides nearly the same number of patches and its tensors keep their shapes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pretrain.compute.randomness import Places, Purpose, uniforms
from wsi_prep.errors import BadOption

_MOST_BLOCKS = 1000
_R2 = (0.7548776662466927, 0.5698402909980532)  # Roberts 2018: evenly spread in two dimensions at once
_ROUND = 64  # the list of masked patches is padded to a multiple of this


@dataclass(frozen=True)
class MaskingSettings:
    """`share` of the global crops have between `least` and `most` of their patches hidden, in blocks whose height over
    width lies within `aspect` and its inverse. `blocks` are tried for a crop, of at least `least_block` patches (0: 1).
    The few patches that they leave out are added at the edge of what is hidden, or where they fall (`scattered`).
    """

    share: float = 0.5
    least: float = 0.1
    most: float = 0.5
    aspect: float = 0.3
    blocks: int = 32
    least_block: int = 4
    scattered: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise BadOption(f"masked share {self.share} (views.masking.share) is not between 0 and 1")
        if not 0 <= self.least <= self.most < 1:
            raise BadOption(f"views.masking.least {self.least} and most {self.most} are no range in 0 to below 1")
        if not 0 < self.aspect <= 1:
            raise BadOption(f"views.masking.aspect {self.aspect} is not above 0 and at most 1")
        if not 0 <= self.blocks <= _MOST_BLOCKS or self.least_block < 0:
            raise BadOption(f"blocks {self.blocks} are not between 0 and {_MOST_BLOCKS:,}, or least_block is below 0")


@dataclass(frozen=True)
class Masks:
    """Masked patches of S = n * B global crops, crop k of tile b in row k * B + b.

    `mask`: (S, N) bool. `index`: (M,) int64, the masked patches in the flattened (S * N), padded by repeating 0.
    `weight`: (M,) float32, one over the number masked in the patch's crop and over S; 0 for padding. `count`: unpadded.
    """

    mask: NDArray[np.bool_]
    index: NDArray[np.int64]
    weight: NDArray[np.float32]
    count: int


def plan_masks(settings: MaskingSettings, places: Places, crops: int, side: int) -> Masks:
    """Masks of `crops` crops of each tile at these places; a crop has side x side patches."""
    patches, batch = side * side, len(places.position)
    wanted = _wanted(settings, places, crops, patches).T.ravel()
    width = 4 * settings.blocks + patches
    numbers = places.uniforms(Purpose.MASK, crops * width)
    numbers = numbers.reshape(batch, crops, width).transpose(1, 0, 2).reshape(-1, width)
    mask = np.zeros((crops * batch, side, side), bool)
    for row in np.flatnonzero(wanted):
        _hide(mask[row], int(wanted[row]), numbers[row], settings)
    flat = mask.reshape(crops * batch, patches)
    index = np.flatnonzero(flat)
    expected = crops * batch * patches * settings.share * (settings.least + settings.most) / 2
    room = -(-max(len(index), math.ceil(1.1 * expected)) // _ROUND) * _ROUND
    weight = 1 / np.repeat(wanted, wanted) / (crops * batch)
    padding = (0, room - len(index))
    return Masks(flat, np.pad(index, padding), np.pad(weight, padding).astype(np.float32), len(index))


def _wanted(settings: MaskingSettings, places: Places, crops: int, patches: int) -> NDArray[np.int64]:
    """(B, crops): how many patches each crop hides."""
    offset = uniforms(places.seed, Purpose.MASK_OFFSET, places.step, range(1), 2)[0]
    number = places.position[:, None] * crops + np.arange(crops)
    chosen, far = (np.modf(number * _R2[axis] + offset[axis])[0] for axis in (0, 1))
    share = settings.least + far * (settings.most - settings.least)
    return np.where(chosen < settings.share, np.round(share * patches), 0).astype(np.int64)


def _hide(mask: NDArray[np.bool_], wanted: int, numbers: NDArray[np.float64], settings: MaskingSettings) -> None:
    """Hide exactly `wanted` patches of mask (side, side): rectangles while they fit, then single ones."""
    side = len(mask)
    left = wanted
    for block in range(settings.blocks):
        area, ratio, y, x = numbers[4 * block : 4 * block + 4]
        size = max(1.0, settings.least_block + (left - settings.least_block) * area)
        stretch = settings.aspect ** (2 * ratio - 1)
        height, width = round(math.sqrt(size * stretch)), round(math.sqrt(size / stretch))
        if not (0 < height <= side and 0 < width <= side):
            continue
        top, start = int(y * (side - height + 1)), int(x * (side - width + 1))
        window = mask[top : top + height, start : start + width]
        new = window.size - int(window.sum())
        if new <= left:
            window[:] = True
            left -= new
    order = numbers[4 * settings.blocks :].reshape(mask.shape)
    if settings.scattered:
        free = np.flatnonzero(~mask.ravel())
        mask.reshape(-1)[free[np.argsort(order.ravel()[free])[:left]]] = True
        return
    for _ in range(left):
        edge = ~mask & _beside(mask) if mask.any() else ~mask
        mask.reshape(-1)[np.argmin(np.where(edge, order, np.inf))] = True


def _beside(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where a patch of mask (side, side) is above, below or beside."""
    wide = np.pad(mask, 1)
    beside: NDArray[np.bool_] = wide[:-2, 1:-1] | wide[2:, 1:-1] | wide[1:-1, :-2] | wide[1:-1, 2:]
    return beside
