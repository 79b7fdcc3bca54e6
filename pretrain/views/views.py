"""What the networks see of a batch: crops, recoloured and normalised, and the masks of the global ones."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from pretrain.compute.devices import computed_here, send_together
from pretrain.compute.randomness import Places, Purpose
from pretrain.model.normalise import normalise
from pretrain.views.colour import ColourSettings, apply_colour, plan_colour
from pretrain.views.crops import CropSettings, TileScales, crop, plan_crops
from pretrain.views.masking import MaskingSettings, plan_masks

_UNTOLD = 0.1


@dataclass(frozen=True)
class ViewSettings:
    """How crops are cut, coloured and masked."""

    crops: CropSettings = field(default_factory=CropSettings)
    colour: ColourSettings = field(default_factory=ColourSettings)
    masking: MaskingSettings = field(default_factory=MaskingSettings)


@dataclass(frozen=True)
class Views:
    """Crops of B tiles, crop k of tile b in row k * B + b.

    `global_crops`: (G * B, 3, h, w), normalised. `local_crops`: (L * B, 3, h, w). `mask`: (G * B, N) bool, true where
    the student sees the mask token. `chosen`: (M,) int64, the masked patches in the flattened (G * B * N), padded where
    a GPU computes. `weight`: (M,) float32, of each in the loss, 0 for padding. `mpp`: for each of `groups` (n * B,)
    float32, the um/px of its crops' pixels, the geometric mean of both axes; empty where the tiles' own were not given.
    `told`: the same with NaN for one tile in ten, which networks that take um/px are not told, so that they can do
    without.
    `anchor_crops`: what an anchor sees of the global crops, see enlarged_crops; None where there is none.
    """

    places: Places
    global_crops: Tensor
    local_crops: Tensor
    mask: Tensor
    chosen: Tensor
    weight: Tensor
    mpp: tuple[Tensor, ...] = ()
    told: tuple[Tensor, ...] = ()
    anchor_crops: Tensor | None = None

    @property
    def groups(self) -> list[Tensor]:
        """The crops by size, global ones first."""
        return [self.global_crops, self.local_crops] if len(self.local_crops) else [self.global_crops]

    @property
    def tiles(self) -> int:
        """B."""
        return len(self.places.position)


def make_views(
    tiles: Tensor,
    settings: ViewSettings,
    places: Places,
    patch_px: int,
    dtype: torch.dtype = torch.float32,
    scales: TileScales | None = None,
) -> Views:
    """Views of (B, 3, 392, 392) uint8 tiles of these scales on the device, at these places.

    A pure function of pixels and places; nothing waits for the device.
    """
    groups, mpps = [], []
    untold = places.uniforms(Purpose.MPP_TOLD, 1)[:, 0] < _UNTOLD
    for kind, windows in zip(("global", "local"), plan_crops(settings.crops, places, scales), strict=True):
        crops = windows.x0.shape[1]
        cut = crop(tiles, windows, dtype)
        if crops:
            cut = apply_colour(cut, plan_colour(settings.colour, places, kind, crops))
        groups.append(normalise(cut))
        if scales and crops:
            mpp = windows.mpp(scales.mpp).T.astype(np.float32)
            mpps += [mpp.ravel(), np.where(untold, np.float32(np.nan), mpp).ravel()]
    side = settings.crops.global_px // patch_px
    masks = plan_masks(settings.masking, places, settings.crops.global_crops, side)
    # a GPU wants one shape in every step; a CPU computes what is padded for nothing
    rows = masks.count if computed_here(tiles) else len(masks.index)
    mask, chosen, weight, *sent = send_together(
        [masks.mask, masks.index[:rows], masks.weight[:rows], *mpps], tiles.device
    )
    return Views(places, groups[0], groups[1], mask, chosen, weight, tuple(sent[::2]), tuple(sent[1::2]))


def enlarged_crops(
    tiles: Tensor,
    settings: CropSettings,
    places: Places,
    scale: float,
    dtype: torch.dtype = torch.float32,
    scales: TileScales | None = None,
) -> Tensor:
    """(G * B, 3, h, h), normalised: the windows of make_views' global crops, of `scale` times as many px a side.

    They are cut from the tiles anew, in the tiles' own colours. `tiles`, `places`, `scales` as there.
    """
    windows, _ = plan_crops(settings, places, scales)
    return normalise(crop(tiles, replace(windows, px=round(settings.global_px * scale)), dtype))
