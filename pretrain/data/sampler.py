"""Which tiles make a batch: magnification, stratum, slide, tile, drawn in that order; or um/px, slide, tile.

The global batch of a step is a pure function of (seed, step); a rank takes its share of it. There is no state to save.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pretrain.compute.randomness import Purpose, uniforms
from pretrain.data.index import Index
from pretrain.data.scales.blocks import Blocks
from pretrain.data.scales.cut import AnyMpp
from pretrain.data.scales.density import Knots, check_knots
from pretrain.data.scales.draws import AnyMppDraws, Drawn
from pretrain.data.scales.served import BLOCK, Served
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

    `any_mpp`: every um/px is drawn, log-uniformly from that of the finest tiles to 2.0, or by the `density`: pairs of
    um/px and weight, linear over log um/px between them. What lies between stored magnifications is cut from the finer
    one: from a tile `alone` up to so many times its own um/px, beyond from a block of 2 x 2. A magnification without a
    share of the mix is not read; the other shares do not count.

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
    any_mpp: bool = False
    density: Knots = ()
    alone: float = 1.4

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= _LARGEST_BATCH:
            raise BadOption(f"a batch of {self.batch} tiles is not between 1 and {_LARGEST_BATCH:,}")
        if not 0 <= self.seed < 1 << 64:
            raise BadOption(f"seed {self.seed} is not between 0 and 2^64 - 1")
        for name, share in self.mix.items():
            magnification(name)
            if not (math.isfinite(share) and share >= 0):
                raise BadOption(f"share {share} of {name} in sampling.mix is not a number of at least 0")
        if not sum(self.mix.values()) > 0:
            raise BadOption("every share of sampling.mix is 0; give some magnification a share")
        if unknown := set(self.strata) - set(STRATUM_LEVELS):
            raise BadOption(f"strata {sorted(unknown)} are not known; choose from {' '.join(STRATUM_LEVELS)}")
        check_alpha(self.alpha)
        if not 0 <= self.held_out < 1:
            raise BadOption(f"held_out {self.held_out} is not at least 0 and below 1")
        if self.split not in SPLITS:
            raise BadOption(f"split {self.split!r} is not known; choose from {', '.join(SPLITS)}")
        if not 1 <= self.alone <= BLOCK:
            raise BadOption(f"alone {self.alone} is not between 1 and {BLOCK:g} times a tile's own um/px")
        if self.density:
            check_knots(self.density)
            if not self.any_mpp:
                raise BadOption("a density of um/px is only drawn with sampling.any_mpp=true; set it, or leave it out")


@dataclass(frozen=True)
class Draw:
    """Some tiles of a global batch: `position` in it, and per tile its index row, slide, stratum and mpp (um/px).

    `mpp` is of the pixels that the loader hands over. `any_mpp`: how they are made, where they are not just the tile's.
    """

    step: int
    position: NDArray[np.int64]
    tile: NDArray[np.int64]
    slide: NDArray[np.int64]
    stratum: NDArray[np.int64]
    mpp: NDArray[np.float32]
    any_mpp: AnyMpp | None = None

    @property
    def wanted(self) -> NDArray[np.float32]:
        """(B,) um/px at which crops are wanted."""
        return self.mpp if self.any_mpp is None else self.any_mpp.wanted

    def needed(self, row: int) -> NDArray[np.int64]:
        """The index rows of the tiles that are read for this one: its own, or the four of its block."""
        tile = self.tile[row : row + 1]
        if self.any_mpp is None or self.any_mpp.beside[row, 0] < 0:
            return tile
        return np.append(tile, self.any_mpp.beside[row])

    def share(self, rank: int, world: int) -> Draw:
        """What the rank takes: an equal, contiguous share; BadOption if the batch cannot be shared equally."""
        if len(self.tile) % world:
            raise BadOption(f"a batch of {len(self.tile)} does not divide by {world} processes; change one of them")
        size = len(self.tile) // world
        return self.take(np.arange(rank * size, (rank + 1) * size))

    def take(self, rows: NDArray[np.int64]) -> Draw:
        """These rows alone."""
        of = (self.position[rows], self.tile[rows], self.slide[rows], self.stratum[rows])
        return Draw(self.step, *of, self.mpp[rows], self.any_mpp and self.any_mpp.take(rows))

    def replaced(self, row: int, other: Draw) -> Draw:
        """The same with the one tile of the other in that place."""
        made = {}
        for name in ("position", "tile", "slide", "stratum", "mpp"):
            made[name] = getattr(self, name).copy()
            made[name][row] = getattr(other, name)[0]
        either = self.any_mpp and other.any_mpp and self.any_mpp.replaced(row, other.any_mpp)
        return replace(self, **made, any_mpp=either)


@dataclass(frozen=True)
class Cells:
    """Tiles of one slide at one magnification that can be drawn, by the cell: rows `start` to `start + count` of the
    index, its `slide`, `stratum` and `mpp` (um/px), and the `chance` of a draw to be one of them.

    Chances add up to 1; of the tiles of a cell each has the same. (That a batch holds no tile twice is not in them, nor
    that a tile in the midst of its slide is in more blocks than one at its edge.)
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
        self._any_mpp: AnyMppDraws | None = None
        self._build()
        self.eligible = int(self._count[self._chance > 0].sum())
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
        drawn = self._chance > 0
        return Cells(
            self._start[drawn],
            self._count[drawn].astype(np.int64),
            self._slide[drawn].astype(np.int64),
            self._stratum_of_cell[drawn].astype(np.int64),
            self._mpp[drawn],
            self._chance[drawn],
        )

    @property
    def mpp_moments(self) -> tuple[float, float] | None:
        """Mean and standard deviation of the um/px that are wanted, where they are not just those of the cells."""
        return self._any_mpp.served.density.moments() if self._any_mpp else None

    def magnification_of(self, stratum: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers into magnifications.MAGNIFICATIONS of strata."""
        return self._magnification[stratum]

    def draw(self, step: int) -> Draw:
        """The global batch of a step. A place whose tile another place has draws again: from its own stratum, then from
        any stratum by its probability, then by its tiles; where tiles are few, `_fill` ends it without chance.
        """
        size = self.settings.batch
        if self._any_mpp:
            return self._made(step, np.arange(size), self._any_mpp.draw(self.settings.seed, step, size))
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

    def replacement(
        self, step: int, position: int, stratum: int, attempt: int, wanted: np.float32 | None = None
    ) -> Draw:
        """Another tile for a position whose tile cannot be read; from the same stratum for the first tries.

        `wanted`: the um/px that it has to serve, in place of its stratum.
        """
        u = uniforms(self.settings.seed, Purpose.REPLACE, step, range(position, position + 1), 4, attempt)
        if self._any_mpp and wanted is not None:
            return self._made(step, np.array([position]), self._any_mpp.other(u, np.array([wanted])))
        chosen = np.array([stratum]) if attempt < _TRIES_IN_STRATUM else self._strata_at(u[:, 0], tempered=True)
        cell, tile = self._in_stratum(chosen, u[:, 1], u[:, 2])
        return self._drawn(step, np.array([position]), tile, cell, chosen)

    def expected_coverage(self, steps: float) -> float:
        """Share of the tiles that can be drawn that `steps` batches are expected to have shown at least once."""
        each = self._shown / self._count
        seen = -np.expm1(-each * steps * self.settings.batch) * self._count
        return float(seen[each > 0].sum() / self.eligible)

    def _build(self) -> None:
        """Cells sorted by (magnification, stratum), and the probability of each stratum: a row of each array a cell, or
        a stratum from `_begin` on; `_upto` and `_tiles_upto` are sums, which a random number is looked up in.
        """
        index, settings = self.index, self.settings
        cells = index.cells
        number = np.arange(len(cells))
        if settings.split != "all":
            held = index.slides["split"] < settings.held_out
            number = np.flatnonzero(held[cells["slide"]] == (settings.split == "held out"))
            cells = cells[number]
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
        if settings.any_mpp:
            self._serve_any_mpp(number[order])
        else:
            self._probability = draw_probabilities(
                self._magnification, self._stratum_tiles, settings.alpha, settings.mix
            )
            self._chance = self._shown = (self._probability / self._cells_in)[self._stratum_of_cell]
        self._upto = np.cumsum(self._probability)
        self._tiles_upto = np.cumsum(np.where(self._probability > 0, self._stratum_tiles, 0))

    def _serve_any_mpp(self, number: NDArray[np.int64]) -> None:
        """The chances of cells, of these numbers in the index, where the um/px decides what is drawn.

        Of what serves a um/px, strata are drawn in proportion to n^alpha, and slides evenly, as far as they serve it.
        """
        settings = self.settings
        read = np.array([settings.mix.get(name, 0) > 0 for name in _NAMES], bool)[self._magnification]
        weight = np.where(read, self._stratum_tiles.astype(np.float64) ** settings.alpha, 0.0) / self._cells_in
        blocks = Blocks(self.index)
        served = Served(
            self._mpp.astype(np.float64),
            weight[self._stratum_of_cell],
            blocks.count[number],
            settings.alone,
            settings.density,
        )
        self._any_mpp = AnyMppDraws(served, blocks, number, self._start, self._count, self._mpp)
        self._chance = served.alone + served.whole
        self._shown = served.alone + 4 * served.whole
        self._probability = np.bincount(self._stratum_of_cell, self._chance, len(self._cells_in)).astype(np.float64)

    def _warnings(self) -> list[str]:
        found = []
        present = {_NAMES[m] for m in self._magnification}
        if self._any_mpp:
            found += [line for line in [self._any_mpp.served.missing] if line]
        elif missing := [n for n in _NAMES if self.settings.mix.get(n, 0) > 0 and n not in present]:
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

    def _made(self, step: int, position: NDArray[np.int64], drawn: Drawn) -> Draw:
        of = (self._slide[drawn.cell].astype(np.int64), self._stratum_of_cell[drawn.cell].astype(np.int64))
        return Draw(step, position, drawn.tile, *of, drawn.mpp, drawn.how)

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
