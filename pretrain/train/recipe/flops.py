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
    The patch embedding counts twice only: nobody asks for a gradient of the pixels.
    """
    backbone, crops, head = recipe.backbone, recipe.views.crops, recipe.objective.head
    kept = 1 - backbone.drop_path
    sizes = ((crops.global_crops, crops.global_px), (crops.local_crops, crops.local_px))
    blocks = sum(count * blocks_flops(backbone, px) for count, px in sizes)
    embed = sum(count * embed_flops(backbone, px) for count, px in sizes)
    masking = recipe.views.masking
    patches = (crops.global_px // backbone.patch_px) ** 2
    masked = crops.global_crops * patches * masking.share * (masking.least + masking.most) / 2
    width, patch_head = backbone.width, head.of_patches
    heads = (crops.global_crops + crops.local_crops) * head_flops(width, head) + masked * head_flops(width, patch_head)
    taught = teacher_settings or backbone
    teacher = crops.global_crops * (blocks_flops(taught, crops.global_px) + embed_flops(taught, crops.global_px))
    teacher += crops.global_crops * head_flops(taught.width, head) + masked * head_flops(taught.width, patch_head)
    teacher += _anchor_flops(recipe) if recipe.objective.gram_weight else 0.0
    again = {"full": blocks, "lean": sum(count * first_flops(backbone, px) for count, px in sizes)}
    return StepFlops(
        dense=3 * (blocks + heads) + 2 * embed + teacher,
        executed=kept * (3 * blocks + again.get(recipe.compute.recompute, 0)) + 3 * heads + 2 * embed + teacher,
    )


def _anchor_flops(recipe: Recipe) -> float:
    """Of Gram anchoring, for one tile: a forward pass of larger crops, and three products of (N, N) and (N, D)."""
    backbone, crops = recipe.backbone, recipe.views.crops
    px = round(crops.global_px * recipe.objective.gram_scale)
    pairs = (crops.global_px // backbone.patch_px) ** 4
    return crops.global_crops * (blocks_flops(backbone, px) + embed_flops(backbone, px) + 6 * pairs * backbone.width)


def blocks_flops(settings: BackboneSettings, px: int) -> float:
    """A forward pass through all blocks, of one crop of px a side."""
    width, tokens = settings.width, (px // settings.patch_px) ** 2 + 1 + settings.registers
    hidden = int(width * settings.mlp_ratio)
    mlp = width * hidden + (hidden // 2 if settings.swiglu else hidden) * width
    linear = 2 * tokens * (4 * width * width + mlp)
    attention = 4 * tokens * tokens * width
    return float(settings.depth * (linear + attention))


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
