"""Activation checkpointing: what the backward pass computes again instead of finding it in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

MODES = ("none", "selective", "lean", "full")
"""What the backward pass finds: with `selective`, the results of matrix products and attention; with `lean` these, but
for products more than three times as wide as their input, which are of the MLP's first layer; with `full` nothing.
"""

_aten = torch.ops.aten
_PRODUCTS = {_aten.mm.default, _aten.addmm.default}  # the weights come last, (inward, outward)
_KEPT = _PRODUCTS | {
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
}


def recomputed(function: Callable[..., Tensor], mode: str, *arguments: object) -> Tensor:
    """The function of the arguments, with what `mode` says computed again in the backward pass."""
    if mode == "none":
        return function(*arguments)
    policies: dict[str, Callable[..., CheckpointPolicy]] = {"selective": _selective, "lean": _lean}
    policy = policies.get(mode)
    chosen: dict[str, Any] = (
        {"context_fn": functools.partial(create_selective_checkpoint_contexts, policy)} if policy else {}
    )
    again: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False, **chosen)
    return again


def _selective(_context: object, operator: object, *_args: Any, **_kwargs: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator in _KEPT else CheckpointPolicy.PREFER_RECOMPUTE


def _lean(context: object, operator: object, *args: Any, **kwargs: object) -> CheckpointPolicy:
    if operator in _PRODUCTS:
        inward, outward = args[-1].shape
        if outward > 3 * inward:
            return CheckpointPolicy.PREFER_RECOMPUTE
    return _selective(context, operator, *args, **kwargs)
