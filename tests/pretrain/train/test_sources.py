"""Every value of a recipe that names a source is the source's: its files and the paper, as they were read."""

import pytest

from pretrain.learning import schedules
from pretrain.train.recipe.recipe import flat
from pretrain.train.recipe.recipes import RECIPES, recipe
from pretrain.train.recipe.sources import sources_of

EPOCH = 1250  # OFFICIAL_EPOCH_LENGTH of ssl_default_config.yaml

# Of facebookresearch/dinov2, by the file: its value under our name. Shares are of the epochs of that setting.
SHORT = {
    "schedule.rate": 0.004,
    "schedule.least_rate": 1e-6,
    "schedule.warmup": 10 / 100,
    "schedule.momentum": (0.992, 1.0),
    "schedule.temperature": (0.04, 0.07),
    "schedule.temperature_warmup": 30 / 100,
    "schedule.frozen": 1 / 100,
    "views.crops.global_px": 224,
    "views.crops.local_crops": 8,
    "views.crops.local_px": 96,
    "views.crops.area": (0.32, 1.0, 0.05, 0.32),
    "views.masking.share": 0.5,
    "views.masking.least": 0.1,
    "views.masking.most": 0.5,
    "backbone.layer_scale": 1e-5,
    "objective.head.prototypes": 65_536,
    "objective.head.hidden": 2048,
    "objective.head.bottleneck": 256,
    "objective.head.layers": 3,
    "objective.head.patch_bottleneck": 256,
    "objective.dino_weight": 1.0,
    "objective.ibot_weight": 1.0,
    "optim.betas": (0.9, 0.999),
    "optim.layer_decay": 0.9,
    "optim.patch_rate": 0.2,
    "optim.clip": 3.0,
}
IN_LONG = {"schedule.temperature_warmup": 30 / 500, "schedule.frozen": 1 / 500}  # as many epochs, of more
LONG = {
    "schedule.steps": 500 * EPOCH,
    "schedule.rate": 2e-4,
    "schedule.warmup": 80 / 500,
    "schedule.decay": (0.04, 0.2),  # the first is that of ssl_default_config.yaml
    "schedule.momentum": (0.994, 1.0),
    "views.crops.local_px": 98,
    "backbone.drop_path": 0.4,
    "objective.head.bottleneck": 384,
    "objective.targets": "sinkhorn",
    "optim.layer_decay": 1.0,
}
CODE = {
    "DINOv2 data/augmentations.py": {
        "views.crops.global_crops": 2,
        "views.colour.jitter": 0.8,
        "views.colour.brightness": 0.4,
        "views.colour.contrast": 0.4,
        "views.colour.saturation": 0.2,
        "views.colour.hue": 0.1,
        "views.colour.grayscale": 0.2,
        "views.colour.solarise": 0.2,
    },
    "DINOv2 data/transforms.py": {
        "views.colour.blur": (1 - 1.0, 1 - 0.1, 1 - 0.5),  # RandomApply gets 1 - p
        "views.colour.sigma": (0.1, 2.0),
    },
    "DINOv2 data/masking.py": {"views.masking.aspect": 0.3, "views.masking.least_block": 4},
    "DINOv2 loss/dino_clstoken_loss.py": {"objective.student_temperature": 0.1},
    "DINOv2 train/train.py": {"optim.kind": "adamw", "optim.clip_apart": True},
    "DINOv2 utils/param_groups.py": {"optim.decay_tokens": True},
    "torch": {"optim.eps": 1e-8},
    # of facebookresearch/dinov3: gram.update_frequency, .max_updates, and its teacher's crops of 512 px for 256
    "DINOv3 dinov3_vit7b16_gram_anchor.yaml": {
        "objective.gram_every": 10_000,
        "objective.gram_refreshes": 3,
        "objective.gram_scale": 512 / 256,
    },
}

# Zimmermann et al. 2024: of all recipes that name it, and of each model.
PAPER = {
    "sampling.mix.40x": 0.2,
    "sampling.mix.20x": 0.4,
    "sampling.mix.10x": 0.2,
    "sampling.mix.5x": 0.2,
    "schedule.temperature": (0.04, 0.07),
    "views.crops.scale": (0.9, 1.1),
    "views.crops.aspect": 1.05,
    "views.crops.flips": True,
    "views.crops.resized": False,
    "objective.head.prototypes": 131_072,
    "objective.spread": "kde",
    "objective.spread_weight": 0.05,
    "objective.kappa": 5.0,
    "backbone.patch_px": 14,
    "backbone.image_px": 224,
}
MODELS = {
    "virchow2": {
        "sampling.batch": 4096,
        "views.colour.solarise": 0.2,
        "backbone.width": 1280,
        "backbone.depth": 32,
        "backbone.heads": 16,
        "backbone.swiglu": True,
        "backbone.registers": 4,
        "backbone.qk_norm": False,
    },
    "virchow2g": {
        "sampling.batch": 3072,
        "backbone.width": 1664,
        "backbone.depth": 48,
        "backbone.heads": 16,
        "backbone.swiglu": True,
        "backbone.registers": 8,
        "backbone.qk_norm": True,
        "optim.kind": "stable_adamw",
        "optim.betas": (0.9, 0.95),
    },
    "virchow2g_mini": {
        "sampling.batch": 3072,
        "backbone.width": 384,
        "backbone.depth": 12,
        "backbone.heads": 6,
        "backbone.mlp_ratio": 4.0,
        "backbone.qk_norm": False,
    },
}
# Oquab et al. 2023, table 16, "DINOv2-S (distilled)": 1e-3 at a batch of 2,048; and section 5.
DISTILLED = {
    "schedule.steps": 625_000,
    "schedule.rate": 1e-3 / 2**0.5,
    "schedule.warmup": 100 / 625,
    "schedule.decay": (0.04, 0.2),
    "schedule.momentum": (0.994, 1.0),
    "backbone.drop_path": 0.0,
    "views.masking.share": 1.0,  # iBOT on the two global crops
}
CARD = {"backbone.layer_scale": 0.0, "backbone.swiglu": False, "backbone.registers": 0}
OWN = {"views.colour.solarise": 0.0}  # of the paper, for 2G


