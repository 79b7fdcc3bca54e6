"""Activation checkpointing: what the backward pass computes again instead of finding it in memory."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from pretrain.packing import Kept, Packing

MODES = ("none", "selective", "full")
"""`selective` keeps the results of matrix products and attention and computes the rest again; `full` keeps nothing."""

_aten = torch.ops.aten
_KEPT = {
    _aten.mm.default,
    _aten.addmm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def run_block(block: nn.Module, x: Tensor, packing: Packing, kept: Kept | None, number: int, mode: str) -> Tensor:
    """Block `number` over packed tokens x (T, D), with the activations kept that `mode` says."""
    if kept is None:
        call = functools.partial(block, packing=packing)
    else:
        call = functools.partial(block, packing=kept.packing, rows=kept.of_block(number), gain=kept.gain)
    if mode == "none":
        out: Tensor = call(x)
        return out
    contexts = functools.partial(create_selective_checkpoint_contexts, _policy)
    chosen: dict[str, Any] = {"context_fn": contexts} if mode == "selective" else {}
    again: Tensor = checkpoint(call, x, use_reentrant=False, preserve_rng_state=False, **chosen)
    return again


def _policy(_context: Any, operator: Any, *_args: Any, **_kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
