"""What tissue looks like from near: optical densities of an H&E and of an IHC stain, from small periodic blocks.

Blocks of different periods are laid over each other and modulated by the layout's slow variation, so that a slide of
any size costs no more than its blocks and repeats nowhere visibly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sample_slides.layout import noise

# Optical densities (natural logarithm) of red, green and blue: Ruifrok and Johnston 2001
_HAEMATOXYLIN = np.array([0.65, 0.70, 0.29], np.float32)
_EOSIN = np.array([0.07, 0.99, 0.11], np.float32)
_RESIDUAL = np.array([0.27, 0.57, 0.78], np.float32)
_NUCLEI_PERIOD_UM = 512
_FIBRES_PERIOD_UM = 400
_NUCLEUS_SPACING_UM = 11.5
_IHC_DRIFT_PX = 220  # bends the mirrored picture, whose symmetry would show


class Stain(Protocol):
    """Gives the optical density of stained tissue anywhere on the slide."""

    def density(
        self, ys: NDArray[np.int64], xs: NDArray[np.int64], variation: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """(len(ys), len(xs), 3) float32 at rows `ys` and columns `xs`; `variation` is (len(ys), len(xs))."""


@dataclass(frozen=True)
class HeStain:
    """Pink fibres (eosin) with blue-purple nuclei (haematoxylin).

    `nuclei`: (n, n) float32 amount of haematoxylin in the nuclei; `rank`: (n, n) float32 in 0..1, one value a nucleus:
    it shows where the local density of cells exceeds its rank. `fibres`: (m, m) float32 amount of eosin.
    """

    nuclei: NDArray[np.float32]
    rank: NDArray[np.float32]
    fibres: NDArray[np.float32]

    def density(
        self, ys: NDArray[np.int64], xs: NDArray[np.int64], variation: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """See Stain."""
        at_nuclei = np.ix_(ys % len(self.nuclei), xs % len(self.nuclei))
        eosin = self.fibres[np.ix_(ys % len(self.fibres), xs % len(self.fibres))]
        crowding = 0.55 + 0.3 * variation
        shown = np.clip((crowding - self.rank[at_nuclei]) * 20, 0, 1) * self.nuclei[at_nuclei]
        haematoxylin = shown + 0.1 + 0.25 * np.clip(crowding - 0.4, 0, 0.6) * eosin
        amount = eosin * (1 - 0.12 * variation)
        pink = _EOSIN + 0.12 * _RESIDUAL
        density: NDArray[np.float32] = haematoxylin[..., None] * _HAEMATOXYLIN + amount[..., None] * pink
        return density


@dataclass(frozen=True)
class IhcStain:
    """Brown DAB on pale blue tissue: a real picture, mirrored at its edges. `block`: (n, n, 3) float32 densities."""

    block: NDArray[np.float32]

    def density(
        self, ys: NDArray[np.int64], xs: NDArray[np.int64], variation: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """See Stain."""
        drift = np.rint(_IHC_DRIFT_PX * variation).astype(np.int64)
        n = len(self.block)
        block = self.block[(ys[:, None] + drift) % n, (xs[None, :] - drift) % n]
        density: NDArray[np.float32] = block * (0.6 + 0.1 * np.clip(variation, -2, 2))[..., None] + np.float32(0.05)
        return density


def he_stain(mpp: float, seed: int) -> HeStain:
    """H&E texture for pixels of `mpp` um."""
    rng = np.random.default_rng(seed)
    nuclei, rank = _nuclei(rng, round(_NUCLEI_PERIOD_UM / mpp), mpp)
    return HeStain(nuclei, rank, _fibres(rng, round(_FIBRES_PERIOD_UM / mpp), mpp))


def ihc_stain() -> IhcStain:
    """IHC texture (DAB and haematoxylin): a picture that scikit-image carries, enlarged twice to suit 0.25 um/px."""
    import cv2  # noqa: PLC0415 - heavy, and only this stain needs them
    from skimage.data import immunohistochemistry  # noqa: PLC0415

    picture = immunohistochemistry()[:432, 48:480]  # leaves out the broad lumina, which are glass
    picture = cv2.resize(picture, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    white = np.percentile(picture, 99, axis=(0, 1))
    density: NDArray[np.float32] = -np.log(np.clip(picture / white, 0.02, 1)).astype(np.float32)
    return IhcStain(np.pad(density, ((0, len(density)), (0, len(density)), (0, 0)), mode="symmetric"))


def _fibres(rng: np.random.Generator, size: int, mpp: float) -> NDArray[np.float32]:
    """Wavy bundles in two directions that give way to each other, with pale clefts."""
    shape = (size, size)
    bundles = [noise(rng, shape, 60 / mpp, 4 / mpp, angle) for angle in (0.5, 1.9)]
    fine = noise(rng, shape, 14 / mpp, 1.2 / mpp, 0.7)
    where = 1 / (1 + np.exp(-4 * noise(rng, shape, 90 / mpp)))
    body = 0.42 + 0.11 * (where * bundles[0] + (1 - where) * bundles[1]) + 0.045 * fine
    clefts = np.clip(noise(rng, shape, 30 / mpp, 9 / mpp, 0.6) - 1.5, 0, 0.5) * 2
    eosin: NDArray[np.float32] = np.clip(body * (1 - 0.85 * clefts), 0.03, 1.1).astype(np.float32)
    bend_y, bend_x = (np.rint(9 / mpp * noise(rng, shape, 75 / mpp)).astype(np.int64) for _ in range(2))
    ys, xs = np.indices(shape, sparse=True)
    bent: NDArray[np.float32] = eosin[(ys + bend_y) % size, (xs + bend_x) % size]
    return bent


def _nuclei(rng: np.random.Generator, size: int, mpp: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Elliptic nuclei of 6 to 9 um on a jittered lattice, wrapped around the block's edges: amounts and ranks."""
    amount, rank = np.zeros((size, size), np.float32), np.ones((size, size), np.float32)
    per_side = round(size * mpp / _NUCLEUS_SPACING_UM)
    spacing = size / per_side
    grain = noise(rng, (size, size), 1.3 / mpp)
    reach = round(6.5 / mpp)
    offset = np.arange(-reach, reach + 1)
    for i, j in np.ndindex(per_side, per_side):
        cy, cx = (np.array([i, j]) + 0.5 + rng.uniform(-0.36, 0.36, 2)) * spacing
        long_px = rng.uniform(6, 9) / 2 / mpp
        short_px = long_px * rng.uniform(0.5, 0.9)
        angle = rng.normal(0.6, 0.7)
        ys, xs = round(cy) + offset, round(cx) + offset
        dy, dx = (ys - cy)[:, None], (xs - cx)[None, :]
        u = (dx * np.cos(angle) + dy * np.sin(angle)) / long_px
        v = (dy * np.cos(angle) - dx * np.sin(angle)) / short_px
        radius = np.sqrt(u * u + v * v)
        cover = np.clip((1 - radius) * short_px * mpp / 0.6 + 0.5, 0, 1)
        at = np.ix_(ys % size, xs % size)
        dark = rng.uniform(0.8, 1.55) * (0.85 + 0.2 * np.clip(radius, 0, 1) ** 3 + 0.13 * grain[at])
        mine = cover * dark > amount[at]
        amount[at] = np.where(mine, cover * dark, amount[at])
        rank[at] = np.where(mine, rng.uniform(), rank[at])
    return amount, rank