def facts(name):
    """What each source says, for a recipe."""
    long = name in ("virchow2", "virchow2g", "virchow2g_mini")
    return {
        "DINOv2 ssl_default_config.yaml": SHORT | (IN_LONG if long else {}),
        "DINOv2 vitl14.yaml and vitg14.yaml": LONG,
        "Virchow2's paper": PAPER | MODELS.get(name, {}),
        "Virchow2's paper, for 2G": OWN,
        "DINOv2's paper on distillation": DISTILLED,
        "Virchow2G Mini's card": CARD,
        "Virchow2's released config.json": {"backbone.mlp_ratio": 5.3375},
        **CODE,
    }


@pytest.mark.parametrize("name", RECIPES)
def test_each_value_is_that_of_each_source_that_it_names(name):
    made, known = recipe(name), facts(name)
    sources = sources_of(made)
    for setting, value in flat(made).items():
        for source in sources[setting].split("; "):
            if not source.startswith("ours"):
                assert known[source.split(": ")[0]][setting] == pytest.approx(value), (setting, source)


@pytest.mark.parametrize("name", ["virchow2", "virchow2g"])
def test_the_large_recipes_take_the_long_training_and_the_paper_whole(name):
    sources = sources_of(recipe(name))
    from_long = {setting for setting, source in sources.items() if source.startswith("DINOv2 vitl14.yaml")}
    assert from_long == set(LONG)
    from_paper = {setting for setting, source in sources.items() if "paper" in source and "ours" not in source}
    assert from_paper == set(PAPER) | set(MODELS[name]) | set(OWN)
    ours = {setting for setting, source in sources.items() if source.startswith("ours")}
    about = (
        "compute.",
        "guide.",
        "loader.",
        "saving.",
        "looking.",
        "sampling.",
        "name",
        "start_from",
        "continue_",
        "teacher",
    )
    assert {setting for setting in ours if not setting.startswith(about)} <= {
        *("schedule.shape", "schedule.cooldown", "schedule.shares_of", "schedule.guide_ramp"),
        "objective.gram_weight",
        "views.crops.right_angles",
        "views.crops.continuous",
        "backbone.mpp_token",
        "views.colour.stain",
        "views.masking.blocks",
        "views.masking.scattered",
        "backbone.mlp_ratio",
    }


def test_the_student_takes_dinov2s_training_of_students_and_else_the_long_one():
    made = recipe("virchow2g_mini")
    sources = sources_of(made)
    assert {setting for setting, source in sources.items() if source.startswith("DINOv2's paper")} == set(DISTILLED)
    assert {setting for setting, source in sources.items() if source.startswith("Virchow2G")} == set(CARD)
    from_long = {setting for setting, source in sources.items() if source.startswith("DINOv2 vitl14.yaml")}
    assert from_long == set(LONG) - set(DISTILLED)
    tops = [schedules.at(made.schedule, 100_000, batch).rate for batch in (2048, 3072)]
    assert tops == pytest.approx([1e-3, 1e-3 * 1.5**0.5])
    large = recipe("virchow2g")
    for name, value in flat(large).items():  # but for the size of the network, its optimizer, and what students need
        if name.startswith(("schedule.", "objective.", "views.", "optim.")) and name not in DISTILLED:
            assert flat(made)[name] == value or name in ("optim.kind", "optim.betas"), name


def test_the_rate_of_the_last_block_is_that_of_dinov2s_large_models():
    """By the square root of the batch over 1,024, and with no decay from layer to layer."""
    made = recipe("virchow2")
    tops = [schedules.at(each.schedule, 100_000, each.sampling.batch).rate for each in (made, recipe("virchow2g"))]
    assert tops == pytest.approx([2e-4 * 2, 2e-4 * 3**0.5])
    assert not schedules.at(made.schedule, 1250, 4096).frozen
    assert schedules.at(made.schedule, 1249, 4096).frozen
    warm = [schedules.at(made.schedule, step, 4096).temperature for step in (0, 37_499, 37_500)]
    assert warm[0] == 0.04
    assert warm[1] < warm[2] == 0.07
