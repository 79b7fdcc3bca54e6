"""Which tiles serve a um/px: one alone up to some coarser than its own, and a block of 2 x 2 up to twice."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pretrain.data.scales.density import Density, Knots, joined
from wsi_prep.errors import BadOption

BLOCK = 2.0
"""How much coarser than its tiles a block's pictures may be: of 2 x 2 tiles, one of their size."""
COARSEST = 2.0
"""um/px up to which is drawn where no density is given."""

_ROUNDING = 1e-6  # of a logarithm: more than that of a float32
_SAME_MAGNIFICATION = math.sqrt(2)
_SHOWN = 4  # ranges in a message


@dataclass(frozen=True)
class _Way:
    """Cells that serve, each from `low` to `high` above the logarithm of its own um/px: sorted by that, `at`.

    `upto`: (n + 1,) weights added up.
    """

    low: float
    high: float
    cell: NDArray[np.int64]
    at: NDArray[np.float64]
    upto: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        cells: NDArray[np.int64],
        mpp: NDArray[np.float64],
        weight: NDArray[np.float64],
        times: tuple[float, float],
    ) -> _Way:
        """Of cells that serve from so many to so many times their own um/px."""
        cells = cells[np.argsort(mpp[cells], kind="stable")]
        upto = np.concatenate([[0.0], np.cumsum(weight[cells])])
        return cls(math.log(times[0]), math.log(times[1]), cells, np.log(mpp[cells]), upto)

    @property
    def ranges(self) -> NDArray[np.float64]:
        return np.stack([self.at + self.low, self.at + self.high], axis=1)

    def serving(self, log_mpp: NDArray[np.float64], rounding: float = _ROUNDING) -> tuple[NDArray[np.int64], ...]:
        """The first and last cell, exclusive, that serve each of these."""
        first = np.searchsorted(self.at, log_mpp - self.high - rounding, side="left")
        last = np.searchsorted(self.at, log_mpp - self.low + rounding, side="right")
        return first, np.maximum(first, last)

    def weight(self, log_mpp: NDArray[np.float64], rounding: float = _ROUNDING) -> NDArray[np.float64]:
        """What those weigh together that serve each of these."""
        first, last = self.serving(log_mpp, rounding)
        return self.upto[last] - self.upto[first]

    def choose(self, log_mpp: NDArray[np.float64], share: NDArray[np.float64]) -> NDArray[np.int64]:
        """Of the cells that serve each of these, the one up to which they weigh that share of all."""
        first, last = self.serving(log_mpp)
        aim = self.upto[first] + share * (self.upto[last] - self.upto[first])
        return self.cell[np.clip(np.searchsorted(self.upto, aim, side="right") - 1, first, last - 1)]


def _finest(mpp: NDArray[np.float64], weight: NDArray[np.float64]) -> float:
    """The um/px that the weightier half of the finest magnification has, or less: no few slides serve it alone."""
    if not len(mpp):
        return COARSEST
    order = np.argsort(mpp)
    order = order[mpp[order] < mpp[order[0]] * _SAME_MAGNIFICATION]
    upto = np.cumsum(weight[order])
    return float(mpp[order[np.searchsorted(upto, upto[-1] / 2)]])


class Served:
    """The um/px that cells of tiles can serve, drawn by a density, and for each the cells that serve it, by weight.

    `mpp` and `weight`: (n,) of the cells, those of weight 0 being left out; `blocks`: (n,) how many blocks each has. A
    tile alone serves from its own um/px to `alone` times that, a block from there to twice. The density is drawn first,
    so that it holds whatever tiles there are; of what no tile serves the rest takes the share. Of the cells that serve
    a um/px, each is drawn in proportion to its weight. Without `knots`, from the usual um/px of the finest
    magnification to COARSEST. Raises BadOption where nothing can be drawn.

    `alone` and `whole`: (n,) float64, the chances of a draw to be of a cell's tiles alone, and of its blocks.
    """

    def __init__(
        self,
        mpp: NDArray[np.float64],
        weight: NDArray[np.float64],
        blocks: NDArray[np.int64],
        alone: float,
        knots: Knots = (),
    ) -> None:
        used = np.flatnonzero(weight > 0)
        if not knots:
            finest = _finest(mpp[used], weight[used])
            if finest >= COARSEST:
                raise BadOption(
                    f"sampling.any_mpp draws from the finest tiles' um/px to {COARSEST:g}, and these have "
                    f"{finest:g}; give a sampling.density"
                )
            knots = ((finest, 1.0), (COARSEST, 1.0))
        times = min(alone, BLOCK)
        self._one = _Way.of(used, mpp, weight, (1.0, times))
        self._block = _Way.of(used[(blocks[used] > 0) & (times < BLOCK)], mpp, weight, (times, BLOCK))
        ways = (self._one, self._block)
        self.density = Density(knots, joined([way.ranges for way in ways]))
        if not self.density.share:
            raise BadOption(
                f"no tile that can be drawn serves {knots[0][0]:g} to {knots[-1][0]:g} um/px; change sampling.density, "
                "or widen mix, filter or split"
            )
        self.alone, self.whole = self._chances(len(mpp))

    @property
    def missing(self) -> str:
        """For people: which um/px of the density no tile serves, and how much of it they are; empty without any."""
        if not (gaps := self.density.missing):
            return ""
        shown = ", ".join(f"{low:.4g} to {high:.4g}" for low, high in gaps[:_SHOWN])
        more = f" and {len(gaps) - _SHOWN} more ranges" if len(gaps) > _SHOWN else ""
        return (
            f"no tile that can be drawn serves {shown}{more} um/px, {1 - self.density.share:.1%} of the density: the "
            "rest takes their share"
        )

    def choose(self, mpp: NDArray[np.float32], u: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """For each um/px of the density's by a number in [0, 1) a cell that serves it, and whether by a block."""
        at = np.log(mpp.astype(np.float64))
        one, block = self._one.weight(at), self._block.weight(at)
        aim = u * (one + block)
        whole = (aim >= one) & (block > 0)
        cell = np.empty(len(mpp), np.int64)
        for way, here, begin, total in ((self._one, ~whole, 0.0, one), (self._block, whole, one, block)):
            share = (aim - begin)[here] / total[here]
            cell[here] = way.choose(at[here], np.clip(share, 0.0, 1.0))
        return cell, whole

    def _chances(self, cells: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Exactly: between two neighbouring ends of ranges the same cells serve, with the same weight in all."""
        ways = (self._one, self._block)
        ends = np.unique(np.concatenate([way.ranges.ravel() for way in ways]))
        middle = (ends[:-1] + ends[1:]) / 2
        total = sum(way.weight(middle, 0.0) for way in ways)
        drawn = np.diff(self.density.below(ends))
        each = np.append(0.0, np.cumsum(np.where(total > 0, drawn / np.where(total > 0, total, 1.0), 0.0)))
        found = []
        for way in ways:
            low, high = (each[np.searchsorted(ends, of)] for of in way.ranges.T)
            chance = np.zeros(cells)
            chance[way.cell] = np.diff(way.upto) * (high - low)
            found.append(chance)
        return found[0], found[1]
