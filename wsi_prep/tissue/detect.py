"""Where the tissue is, found on a picture of the whole slide at a fixed physical resolution.

The glass is estimated first: its colour, and a smooth surface of its brightness. Everything is then judged by the light
that it takes away from the glass (optical density, Beer-Lambert) in whichever channel takes most, so pale and blue-only
tissue counts as much as pink, and grey or unevenly lit glass does not count at all. Ink, and grey debris, are taken out
again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_prep.errors import BadOption, NotBrightField
from wsi_prep.tissue.background_model import BackgroundModel
from wsi_prep.tissue.evidence.certainty import certainty
from wsi_prep.tissue.evidence.dense import Dense, Signs
from wsi_prep.tissue.evidence.fat import fat
from wsi_prep.tissue.evidence.light import Light
from wsi_prep.tissue.evidence.regions import Regions, with_holes_filled, without_faint_fragments
from wsi_prep.tissue.evidence.texture import Texture
from wsi_prep.tissue.ink import ink
from wsi_prep.tissue.picture import brightest, darkest, morphed, reduced

MASK_MPP = 8.0
"""um per pixel of the mask."""

_IN_FAT, _FAINT = 6.0, 5.0
"""Times the least hole and fragment, of what fat may leave open, and of fragments that have nothing dense."""

_LIT, _LEAST_LIT = 60, 0.005
"""Of 255: what is brighter is not black; and the share of a picture that must be."""

_BLACK, _BESIDE_BLACK_PX = 12, (6, 2)
"""Of 255: filling, as JPEG leaves it; and how far from it, at most and at least, glass is looked for."""

_NEUTRAL = 0.2
"""(strongest - weakest channel) / strongest, in optical density, below which a thing is grey: no dye looks so."""


@dataclass(frozen=True)
class TissueSettings:
    """Thresholds of the detector, all physical.

    `seed_density` marks tissue for certain, `edge_density` is how far it then reaches (optical density, smoothed over
    20 um); noisy glass raises both. `gap_um` is the widest gap that is closed; what is smaller than `least_speck_um2`
    bridges no gap. Holes and fragments below `least_hole_um2` and `least_fragment_um2` are filled and dropped, grey
    ones (dust) below `least_grey_um2`.
    """

    seed_density: float = 0.07
    edge_density: float = 0.035
    gap_um: float = 48.0
    least_speck_um2: float = 2_000.0
    least_hole_um2: float = 10_000.0
    least_fragment_um2: float = 10_000.0
    least_grey_um2: float = 60_000.0

    def __post_init__(self) -> None:
        if not 0 < self.edge_density <= self.seed_density < 2:
            raise BadOption(f"tissue densities {self.edge_density:g}, {self.seed_density:g}: need 0 < edge <= seed < 2")
        for name in ("gap_um", "least_speck_um2", "least_hole_um2", "least_fragment_um2", "least_grey_um2"):
            if not 0 <= getattr(self, name) < 1e9:
                raise BadOption(f"tissue {name} {getattr(self, name):g} is not between 0 and 1e9")


@dataclass(frozen=True)
class Outline:
    """`tissue` and the `fat` in it, (h, w) bool; how `certain` that is, from 0 to 1, None where there is none."""

    tissue: NDArray[np.bool_]
    fat: NDArray[np.bool_]
    certain: float | None


def check_bright_field(thumbnail: NDArray[np.uint8], glass: BackgroundModel | None = None) -> None:
    """Raise NotBrightField where (h, w, 3) uint8 RGB shows light on a dark ground: fluorescence or dark field.

    `glass`: the picture's, where it is known.
    """
    highest, lowest = brightest(thumbnail), darkest(thumbnail)
    lit = float((highest >= _LIT).mean())
    # stained tissue lets some light of every colour through; what glows is coloured, or no brighter than dim
    through = float(((highest >= 130) & (lowest >= 40)).mean())
    if lit >= _LEAST_LIT and (through < 0.05 if lit >= 0.5 else through < 0.5 * lit):
        # a lamp set low lights everything evenly: what is brightest is a wide, quiet ground, where what glows is small
        through = max(through, _dim_share(thumbnail, glass or BackgroundModel.of(thumbnail), lit))
    if lit < _LEAST_LIT or (through < 0.5 * lit and (lit < 0.5 or through < 0.05)):
        raise NotBrightField(
            f"{1 - lit:.0%} of the slide is nearly black and only {through:.0%} lets light through: "
            "fluorescence or dark field, where bright-field tiles are made"
        )


def _dim_share(thumbnail: NDArray[np.uint8], glass: BackgroundModel, lit: float) -> float:
    """Share of a picture that lets light of every colour through where its glass is dim; 0 where it shows none.

    `lit`: the share that is not nearly black.
    """
    highest = brightest(thumbnail)
    outshone = float(((highest > 1.2 * glass.colour.max()) & ~glass.filled(thumbnail)).mean())
    if glass.assumed or glass.colour.min() < 0.4 * glass.colour.max() or outshone > 0.005 * lit:
        return 0.0
    if lit < 0.5 and not _glass_beside_black(highest, glass):
        return 0.0
    return float((darkest(thumbnail) >= 0.2 * glass.colour.min()).mean())


def _glass_beside_black(highest: NDArray[np.uint8], glass: BackgroundModel) -> bool:
    """Whether what is black is filling: glass lies beside it, where what glows fades into its dark ground."""
    black = (highest <= _BLACK).astype(np.uint8)
    outer, inner = (cv2.dilate(black, np.ones((2 * px + 1,) * 2, np.uint8)) for px in _BESIDE_BLACK_PX)
    beside = highest[(outer > 0) & (inner == 0)]
    return bool(beside.size and np.median(beside) >= 0.8 * glass.colour.max())


def detect_tissue(
    thumbnail: NDArray[np.uint8],
    mpp: float,
    settings: TissueSettings | None = None,
    glass: BackgroundModel | None = None,
    marks: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """(h, w) mask of tissue in an (h, w, 3) uint8 RGB picture whose pixels measure `mpp` um.

    `glass`: the picture's, and `marks`: its `ink`, where they are known.
    """
    return outline_tissue(thumbnail, mpp, settings, glass, marks).tissue


def outline_tissue(
    thumbnail: NDArray[np.uint8],
    mpp: float,
    settings: TissueSettings | None = None,
    glass: BackgroundModel | None = None,
    marks: NDArray[np.bool_] | None = None,
) -> Outline:
    """The mask that `detect_tissue` gives of a picture, its fat, and how certain it is."""
    settings = settings or TissueSettings()
    glass = glass or BackgroundModel.of(thumbnail)
    unscanned = glass.unscanned(thumbnail)  # black filling has no soft rim, as a black border has
    artefact = ink(thumbnail, mpp, glass) if marks is None else marks.copy()
    if unscanned is not None:
        artefact |= unscanned
    light = Light.of(thumbnail, glass, artefact, mpp)
    texture = Texture.of(light, glass)
    light = replace(light, channels=())  # of a large slide they have tens of MB
    signs = Signs.of(light, glass, settings.seed_density, settings.edge_density)
    faint = reduced(light.strongest, light.step)
    del light
    dense = Dense.of(signs, mpp)
    del signs
    artefact |= texture.films(artefact.shape)
    tissue = (texture.tissue(dense.mask) | dense.mask) & ~artefact  # of a large slide each mask has some MB: only one
    tissue = _drop_debris(tissue, thumbnail, glass, mpp, settings)
    tissue = morphed(tissue, cv2.MORPH_CLOSE, 0.5 * settings.gap_um / mpp) & ~artefact
    holes, fragments = settings.least_hole_um2 / mpp**2, settings.least_fragment_um2 / mpp**2
    tissue = with_holes_filled(tissue, dense.mask, holes, _IN_FAT * holes)
    tissue = without_faint_fragments(tissue, dense.mask, fragments, _FAINT * fragments)
    return Outline(tissue, fat(tissue, faint, texture), certainty(tissue, artefact, dense, texture))


def fat_in(
    tissue: NDArray[np.bool_],
    thumbnail: NDArray[np.uint8],
    mpp: float,
    glass: BackgroundModel,
    marks: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """(h, w): the fat in a mask of `tissue` that somebody gave of a picture."""
    light = Light.of(thumbnail, glass, marks, mpp)
    return fat(tissue, reduced(light.strongest, light.step), Texture.of(light, glass))


def _drop_debris(
    mask: NDArray[np.bool_], thumbnail: NDArray[np.uint8], glass: BackgroundModel, mpp: float, settings: TissueSettings
) -> NDArray[np.bool_]:
    """Without specks, and without what is grey and smallish or thin: dust, bubbles, edges of a coverslip."""
    regions = Regions.of(mask)
    area, size = regions.area, regions.box[:, 2:] + 1 - regions.box[:, :2]
    keep = area * mpp**2 >= settings.least_speck_um2
    thin = (size.min(axis=1) * mpp < 120) | (area < 0.1 * size.prod(axis=1))
    doubtful = keep & (thin | (area * mpp**2 < settings.least_grey_um2))
    sums = np.zeros((len(area), 3))
    if doubtful.any():
        at = np.nonzero(regions.those(doubtful))
        labels = regions.labels[at]
        for channel, density in enumerate(glass.density_at(thumbnail, at).T):
            sums[:, channel] = np.bincount(labels, density, len(area))
    strongest = sums.max(axis=1)
    grey = doubtful & (strongest - sums.min(axis=1) < _NEUTRAL * strongest)
    return regions.those(keep & ~grey)
