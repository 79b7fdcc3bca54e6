"""What iBOT's masks promise: exact counts, blocks, shapes that stay, the same masks however a batch is cut."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import label

from pretrain.compute.randomness import Places
from pretrain.views.masking import MaskingSettings, plan_masks
from wsi_prep.errors import BadOption

DEFAULT = MaskingSettings()


@st.composite
def maskings(draw):
    least, most = sorted(draw(st.tuples(st.floats(0, 0.95), st.floats(0, 0.95))))
    blocks = draw(st.integers(0, 40)), draw(st.integers(0, 9)), draw(st.booleans())
    return MaskingSettings(draw(st.floats(0, 1)), least, most, draw(st.floats(0.05, 1)), *blocks)


calls = st.fixed_dictionaries(
    {
        "settings": maskings(),
        "crops": st.integers(1, 3),
        "side": st.integers(1, 16),
    }
)
steps = st.builds(Places, st.integers(0, 2**64 - 1), st.integers(0, 10**9), st.none())


@pytest.mark.slow
@given(call=calls, step=steps, start=st.integers(0, 10**5), batch=st.integers(1, 12))
@settings(max_examples=150, deadline=None)
def test_counts_lie_in_range_and_index_and_weight_fit_the_mask(call, step, start, batch):
    setting, patches = call["settings"], call["side"] ** 2
    masks = plan_masks(places=replace(step, position=np.arange(start, start + batch)), **call)
    rows = call["crops"] * batch
    assert masks.mask.shape == (rows, patches)
    counts = masks.mask.sum(1)
    masked = counts[counts > 0]
    assert (masked >= np.round(setting.least * patches)).all()
    assert (masked <= np.round(setting.most * patches)).all()
    assert masks.count == counts.sum()
    assert np.array_equal(np.sort(masks.index[: masks.count]), np.flatnonzero(masks.mask))
    assert not masks.index[masks.count :].any()
    assert not masks.weight[masks.count :].any()
    assert len(masks.index) == len(masks.weight)
    assert len(masks.index) % 64 == 0
    assert masks.weight.sum() == pytest.approx(len(masked) / rows, rel=1e-5)
    for row, count in enumerate(counts):
        own = masks.index[: masks.count] // patches == row
        assert np.allclose(masks.weight[: masks.count][own], 1 / (max(count, 1) * rows))


@given(call=calls, step=steps, start=st.integers(0, 10**5), data=st.data())
@settings(max_examples=50, deadline=None)
def test_a_crop_is_masked_alike_however_the_batch_is_cut(call, step, start, data):
    position = np.arange(start, start + 6)
    rows = np.array(data.draw(st.lists(st.integers(0, 5), min_size=1, unique=True)))
    whole = plan_masks(places=replace(step, position=position), **call).mask.reshape(call["crops"], 6, -1)
    part = plan_masks(places=replace(step, position=position[rows]), **call).mask.reshape(call["crops"], len(rows), -1)
    assert np.array_equal(part, whole[:, rows])


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("side", [7, 16])
def test_exactly_what_is_wanted_is_hidden(share, side):
    """With `least` the same as `most` there is only one count."""
    masks = plan_masks(MaskingSettings(1.0, share, share), Places(0, 0, np.arange(32)), 2, side)
    assert (masks.mask.sum(1) == round(share * side * side)).all()


def test_counts_are_spread_evenly_over_the_range():
    counts = plan_masks(DEFAULT, Places(0, 0, np.arange(2048)), 2, 16).mask.sum(1)
    counts = counts[counts > 0] / 256
    assert counts.min() < 0.11
    assert counts.max() > 0.49
    assert np.allclose(np.histogram(counts, 4, (0.1, 0.5))[0] / len(counts), 0.25, atol=0.02)


@pytest.mark.slow
def test_shapes_stay_the_same_for_every_step():
    plans = [plan_masks(DEFAULT, Places(0, step, np.arange(64)), 2, 16) for step in range(200)]
    assert len({len(plan.index) for plan in plans}) == 1
    assert np.ptp([plan.count for plan in plans]) < 0.15 * plans[0].count
    masked = [plan.mask.any(1).mean() for plan in plans]
    assert np.mean(masked) == pytest.approx(0.5, abs=0.01)
    assert np.ptp(masked) < 0.1


def test_steps_and_seeds_differ():
    first = plan_masks(DEFAULT, Places(0, 0, np.arange(16)), 2, 16).mask
    for seed, step in ((0, 1), (1, 0), (0, 1000)):
        assert (plan_masks(DEFAULT, Places(seed, step, np.arange(16)), 2, 16).mask.any(1) != first.any(1)).any()
        assert not np.array_equal(plan_masks(DEFAULT, Places(seed, step, np.arange(16)), 2, 16).mask, first)
    again = plan_masks(DEFAULT, Places(0, 0, np.arange(16)), 2, 16).mask
    assert np.array_equal(again, first)


def test_every_patch_and_every_crop_has_its_turn():
    plans = [plan_masks(DEFAULT, Places(0, step, np.arange(16)), 2, 16).mask for step in range(100)]
    by_patch = np.mean(plans, axis=(0, 1)).reshape(16, 16)
    assert by_patch.mean() == pytest.approx(0.15, abs=0.01)
    assert (by_patch > 0.01).all()
    assert np.allclose(by_patch, by_patch.T, atol=0.08)  # neither axis is preferred
    by_crop = np.mean([plan.any(1) for plan in plans], axis=0)
    assert (abs(by_crop - 0.5) < 0.25).all()


def masked_neighbours(mask):
    """Mean number of masked patches above, below and beside a masked one, of (S, side, side) masks."""
    wide = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    around = wide[:, :-2, 1:-1].astype(int) + wide[:, 2:, 1:-1] + wide[:, 1:-1, :-2] + wide[:, 1:-1, 2:]
    return around[mask].mean()


def scaled_blocks(wanted, rng, side=16):
    """A mask as DINOv2's code makes it (data/masking.py): blocks of 4 patches or more, until ten do not fit."""
    mask = np.zeros((side, side), bool)
    failed = 0
    while failed < 10 and mask.sum() < wanted:
        left = wanted - mask.sum()
        size, stretch = rng.uniform(min(4, left), left), np.exp(rng.uniform(np.log(0.3), -np.log(0.3)))
        height, width = round(np.sqrt(size * stretch)), round(np.sqrt(size / stretch))
        failed += 1
        if height < side and width < side:
            y, x = rng.integers(side - height + 1), rng.integers(side - width + 1)
            new = height * width - mask[y : y + height, x : x + width].sum()
            if 0 < new <= left:
                mask[y : y + height, x : x + width] = True
                failed = 0
    return mask


