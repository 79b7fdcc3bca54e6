"""The packed transformer against timm's own on each group alone; stochastic depth and recomputation change no sums."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.compute.randomness import Places
from pretrain.model.backbone import Backbone, BackboneSettings
from pretrain.model.packing import BlockRows, Kept, Packing, keep_crops, plan_drop
from pretrain.model.recompute import MODES
from wsi_prep.errors import BadOption

from timm.layers.pos_embed import resample_abs_pos_embed  # isort: skip - pretrain.model.packing has made timm importable

CPU = torch.device("cpu")
SMALL = {"width": 24, "depth": 2, "heads": 3, "patch_px": 4, "image_px": 24}
VARIANTS = {
    "plain": {"layer_scale": 0.0},
    "scaled": {"layer_scale": 0.5},
    "registers": {"registers": 3},
    "qk_norm": {"qk_norm": True},
    "swiglu": {"swiglu": True, "mlp_ratio": 5.5},
    "virchow2g": {"swiglu": True, "mlp_ratio": 6.5, "registers": 2, "qk_norm": True, "layer_scale": 1e-5},
    "other_px": {"registers": 1, "image_px": 36},
}


def make(recompute="none", **changes):
    """A backbone in float64 none of whose parameters is 0 or 1, as they are in a new one."""
    torch.manual_seed(0)
    backbone = Backbone(BackboneSettings(**SMALL | changes), recompute).double()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return backbone


def crops(*shapes):
    """Groups of (crops, px a side), as pixels."""
    torch.manual_seed(1)
    return [torch.randn(count, 3, px, px, dtype=torch.float64) for count, px in shapes]


GROUPS = ((3, 24), (5, 12))


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_each_group_comes_out_as_by_timm_alone(changes):
    backbone, groups = make(**changes), crops(*GROUPS)
    for tokens, pixels in zip(backbone(groups), groups, strict=True):
        expected = backbone.vit.forward_features(pixels)
        assert torch.allclose(tokens.cls, expected[:, 0], rtol=0, atol=1e-10)
        assert torch.allclose(tokens.patches, expected[:, backbone.prefix :], rtol=0, atol=1e-10)
        mean = torch.cat([expected[:, 0], expected[:, backbone.prefix :].mean(1)], dim=1)
        assert torch.allclose(tokens.embedding, mean, rtol=0, atol=1e-10)


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_gradients_are_timms(changes):
    backbone, groups = make(**changes), crops(*GROUPS)
    tokens = backbone(groups)
    sum(t.cls.square().sum() + (t.patches**3).sum() for t in tokens).backward()
    ours = {name: p.grad.clone() for name, p in backbone.vit.named_parameters()}
    backbone.zero_grad()
    outs = [backbone.vit.forward_features(pixels) for pixels in groups]
    sum(out[:, 0].square().sum() + (out[:, backbone.prefix :] ** 3).sum() for out in outs).backward()
    for name, parameter in backbone.vit.named_parameters():
        assert torch.allclose(ours[name], parameter.grad, rtol=1e-9, atol=1e-9), name


def test_parameters_are_named_as_by_timm():
    ours = set(make(registers=2, qk_norm=True).vit.state_dict())
    assert {"cls_token", "reg_token", "pos_embed", "blocks.1.attn.q_norm.weight", "blocks.0.ls1.gamma"} <= ours


@pytest.mark.parametrize("registers", [0, 3])
def test_the_mask_token_stands_where_the_mask_is_true_and_nowhere_else(registers):
    backbone, (wide, near) = make(registers=registers), crops(*GROUPS)
    mask = torch.rand(3, 36, generator=torch.Generator().manual_seed(2)) < 0.4
    vit = backbone.vit
    patches = vit.patch_embed(wide).flatten(1, 2).clone()
    for crop, patch in mask.nonzero():
        patches[crop, patch] = backbone.mask_token
    prefix = [vit.cls_token] + ([vit.reg_token] if registers else [])
    x = torch.cat([*(token.expand(3, -1, -1) for token in prefix), patches], dim=1)
    x = x + resample_abs_pos_embed(vit.pos_embed, [6, 6], [6, 6], 1 + registers)
    expected = vit.norm(vit.blocks(x))
    masked, unmasked = backbone([wide, near], [mask, None])
    assert torch.allclose(masked.cls, expected[:, 0], rtol=0, atol=1e-10)
    assert torch.allclose(masked.patches, expected[:, 1 + registers :], rtol=0, atol=1e-10)
    assert torch.allclose(unmasked.cls, vit.forward_features(near)[:, 0], rtol=0, atol=1e-10)


def test_pixels_under_the_mask_are_not_seen():
    backbone, (wide, _) = make(), crops(*GROUPS)
    mask = torch.zeros(3, 36, dtype=torch.bool)
    mask[:, 7] = True  # row 1, column 1 of 6 x 6
    other = wide.clone()
    other[:, :, 4:8, 4:8] = 9.0
    assert torch.equal(backbone([wide], [mask])[0].cls, backbone([other], [mask])[0].cls)
    assert not torch.equal(backbone([wide])[0].cls, backbone([other])[0].cls)


def chosen_rows(packing: Packing, chosen) -> Kept:
    """What `keep_crops` makes of a plan whose smallest numbers are those of the chosen crops of each group."""
    count = sum(crops for crops, _ in packing.shapes)
    plan = np.ones((2 * SMALL["depth"], count))
    plan[:, list(chosen)] = 0.1
    kept = keep_crops(plan, packing, 0.5, CPU)
    assert kept is not None
    return kept


def test_a_crop_left_out_passes_unchanged_and_the_others_gain():
    backbone = make()
    packing = backbone.packing([(4, 24)])
    block, tokens = backbone.vit.blocks[0], packing.shapes[0][1]
    x = torch.randn(4 * tokens, 24, dtype=torch.float64)
    kept = chosen_rows(packing, [1, 2])
    out = block(x, packing=kept.packing, rows=BlockRows(kept.of_block(0))).view(4, tokens, -1)
    per_crop = x.view(4, tokens, -1)
    assert torch.equal(out[[0, 3]], per_crop[[0, 3]])
    for crop in (1, 2):
        after = per_crop[crop] + 2 * block.ls1(block.attn(block.norm1(per_crop[crop][None])))[0]
        after = after + 2 * block.ls2(block.mlp(block.norm2(after)))
        assert torch.allclose(out[crop], after, rtol=0, atol=1e-10)


def test_the_mean_over_all_choices_is_the_dense_branch():
    """A block whose MLP says nothing, over every pair of four crops and of four others, each as likely."""
    backbone = make()
    block = backbone.vit.blocks[0]
    with torch.no_grad():
        block.ls2.gamma.zero_()
    packing = backbone.packing([(4, 24), (4, 12)])
    x = torch.randn(sum(packing.sizes), 24, dtype=torch.float64)
    outs = []
    for wide, near in itertools.product(itertools.combinations(range(4), 2), itertools.combinations(range(4, 8), 2)):
        kept = chosen_rows(packing, [*wide, *near])
        outs.append(block(x, packing=kept.packing, rows=BlockRows(kept.of_block(0))))
    assert len(outs) == 36
    assert torch.allclose(torch.stack(outs).mean(0), block(x, packing=packing), rtol=0, atol=1e-10)


def test_every_crop_is_kept_as_often_as_every_other():
    packing = Packing(((6, 2), (10, 1)))
    times = np.zeros((4, 16))
    for step in range(500):
        kept = keep_crops(plan_drop(Places(0, step, np.arange(2)), 8, 2), packing, 0.4, CPU)
        for branch, rows in enumerate(kept.rows.numpy()):
            times[branch, np.unique(np.where(rows < 12, rows // 2, rows - 6))] += 1
    assert np.allclose(times[:, :6] / 500, 4 / 6, atol=0.1)
    assert np.allclose(times[:, 6:] / 500, 6 / 10, atol=0.1)


@given(
    drop=st.floats(0.01, 0.99),
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 5)), min_size=1, max_size=3),
    step=st.integers(0, 10**6),
)
@settings(max_examples=100, deadline=None)
def test_kept_rows_are_whole_crops_in_order(drop, shapes, step):
    packing = Packing(tuple(shapes))
    plan = np.random.default_rng(step).random((4, sum(count for count, _ in shapes)))
    kept = keep_crops(plan, packing, drop, CPU)
    counts = [max(1, round(count * (1 - drop))) for count, _ in shapes]
    assert kept.packing.shapes == tuple((k, tokens) for k, (_, tokens) in zip(counts, shapes, strict=True))
    rows = kept.rows.numpy()
    assert rows.shape == (4, sum(kept.packing.sizes))
    assert kept.gain.shape == (rows.shape[1], 1)
    assert (np.diff(rows, axis=1) > 0).all()
    first_crop = first_row = column = 0
    for count, keep, tokens in ((c, k, t) for k, (c, t) in zip(counts, shapes, strict=True)):
        own = rows[:, column : column + keep * tokens].reshape(4, keep, tokens) - first_row
        numbers = plan[:, first_crop : first_crop + count]
        expected = np.sort(np.argsort(numbers, axis=1)[:, :keep], axis=1)
        assert np.array_equal(own, expected[:, :, None] * tokens + np.arange(tokens))
        assert np.allclose(kept.gain.numpy()[column : column + keep * tokens], count / keep)
        first_crop, first_row, column = first_crop + count, first_row + count * tokens, column + keep * tokens


def test_no_rate_keeps_everything():
    assert keep_crops(np.zeros((4, 3)), Packing(((3, 2),)), 0.0, CPU) is None


@given(
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 10**9),
    start=st.integers(0, 10**6),
    rows=st.lists(st.integers(0, 4), min_size=1, unique=True),
)
@settings(max_examples=50, deadline=None)
def test_the_plan_of_a_crop_does_not_depend_on_how_the_batch_is_cut(seed, step, start, rows):
    position = np.arange(start, start + 5)
    whole = plan_drop(Places(seed, step, position), 3, 2)
    assert whole.shape == (4, 15)
    part = plan_drop(Places(seed, step, position[rows]), 3, 2)
    assert np.array_equal(part.reshape(4, 3, -1), whole.reshape(4, 3, 5)[:, :, rows])


def test_plans_differ_by_seed_step_branch_and_crop():
    plan = plan_drop(Places(0, 0, np.arange(4)), 3, 2)
    assert len(np.unique(plan)) == plan.size
    for seed, step in ((1, 0), (0, 1)):
        assert not np.isin(plan_drop(Places(seed, step, np.arange(4)), 3, 2), plan).any()


@pytest.mark.parametrize("drop", [0.0, 0.4])
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "none"])
def test_recomputation_changes_neither_loss_nor_gradient(mode, drop):
    wide, near = crops(*GROUPS)
    mask = torch.rand(3, 36, generator=torch.Generator().manual_seed(3)) < 0.4
    results = []
    for recompute in ("none", mode):
        backbone = make(recompute, registers=2, swiglu=True)
        kept = keep_crops(plan_drop(Places(0, 0, np.arange(1)), 8, 2), backbone.packing(GROUPS), drop, CPU)
        tokens = backbone([wide, near], [mask, None], kept)
        loss = sum(t.cls.square().sum() + (t.patches**3).sum() for t in tokens)
        loss.backward()
        results.append((loss.item(), [p.grad for p in backbone.parameters()]))
    (loss, gradients), (again, regained) = results
    assert again == loss
    assert all(torch.equal(a, b) for a, b in zip(gradients, regained, strict=True))


@pytest.mark.parametrize("mode", ["none", "lean"])
@pytest.mark.parametrize("drop", [0.0, 0.4])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_what_losses_read_is_what_all_tokens_give(changes, drop, mode):
    """Values and every gradient, though the last block's MLP takes fewer tokens; one patch is read twice."""
    wide, near = crops(*GROUPS)
    mask = torch.rand(3, 36, generator=torch.Generator().manual_seed(3)) < 0.4
    chosen = torch.tensor([0, 5, 35, 36, 107, 0])
    backbone = make(mode, **changes)
    kept = keep_crops(plan_drop(Places(0, 0, np.arange(1)), 8, 2), backbone.packing(GROUPS), drop, CPU)
    results = []
    for short in (False, True):
        if short:
            cls, patches = backbone.read([wide, near], chosen, [mask, None], kept)
        else:
            tokens = backbone([wide, near], [mask, None], kept)
            cls, patches = [group.cls for group in tokens], tokens[0].patches.flatten(0, 1)[chosen]
        backbone.zero_grad()
        (sum(each.square().sum() for each in cls) + (patches**3).sum()).backward()
        results.append([*cls, patches, *(parameter.grad for parameter in backbone.parameters())])
    for whole, read in zip(*results, strict=True):
        assert torch.allclose(read, whole, rtol=1e-9, atol=1e-9)


