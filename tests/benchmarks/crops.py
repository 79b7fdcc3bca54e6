"""Crops and colour of whole batches, against the same work done sample by sample with torchvision and Pillow."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

import pretrain.model.torchvision_schemas  # noqa: F401 - before torchvision
from pretrain.compute.randomness import Places
from pretrain.data.loader import Loader, LoaderSettings
from pretrain.model.normalise import normalise
from pretrain.views.colour import ColourSettings, apply_colour, plan_colour
from pretrain.views.crops import CropSettings, crop, plan_crops
from tests.benchmarks.cohort import Cohort
from tests.benchmarks.measure import Figure, Run, compare, on_cores

_PART = "2 + 8 crops"


def run(cohort: Cohort, repeats: int) -> list[Figure]:
    """Tiles/s from uint8 tiles to ten normalised crops each: on one core, and on the GPU where there is one."""
    with Loader(cohort.sampler(), LoaderSettings(threads=1)) as loader:
        tiles = next(loader.batches(0, 1)).pixels.clone()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    contestants = {"sample by sample, torchvision": _by_sample(tiles[:16])}
    contestants |= {
        f"batched, {device}": _batched(tiles if device == "cuda" else tiles[:16], device) for device in devices
    }
    with on_cores(0):
        rates = compare(_PART, contestants, repeats)
    figures = rates.figures()
    for device in devices:
        at_least = 10.0 if device == "cuda" else None
        figures.append(rates.ratio(f"batched, {device}", "sample by sample, torchvision", at_least))
    if "cuda" not in devices:
        figures.append(Figure(_PART, "batched, cuda", "no GPU on this machine", ">= 10 x sample by sample"))
    return figures


def _batched(tiles: torch.Tensor, device: str) -> Run:
    """Repeated on the GPU, so that one run is long enough to be timed."""
    held = tiles.to(device)
    position = np.arange(len(tiles))
    times = 1 if device == "cpu" else 20
    dtype = torch.float32 if device == "cpu" else torch.bfloat16

    def go() -> int:
        for step in range(times):
            planned = plan_crops(CropSettings(), Places(0, step, position))
            for kind, windows in zip(("global", "local"), planned, strict=True):
                cut = crop(held, windows, dtype)
                plan = plan_colour(ColourSettings(), Places(0, step, position), kind, windows.x0.shape[1])
                normalise(apply_colour(cut, plan))
        if device == "cuda":
            torch.cuda.synchronize()
        return times * len(tiles)

    return go


def _by_sample(tiles: torch.Tensor) -> Run:
    from torchvision import transforms

    def transform(px: int) -> transforms.Compose:
        settings, colour = CropSettings(), ColourSettings()
        share = (px / tiles.shape[2]) ** 2
        area = (share * settings.scale[0] ** 2, share * settings.scale[1] ** 2)
        bicubic = transforms.InterpolationMode.BICUBIC
        jitter = transforms.ColorJitter(colour.brightness, colour.contrast, colour.saturation, colour.hue)
        return transforms.Compose(
            [
                transforms.RandomResizedCrop(px, area, (1 / settings.aspect, settings.aspect), bicubic),
                transforms.RandomHorizontalFlip(),
                transforms.RandomVerticalFlip(),
                transforms.RandomApply([jitter], colour.jitter),
                transforms.RandomGrayscale(colour.grayscale),
                transforms.RandomApply([transforms.GaussianBlur(9, colour.sigma)], 0.5),
                transforms.ToTensor(),
                transforms.Normalize((0.5,) * 3, (0.25,) * 3),
            ]
        )

    settings = CropSettings()
    kinds = (
        (transform(settings.global_px), settings.global_crops),
        (transform(settings.local_px), settings.local_crops),
    )
    images = [Image.fromarray(tile.permute(1, 2, 0).numpy()) for tile in tiles]

    def go() -> int:
        for cut, number in kinds:
            torch.stack([cut(image) for image in images for _ in range(number)])
        return len(images)

    return go
