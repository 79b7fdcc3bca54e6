"""Moving arrays to where they are computed with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


def best_device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def send(values: NDArray[Any] | torch.Tensor, device: torch.device) -> torch.Tensor:
    """To the device, without waiting for it."""
    host = values if isinstance(values, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def slow_precision(device: torch.device, precision: str) -> list[str]:
    """A line for people where products of this precision are slower on the device than those of float32, else none."""
    if device.type != "cpu" or precision != "bf16" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return []
    return ["this processor has no bfloat16 arithmetic: SET=compute.precision=fp32 is several times as fast here"]
