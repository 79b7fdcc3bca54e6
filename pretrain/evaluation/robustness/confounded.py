"""Training sets in which class and site go together more and more, and a test set in which they do not.

The average performance drop of PathoROB (Koemen et al. 2025, arXiv 2507.17845), for any number of classes and sites.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.compute.randomness import Purpose, uniforms
from wsi_prep.errors import counted

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
LADDER = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Cramer's V of class and site in what is learnt from."""
DRAWS = 5
MOST_TILES = 2000  # that are learnt from
LEAST_TILES, LEAST_SLIDES = 20, 2  # of every class at every site
_HELD_OUT = 1 / 3
_LEAST_LEARNT, _LEAST_JUDGED = 2, 5  # of them, at V = 0, and held out


@dataclass(frozen=True)
class Draw:
    """One division: rows to learn from for each step of the ladder, of one number of tiles, and rows to judge on.

    No slide or patient is on both sides. `judged` has every class at every site, `cells` (m,) says which.
    """

    learnt: tuple[Ints, ...]
    judged: Ints
    cells: Ints


def cramers_v(counts: NDArray[Any]) -> float:
    """Of a table (C, S) of counts, or of shares, whose rows and columns are not empty: 0 to 1."""
    share = counts / counts.sum()
    expected = np.outer(share.sum(1), share.sum(0))
    return float(np.sqrt(((share - expected) ** 2 / expected).sum() / (min(counts.shape) - 1)))


def shares(classes: int, sites: int, association: float) -> Floats:
    """(C, S) shares of tiles whose Cramer's V is `association`; classes are even, and so are the sites of a class.

    At 1, the more numerous of the two tells the other: with two sites, half of the classes are at each.
    """
    of = np.arange(max(classes, sites)) % min(classes, sites)
    together = np.zeros((classes, sites))
    if classes >= sites:
        together[np.arange(classes), of] = 1 / classes
    else:
        together[of, np.arange(sites)] = 1 / classes / np.bincount(of)[of]
    alone = np.outer(together.sum(1), together.sum(0))
    return (1 - association) * alone + association * together


def draws(labels: Ints, sites: Ints, owners: Ints, names: Sequence[Sequence[str]]) -> list[Draw] | str:
    """Up to DRAWS divisions, or why there are none, in one line.

    `labels`, `sites`, `owners`: (n,) int64, the last of slides or patients; `names`: of the classes and of the sites.
    """
    classes, places = (len(of) for of in names)
    cell = labels * places + sites
    tiles = np.bincount(cell, minlength=classes * places)
    slides = np.bincount(np.unique(np.stack([cell, owners]), axis=1)[0], minlength=classes * places)
    if ((tiles < LEAST_TILES) | (slides < LEAST_SLIDES)).any():
        least = int(np.lexsort((tiles, slides >= LEAST_SLIDES, tiles >= LEAST_TILES))[0])
        which = f"{names[0][least // places]} at {names[1][least % places]}"
        has = f"{counted(int(tiles[least]), 'tile')} of {counted(int(slides[least]), 'slide')}"
        return f"{which} has {has}, and it takes {LEAST_TILES} of {LEAST_SLIDES} slides for each class at each site"
    found = [draw for number in range(DRAWS) if (draw := _draw(cell, (classes, places), owners, number))]
    return found or "with whole slides held out, too few tiles are left of some class at some site"


def _draw(cell: Ints, shape: tuple[int, int], owners: Ints, number: int) -> Draw | None:
    held = _held_out(cell, owners, number)
    chance = uniforms(number, Purpose.CONFOUNDED, 1, range(len(cell)), 2)
    of_cell = [_evenly(np.flatnonzero(~held & (cell == one)), owners, chance) for one in range(shape[0] * shape[1])]
    room = np.array([len(rows) for rows in of_cell], float)
    steps = [_mixed(shares(*shape, association), number).ravel() for association in LADDER]
    total = int(min(MOST_TILES, (room / np.max(steps, axis=0)).min()))
    judged = np.flatnonzero(held)
    least = np.bincount(cell[judged], minlength=len(room)).min()
    if total * steps[0].min() < _LEAST_LEARNT or least < _LEAST_JUDGED:
        return None
    wanted = [np.minimum((total * step + 0.5).astype(np.int64), room.astype(np.int64)) for step in steps]
    learnt = [np.concatenate([rows[:n] for rows, n in zip(of_cell, of, strict=True)]) for of in wanted]
    return Draw(tuple(learnt), judged, cell[judged])


def _held_out(cell: Ints, owners: Ints, number: int) -> NDArray[np.bool_]:
    """(n,) true for whole slides or patients, with near a third of each cell: one after another, in an order of this
    draw's, each is held out if that brings the shares nearer to it.
    """
    rows_of = np.split(np.argsort(owners, kind="stable"), np.cumsum(np.bincount(owners))[:-1])
    total, held = np.bincount(cell), np.zeros(len(cell), bool)
    share = np.zeros(len(total))
    for owner in np.argsort(uniforms(number, Purpose.CONFOUNDED, 0, range(len(rows_of)), 1)[:, 0]):
        rows = rows_of[owner]
        at, tiles = np.unique(cell[rows], return_counts=True)
        with_it = share[at] + tiles / total[at]
        if ((with_it - _HELD_OUT) ** 2).sum() < ((share[at] - _HELD_OUT) ** 2).sum():
            held[rows], share[at] = True, with_it
    return held


def _mixed(table: Floats, number: int) -> Floats:
    """The table with rows and columns in an order of this draw's, so that no class always meets one site."""
    orders = [
        np.argsort(uniforms(number, Purpose.CONFOUNDED, 2 + axis, range(length), 1)[:, 0])
        for axis, length in enumerate(table.shape)
    ]
    return table[np.ix_(*orders)]


def _evenly(rows: Ints, owners: Ints, chance: Floats) -> Ints:
    """Rows in an order of which any beginning has as many of each slide as can be."""
    by_owner = rows[np.lexsort((chance[rows, 0], owners[rows]))]
    of = owners[by_owner]
    place = np.arange(len(of)) - np.searchsorted(of, of)
    return by_owner[np.lexsort((chance[by_owner, 1], place))]
