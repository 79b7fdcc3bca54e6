"""Crops against Pillow, and what extended-context translation promises of scale, place and mpp."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from pretrain.compute.randomness import Places
from pretrain.views.crops import CropSettings, CropWindows, crop, one_by_one, plan_crops, together
from wsi_prep.errors import BadOption
from wsi_prep.format.magnifications import TILE_PX

POSITIONS = np.arange(6)
ALL = [
    CropSettings(),
    CropSettings(right_angles=True),
    CropSettings(continuous=True),
    CropSettings(flips=False),
    CropSettings(resized=True),
]


@pytest.fixture(scope="module")
def tiles():
    """(6, 3, 392, 392): coordinates in red and green, noise in blue: no symmetry that could hide swapped axes."""
    y, x = np.mgrid[:TILE_PX, :TILE_PX]
    noise = np.random.default_rng(0).integers(60, 196, (6, TILE_PX, TILE_PX))
    tiles = [np.stack([20 + x * 0.5, 30 + y * 0.45 + n, noise[n]]) for n in range(6)]
    return torch.from_numpy(np.stack(tiles).astype(np.uint8))


def by_pillow(tile, windows: CropWindows, b: int, k: int):
    x0, y0, w, h = (float(v[b, k]) for v in (windows.x0, windows.y0, windows.width, windows.height))
    image = Image.fromarray(np.ascontiguousarray(tile.permute(1, 2, 0).numpy()))
    out = np.asarray(image.resize((windows.px,) * 2, Image.Resampling.BICUBIC, (x0, y0, x0 + w, y0 + h)))
    out = out[:, ::-1] if windows.flip_x[b, k] else out
    out = out[::-1] if windows.flip_y[b, k] else out
    return out.transpose(1, 0, 2) if windows.transposed[b, k] else out


@pytest.mark.parametrize("cut", [together, one_by_one])
@pytest.mark.parametrize("setting", ALL, ids=["plain", "turned", "continuous", "upright", "resized"])
def test_crops_are_pillows_on_a_gpu_and_on_a_cpu(tiles, setting, cut):
    for windows in plan_crops(setting, Places(3, 17, POSITIONS)):
        out = cut(tiles, windows, torch.float32)
        assert out.shape == (windows.x0.size, 3, windows.px, windows.px)
        for k in range(windows.x0.shape[1]):
            for b in range(6):
                ours = out[k * 6 + b].permute(1, 2, 0).numpy() * 255
                assert np.abs(ours - by_pillow(tiles[b], windows, b, k)).max() < 2


def test_every_turn_and_mirror_comes(tiles):
    windows, _ = plan_crops(CropSettings(right_angles=True), Places(0, 0, np.arange(4000)))
    kinds = windows.flip_x * 4 + windows.flip_y * 2 + windows.transposed
    assert stats.chisquare(np.bincount(kinds.ravel(), minlength=8)).pvalue > 1e-3
    turns, _ = plan_crops(CropSettings(right_angles=True, flips=False), Places(0, 0, np.arange(4000)))
    odd = turns.flip_x ^ turns.flip_y
    assert np.array_equal(odd, turns.transposed)  # rotations alone: no mirror image


def test_a_sample_looks_the_same_however_the_batch_is_cut(tiles):
    whole = plan_crops(CropSettings(), Places(1, 5, POSITIONS))
    for rows in (np.array([0, 1, 2]), np.array([5, 1])):
        part = plan_crops(CropSettings(), Places(1, 5, POSITIONS[rows]))
        for all_of_it, some in zip(whole, part, strict=True):
            for field in ("x0", "y0", "width", "height", "flip_x", "flip_y", "transposed"):
                assert np.array_equal(getattr(all_of_it, field)[rows], getattr(some, field))
            n = all_of_it.x0.shape[1]
            expected = crop(tiles, all_of_it).view(n, 6, 3, some.px, some.px)[:, rows].flatten(0, 1)
            assert torch.allclose(crop(tiles[rows], some), expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [together, one_by_one])
def test_memory_layout_and_precision_do_not_matter(tiles, cut):
    windows, _ = plan_crops(CropSettings(), Places(0, 0, POSITIONS))
    plain = cut(tiles, windows, torch.float32)
    assert torch.equal(cut(tiles.contiguous(memory_format=torch.channels_last), windows, torch.float32), plain)
    assert (cut(tiles, windows, torch.bfloat16).float() - plain).abs().max() < 0.02


@pytest.mark.parametrize("setting", ALL, ids=["plain", "turned", "continuous", "upright", "resized"])
def test_crops_on_a_cpu_are_those_on_a_gpu_but_for_rounding(tiles, setting):
    for windows in plan_crops(setting, Places(0, 3, POSITIONS)):
        both = [cut(tiles, windows, torch.float32) for cut in (together, one_by_one)]
        assert torch.allclose(*both, rtol=0, atol=1e-5)
        assert torch.equal(crop(tiles, windows), both[1])


@given(
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 10**9),
    start=st.integers(0, 10**6),
    continuous=st.booleans(),
    px=st.sampled_from([(224, 98), (196, 84), (320, 320)]),
)
@settings(max_examples=100, deadline=None)
def test_windows_lie_in_the_tile_and_keep_their_scale(seed, step, start, continuous, px):
    setting = CropSettings(px[0], 2, px[1], 3, continuous=continuous, aspect=1.04)
    for windows in plan_crops(setting, Places(seed, step, np.arange(start, start + 16))):
        assert (windows.x0 >= 0).all()
        assert (windows.y0 >= 0).all()
        assert (windows.x0 + windows.width <= TILE_PX + 1e-6).all()
        assert (windows.y0 + windows.height <= TILE_PX + 1e-6).all()
        nucleus = windows.px / np.sqrt(windows.width * windows.height)
        assert (nucleus <= 1.1 + 1e-9).all()
        assert continuous or (nucleus >= 0.9 - 1e-9).all()
        assert (abs(np.log(windows.width / windows.height)) <= np.log(1.04) + 1e-9).all()


def test_scale_aspect_and_place_are_even():
    windows, _ = plan_crops(CropSettings(), Places(0, 0, np.arange(5000)))
    scale = 224 / np.sqrt(windows.width * windows.height).ravel()
    aspect = np.log(windows.width / windows.height).ravel()
    assert stats.kstest(scale, "uniform", (0.9, 0.2)).pvalue > 1e-3
    assert stats.kstest(aspect, "uniform", (-np.log(1.05), 2 * np.log(1.05))).pvalue > 1e-3
    assert stats.kstest((windows.x0 / (392 - windows.width)).ravel(), "uniform").pvalue > 1e-3
    assert stats.kstest((windows.y0 / (392 - windows.height)).ravel(), "uniform").pvalue > 1e-3


def test_continuous_factor_is_log_uniform_up_to_the_whole_tile():
    setting = CropSettings(scale=(1.0, 1.0), aspect=1.0, continuous=True)
    for windows in plan_crops(setting, Places(0, 0, np.arange(3000))):
        factor = np.log(windows.width / windows.px).ravel()
        assert stats.kstest(factor, "uniform", (0, np.log(392 / 224))).pvalue > 1e-3


def spots(image):
    """Centres (x, y) of a red and a green spot on black, and the area of the red one."""
    found = []
    for channel in image[:2]:
        y, x = np.mgrid[: channel.shape[0], : channel.shape[1]] + 0.5
        found.append(np.array([(x * channel).sum(), (y * channel).sum()]) / channel.sum())
    return found[0], found[1], image[0].sum()


@pytest.mark.slow
@pytest.mark.parametrize("continuous", [False, True])
def test_a_nucleus_keeps_its_size_and_mpp_is_true(continuous):
    y, x = np.mgrid[:TILE_PX, :TILE_PX] + 0.5
    tile = np.zeros((3, TILE_PX, TILE_PX), np.uint8)
    tile[0][np.hypot(x - 180, y - 190) < 14] = 255
    tile[1][np.hypot(x - 215, y - 205) < 14] = 255
    windows, _ = plan_crops(
        CropSettings(global_crops=1, aspect=1.0, continuous=continuous), Places(0, 0, np.arange(200))
    )
    ends = windows.x0 + windows.width, windows.y0 + windows.height
    whole = (windows.x0 <= 160) & (windows.y0 <= 170) & (ends[0] >= 235) & (ends[1] >= 225)
    seen = np.flatnonzero(whole)[:50]
    assert len(seen) == 50
    fields = ("x0", "y0", "width", "height", "flip_x", "flip_y", "transposed")
    windows = dataclasses.replace(windows, **{name: getattr(windows, name)[seen] for name in fields})
    mpp = windows.mpp(np.full(50, 0.5, np.float32))
    for b, image in enumerate(crop(torch.from_numpy(tile)[None].expand(50, -1, -1, -1), windows).numpy()):
        red, green, area = spots(image)
        assert np.hypot(*(red - green)) * mpp[b, 0] == pytest.approx(np.hypot(35, 15) * 0.5, rel=0.01)
        diameter = np.sqrt(area * 4 / np.pi)
        assert diameter * mpp[b, 0] == pytest.approx(28 * 0.5, rel=0.02)
        assert continuous or diameter / 28 == pytest.approx(1, abs=0.11)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"scale": (0.5, 1.1)}, "of a tile of 392"),
        ({"scale": (1.1, 0.9)}, "no range"),
        ({"scale": (0.0, 1.0)}, "no range"),
        ({"scale": (float("nan"), 1.0)}, "no range"),
        ({"aspect": 0.9}, "below 1"),
        ({"global_px": 400}, "of a tile of 392"),
        ({"global_crops": 0}, "at least 1"),
        ({"local_px": 300}, "local_px 300"),
    ],
)
def test_bad_settings_are_refused(wrong, says):
    with pytest.raises(BadOption, match=says):
        CropSettings(**wrong)


def test_no_local_crops_are_an_empty_tensor(tiles):
    _, windows = plan_crops(CropSettings(local_crops=0), Places(0, 0, POSITIONS))
    assert crop(tiles, windows).shape == (0, 3, 98, 98)


def test_resized_crops_are_those_of_dinov2():
    """Random resized crops by torchvision's rules: area evenly within its shares, log aspect within 3:4 and 4:3."""
    for windows, low, high in zip(
        plan_crops(CropSettings(resized=True), Places(0, 0, np.arange(3000))), (0.32, 0.05), (1, 0.32), strict=True
    ):
        area = windows.width * windows.height / TILE_PX**2
        cut_off = (windows.width == TILE_PX) | (windows.height == TILE_PX)
        assert area.max() <= high + 1e-9
        assert area[~cut_off].min() >= low - 1e-9
        assert np.abs(np.log(windows.width / windows.height)).max() <= np.log(4 / 3) + 1e-9
        if high < 0.5:  # where nothing is cut off at the tile's edge
            assert stats.kstest(area.ravel(), stats.uniform(low, high - low).cdf).pvalue > 1e-3
            turned = np.log(windows.width / windows.height).ravel() / np.log(4 / 3)
            assert stats.kstest(turned, stats.uniform(-1, 2).cdf).pvalue > 1e-3
        for start, size in ((windows.x0, windows.width), (windows.y0, windows.height)):
            assert (start >= 0).all()
            assert (start + size <= TILE_PX + 1e-9).all()


@pytest.mark.parametrize("bad", [{"area": (0.5, 0.3, 0.05, 0.3)}, {"area": (0.3, 1.2, 0.05, 0.3)}])
def test_areas_that_are_no_shares_are_refused(bad):
    with pytest.raises(BadOption, match="areas"):
        CropSettings(**bad)


def test_resized_and_continuous_exclude_each_other():
    with pytest.raises(BadOption, match="either resized or"):
        CropSettings(resized=True, continuous=True)
