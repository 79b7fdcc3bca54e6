"""A training step on one CPU core beside DINOv2's and DINOv3's own code, in turns.

`make bench BENCH=train ARGS="--dinov2 FOLDER --dinov3 FOLDER"`: clones of github.com/facebookresearch/dinov2 and
dinov3. Nothing of theirs is in this repository. Their modules, losses, parameter groups and augmentations are imported
from the folders. Their SSLMetaArch moves everything to a GPU and wraps it in FSDP, so the order of its forward_backward
is told here again: teacher, student, heads, losses, backward, clipping of each network by itself, AdamW, moving mean.

Equal: width, depth, attention heads, patches, crops and their sizes, prototypes, hidden and bottleneck, two separate
heads, Sinkhorn-Knopp, DINO, iBOT and KoLeo with their weights, fp32, one thread. For the step alone also the crops and
the masks. Before anything is timed, the loss terms and a gradient of the same weights and crops are compared, see
`_check`. Different on purpose:

- DINOv3 turns queries and keys (RoPE) in place of adding positions, and does not normalise its prototypes.
- DINOv2's student takes global crops, then local ones: its path for both at once needs xFormers, which has no kernels
  for CPUs. For the same reason its attention and its cross-entropy are those without xFormers.
- DINOv2 computes its patch head for as many masked patches as its masks may have, the others for those that there are.
- Nobody compiles: DINOv3 does by default, and here it is an option.
- Ours also computes the numbers that a run shows: entropies of the targets, spread of the features, whether all is
  finite. Theirs log losses alone, and that is not counted here.
- With crops, theirs are cut by torchvision from PIL images, ours from a uint8 tensor; both are decoded already. The
  windows are of the same law (views.crops.resized), as are colours. DINOv3 masks the upper end of each share, some 7 %
  more.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from pretrain.compute import distributed
from pretrain.compute.randomness import Places
from pretrain.data.sampler import SamplingSettings
from pretrain.learning import schedules
from pretrain.learning.schedules import ScheduleSettings
from pretrain.learning.self_distillation import ObjectiveSettings
from pretrain.model.backbone import BackboneSettings
from pretrain.train.learner import Learner
from pretrain.train.recipe.overrides import changed
from pretrain.train.recipe.recipe import ComputeSettings, Recipe
from pretrain.views.colour import ColourSettings
from pretrain.views.crops import CropSettings
from pretrain.views.views import Views, ViewSettings, make_views
from tests.benchmarks.dino_peers import Dinov2, Dinov3, Given, Peer, Told, require
from tests.benchmarks.measure import Figure, on_cores
from wsi_prep.format.magnifications import TILE_PX

_REACH = {
    "sampling": ("batch",),
    "backbone": ("width", "depth", "heads", "mlp_ratio", "layer_scale", "drop_path", "patch_px", "image_px"),
    "objective.head": ("prototypes", "hidden", "bottleneck", "layers"),
    "views.crops": ("global_px", "local_px", "local_crops"),
}
"""Settings that reach their code, too."""
_BATCHES = 4
_APART = 1e-3  # most that loss terms may differ, relative
_TARGETS = {"step": 0.95, "crops": None, "crops and step": 1.0}
PEERS: dict[str, type[Peer]] = {"dinov2": Dinov2, "dinov3": Dinov3}


@dataclass(frozen=True)
class Tiles:
    """The same tiles for everyone: (B, 3, 392, 392) uint8, and as PIL images."""

    pixels: Tensor
    images: list[Image.Image]


class Seconds(NamedTuple):
    """One number a round."""

    clock: list[float]
    processor: list[float]


class Ours:
    """This repository's Learner, which is what a Trainer's step calls."""

    name = "ours"

    def __init__(self, recipe: Recipe, world: distributed.World) -> None:
        self.recipe = recipe
        self.learner = _OfViews(recipe, world)
        self.learner.prepare()
        self.student: nn.Module = self.learner.network

    def step(self, views: Views, number: int) -> None:
        self.learner.seen = views
        self.learner.learn(torch.empty(views.tiles), self.places(number))
        self.learner.seen = None

    def crops(self, tiles: Tiles, number: int) -> Views:
        return make_views(tiles.pixels, self.recipe.views, self.places(number), self.recipe.backbone.patch_px)

    def both(self, tiles: Tiles, number: int) -> None:
        self.learner.learn(tiles.pixels, self.places(number))

    def told(self, views: Views) -> Told:
        at = schedules.at(self.recipe.schedule, 0, self.recipe.sampling.batch)
        losses = self.learner.objective.losses(views, at)
        return Told(losses.total, {name: losses.parts[f"loss_{name}"] for name in ("dino", "ibot", "koleo")})

    def places(self, number: int) -> Places:
        return Places(self.recipe.seed, number, np.arange(self.recipe.sampling.batch))


class _OfViews(Learner):
    """Takes views that have been made before, where there are any."""

    seen: Views | None = None

    def _views(self, *given: Any) -> Views:
        return self.seen or super()._views(*given)


def compare(folders: Mapping[str, Path], changes: Sequence[str], rounds: int, profile: bool) -> list[Figure]:
    """Figures of all works: one core, one thread, contestants in turn. `folders`: clones, by "dinov2" and "dinov3"."""
    recipe = _recipe(changes)
    for name, folder in folders.items():
        require(name, folder)
    with _quiet(), on_cores(0), distributed.world("cpu") as world:
        torch.set_num_threads(1)
        _check(recipe, folders, world)
        torch.manual_seed(0)
        peers = [PEERS[name](folder, recipe) for name, folder in folders.items()]
        ours = Ours(recipe, world)
        tiles = _tiles(recipe.sampling.batch)
        views = [ours.crops(tiles, number) for number in range(_BATCHES)]
        shape = f"ViT {recipe.backbone.width} x {recipe.backbone.depth}, {recipe.sampling.batch} tiles"
        figures = [
            Figure(shape, f"{each.name}: parameters", f"{sum(p.numel() for p in each.student.parameters()):,}")
            for each in (ours, *peers)
        ]
        for work, target in _TARGETS.items():
            told = _turns(_contestants(work, ours, peers, tiles, views), rounds)
            figures += _figures(f"{shape}: {work}", told, target)
        if profile:
            _profile(_contestants("step", ours, peers, tiles, views))
    return figures


def _recipe(changes: Sequence[str]) -> Recipe:
    """A narrow ViT with the crops, colours and head of DINOv2's defaults. Ends where a change reaches ours alone."""
    known = [f"{group}.{name}" for group, names in _REACH.items() for name in names]
    for change in changes:
        if change.partition("=")[0] not in known:
            raise SystemExit(f"--set {change}: this does not reach their code; choose from {', '.join(known)}")
    recipe = Recipe(
        name="peers",
        sampling=SamplingSettings(batch=8),
        schedule=ScheduleSettings(steps=100_000),
        views=ViewSettings(crops=CropSettings(resized=True), colour=ColourSettings(solarise=0.2)),
        backbone=BackboneSettings(width=192, depth=6, heads=3),
        objective=ObjectiveSettings(spread="koleo", spread_weight=0.1),
        compute=ComputeSettings(device="cpu", precision="fp32"),
    )
    return changed(recipe, list(changes))


