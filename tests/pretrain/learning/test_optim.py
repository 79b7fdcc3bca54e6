"""StableAdamW against its paper in loops, shares of the learning rate by hand, and steps that must not happen."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from pretrain.learning.optimizer import KINDS, OptimSettings, clip_gradients, make_optimizer, optimizer_state, take_step
from pretrain.learning.schedules import Scheduled
from pretrain.model.backbone import BackboneSettings
from pretrain.model.heads import HeadSettings
from pretrain.model.network import Network
from wsi_prep.errors import BadOption

DEPTH = 2
FINE, BAD = torch.tensor(0.0), torch.tensor(1.0)


def at(rate=0.01, decay=0.1, frozen=False, step=0):
    return Scheduled(step, rate, decay, 0.99, 0.05, frozen)


@pytest.fixture
def network():
    torch.manual_seed(0)
    settings = BackboneSettings(width=16, depth=DEPTH, heads=2, registers=2, qk_norm=True, patch_px=4, image_px=8)
    return Network.with_heads(settings, HeadSettings(prototypes=8, hidden=12, bottleneck=4))


def give_gradients(network, step=0, value=None):
    rng = np.random.default_rng(step)
    for parameter in network.parameters():
        noise = torch.from_numpy(rng.normal(size=parameter.shape)).to(parameter.dtype)
        parameter.grad = noise if value is None else torch.full_like(parameter, value)


class SlowStableAdamW:
    """Wortsman et al. 2023 (arXiv 2304.13013), algorithm 2, of one tensor; moments debiased by the betas."""

    def __init__(self, theta, betas, eps):
        self.theta = theta.astype(np.float64)
        self.v, self.u = np.zeros_like(self.theta), np.zeros_like(self.theta)
        self.betas, self.eps, self.t = betas, eps, 0

    def step(self, g, alpha, weight_decay):
        self.t += 1
        b1, b2 = (b * (1 - b ** (self.t - 1)) / (1 - b**self.t) for b in self.betas)
        self.v = b1 * self.v + (1 - b1) * g
        self.u = b2 * self.u + (1 - b2) * g**2
        rms = np.sqrt(np.mean(g**2 / np.maximum(self.u, self.eps**2)))
        eta = alpha / max(1, rms)
        self.theta -= eta * weight_decay * self.theta + eta * self.v / (np.sqrt(self.u) + self.eps)
        return rms


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.9, 0.95)])
def test_stable_adamw_is_algorithm_2_of_its_paper(betas):
    rng = np.random.default_rng(0)
    module = nn.ParameterDict({"weight": torch.from_numpy(rng.normal(size=(3, 5))), "bias": torch.zeros(4).double()})
    settings = OptimSettings("stable_adamw", betas, layer_decay=1.0)
    optimizer = make_optimizer(module, DEPTH, settings)
    slow = {name: SlowStableAdamW(p.detach().numpy(), betas, settings.eps) for name, p in module.items()}
    rms = []
    for step in range(20):
        scale = 30 if step in (9, 15) else 1  # gradients that outgrow their second moments
        for name, parameter in module.items():
            g = rng.normal(size=parameter.shape).astype(np.float32) * scale
            parameter.grad = torch.from_numpy(g).double()
            rms.append(slow[name].step(g.astype(np.float64), 0.01, 0.1 if name == "weight" else 0.0))
        take_step(optimizer, at(step=step), FINE)
    assert max(rms) > 2
    for name, parameter in module.items():
        assert np.allclose(parameter.detach().numpy(), slow[name].theta, rtol=0, atol=2e-5)


def test_stable_adamw_takes_a_smaller_step_where_gradients_jump(network):
    moved = {}
    for kind in KINDS:
        parameter = nn.Parameter(torch.zeros(3, 3))
        optimizer = make_optimizer(nn.ParameterDict({"weight": parameter}), DEPTH, OptimSettings(kind, layer_decay=1.0))
        for step in range(10):
            before = parameter.detach().clone()
            parameter.grad = torch.full((3, 3), 100.0 if step == 9 else 1.0)
            take_step(optimizer, at(decay=0.0, step=step), FINE)
        moved[kind] = (parameter - before).abs().max().item()
    assert moved["stable_adamw"] < 0.5 * moved["adamw"]


# depth 2: layer 0 embeds, 1 and 2 are blocks 0 and 1, 3 is what follows. Rates fall by 0.5 a layer downwards.
SHARES = {
    "backbone.vit.patch_embed.proj.weight": 0.125 * 0.2,
    "backbone.vit.patch_embed.proj.bias": 0.125 * 0.2,
    "backbone.vit.pos_embed": 0.125,
    "backbone.vit.cls_token": 0.125,
    "backbone.vit.reg_token": 0.125,
    "backbone.mask_token": 0.125,
    "backbone.vit.blocks.0.attn.qkv.weight": 0.25,
    "backbone.vit.blocks.0.norm1.bias": 0.25,
    "backbone.vit.blocks.1.mlp.fc2.weight": 0.5,
    "backbone.vit.blocks.1.ls2.gamma": 0.5,
    "backbone.vit.norm.weight": 1.0,
    "cls_head.mlp.0.weight": 1.0,
    "cls_head.prototypes": 1.0,
    "patch_head.mlp.4.bias": 1.0,
}


@pytest.mark.parametrize("kind", KINDS)
def test_layers_move_by_their_share_of_the_rate(network, kind):
    """In the first step of either kind, gradients that are all the same move a parameter by its rate."""
    optimizer = make_optimizer(network, DEPTH, OptimSettings(kind, layer_decay=0.5, patch_rate=0.2))
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    assert set(SHARES) <= set(before)
    give_gradients(network, value=1.0)
    take_step(optimizer, at(rate=0.01, decay=0.0), FINE)
    for name, parameter in network.named_parameters():
        moved = before[name] - parameter.detach()
        assert torch.allclose(moved, moved.flatten()[0], rtol=1e-3), name
        if name in SHARES:
            assert moved.mean().item() == pytest.approx(0.01 * SHARES[name], rel=1e-3), name
        else:
            assert moved.mean().item() / 0.01 == pytest.approx(2.0 ** round(math.log2(moved.mean() / 0.01)), rel=1e-3)


@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_what_decays_is_what_decays_in_dinov2(network, kind, tokens):
    """Its utils/param_groups.py: all but biases, norms and gains of layers. Runs begun before spare tokens as well."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0)
    settings = OptimSettings(kind, layer_decay=1.0, patch_rate=1.0, decay_tokens=tokens)
    optimizer = make_optimizer(network, DEPTH, settings)
    give_gradients(network, value=0.0)
    take_step(optimizer, at(rate=0.01, decay=0.1), FINE)  # without a gradient, decay is all that moves a parameter
    still = ("bias", "norm", "gamma", *(() if tokens else ("_token", "pos_embed")))
    moved = []
    for name, parameter in network.named_parameters():
        decayed = not any(word in name for word in still)
        moved += [name] if decayed else []
        expected = 1 - 0.01 * 0.1 if decayed else 1.0
        assert torch.allclose(parameter, torch.tensor(expected), rtol=1e-7), name
    learned = {"backbone.mask_token", "backbone.vit.cls_token", "backbone.vit.reg_token", "backbone.vit.pos_embed"}
    assert learned & set(moved) == (learned if tokens else set())
    assert {"cls_head.prototypes", "backbone.vit.patch_embed.proj.weight"} <= set(moved)


