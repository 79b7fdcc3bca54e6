"""FLOPs from the settings against those that PyTorch counts in a real step, and against the usual rule of thumb."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pretrain.compute.randomness import Places
from pretrain.learning import schedules
from pretrain.learning.self_distillation import SelfDistillation
from pretrain.model.backbone import BackboneSettings, make_vit
from pretrain.model.heads import Head, HeadSettings
from pretrain.train.recipe.flops import blocks_flops, embed_flops, head_flops, step_flops
from pretrain.train.recipe.recipes import debug, virchow2, virchow2g
from pretrain.views.views import make_views

TILES = 8


def small(drop_path=0.0, recompute="none", **backbone):
    recipe = debug()
    return replace(
        recipe,
        backbone=replace(recipe.backbone, **{"drop_path": drop_path, "layer_scale": 1e-5} | backbone),
        compute=replace(recipe.compute, recompute=recompute),
    )


def attention_flops(query, key, *_, **_others):
    """Of (crops, heads, tokens, width): every query with every key, and the weights with every value."""
    return 2 * 2 * query[0] * query[1] * query[2] * key[2] * query[3]


def counted(recipe, attention):
    """FLOPs a tile that PyTorch counts in losses and backward pass.

    It knows no formula for attention's fused kernel on the CPU, so the forward pass has one here, and the backward pass
    counts as 0. Written out (`SDPBackend.MATH`) attention is matrix products like all others, and counted whole.
    """
    torch.manual_seed(0)
    objective = SelfDistillation(recipe.objective, recipe.backbone, 0, recipe.compute.recompute)
    tiles = torch.randint(0, 256, (TILES, 3, 392, 392), dtype=torch.uint8)
    views = make_views(tiles, recipe.views, Places(0, 0, np.arange(TILES)), recipe.backbone.patch_px)
    at = schedules.at(recipe.schedule, 0, TILES)
    fused = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops}
    with FlopCounterMode(display=False, custom_mapping=fused) as counter, sdpa_kernel(attention):
        objective.losses(views, at).total.backward()
    return counter.get_total_flops() / TILES


@pytest.mark.parametrize(
    "backbone",
    [{"layer_scale": 0.0}, {"swiglu": True, "mlp_ratio": 5.5, "registers": 4, "qk_norm": True}],
    ids=["plain", "virchow2g"],
)
def test_a_dense_step_is_what_pytorch_counts(backbone):
    recipe = small(**backbone)
    assert step_flops(recipe).dense == pytest.approx(counted(recipe, SDPBackend.MATH), rel=0.03)
    assert step_flops(recipe).executed == step_flops(recipe).dense


@pytest.mark.parametrize(("drop_path", "recompute"), [(0.25, "none"), (0.5, "none"), (0.0, "full"), (0.5, "full")])
def test_what_is_executed_is_what_pytorch_counts(drop_path, recompute):
    """8 tiles have 16 global and 32 local crops, of which these shares are whole numbers."""
    recipe = small(drop_path, recompute)
    assert step_flops(recipe).executed == pytest.approx(counted(recipe, SDPBackend.MATH), rel=0.03)


def test_selective_recomputation_repeats_no_matrix_product():
    kept, repeated = (counted(small(recompute=mode), SDPBackend.FLASH_ATTENTION) for mode in ("none", "selective"))
    assert repeated == kept
    assert step_flops(small(recompute="selective")).executed == step_flops(small()).executed


@pytest.mark.slow
@pytest.mark.parametrize("backbone", [{}, {"swiglu": True, "mlp_ratio": 5.5}, {"mlp_ratio": 3.0}])
def test_lean_recomputation_repeats_the_first_layer_of_wide_mlps(backbone):
    recipes = [small(recompute=mode, **backbone) for mode in ("none", "lean")]
    kept, repeated = (counted(recipe, SDPBackend.FLASH_ATTENTION) for recipe in recipes)
    expected = step_flops(recipes[1]).executed - step_flops(recipes[0]).executed
    assert repeated - kept == pytest.approx(expected, rel=0.02)  # masks differ
    assert (expected > 0) == (backbone.get("mlp_ratio", 4.0) > 3)


def test_executed_falls_with_stochastic_depth_and_rises_with_recomputation():
    for recipe in (virchow2(), virchow2g()):
        by_drop = [
            step_flops(replace(recipe, backbone=replace(recipe.backbone, drop_path=drop))) for drop in (0, 0.2, 0.4)
        ]
        assert by_drop[0].executed > by_drop[1].executed > by_drop[2].executed
        assert len({flops.dense for flops in by_drop}) == 1
        full = replace(recipe, compute=replace(recipe.compute, recompute="full"))
        assert step_flops(full).executed > step_flops(recipe).executed
        assert step_flops(full).dense == step_flops(recipe).dense


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [virchow2(), virchow2g()], ids=["virchow2", "virchow2g"])
def test_blocks_cost_two_flops_a_parameter_and_token_and_attention(recipe):
    settings = recipe.backbone
    with torch.device("meta"):
        parameters = sum(p.numel() for p in make_vit(settings).blocks.parameters())
    tokens = 16 * 16 + 1 + settings.registers
    attention = settings.depth * 2 * (2 * tokens * tokens * settings.width)  # every query with every key, and back
    assert blocks_flops(settings, 224) == pytest.approx(2 * parameters * tokens + attention, rel=0.02)


def test_embedding_and_head_are_their_matrices():
    settings, head = BackboneSettings(), HeadSettings(prototypes=100, hidden=20, bottleneck=10)
    with torch.device("meta"):
        vit, network = make_vit(settings), Head(384, head)
    assert embed_flops(settings, 224) == 2 * 256 * vit.patch_embed.proj.weight.numel()
    matrices = [p for p in network.parameters() if p.ndim == 2]
    assert head_flops(384, head) == 2 * sum(p.numel() for p in matrices)
