"""First weights depend on name and seed alone, wherever a network is made, and have the spread that they should."""

import itertools

import pytest
import torch
from scipy.stats import kstest
from torch import nn

from pretrain.model.initial import initialise
from pretrain.train.learner import objective_of
from pretrain.train.recipe.overrides import changed
from pretrain.train.recipe.recipes import recipe

NARROW = ("backbone.width=64", "backbone.depth=2", "backbone.heads=2", "objective.head.prototypes=500")
RECIPES = {"debug": NARROW, "virchow2g": (*NARROW, "backbone.mlp_ratio=4.0", "objective.head.hidden=64")}


def made(name, seed=0, where="cpu"):
    return objective_of(changed(recipe(name), list(RECIPES[name])), seed, where)


@pytest.mark.parametrize("name", RECIPES)
def test_a_network_made_on_the_meta_device_begins_like_one_made_at_once(name):
    there, late = made(name, 3), made(name, 3, "meta")
    assert all(parameter.is_meta for parameter in late.student.parameters())
    late.materialise(torch.device("cpu"), 3)
    for (key, value), (other, same) in zip(there.state_dict().items(), late.state_dict().items(), strict=True):
        assert key == other
        assert torch.equal(value, same), key


def test_teacher_and_student_begin_alike_and_seeds_differ():
    first, second = made("debug", 0), made("debug", 1)
    for mine, theirs in zip(first.student.parameters(), first.ema.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.equal(first.student.cls_head.prototypes, second.student.cls_head.prototypes)


def test_no_two_parameters_share_their_numbers():
    weights = [
        p.detach().flatten()[:64] for n, p in made("debug").student.named_parameters() if n.endswith("fc1.weight")
    ]
    assert len(weights) == 2
    for one, other in itertools.combinations(weights, 2):
        assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 0.5


def test_weights_are_spread_as_dinov2s():
    named = dict(made("virchow2g").student.named_parameters())
    for name, std in (
        ("backbone.vit.blocks.1.attn.qkv.weight", 0.02),
        ("backbone.vit.pos_embed", 0.02),
        ("backbone.vit.reg_token", 1e-6),
        ("patch_head.mlp.0.weight", 0.02),
    ):
        assert kstest(named[name].detach().flatten().numpy() / std, "norm").pvalue > 1e-4, name
    for name, inputs, rms in (  # as torch makes a layer of so many inputs
        ("backbone.vit.patch_embed.proj.weight", 3 * 14 * 14, 0.0238),
        ("cls_head.prototypes", 384, 0.0295),
        ("patch_head.prototypes", 256, 0.0361),
    ):
        values, bound = named[name].detach().flatten().numpy(), inputs**-0.5
        assert kstest(values, "uniform", args=(-bound, 2 * bound)).pvalue > 1e-4, name
        assert (values**2).mean() ** 0.5 == pytest.approx(rms, rel=0.01), name
    for name, value in named.items():
        if name.endswith("bias") and "patch_embed" not in name:
            assert not value.any(), name
        if "norm" in name and name.endswith("weight"):
            assert (value == 1).all(), name
        if name.endswith("gamma"):
            assert (value == 1e-5).all(), name


def test_a_layer_without_a_rule_is_no_silent_zero():
    with pytest.raises(TypeError, match="BatchNorm1d"):
        initialise(nn.Sequential(nn.BatchNorm1d(3)), 0)