def test_class_tokens_can_be_read_without_any_patch():
    backbone, (wide, _) = make(registers=2), crops(*GROUPS)
    (cls,), patches = backbone.read([wide], torch.tensor([], dtype=torch.int64))
    assert patches.shape == (0, 24)
    assert torch.allclose(cls, backbone([wide])[0].cls, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"width": 25}, "does not divide by 3 heads"),
        ({"depth": 0}, "depth 0 is not between 1"),
        ({"image_px": 30}, "do not divide into patches"),
        ({"drop_path": 1.0}, "drop_path"),
        ({"drop_path": float("nan")}, "drop_path"),
        ({"registers": -1}, "registers"),
        ({"mlp_ratio": 0.0}, "MLP"),
        ({"mlp_ratio": float("nan")}, "MLP"),
        ({"swiglu": True, "mlp_ratio": 5.55}, "MLP"),  # 133 do not divide into two halves
    ],
)
def test_bad_settings_are_refused(wrong, says):
    with pytest.raises(BadOption, match=says):
        BackboneSettings(**SMALL | wrong)


@pytest.mark.parametrize("registers", [0, 2])
def test_residuals_have_one_precision_however_weights_are_kept(registers):
    """FSDP gathers weights in the precision of products, DDP keeps them in float32."""
    torch.manual_seed(0)
    backbone = Backbone(BackboneSettings(width=32, depth=2, heads=2, image_px=56, registers=registers)).eval()
    crops = [torch.rand(2, 3, 56, 56), torch.rand(2, 3, 28, 28)]
    seen = []
    hooks = [block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])) for block in backbone.vit.blocks]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        backbone(crops)
        backbone.to(torch.bfloat16)(crops)
    assert len(hooks) == 2
    assert {x.dtype for x in seen} == {torch.bfloat16}
    whole = 2 * (16 + 1 + registers)
    assert torch.equal(seen[0][:whole], seen[2][:whole])  # positions of other sizes are rounded in another order
    assert torch.allclose(seen[1].float(), seen[3].float(), atol=0.03)
