"""Colour operations against slow references, pixel by pixel or by other libraries."""

import colorsys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy import ndimage, stats
from skimage.color import hed2rgb, rgb2hed

from pretrain.compute.randomness import Places
from pretrain.model.normalise import MEAN, STD, normalise
from pretrain.views.colour import ColourSettings, apply_colour, plan_colour
from wsi_prep.errors import BadOption

OFF = ColourSettings(jitter=0, grayscale=0, blur=(0, 0, 0))
LUMA = np.array([0.2989, 0.587, 0.114])
SIZE = (24, 31)


@pytest.fixture(scope="module")
def crops():
    """(8, 3, 24, 31): two crops of each of four tiles, tissue-like colours and some grey pixels."""
    rng = np.random.default_rng(1)
    pixels = np.clip(np.array([0.8, 0.55, 0.75])[:, None, None] + rng.normal(0, 0.15, (8, 3, *SIZE)), 0, 1)
    pixels[:, :, 3, :] = pixels[:, :1, 3, :]
    return torch.from_numpy(pixels.astype(np.float32))


def done(crops, settings, kind="global"):
    """The recoloured crops as (8, h, w, 3), with the plan's numbers of each."""
    plan = plan_colour(settings, Places(3, 9, np.arange(4)), kind, 2)
    numbers = [
        {f.name: getattr(plan, f.name)[b, k] for f in fields(plan) if f.name != "reach"}
        for k in range(2)
        for b in range(4)
    ]
    before = crops.permute(0, 2, 3, 1).numpy().astype(float)
    return zip(before, apply_colour(crops, plan).permute(0, 2, 3, 1).numpy(), numbers, strict=True)


def slow_jitter(x, n):
    x = np.clip(x * n["brightness"], 0, 1)
    x = np.clip(n["contrast"] * x + (1 - n["contrast"]) * (x @ LUMA).mean(), 0, 1)
    return np.clip(n["saturation"] * x + (1 - n["saturation"]) * (x @ LUMA)[..., None], 0, 1)


def slow_hue(x, n):
    out = np.empty_like(x)
    for at in np.ndindex(x.shape[:2]):
        h, s, v = colorsys.rgb_to_hsv(*x[at])
        out[at] = colorsys.hsv_to_rgb((h + n["hue"]) % 1, s, v)
    return out


def slow_stain(x, n):
    density = np.log(np.maximum(x, 1e-6)) / np.log(1e-6)
    matrix = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
    amounts = density @ np.linalg.inv(matrix) * n["stain_gain"] + n["stain_shift"]
    return np.clip(np.exp(amounts @ matrix * np.log(1e-6)), 0, 1)


def slow_grey(x, n):
    return np.repeat((x @ LUMA)[..., None], 3, 2) if n["grayscale"] else x


def slow_blur(x, n):
    if n["sigma"] == 0:
        return x
    return np.stack([ndimage.gaussian_filter(x[..., c], n["sigma"], mode="mirror", radius=6) for c in range(3)], 2)


def test_jitter(crops):
    for before, after, n in done(crops, replace(OFF, jitter=1, hue=0)):
        assert np.allclose(after, slow_jitter(before, n), atol=1e-5)
        assert n["brightness"] != 1


def test_hue(crops):
    for before, after, n in done(crops, replace(OFF, jitter=1, brightness=0, contrast=0, saturation=0, hue=0.5)):
        assert np.allclose(after, slow_hue(before, n), atol=1e-5)
        assert np.allclose(after[3], before[3], atol=1e-6)  # grey stays grey


def test_stain(crops):
    for before, after, n in done(crops, replace(OFF, stain=0.05)):
        assert np.allclose(after, slow_stain(before, n), atol=1e-4)
        assert np.abs(after - before).max() > 0.01


def test_stain_is_in_scikit_images_units():
    x = np.full((1, 1, 3), (0.6, 0.3, 0.55))  # every amount above 0, where scikit-image does not clip
    amounts = rgb2hed(x)
    assert (amounts > 0).all()
    number = {"stain_gain": np.array([1.1, 0.9, 1.05]), "stain_shift": np.array([0.01, 0.02, -0.001])}
    expected = hed2rgb(amounts * number["stain_gain"] + number["stain_shift"])
    assert np.allclose(slow_stain(x, number), expected, atol=1e-6)


def test_grayscale(crops):
    for before, after, n in done(crops, replace(OFF, grayscale=1)):
        assert n["grayscale"]
        assert np.allclose(after, slow_grey(before, n), atol=1e-6)


