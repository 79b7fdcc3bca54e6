"""Moving arrays to where they are computed with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pretrain.data.loader import Batch


def send(values: NDArray[Any] | torch.Tensor, device: torch.device) -> torch.Tensor:
    """To the device, without waiting for it."""
    host = values if isinstance(values, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(values))
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host


def slow_precision(device: torch.device, precision: str) -> list[str]:
    """A line for people where products of this precision are slower on the device than those of float32, else none."""
    if device.type != "cpu" or precision != "bf16" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return []
    return ["this processor has no bfloat16 arithmetic: SET=compute.precision=fp32 is several times as fast here"]


def on_device(batches: Iterator[Batch], device: torch.device) -> Iterator[tuple[Batch, torch.Tensor]]:
    """Batches with their pixels on the device.

    On a GPU they are copied beside the computation that is still under way; only the copy is waited for, since the
    loader writes into the same memory again.
    """
    if device.type != "cuda":
        yield from ((batch, batch.pixels) for batch in batches)
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    for batch in batches:
        with torch.cuda.stream(stream):
            tiles = batch.pixels.to(device, non_blocking=True)
        stream.synchronize()
        tiles.record_stream(torch.cuda.current_stream(device))
        yield batch, tiles
