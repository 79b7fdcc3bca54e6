"""Colours as a model takes them."""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.compute.devices import send

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, which timm and the released pathology models use."""


def normalise(crops: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    """(N, 3, h, w) in [0, 1] -> as the model takes them."""
    scale = torch.tensor(std, dtype=crops.dtype).reciprocal().view(1, 3, 1, 1)
    shift = -torch.tensor(mean, dtype=crops.dtype).view(1, 3, 1, 1) * scale
    return torch.addcmul(send(shift, crops.device), crops, send(scale, crops.device))