@pytest.mark.parametrize("kind", ["global", "local"])
def test_blur(crops, kind):
    for before, after, n in done(crops, replace(OFF, blur=(1, 1, 1)), kind):
        assert n["sigma"] >= 0.1
        assert np.allclose(after, slow_blur(before, n), atol=1e-5)


def test_solarise_all_but_the_first_global_crop(crops):
    levels = torch.from_numpy((crops.numpy() * 255).round() / 255).float()
    for place, (before, after, _) in enumerate(done(levels, replace(OFF, solarise=1))):
        image = Image.fromarray((before * 255).round().astype(np.uint8))
        expected = np.asarray(ImageOps.solarize(image) if place >= 4 else image) / 255
        assert np.allclose(after, expected, atol=1e-5)


def test_all_together_in_the_stated_order(crops):
    settings = ColourSettings(jitter=0.5, stain=0.03, grayscale=0.3, blur=(0.5, 0.5, 0.5))
    for before, after, n in done(crops, settings):
        expected = before
        for slow in (slow_jitter, slow_hue, slow_stain, slow_grey, slow_blur):
            expected = slow(expected, n)
        assert np.allclose(after, expected, atol=3e-4)


def test_all_off_changes_nothing(crops):
    assert torch.equal(apply_colour(crops, plan_colour(OFF, Places(0, 0, np.arange(4)), "global", 2)), crops)


def test_the_caller_keeps_its_tensor_and_its_precision(crops):
    plan = plan_colour(ColourSettings(), Places(0, 0, np.arange(4)), "local", 2)
    before = crops.clone()
    out = apply_colour(crops, plan)
    assert torch.equal(crops, before)
    assert 0 <= out.min() <= out.max() <= 1
    low = apply_colour(crops.bfloat16(), plan)
    assert low.dtype == torch.bfloat16
    assert (low.float() - out).abs().max() < 0.05


def test_a_sample_looks_the_same_however_the_batch_is_cut(crops):
    whole = apply_colour(crops, plan_colour(ColourSettings(), Places(1, 5, np.arange(4)), "global", 2)).view(
        2, 4, 3, *SIZE
    )
    for rows in (np.array([0, 1]), np.array([3, 1])):
        part = crops.view(2, 4, 3, *SIZE)[:, rows].flatten(0, 1)
        out = apply_colour(part, plan_colour(ColourSettings(), Places(1, 5, rows), "global", 2))
        assert torch.allclose(out, whole[:, rows].flatten(0, 1), atol=1e-6)


def test_shares_and_ranges_are_as_asked():
    both = plan_colour(ColourSettings(solarise=0.3), Places(0, 0, np.arange(4000)), "global", 2)
    local = plan_colour(ColourSettings(), Places(0, 0, np.arange(4000)), "local", 1)
    # DINOv2's data/transforms.py applies GaussianBlur(p) with probability 1 - p; augmentations.py asks for 1, .1 and .5
    shares = [(both.sigma[:, 0] > 0, 1 - 1.0), (both.sigma[:, 1] > 0, 1 - 0.1), (local.sigma > 0, 1 - 0.5)]
    shares += [(both.grayscale, 0.2), (both.hue != 0, 0.8), (both.solarise[:, 1], 0.3), (both.solarise[:, 0], 0.0)]
    for happened, share in shares:
        assert stats.binomtest(int(happened.sum()), happened.size, share).pvalue > 1e-3
    moved = both.hue != 0
    ranges = [(both.brightness, 1, 0.4), (both.contrast, 1, 0.4), (both.saturation, 1, 0.2), (both.hue, 0, 0.1)]
    for numbers, middle, reach in ranges:
        assert stats.kstest(numbers[moved], "uniform", (middle - reach, 2 * reach)).pvalue > 1e-3
    assert stats.kstest(both.sigma[both.sigma > 0], "uniform", (0.1, 1.9)).pvalue > 1e-3


def test_normalise(crops):
    assert torch.allclose(
        normalise(crops), (crops - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1), atol=1e-6
    )


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"jitter": 1.5}, "jitter 1.5"),
        ({"hue": 0.6}, "hue 0.6"),
        ({"blur": (1.0, -0.1, 0.5)}, "blur of other"),
        ({"sigma": (0.0, 2.0)}, "sigma"),
        ({"sigma": (2.0, 1.0)}, "sigma"),
        ({"stain": float("nan")}, "stain nan"),
    ],
)
def test_bad_settings_are_refused(wrong, says):
    with pytest.raises(BadOption, match=says):
        ColourSettings(**wrong)