def test_every_parameter_is_optimised_once(network):
    network.backbone.vit.norm.bias.requires_grad_(False)
    optimizer = make_optimizer(network, DEPTH, OptimSettings())
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_prototypes_stand_still_and_all_else_moves(network, kind):
    optimizer = make_optimizer(network, DEPTH, OptimSettings(kind))
    start = {name: p.detach().clone() for name, p in network.named_parameters()}
    for step in range(3):
        give_gradients(network, step)
        take_step(optimizer, at(frozen=True, step=step), FINE)
    for name, parameter in network.named_parameters():
        assert torch.equal(parameter, start[name]) == name.endswith(".prototypes"), name
    give_gradients(network, 3)
    take_step(optimizer, at(frozen=False, step=3), FINE)
    assert not torch.equal(network.cls_head.prototypes, start["cls_head.prototypes"])


def snapshot(network, optimizer):
    tensors = {**dict(network.named_parameters()), **optimizer_state(optimizer, network)}
    return {name: tensor.detach().numpy().tobytes() for name, tensor in tensors.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps_before", [0, 1, 3])
def test_a_bad_step_leaves_every_bit_as_it_was(network, kind, steps_before):
    optimizer = make_optimizer(network, DEPTH, OptimSettings(kind))
    for step in range(steps_before):
        give_gradients(network, step)
        take_step(optimizer, at(step=step), FINE)
    before = snapshot(network, optimizer)
    for value in (math.nan, math.inf):
        give_gradients(network, value=value)
        take_step(optimizer, at(step=steps_before), BAD)
        changed = [name for name, held in snapshot(network, optimizer).items() if held != before[name]]
        assert changed == []


@pytest.mark.parametrize("kind", KINDS)
def test_steps_after_a_bad_one_are_as_if_it_had_not_been(kind):
    ends = []
    for bad in (False, True):
        torch.manual_seed(0)
        module = nn.Linear(4, 3)
        optimizer = make_optimizer(module, DEPTH, OptimSettings(kind))
        for step in range(4):
            give_gradients(module, step)
            take_step(optimizer, at(step=step), FINE)
            if bad and step == 1:
                give_gradients(module, value=math.nan)
                take_step(optimizer, at(step=step), BAD)
        ends.append(module.weight.detach())
    assert torch.equal(*ends)


@pytest.mark.parametrize("kind", KINDS)
def test_state_names_every_tensor_once(network, kind):
    optimizer = make_optimizer(network, DEPTH, OptimSettings(kind))
    state = optimizer_state(optimizer, network)
    names = [name for name, _ in network.named_parameters()]
    assert set(state) == {f"{name}.{what}" for name in names for what in ("step", "exp_avg", "exp_avg_sq")}
    assert len({tensor.data_ptr() for tensor in state.values()}) == 3 * len(names)
    give_gradients(network)
    take_step(optimizer, at(), FINE)
    after = optimizer_state(optimizer, network)
    assert {name: t.data_ptr() for name, t in after.items()} == {name: t.data_ptr() for name, t in state.items()}
    assert all(after[f"{name}.step"].item() == 1 for name in names)
    assert all(after[f"{name}.exp_avg"].shape == p.shape for name, p in network.named_parameters())


def with_gradients(**gradients):
    """A module with a child for each name, whose one parameter has this gradient."""
    module = nn.Module()
    for name, values in gradients.items():
        child = nn.Module()
        child.weight = nn.Parameter(torch.zeros(len(values)))
        child.weight.grad = torch.tensor(values)
        child.idle = nn.Parameter(torch.zeros(3))
        module.add_module(name, child)
    return module


@pytest.mark.parametrize(("largest", "norm_after"), [(3.0, 3.0), (50.0, 13.0), (0.0, 13.0)])
def test_clipping_scales_all_together_to_the_norm(largest, norm_after):
    module = with_gradients(backbone=[5.0], head=[0.0, -12.0])
    assert clip_gradients(module, OptimSettings(clip=largest, clip_apart=False)).item() == pytest.approx(13)
    gradients = torch.cat([module.backbone.weight.grad, module.head.weight.grad])
    assert torch.allclose(gradients, torch.tensor([5.0, 0.0, -12.0]) * norm_after / 13, rtol=1e-5)
    assert module.head.idle.grad is None


def test_a_head_that_is_loud_does_not_slow_down_the_backbone():
    """By default, backbone and heads are clipped apart, as DINOv2 and DINOv3 do it."""
    module = with_gradients(backbone=[0.0, 2.0], cls_head=[30.0, 40.0], patch_head=[4.0])
    assert clip_gradients(module, OptimSettings()).item() == pytest.approx(math.sqrt(2**2 + 50**2 + 4**2))
    for name, wanted in (("backbone", [0.0, 2.0]), ("cls_head", [1.8, 2.4]), ("patch_head", [3.0])):
        assert torch.allclose(getattr(module, name).weight.grad, torch.tensor(wanted), rtol=1e-5), name


@pytest.mark.parametrize("apart", [True, False])
def test_a_gradient_that_is_not_finite_shows_in_the_norm(apart):
    for value in (math.nan, math.inf):
        module = with_gradients(backbone=[1.0], head=[1.0, value])
        assert not torch.isfinite(clip_gradients(module, OptimSettings(clip_apart=apart)))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"kind": "sgd"}, "sgd.*adamw, stable_adamw"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"betas": (float("nan"), 0.9)}, "betas"),
        ({"layer_decay": 0.0}, "layer_decay"),
        ({"layer_decay": 1.1}, "layer_decay"),
        ({"patch_rate": float("nan")}, "patch_rate"),
        ({"clip": -1.0}, "clip"),
        ({"clip": float("nan")}, "clip"),
        ({"eps": 0.0}, "eps"),
        ({"eps": float("nan")}, "eps"),
    ],
)
def test_bad_settings_are_refused(wrong, says):
    with pytest.raises(BadOption, match=says):
        OptimSettings(**wrong)
