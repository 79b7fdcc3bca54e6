"""Which tiles make a batch: magnification, stratum, slide, tile, drawn in that order.

The global batch of a step is a pure function of (seed, step); a rank takes its share of it. There is no state to save.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.compute.randomness import Purpose, uniforms
from pretrain.data.index import Index
from wsi_prep.errors import BadOption
from wsi_prep.format.magnifications import MAGNIFICATIONS, magnification
from wsi_prep.format.strata import STRATUM_LEVELS, VIRCHOW2_MIX, check_alpha, draw_probabilities

SPLITS = ("train", "held out", "all")

_NAMES = [m.name for m in MAGNIFICATIONS]
_TRIES_IN_STRATUM, _TRIES = 8, 24
_NAMED = 20  # strata in warnings


_LARGEST_BATCH = 1 << 20


@dataclass(frozen=True)
class SamplingSettings:
    """What a batch is made of.

    `batch`: tiles in a global batch. `mix`: share of each magnification. `strata`: the levels that are balanced; a
    stratum of n tiles is drawn in proportion to n^`alpha` (0 uniform, 1 as found). `held_out`: share of the patients
    that training never sees.

    >>> SamplingSettings(batch=256, mix={"20x": 0.5, "10x": 0.5}, held_out=0.1).alpha
    0.5
    """

    batch: int
    seed: int = 0
    mix: Mapping[str, float] = field(default_factory=lambda: dict(VIRCHOW2_MIX))
    strata: tuple[str, ...] = STRATUM_LEVELS
    alpha: float = 0.5
    held_out: float = 0.0
    split: str = "train"

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= _LARGEST_BATCH:
            raise BadOption(f"a batch of {self.batch} tiles is not between 1 and {_LARGEST_BATCH:,}")
        if not 0 <= self.seed < 1 << 64:
            raise BadOption(f"seed {self.seed} is not between 0 and 2^64 - 1")
        for name, share in self.mix.items():
            magnification(name)
            if not (math.isfinite(share) and share >= 0):
                raise BadOption(f"share {share} of {name} in the mix is not a number of at least 0")
        if not sum(self.mix.values()) > 0:
            raise BadOption("every share of the mix is 0; give some magnification a share")
        if unknown := set(self.strata) - set(STRATUM_LEVELS):
            raise BadOption(f"strata {sorted(unknown)} are not known; choose from {' '.join(STRATUM_LEVELS)}")
        check_alpha(self.alpha)
        if not 0 <= self.held_out < 1:
            raise BadOption(f"held out share {self.held_out} is not at least 0 and below 1")
        if self.split not in SPLITS:
            raise BadOption(f"split {self.split!r} is not known; choose from {', '.join(SPLITS)}")


@dataclass(frozen=True)
class Draw:
    """Some tiles of a global batch: `position` in it, and per tile its index row, slide, stratum and mpp (um/px)."""

    step: int
    position: NDArray[np.int64]
    tile: NDArray[np.int64]
    slide: NDArray[np.int64]
    stratum: NDArray[np.int64]
    mpp: NDArray[np.float32]

    def share(self, rank: int, world: int) -> Draw:
        """What the rank takes: an equal, contiguous share; BadOption if the batch cannot be shared equally."""
        if len(self.tile) % world:
            raise BadOption(f"a batch of {len(self.tile)} does not divide by {world} processes; change one of them")
        size = len(self.tile) // world
        return self.take(np.arange(rank * size, (rank + 1) * size))

    def take(self, rows: NDArray[np.int64]) -> Draw:
        """These rows alone."""
        of = (self.position[rows], self.tile[rows], self.slide[rows], self.stratum[rows])
        return Draw(self.step, *of, self.mpp[rows])


@dataclass(frozen=True)
class Cells:
    """Tiles of one slide at one magnification that can be drawn, by the cell: rows `start` to `start + count` of the
    index, its `slide`, `stratum` and `mpp` (um/px), and the `chance` of a draw to be one of them.

    Chances add up to 1; of the tiles of a cell each has the same. (That a batch holds no tile twice is not in them.)
    """

    start: NDArray[np.int64]
    count: NDArray[np.int64]
    slide: NDArray[np.int64]
    stratum: NDArray[np.int64]
    mpp: NDArray[np.float32]
    chance: NDArray[np.float64]


class Sampler:
    """Draws from an index. Raises BadOption where the settings leave too few tiles to fill a batch.

    >>> sampler = Sampler(open_index("shards"), SamplingSettings(batch=8, mix={"20x": 1}))
    >>> sampler.draw(step=0).mpp.tolist()
    [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    """

    def __init__(self, index: Index, settings: SamplingSettings) -> None:
        self.index, self.settings = index, settings
        self._build()
        drawn = self._probability > 0
        self.eligible = int(self._stratum_tiles[drawn].sum())
        if self.eligible < settings.batch:
            raise BadOption(
                f"a batch of {settings.batch} holds no tile twice, but only {self.eligible} tiles can be drawn; "
                "ask for a smaller batch, or widen mix, filter or split"
            )
        self.warnings = self._warnings()

    @property
    def strata(self) -> list[dict[str, Any]]:
        """Each stratum with its magnification, names, tiles, slides and target share of the draws."""
        named = []
        for number, slide in enumerate(self._first_slide):
            row: dict[str, Any] = {"magnification": _NAMES[int(self._magnification[number])]}
            for level in self.settings.strata:
                row[level] = self.index.names[level][int(self.index.slides[level][slide])]
            row["tiles"], row["slides"] = int(self._stratum_tiles[number]), int(self._cells_in[number])
            row["target"] = float(self._probability[number])
            named.append(row)
        return named

    @property
    def slides(self) -> int:
        """Slides that tiles can be drawn of."""
        return len(np.unique(self._slide[self._probability[self._stratum_of_cell] > 0]))

    @property
    def cells(self) -> Cells:
        """What can be drawn, and how often."""
        chance = self._probability[self._stratum_of_cell] / self._cells_in[self._stratum_of_cell]
        drawn = chance > 0
        return Cells(
            self._start[drawn],
            self._count[drawn].astype(np.int64),
            self._slide[drawn].astype(np.int64),
            self._stratum_of_cell[drawn].astype(np.int64),
            self._mpp[drawn],
            chance[drawn],
        )

    def magnification_of(self, stratum: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers into magnifications.MAGNIFICATIONS of strata."""
        return self._magnification[stratum]

    def draw(self, step: int) -> Draw:
        """The global batch of a step: no tile twice, as long as there are enough tiles.

        A place that drew a tile which another place has already draws again: `_TRIES_IN_STRATUM` times from its own
        stratum, then from any stratum by its probability, and after `_TRIES` from any by its number of tiles. Where
        tiles are few, what is left is filled up without chance (`_fill`).
        """
        size = self.settings.batch
        tile, cell, stratum = (np.empty(size, np.int64) for _ in range(3))
        todo = np.arange(size)
        attempt = 0
        while len(todo):
            if attempt > _TRIES and self.eligible < 4 * size:
                self._fill(tile, cell, stratum, todo)
                break
            u = uniforms(self.settings.seed, Purpose.DRAW, step, range(size), 4, attempt)[todo]
            if not 0 < attempt <= _TRIES_IN_STRATUM:
                stratum[todo] = self._strata_at(u[:, 0], tempered=attempt <= _TRIES)
            cell[todo], tile[todo] = self._in_stratum(stratum[todo], u[:, 1], u[:, 2])
            first = np.zeros(size, bool)
            first[np.unique(tile, return_index=True)[1]] = True
            todo = np.flatnonzero(~first)
            attempt += 1
        return self._drawn(step, np.arange(size), tile, cell, stratum)

    def replacement(self, step: int, position: int, stratum: int, attempt: int) -> Draw:
        """Another tile for a position whose tile cannot be read; from the same stratum for the first tries."""
        u = uniforms(self.settings.seed, Purpose.REPLACE, step, range(position, position + 1), 4, attempt)
        chosen = np.array([stratum]) if attempt < _TRIES_IN_STRATUM else self._strata_at(u[:, 0], tempered=True)
        cell, tile = self._in_stratum(chosen, u[:, 1], u[:, 2])
        return self._drawn(step, np.array([position]), tile, cell, chosen)

    def expected_coverage(self, steps: int) -> float:
        """Share of the tiles that can be drawn that `steps` batches are expected to have shown at least once."""
        each = self._probability[self._stratum_of_cell] / self._cells_in[self._stratum_of_cell] / self._count
        seen = -np.expm1(-each * steps * self.settings.batch) * self._count
        return float(seen[each > 0].sum() / self.eligible)

    def _build(self) -> None:
        """Cells sorted by (magnification, stratum), and the probability of each stratum.

        A cell is what a slide has at one magnification; cells of a stratum stand beside each other. Of each of n cells:
        `_start`, `_count`, its tiles in the index; `_slide`; `_mpp`; `_stratum_of_cell`. Of each of k strata: `_begin`,
        `_cells_in`, its cells; `_magnification`; `_probability`; and sums of probability (`_upto`) and of tiles
        (`_tiles_upto`) up to it, which a random number is looked up in.
        """
        index, settings = self.index, self.settings
        cells = index.cells
        if settings.split != "all":
            held = index.slides["split"] < settings.held_out
            cells = cells[held[cells["slide"]] == (settings.split == "held out")]
        key = cells["magnification"].astype(np.int64)
        for level in settings.strata:
            key = key * len(index.names[level]) + index.slides[level][cells["slide"]]
        order = np.argsort(key, kind="stable")
        self._start = cells["start"][order].astype(np.int64)
        self._count = cells["count"][order]
        self._slide = cells["slide"][order]
        self._mpp = cells["mpp"][order]
        key = key[order]
        begin = np.flatnonzero(np.diff(key, prepend=-1))
        self._begin, self._cells_in = begin, np.diff(begin, append=len(key))
        self._stratum_of_cell = np.repeat(np.arange(len(begin), dtype=np.int32), self._cells_in)
        self._magnification = cells["magnification"][order[begin]].astype(np.int64)
        self._first_slide = self._slide[begin]
        self._stratum_tiles = np.add.reduceat(self._count.astype(np.int64), begin) if len(begin) else np.zeros(0, int)
        self._probability = draw_probabilities(self._magnification, self._stratum_tiles, settings.alpha, settings.mix)
        self._upto = np.cumsum(self._probability)
        self._tiles_upto = np.cumsum(np.where(self._probability > 0, self._stratum_tiles, 0))

    def _warnings(self) -> list[str]:
        found = []
        present = {_NAMES[m] for m in self._magnification}
        if missing := [n for n in _NAMES if self.settings.mix.get(n, 0) > 0 and n not in present]:
            found.append(f"no tile at {' '.join(missing)}: the other magnifications take their share of the mix")
        asked = self._probability * self.settings.batch
        strata = self.strata
        short = np.flatnonzero(asked > self._stratum_tiles)
        for number in short[:_NAMED]:
            words = [str(v) for k, v in strata[number].items() if k not in ("tiles", "slides", "target")]
            found.append(
                f"{' / '.join(words)} has {self._stratum_tiles[number]} tiles where a batch asks for "
                f"{asked[number]:.0f}: it falls short of its share"
            )
        if len(short) > _NAMED:
            found.append(f"so do {len(short) - _NAMED} more strata")
        return found

    def _strata_at(self, u: NDArray[np.float64], tempered: bool) -> NDArray[np.int64]:
        """Strata by their probability, or (not `tempered`) by their number of tiles."""
        upto = self._upto if tempered else self._tiles_upto
        found: NDArray[np.int64] = np.searchsorted(upto, u * upto[-1], side="right")
        return np.minimum(found, len(upto) - 1)

    def _in_stratum(
        self, stratum: NDArray[np.int64], u_slide: NDArray[np.float64], u_tile: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Slides evenly, then tiles evenly: rows of the sorted cells, and of the index."""
        cell = self._begin[stratum] + (u_slide * self._cells_in[stratum]).astype(np.int64)
        return cell, self._start[cell] + (u_tile * self._count[cell]).astype(np.int64)

    def _fill(
        self, tile: NDArray[np.int64], cell: NDArray[np.int64], stratum: NDArray[np.int64], todo: NDArray[np.int64]
    ) -> None:
        """Give the places `todo` tiles that nobody has, in order; for cohorts hardly larger than a batch."""
        cells = np.flatnonzero(self._probability[self._stratum_of_cell] > 0)
        every = np.concatenate([np.arange(self._start[c], self._start[c] + self._count[c]) for c in cells])
        of = np.repeat(cells, self._count[cells])
        free = np.flatnonzero(~np.isin(every, np.delete(tile, todo)))[: len(todo)]
        tile[todo], cell[todo] = every[free], of[free]
        stratum[todo] = self._stratum_of_cell[cell[todo]]

    def _drawn(
        self,
        step: int,
        position: NDArray[np.int64],
        tile: NDArray[np.int64],
        cell: NDArray[np.int64],
        stratum: NDArray[np.int64],
    ) -> Draw:
        return Draw(step, position, tile, self._slide[cell].astype(np.int64), stratum, self._mpp[cell])


class DrawnCounts:
    """What was drawn, by stratum: the trainer adds its batches and writes the table beside its metrics."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self.counts = np.zeros(len(sampler.strata), np.int64)

    def add(self, stratum: NDArray[np.int64]) -> None:
        """Count tiles by the number of their stratum."""
        self.counts += np.bincount(stratum, minlength=len(self.counts))

    def restore(self, rows: list[dict[str, Any]]) -> None:
        """Go on counting from an earlier table; strata that are gone are left out."""
        before = {self._key(row): int(row["drawn"]) for row in rows}
        self.counts += np.array([before.get(self._key(row), 0) for row in self._sampler.strata], np.int64)

    def _key(self, row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(name) for name in ("magnification", *self._sampler.settings.strata))

    def table(self, counts: NDArray[np.int64] | None = None) -> list[dict[str, Any]]:
        """Each stratum with its target and drawn share, and the number drawn; of other `counts` if given."""
        counts = self.counts if counts is None else counts
        total = max(int(counts.sum()), 1)
        pairs = zip(self._sampler.strata, counts.tolist(), strict=True)
        return [{**row, "drawn": drawn, "drawn_share": drawn / total} for row, drawn in pairs]
