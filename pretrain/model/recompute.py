"""Activation checkpointing: what the backward pass computes again instead of finding it in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

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


def recomputed(function: Callable[..., Tensor], mode: str, *arguments: object) -> Tensor:
    """The function of the arguments, with what `mode` says computed again in the backward pass."""
    if mode == "none":
        return function(*arguments)
    contexts = functools.partial(create_selective_checkpoint_contexts, _policy)
    chosen: dict[str, Any] = {"context_fn": contexts} if mode == "selective" else {}
    again: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False, **chosen)
    return again


def _policy(_context: object, operator: object, *_args: object, **_kwargs: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE
