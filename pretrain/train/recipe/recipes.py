"""The recipes: functions that return a whole configuration. `make recipe RECIPE=virchow2` shows one, with sources.

Paper facts are from Zimmermann et al. 2024 (arXiv 2408.00738). Where the paper is silent (learning rate, weight decay,
momentum, length of training) the values are those of DINOv2 (Oquab et al. 2023, arXiv 2304.07193), for the large models
those of its long training, for their student those of its distilled models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pretrain.data.sampler import SamplingSettings
from pretrain.learning.optimizer import OptimSettings
from pretrain.learning.schedules import ScheduleSettings
from pretrain.learning.self_distillation import ObjectiveSettings
from pretrain.model.backbone import BackboneSettings
from pretrain.model.heads import HeadSettings
from pretrain.train.checkpoint import SavingSettings
from pretrain.train.recipe.recipe import ComputeSettings, LookingSettings, Recipe
from pretrain.train.recipe.sources import AUGMENTATIONS, CARD, DISTILLED, LONG, OURS, PAPER, SHORT, WEIGHTS, sourced
from pretrain.views.colour import ColourSettings
from pretrain.views.crops import CropSettings
from pretrain.views.masking import MaskingSettings
from pretrain.views.views import ViewSettings
from wsi_prep.errors import BadOption


def debug() -> Recipe:
    """A narrow ViT over the sample slides: minutes on two CPU cores, to see that everything works."""
    return Recipe(
        name="debug",
        sampling=SamplingSettings(batch=16),
        schedule=ScheduleSettings(steps=200, rate=0.004, momentum=(0.97, 1.0)),
        views=ViewSettings(crops=CropSettings(global_px=112, local_px=56, local_crops=4)),
        backbone=BackboneSettings(width=96, depth=4, heads=3, layer_scale=0.0, image_px=112),
        objective=ObjectiveSettings(head=HeadSettings(prototypes=1024, hidden=256, bottleneck=64)),
        optim=OptimSettings(layer_decay=1.0),
        compute=ComputeSettings(precision="fp32"),
        saving=SavingSettings(every=100),
        looking=LookingSettings(log=10, picture=100, probe=100),
    )


def small() -> Recipe:
    """A narrow ViT for some thousand tiles and one CPU core: half an hour, see docs/results.md.

    The teacher moves slowly and speaks sharply, and the class tokens are spread twice as hard as in the paper: else few
    tiles and small batches leave it flat before the student has learned anything. Colours change little, since a few
    slides differ in colour most of all.
    """
    return Recipe(
        name="small",
        sampling=SamplingSettings(batch=32, mix={"40x": 0.5, "20x": 0.5, "10x": 0.0, "5x": 0.0}),
        schedule=ScheduleSettings(
            steps=1500, rate=0.002, warmup=0.05, momentum=(0.996, 0.9995), temperature=(0.02, 0.04)
        ),
        views=ViewSettings(
            crops=CropSettings(global_px=112, local_px=56, local_crops=4, right_angles=True),
            colour=ColourSettings(brightness=0.2, contrast=0.2, saturation=0.15, hue=0.03, stain=0.05, grayscale=0.0),
        ),
        backbone=BackboneSettings(width=128, depth=4, heads=2, layer_scale=0.0, image_px=112),
        objective=ObjectiveSettings(head=HeadSettings(prototypes=64, hidden=512, bottleneck=64), spread_weight=0.1),
        optim=OptimSettings(layer_decay=1.0),
    )


def vit_s() -> Recipe:
    """ViT-S/14 for one GPU."""
    return Recipe(
        name="vit_s",
        sampling=SamplingSettings(batch=256),
        schedule=ScheduleSettings(steps=50_000),
        backbone=BackboneSettings(width=384, depth=12, heads=6, drop_path=0.1),
        compute=ComputeSettings(compile=True),
    )


@sourced({"views.crops.local_px": SHORT})
def vit_b_ablation() -> Recipe:
    """ViT-B/16, the setting of the paper's ablation of ECT and KDE."""
    return Recipe(
        name="vit_b_ablation",
        sampling=SamplingSettings(batch=1024),
        schedule=ScheduleSettings(steps=100_000),
        views=ViewSettings(crops=CropSettings(local_px=96)),
        backbone=BackboneSettings(width=768, depth=12, heads=12, patch_px=16, drop_path=0.1),
        compute=ComputeSettings(compile=True),
    )


_EPOCH = 1250  # steps, of DINOv2
_LONG = ScheduleSettings(
    steps=500 * _EPOCH,
    rate=2e-4,
    warmup=80 / 500,
    decay=(0.04, 0.2),
    momentum=(0.994, 1.0),
    temperature_warmup=30 / 500,
    frozen=1 / 500,
)
_LONG_SOURCES = {
    "schedule": LONG,
    **dict.fromkeys(("schedule.shape", "schedule.cooldown", "schedule.shares_of", "schedule.guide_ramp"), OURS),
    "schedule.least_rate": SHORT,
    "schedule.temperature": f"{PAPER}; {SHORT}",
    "schedule.temperature_warmup": f"{SHORT}: 30 epochs",
    "schedule.frozen": f"{SHORT}: 1 epoch",
    "schedule.steps": f"{LONG}: 500 epochs",
    "schedule.warmup": f"{LONG}: 80 epochs",
    "sampling.batch": PAPER,
    "backbone": PAPER,
    "backbone.mpp_token": OURS,
    "backbone.layer_scale": SHORT,
    "backbone.drop_path": LONG,
    "objective.head.prototypes": PAPER,
    "objective.head.bottleneck": LONG,
    "objective.head.patch_bottleneck": SHORT,
    "optim.layer_decay": LONG,
}
_HEAD = HeadSettings(prototypes=131_072, bottleneck=384, patch_bottleneck=256)


@sourced({**_LONG_SOURCES, "backbone.mlp_ratio": WEIGHTS, "views.colour.solarise": f"{PAPER}; {AUGMENTATIONS}"})
def virchow2() -> Recipe:
    """Virchow2: ViT-H/14 of 631 M, batch 4096, 131,072 prototypes; DINOv2's long training."""
    return Recipe(
        name="virchow2",
        sampling=SamplingSettings(batch=4096),
        schedule=_LONG,
        views=ViewSettings(colour=ColourSettings(solarise=0.2)),
        backbone=BackboneSettings(
            width=1280, depth=32, heads=16, mlp_ratio=5.3375, swiglu=True, registers=4, drop_path=0.4
        ),
        objective=ObjectiveSettings(head=_HEAD),
        optim=OptimSettings(layer_decay=1.0),
        compute=ComputeSettings(compile=True, parallel="hsdp", recompute="selective"),
        saving=SavingSettings(every=1000),
        looking=LookingSettings(picture=2000, probe=2000),
    )


@sourced(
    {
        **_LONG_SOURCES,
        "backbone.mlp_ratio": f"ours, for the 1.85 B of {PAPER}",
        "optim.kind": PAPER,
        "optim.betas": PAPER,
    }
)
def virchow2g() -> Recipe:
    """Virchow2G: ViT-G/14 of 1.85 B with 8 registers and QK-norm, batch 3072, StableAdamW; DINOv2's long training."""
    return Recipe(
        name="virchow2g",
        sampling=SamplingSettings(batch=3072),
        schedule=_LONG,
        backbone=BackboneSettings(
            width=1664, depth=48, heads=16, mlp_ratio=6.5625, swiglu=True, registers=8, qk_norm=True, drop_path=0.4
        ),
        objective=ObjectiveSettings(head=_HEAD),
        optim=OptimSettings(kind="stable_adamw", betas=(0.9, 0.95), layer_decay=1.0),
        compute=ComputeSettings(compile=True, parallel="hsdp", recompute="selective"),
        saving=SavingSettings(every=1000),
        looking=LookingSettings(picture=2000, probe=2000),
    )


_OF_STUDENTS = ("steps", "rate", "warmup", "decay", "momentum")


@sourced(
    {
        **_LONG_SOURCES,
        **dict.fromkeys((f"schedule.{name}" for name in _OF_STUDENTS), DISTILLED),
        "backbone.drop_path": DISTILLED,
        **dict.fromkeys((f"backbone.{name}" for name in ("layer_scale", "swiglu", "registers")), CARD),
        "views.masking.share": DISTILLED,
        "views.masking.least": OURS,
        "views.masking.most": OURS,
    }
)
def virchow2g_mini() -> Recipe:
    """Virchow2G Mini: ViT-S/14 of 22 M, distilled: give the teacher as `teacher=`; DINOv2's training of students.

    Nothing is masked: `views.masking` says at which patches student and teacher are compared.
    """
    return Recipe(
        name="virchow2g_mini",
        sampling=SamplingSettings(batch=3072),
        schedule=replace(_LONG, rate=1e-3 * (1024 / 2048) ** 0.5),
        views=ViewSettings(masking=MaskingSettings(share=1.0)),
        backbone=BackboneSettings(width=384, depth=12, heads=6, layer_scale=0.0),
        objective=ObjectiveSettings(head=_HEAD),
        optim=OptimSettings(layer_decay=1.0),
        compute=ComputeSettings(compile=True),
        saving=SavingSettings(every=1000),
        looking=LookingSettings(picture=2000, probe=2000),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    made.__name__: made for made in (debug, small, vit_s, vit_b_ablation, virchow2, virchow2g, virchow2g_mini)
}


def recipe(name: str) -> Recipe:
    """The recipe of this name; BadOption with those that there are.

    >>> recipe("virchow2").backbone.width
    1280
    """
    if name not in RECIPES:
        raise BadOption(f"no recipe is named {name!r}; choose from {', '.join(RECIPES)}")
    return RECIPES[name]()
