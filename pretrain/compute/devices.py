"""Moving arrays to where they are computed with."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_ALIGNED = 16  # bytes, of each array among several


def best_device() -> torch.device:
    """The first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def computed_here(tensor: torch.Tensor) -> bool:
    """Whether the CPU computes with it. One that has a shape and no numbers stands for one on a GPU, see simulate."""
    return tensor.device.type == "cpu" and type(tensor) is torch.Tensor


def gpu_memory(device: str, *, apart: bool = False) -> int | None:
    """Bytes of the smallest of this machine's GPUs, None without any; `device` as distributed.world takes it.

    `apart`: asked for by a process of its own, since who asks holds some of a GPU's memory until its end.
    """
    if device == "cpu" or not torch.cuda.is_available():
        return None
    if apart:
        asked = [sys.executable, "-c", f"from {__name__} import gpu_memory; print(gpu_memory({device!r}))"]
        said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603 - no shell
        return int(said) if said.isdecimal() else None
    numbers = range(torch.cuda.device_count())
    return min((torch.cuda.get_device_properties(number).total_memory for number in numbers), default=None)


def send(values: NDArray[Any] | torch.Tensor, device: torch.device) -> torch.Tensor:
    """To the device, without waiting for it."""
    host = values if isinstance(values, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def send_together(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[torch.Tensor]:
    """Several small arrays as tensors on the device: one piece of pinned memory, one copy, and no waiting for it."""
    host = [torch.from_numpy(np.asarray(array, order="C")) for array in arrays]
    return unpack(pack(host, pinned=True).to(device, non_blocking=True), host) if device.type == "cuda" else host


def pack(tensors: Sequence[torch.Tensor], pinned: bool) -> torch.Tensor:
    """The bytes (uint8) of all, one after another, each from a multiple of 16 on."""
    packed = torch.empty(sum(map(_room, tensors)), dtype=torch.uint8, pin_memory=pinned)
    for own, tensor in zip(unpack(packed, tensors), tensors, strict=True):
        own.copy_(tensor)
    return packed


def unpack(packed: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """What `pack` has packed, of the types and shapes of these."""
    pieces = torch.split(packed, [_room(tensor) for tensor in like])
    return [own[: t.nbytes].view(t.dtype).view(t.shape) for own, t in zip(pieces, like, strict=True)]


def _room(tensor: torch.Tensor) -> int:
    return math.ceil(tensor.nbytes / _ALIGNED) * _ALIGNED


def own_cores() -> int:
    """How many of this machine's cores are for this process, one of those that torchrun has started on it."""
    here = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, len(os.sched_getaffinity(0)) // max(1, int(here) if here.isdecimal() else 1))


def slow_precision(device: torch.device, precision: str) -> list[str]:
    """A line for people where products of this precision are slower on the device than those of float32, else none."""
    if device.type != "cpu" or precision != "bf16" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return []
    return ["this processor has no bfloat16 arithmetic: SET=compute.precision=fp32 is several times as fast here"]