def _tiles(count: int) -> Tiles:
    """Smooth colours with some grain: what they show does not change what a step costs."""
    numbers = np.random.default_rng(0)
    coarse = numbers.integers(0, 256, (count, 24, 24, 3), np.uint8)
    smooth = [Image.fromarray(each).resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC) for each in coarse]
    grain = numbers.integers(-16, 16, (count, TILE_PX, TILE_PX, 3))
    pixels = (np.stack([np.asarray(each) for each in smooth]) + grain).clip(0, 255).astype(np.uint8)
    return Tiles(torch.from_numpy(pixels).permute(0, 3, 1, 2), [Image.fromarray(each) for each in pixels])


def _given(views: Views, recipe: Recipe) -> Given:
    """The same crops and masks, as the peers take them."""
    masking, patches = recipe.views.masking, views.mask.shape[1]
    masked = int(len(views.mask) * masking.share)
    shares = np.linspace(masking.least, masking.most, masked + 1)[1:]
    index = views.mask.flatten().nonzero().flatten()
    weight = views.weight[: len(index)] * len(views.mask)
    room = max(len(index), sum(int(patches * share) for share in shares))
    return Given(views.global_crops, views.local_crops, views.mask, index, weight, room)


def _contestants(
    work: str, ours: Ours, peers: Sequence[Peer], tiles: Tiles, views: Sequence[Views]
) -> dict[str, Callable[[int], object]]:
    """By name, what does the work of a round with this number."""
    if work == "crops":
        return {
            ours.name: lambda number: ours.crops(tiles, number),
            **{peer.name: functools.partial(peer.crops, tiles.images) for peer in peers},
        }
    if work == "crops and step":
        return {
            ours.name: lambda number: ours.both(tiles, number),
            **{peer.name: functools.partial(peer.both, tiles.images) for peer in peers},
        }
    given = [_given(each, ours.recipe) for each in views]
    found: dict[str, Callable[[int], object]] = {
        ours.name: lambda number: ours.step(views[number % len(views)], number)
    }
    for peer in peers:
        found[peer.name] = lambda number, peer=peer: peer.step(given[number % len(given)], number)  # type: ignore[misc]
    return found


