"""A network that is told the um/px of its crops: by all of them, or of none, and the same as ever without."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pretrain.compute.randomness import Places
from pretrain.learning.optimizer import OptimSettings, make_optimizer
from pretrain.model.backbone import Backbone, BackboneSettings
from pretrain.model.heads import HeadSettings
from pretrain.model.initial import initialise
from pretrain.model.network import Network
from pretrain.views.crops import CropSettings, TileScales
from pretrain.views.views import ViewSettings, make_views

PLAIN = BackboneSettings(width=32, depth=2, heads=2, layer_scale=0.0, registers=1, image_px=56)
TOLD = replace(PLAIN, mpp_token=True)


def made(settings):
    backbone = Backbone(settings).eval()
    initialise(backbone, 3, "backbone.")
    return backbone


@pytest.fixture
def crops():
    return torch.rand(3, 3, 56, 56, generator=torch.Generator().manual_seed(0))


def test_without_it_nothing_changes(crops):
    plain, told = made(PLAIN), made(TOLD)
    extra = set(told.state_dict()) - set(plain.state_dict())
    assert extra == {f"mpp_token.{layer}.{name}" for layer in ("first", "second") for name in ("weight", "bias")}
    shared = plain.state_dict()
    assert all(torch.equal(value, shared[name]) for name, value in told.state_dict().items() if name not in extra)
    (alone,) = plain([crops], mpp=[torch.ones(3)])
    for untold in ((), [torch.full((3,), torch.nan)]):
        (tokens,) = told([crops], mpp=untold)
        assert torch.equal(tokens.cls, alone.cls)
        assert torch.equal(tokens.patches, alone.patches)


def test_each_crop_is_told_its_own(crops):
    backbone = made(TOLD)
    backbone.mpp_token.second.weight.data *= 50
    mpp = torch.tensor([0.25, torch.nan, 1.3])
    (together,) = backbone([crops], mpp=[mpp])
    for row in range(3):
        (alone,) = backbone([crops[row : row + 1]], mpp=[mpp[row : row + 1]])
        torch.testing.assert_close(together.embedding[row], alone.embedding[0], atol=1e-5, rtol=0)
    (other,) = backbone([crops], mpp=[torch.tensor([0.26, torch.nan, 2.6])])
    moved = (other.embedding - together.embedding).norm(dim=1)
    assert moved[0] > 1e-3
    assert moved[1] == 0
    assert moved[2] > moved[0]


def test_every_um_per_px_is_told_differently():
    backbone = made(TOLD)
    mpp = torch.exp(torch.linspace(np.log(0.1), np.log(8), 400))
    apart = torch.pdist(backbone.mpp_token(mpp).detach())
    near = torch.linalg.vector_norm(backbone.mpp_token(mpp)[1:] - backbone.mpp_token(mpp)[:-1], dim=1)
    assert apart.min() > 0.2 * near.mean().item()
    assert near.max() < apart.max() / 5  # and what is near in um/px is told nearly the same


def test_it_learns_at_the_rate_of_the_first_layer():
    network = Network.with_heads(TOLD, HeadSettings(prototypes=8, hidden=8, bottleneck=8))
    optimizer = make_optimizer(network, 2, OptimSettings(layer_decay=0.5))
    of = {id(p): (group["rate_share"], group["decays"]) for group in optimizer.param_groups for p in group["params"]}
    told, backbone = network.backbone.mpp_token, network.backbone
    assert of[id(told.first.weight)][0] == of[id(backbone.vit.cls_token)][0]
    assert of[id(told.first.weight)][1]
    assert not of[id(told.second.bias)][1]


def test_one_tile_in_ten_is_not_told_and_the_others_exactly():
    settings = ViewSettings(crops=CropSettings(global_px=14, local_px=14, local_crops=1))
    untold = 0
    for step in range(8):
        places = Places(1, step, np.arange(64))
        scales = TileScales(np.full(64, 0.5, np.float32), np.linspace(0.5, 1, 64).astype(np.float32))
        views = make_views(torch.zeros(64, 3, 392, 392, dtype=torch.uint8), settings, places, 14, scales=scales)
        assert [len(mpp) for mpp in views.mpp] == [len(group) for group in views.groups]
        whole = torch.cat([mpp.view(-1, 64) for mpp in views.mpp])
        told = torch.cat([mpp.view(-1, 64) for mpp in views.told])
        assert whole.dtype == torch.float32
        assert (whole / torch.from_numpy(scales.wanted) - 1).abs().max() < 0.12
        assert torch.equal(told.isnan().all(0), told.isnan().any(0))
        assert torch.equal(told[~told.isnan()], whole[~told.isnan()])
        untold += int(told[0].isnan().sum())
        part = replace(places, position=places.position[32:])
        some = make_views(
            torch.zeros(32, 3, 392, 392, dtype=torch.uint8), settings, part, 14, scales=scales.take(slice(32, None))
        )
        assert torch.equal(some.told[0].view(-1, 32).isnan(), views.told[0].view(-1, 64)[:, 32:].isnan())
    assert 30 < untold < 75