def test_masks_are_as_unbroken_as_dinov2s():
    rng = np.random.default_rng(0)
    ours = plan_masks(MaskingSettings(1.0), Places(0, 0, np.arange(400)), 1, 16).mask.reshape(-1, 16, 16)
    theirs = np.stack([scaled_blocks(int(256 * rng.uniform(0.1, 0.5)), rng) for _ in range(400)])
    pieces = [np.mean([label(mask)[1] for mask in masks]) for masks in (ours, theirs)]
    assert pieces[0] < 1.05 * pieces[1]
    assert masked_neighbours(ours) > 0.98 * masked_neighbours(theirs)
    before = MaskingSettings(1.0, blocks=10, least_block=0, scattered=True)  # of runs that were begun before
    broken = plan_masks(before, Places(0, 0, np.arange(400)), 1, 16).mask.reshape(-1, 16, 16)
    assert np.mean([label(mask)[1] for mask in broken]) > 1.3 * pieces[1]


def test_masks_are_blocks():
    mask = plan_masks(DEFAULT, Places(0, 0, np.arange(64)), 2, 16).mask
    scattered = np.random.default_rng(0).permuted(mask, axis=1)
    ours, random = (masked_neighbours(m.reshape(-1, 16, 16)) for m in (mask, scattered))
    assert random < 1.6
    assert ours > 2.5


def test_nothing_is_masked_where_nothing_is_asked_for():
    for setting in (replace(DEFAULT, share=0.0), MaskingSettings(1.0, 0.0, 0.0)):
        masks = plan_masks(setting, Places(0, 0, np.arange(4)), 2, 16)
        assert not masks.mask.any()
        assert masks.count == 0
        assert masks.weight.sum() == 0


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"share": -0.1}, "masked share"),
        ({"share": 1.1}, "masked share"),
        ({"share": float("nan")}, "masked share"),
        ({"least": 0.6}, "no range"),
        ({"least": -0.1}, "no range"),
        ({"most": 1.0}, "no range"),
        ({"most": float("nan")}, "no range"),
        ({"aspect": 0.0}, "aspect"),
        ({"aspect": 1.5}, "aspect"),
        ({"blocks": -1}, "blocks"),
        ({"blocks": 10**9}, "blocks"),
        ({"least_block": -1}, "least_block"),
    ],
)
def test_nonsense_is_refused(wrong, says):
    with pytest.raises(BadOption, match=says):
        MaskingSettings(**wrong)
