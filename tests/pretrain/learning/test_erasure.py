"""What erases fields from tokens, against LEACE by its own formulas and against probes by scikit-learn."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from pretrain.data.fields import Field
from pretrain.features.embedder import of_backbone
from pretrain.learning.erasure import columns, fit_eraser, leace, width
from pretrain.model.backbone import Backbone, BackboneSettings
from pretrain.model.guide import Eraser
from pretrain.model.normalise import normalise
from pretrain.train.planning.host import erasing_bytes
from pretrain.train.recipe.overrides import changed
from pretrain.train.recipe.recipes import recipe

SITE = Field("institution", ("A", "B", "C"), (0.5, 0.3, 0.2), 0.9)
SCANNER = Field("scanner", ("S", "T"), (0.5, 0.5), 1.0)
FOCUS = Field("focus", (), (), 0.9, 0.4, 0.1)
FIELDS = [SITE, SCANNER, FOCUS]
TILES, WIDTH = 600, 12


def labelled(seed=0):
    """Labels of the three fields, a tenth of two of them absent; and features that all of them shift."""
    rng = np.random.default_rng(seed)
    site, scanner = rng.choice(3, TILES, p=SITE.shares), rng.integers(0, 2, TILES)
    focus = rng.normal(size=TILES).astype(np.float32)
    x = rng.normal(size=(TILES, WIDTH)) @ rng.normal(size=(WIDTH, WIDTH)) + 5
    x += (
        rng.normal(size=(3, WIDTH))[site] * 3
        + rng.normal(size=(2, WIDTH))[scanner]
        + focus[:, None] * rng.normal(size=WIDTH)
    )
    return torch.from_numpy(x), [
        np.where(rng.random(TILES) < 0.1, -1, site),
        scanner,
        np.where(rng.random(TILES) < 0.1, np.nan, focus),
    ]


def erased(x, into, out, offset):
    return x.double() - (x.double() @ into.double() - offset.double()) @ out.double().T


def test_the_map_is_the_one_of_the_paper():
    x, labels = labelled()
    z = columns(FIELDS, labels)
    centred, of_z = x - x.mean(0), z - z.mean(0)
    own = centred.T @ centred / TILES
    values, vectors = torch.linalg.eigh(own + 1e-3 * own.diagonal().mean() * torch.eye(WIDTH))
    whitening = vectors @ torch.diag(values**-0.5) @ vectors.T  # W
    directions, sizes, _ = torch.linalg.svd(whitening @ (centred.T @ of_z / TILES))
    basis = directions[:, : int((sizes > 1e-9).sum())]
    assert basis.shape[1] == 4  # one less than the classes of each field, and a number
    wanted = x - centred @ (torch.linalg.inv(whitening) @ basis @ basis.T @ whitening).T
    torch.testing.assert_close(erased(x, *leace(x, z)), wanted, rtol=1e-4, atol=1e-4)


def test_means_of_classes_become_equal_and_numbers_uncorrelated_over_what_is_known():
    x, (site, scanner, focus) = labelled()
    after = erased(x, *leace(x, columns(FIELDS, [site, scanner, focus]))).numpy()
    spread = after.std(0).max()
    for label, classes in ((site, 3), (scanner, 2)):
        means = np.stack([after[label == number].mean(0) for number in range(classes)])
        before = np.stack([x.numpy()[label == number].mean(0) for number in range(classes)])
        assert np.ptp(before, axis=0).max() > 1
        assert np.ptp(means, axis=0).max() < 1e-5 * spread
    known = np.isfinite(focus)
    together = (after[known] * (focus[known] - focus[known].mean())[:, None]).mean(0)
    assert np.abs(together).max() < 1e-5 * spread


def test_no_linear_probe_tells_more_than_the_shares_of_classes():
    x, labels = labelled()
    after = erased(x, *leace(x, columns(FIELDS, labels))).numpy()
    known = labels[0] >= 0
    for features, told in ((x.numpy(), True), (after, False)):
        probe = LogisticRegression(C=1e4, max_iter=2000).fit(features[known], labels[0][known])
        said = probe.predict_proba(features[known])
        shares = np.bincount(labels[0][known]) / known.sum()
        assert (np.abs(said - shares).max() > 0.5) == told
        assert told or np.abs(said - shares).max() < 0.01


def test_features_that_are_all_the_same_are_left_alone():
    x = torch.full((TILES, WIDTH), 0.3)
    assert all(not part.any() for part in leace(x, columns([SCANNER], [np.arange(TILES) % 2])))


def made_backbone(registers=1, **more):
    torch.manual_seed(0)
    sizes = {"width": 16, "depth": 2, "heads": 2, "image_px": 56, "layer_scale": 0.0}
    backbone = Backbone(BackboneSettings(registers=registers, **sizes, **more))
    for parameter in backbone.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.2)
    return backbone.eval()


def tinted(count, px, seed):
    """Crops whose site is their tint."""
    rng = np.random.default_rng(seed)
    site = np.arange(count) % 3
    tints = np.array([(0.9, 0.6, 0.8), (0.6, 0.8, 0.9), (0.8, 0.8, 0.5)])[site] + rng.normal(0, 0.05, (count, 3))
    pixels = rng.random((count, 3, px, px)) * tints[:, :, None, None]
    return torch.from_numpy(pixels.clip(0, 1)).float(), site


def apart_by(tokens, site):
    means = torch.stack([tokens[torch.from_numpy(site == number)].mean(0) for number in range(3)])
    return ((means.amax(0) - means.amin(0)).max() / tokens.std()).item()


@torch.no_grad()
def test_every_layers_tokens_lose_the_field_and_so_does_the_embedding():
    backbone = made_backbone()
    pixels, site = tinted(90, 56, 0)
    assert apart_by(backbone([normalise(pixels)])[0].cls, site) > 0.2
    batches = ((normalise(batch), None) for batch in pixels.split(32))
    eraser = fit_eraser(backbone, batches, lambda: columns([SITE], [site]))
    assert tuple(eraser.into.shape) == (4, 3, 16, width([SITE]))
    backbone.eraser, seen = eraser, {}
    eraser.register_forward_hook(lambda _, given, out: seen.update({given[0]: out}))
    found = of_backbone(backbone).features(pixels)
    assert apart_by(found[:, :16], site) < 1e-4
    assert apart_by(found[:, 16:], site) < 1e-4
    assert sorted(seen) == [0, 1, 2, 3]
    for tokens in seen.values():
        assert apart_by(tokens[:, 1], site) < 1e-3  # the register
        assert apart_by(tokens[:, 2:].mean(1), site) < 1e-3


@torch.no_grad()
def test_a_plan_counts_the_tokens_that_are_held(monkeypatch):
    backbone, held, after = made_backbone(), [], Backbone.after
    pixels, site = tinted(40, 70, 0)

    def watched(self, layer, *rest):
        tokens = after(self, layer, *rest)
        if layer == 0:
            held.append(tokens.untyped_storage().nbytes())
        return tokens

    monkeypatch.setattr(Backbone, "after", watched)
    batches = ((normalise(batch), None) for batch in pixels.split(16))
    fit_eraser(backbone, batches, lambda: columns([SITE], [site]))
    changes = ["guide.institution=-1", "saving.erase_tiles=40", "saving.erase_px=72"]
    planned = erasing_bytes(replace(changed(recipe("debug"), changes), backbone=backbone.settings))
    assert planned == sum(held) > 0


@torch.no_grad()
@pytest.mark.parametrize("together", [False, True])
def test_a_network_that_is_told_um_per_px_loses_the_field_where_it_is_told_them(together):
    """Of tiles whose um/px go with the site, and of others. `make embed` tells them; `make evaluate` does not."""
    backbone = made_backbone(mpp_token=True)
    pixels, site = tinted(300, 56, 0)
    drawn = np.random.default_rng(1).integers(0, 3, len(site))
    mpp = torch.tensor([0.25, 0.5, 2.0])[torch.from_numpy(site if together else drawn)]
    told, untold = of_backbone(backbone).at(pixels, mpp), of_backbone(backbone).features(pixels)
    assert (told - untold).norm() > 0.1 * untold.std(0).norm() * len(told) ** 0.5  # it hears what it is told
    batches = zip(normalise(pixels).split(32), mpp.split(32), strict=True)
    backbone.eraser = fit_eraser(backbone, batches, lambda: columns([SITE], [site]))
    after = of_backbone(backbone)
    assert apart_by(told, site) > 0.2
    assert apart_by(after.at(pixels, mpp), site) < 1e-4
    left = apart_by(after.features(pixels), site) / apart_by(untold, site)
    assert 0.01 < left < 0.1  # as docs/training.md says: little, but not nothing


@torch.no_grad()
def test_groups_of_crops_are_erased_as_if_alone_and_a_new_eraser_changes_nothing():
    backbone = made_backbone()
    large, small = (normalise(tinted(6, px, px)[0]) for px in (84, 56))
    plain = backbone([large, small])
    backbone.eraser = Eraser(4, 3, 16, 3)
    for mine, theirs in zip(backbone([large, small]), plain, strict=True):
        torch.testing.assert_close(mine.embedding, theirs.embedding, rtol=0, atol=0)
    generator = torch.Generator().manual_seed(0)
    for value in backbone.eraser.state_dict().values():
        value.normal_(std=0.1, generator=generator)
    together = backbone([large, small])
    assert not torch.allclose(together[0].cls, plain[0].cls, atol=0.01)
    for mine, crops in zip(together, (large, small), strict=True):
        torch.testing.assert_close(mine.embedding, backbone([crops])[0].embedding, rtol=1e-5, atol=1e-5)


def test_features_of_an_erased_backbone_are_kept_apart_from_those_of_the_same_network_without():
    backbone = made_backbone()
    before = of_backbone(backbone).digest
    backbone.eraser = Eraser(4, 3, 16, 3)
    fresh = of_backbone(backbone).digest
    backbone.eraser.offset[0, 0, 0] = 1.0
    assert len({before, fresh, of_backbone(backbone).digest}) == 3


@pytest.mark.parametrize("label", [np.array([0, -1, 1, 0]), np.array([-1, -1, -1, -1])])
def test_columns_of_a_field_are_centred_over_the_tiles_that_have_it(label):
    found = columns([SCANNER], [label])
    assert found.sum(0).abs().max() < 1e-12
    assert not found[torch.from_numpy(label < 0)].any()