def _turns(contestants: Mapping[str, Callable[[int], object]], rounds: int) -> dict[str, Seconds]:
    """Seconds of each in each round, every other round backwards, after two rounds that are thrown away."""
    found = {name: Seconds([], []) for name in contestants}
    for number in range(rounds + 2):
        for name in sorted(contestants, key=list(contestants).index, reverse=number % 2 == 1):
            clock, processor = time.perf_counter(), time.process_time()
            contestants[name](number)
            if number >= 2:
                found[name].clock.append(time.perf_counter() - clock)
                found[name].processor.append(time.process_time() - processor)
    return found


def _figures(part: str, told: Mapping[str, Seconds], target: float | None) -> list[Figure]:
    """Judged by the processor's time: nothing here waits, and others may be at work on the same core."""
    found = []
    for name, seconds in told.items():
        least, most = min(seconds.clock), max(seconds.clock)
        value = f"{_median(seconds.clock):.3f} s ({least:.3f} to {most:.3f}), CPU {_median(seconds.processor):.3f} s"
        found.append(Figure(part, name, value))
    ours, *others = told
    for other in others:
        by_clock, by_processor = (
            sorted(a / b for a, b in zip(mine, theirs, strict=True))
            for mine, theirs in zip(told[ours], told[other], strict=True)
        )
        ratio = _median(by_processor)
        value = f"CPU {ratio:.3f} ({by_processor[0]:.3f} to {by_processor[-1]:.3f}), clock {_median(by_clock):.3f}"
        value += f" ({by_clock[0]:.3f} to {by_clock[-1]:.3f})"
        wanted = ("", None) if target is None else (f"<= {target:g}", ratio <= target)
        found.append(Figure(part, f"{ours} / {other}, of pairs", value, *wanted))
    return found


def _check(recipe: Recipe, folders: Mapping[str, Path], world: distributed.World) -> None:
    """End unless the same weights and crops give the same loss terms and the same gradient of the patches' embedding.

    Without positions, which differ, and without dropped branches. Branches count in full, not by 1e-5.
    """
    backbone = replace(recipe.backbone, drop_path=0.0, layer_scale=1.0)
    recipe = replace(recipe, backbone=backbone)
    ours = Ours(recipe, world)
    network = ours.learner.network
    for each in (network, ours.learner.objective.ema):
        nn.init.zeros_(each.backbone.vit.pos_embed)
    views = ours.crops(_tiles(recipe.sampling.batch), 0)
    mine = ours.told(views)
    mine.total.backward()
    expected = {**mine.terms, "gradient": network.backbone.vit.patch_embed.proj.weight.grad}
    for name, folder in folders.items():
        peer = PEERS[name](folder, recipe)
        peer.take(network)
        theirs = peer.told(_given(views, recipe))
        theirs.total.backward()
        found = {**theirs.terms, "gradient": peer.student["backbone"].patch_embed.proj.weight.grad}
        apart = {term: float((found[term] - value).norm() / value.norm()) for term, value in expected.items()}
        print(
            f"{name}, the same weights: "
            + ", ".join(
                f"{term} {float(found[term].norm()):.5f} (ours {float(value.norm()):.5f})"
                for term, value in expected.items()
            )
        )
        if not max(apart.values()) < _APART:
            raise SystemExit(f"{name} does not do the same work: relative differences {apart}")


def _profile(contestants: Mapping[str, Callable[[int], object]]) -> None:
    """The operations that take longest, of a step of each."""
    for name, step in contestants.items():
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            step(0)
        print(name, profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nobody compiles, and their warnings (no GPU, no xFormers, old names in torch) stay unsaid."""
    with warnings.catch_warnings(), torch.compiler.set_stance("force_eager"):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


_median = statistics.median
