"""The colours of a tile as features: what any model has to beat."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pretrain.features.embedder import Embedder

WHAT = "mean, standard deviation, 10th and 90th percentile of red, green and blue"


def of_colours() -> Embedder:
    """(b, 12) of tiles: see WHAT, in [0, 1]."""
    return Embedder(nn.Identity(), colours_of, patch_px=1, about="colours alone", what=WHAT)


def of_patch_colours(patch_px: int = 16) -> Embedder:
    """The same of each patch too, so many px a side."""

    def patches(tiles: Tensor) -> Tensor:
        (b, _, h, w), p = tiles.shape, patch_px
        each = tiles.reshape(b, 3, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, p, p)
        return colours_of(each).reshape(b, h // p, w // p, -1)

    return Embedder(nn.Identity(), colours_of, patch_px, about="colours alone", what=WHAT, patches=patches)


def colours_of(tiles: Tensor) -> Tensor:
    """(b, 3, h, w) in [0, 1] -> (b, 12): four times three colours."""
    levels = tiles.flatten(2).float().sort(dim=2).values
    tenth = levels.shape[2] // 10
    parts = (levels.mean(2), levels.std(2, correction=0), levels[:, :, tenth], levels[:, :, -1 - tenth])
    return torch.cat(parts, dim=1)
