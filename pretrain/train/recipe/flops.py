"""Floating-point operations of a training step, counted from the settings; a multiplication and an addition are two."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

import torch

from pretrain.model.backbone import BackboneSettings
from pretrain.model.heads import HeadSettings
from pretrain.train.recipe.recipe import Recipe


@dataclass(frozen=True)
class StepFlops:
    """FLOPs for one tile. `dense`: as if stochastic depth dropped nothing; `executed`: what is computed, recomputation
    for the backward pass included.
    """

    dense: float
    executed: float


def step_flops(recipe: Recipe, teacher_settings: BackboneSettings | None = None) -> StepFlops:
    """Of the student's passes forward and backward, 3 times a forward one, and the teacher's forward pass.

    A teacher without heads is counted as if it had the student's, which is little. So is what is not counted, the
    teacher's cosines that Sinkhorn-Knopp makes again where they are too many to be kept.
    The last block's last layers take those tokens alone that the losses read. The patch embedding counts twice only:
    nobody asks for a gradient of the pixels.
    """
    backbone, crops, head = recipe.backbone, recipe.views.crops, recipe.objective.head
    kept = 1 - backbone.drop_path
    sizes = [(crops.global_crops, crops.global_px), (crops.local_crops, crops.local_px)]
    embed = sum(count * embed_flops(backbone, px) for count, px in sizes)
    masking = recipe.views.masking
    patches = (crops.global_px // backbone.patch_px) ** 2
    masked = crops.global_crops * patches * masking.share * (masking.least + masking.most) / 2
    width, patch_head = backbone.width, head.of_patches
    heads = (crops.global_crops + crops.local_crops) * head_flops(width, head) + masked * head_flops(width, patch_head)
    read = None if recipe.objective.gram_weight else crops.global_crops + crops.local_crops + masked
    taught = teacher_settings or backbone
    teacher = _read_flops(taught, sizes[:1], 1.0, crops.global_crops + masked)
    teacher += crops.global_crops * (embed_flops(taught, crops.global_px) + head_flops(taught.width, head))
    teacher += masked * head_flops(taught.width, patch_head)
    teacher += _anchor_flops(recipe) if recipe.objective.gram_weight else 0.0
    blocks = _read_flops(backbone, sizes, kept, read)
    again = {"full": blocks, "lean": blocks - _read_flops(backbone, sizes, kept, read, first=False)}
    return StepFlops(
        dense=3 * (_read_flops(backbone, sizes, 1.0, read) + heads) + 2 * embed + teacher,
        executed=3 * (blocks + heads) + again.get(recipe.compute.recompute, 0) + 2 * embed + teacher,
    )


def _read_flops(
    settings: BackboneSettings, sizes: list[tuple[int, int]], kept: float, read: float | None, first: bool = True
) -> float:
    """A forward pass through all blocks, of so many crops of px a side, of which each branch takes a share `kept`.

    `read`: how many tokens the last block's last layers take, dropped or not; None for those of the crops kept.
    `first`: with the first layers of MLPs, where they are wide enough to be computed again by `lean`.
    """
    blocks = sum(count * blocks_flops(settings, px) for count, px in sizes)
    wide = sum(count * first_flops(settings, px) for count, px in sizes) if not first else 0.0
    if read is None:
        return kept * (blocks - wide)
    tokens = sum(count * ((px // settings.patch_px) ** 2 + 1 + settings.registers) for count, px in sizes)
    of_token = mlp_flops(settings) - wide / (tokens * settings.depth)
    if kept == 1:  # else attention's last layer takes whole crops
        of_token += 2 * settings.width**2
    return kept * (blocks - wide - tokens * of_token) + read * of_token


def _anchor_flops(recipe: Recipe) -> float:
    """Of Gram anchoring, for one tile: a forward pass of larger crops, and three products of (N, N) and (N, D)."""
    backbone, crops = recipe.backbone, recipe.views.crops
    px = round(crops.global_px * recipe.objective.gram_scale)
    pairs = (crops.global_px // backbone.patch_px) ** 4
    return crops.global_crops * (blocks_flops(backbone, px) + embed_flops(backbone, px) + 6 * pairs * backbone.width)


def blocks_flops(settings: BackboneSettings, px: int) -> float:
    """A forward pass through all blocks, of one crop of px a side."""
    width, tokens = settings.width, (px // settings.patch_px) ** 2 + 1 + settings.registers
    linear = tokens * (8 * width * width + mlp_flops(settings))
    attention = 4 * tokens * tokens * width
    return float(settings.depth * (linear + attention))


def mlp_flops(settings: BackboneSettings) -> float:
    """An MLP's, of one token."""
    hidden = int(settings.width * settings.mlp_ratio)
    return 2.0 * (settings.width * hidden + (hidden // 2 if settings.swiglu else hidden) * settings.width)


def first_flops(settings: BackboneSettings, px: int) -> float:
    """Of a forward pass, the first layers of all MLPs: what `lean` recomputation repeats, if they are wide enough."""
    width, tokens = settings.width, (px // settings.patch_px) ** 2 + 1 + settings.registers
    hidden = int(width * settings.mlp_ratio)
    return float(settings.depth * 2 * tokens * width * hidden) if hidden > 3 * width else 0.0


def embed_flops(settings: BackboneSettings, px: int) -> float:
    """The patch embedding of one crop."""
    return float(2 * (px // settings.patch_px) ** 2 * 3 * settings.patch_px**2 * settings.width)


def head_flops(width: int, settings: HeadSettings) -> float:
    """A forward pass of one vector through a head."""
    sizes = [width, *[settings.hidden] * (settings.layers - 1), settings.bottleneck, settings.prototypes]
    return float(sum(2 * inward * outward for inward, outward in itertools.pairwise(sizes)))


def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product on this device, the best of a few; what a step is compared with."""
    side = 8192 if device.type == "cuda" else 1536
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(5):
        began = _now(device)
        product = a @ b
        best = max(best, 2 * side**3 / (_now(device) - began))
        a = product / product.abs().amax()
    return best


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
