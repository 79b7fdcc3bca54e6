"""Colours as a model takes them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pretrain.compute.devices import send_together

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, which timm and the released pathology models use."""


def normalise(crops: Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> Tensor:
    """(N, 3, h, w) in [0, 1] -> as the model takes them."""
    scale = np.reciprocal(np.array(std, np.float32))
    shift = -np.array(mean, np.float32) * scale
    scales, shifts = send_together([scale, shift], crops.device)
    return torch.addcmul(shifts.to(crops.dtype).view(1, 3, 1, 1), crops, scales.to(crops.dtype).view(1, 3, 1, 1))
