"""Where each value of a recipe comes from: the paper, a file of DINOv2's code, or us. `make recipe` shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pretrain.data.sampler import SamplingSettings
from pretrain.train.recipe.recipe import Recipe, flat

PAPER = "Virchow2's paper"
"""Zimmermann et al. 2024, arXiv 2408.00738."""
WEIGHTS = "Virchow2's released config.json"
SHORT = "DINOv2 ssl_default_config.yaml"
"""Its setting for ImageNet-1k, which holds for what the long one does not change. An epoch has 1,250 steps."""
LONG = "DINOv2 vitl14.yaml and vitg14.yaml"
"""Its setting for the long training of ViT-L and ViT-g."""
DISTILLED = "DINOv2's paper on distillation"
"""Oquab et al. 2023, arXiv 2304.07193: table 16, of the distilled ViT-S, and section 5. Its code has none of it."""
CARD = "Virchow2G Mini's card"
"""Of Paige, at ai.azure.com/catalog/models/Virchow2G-Mini, as of May 2025."""
GRAM = "DINOv3 dinov3_vit7b16_gram_anchor.yaml"
AUGMENTATIONS = "DINOv2 data/augmentations.py"
TRANSFORMS = "DINOv2 data/transforms.py"
MASKING = "DINOv2 data/masking.py"
OURS = "ours"

DEFAULTS = {
    "": OURS,
    "sampling.mix": PAPER,
    "schedule": SHORT,
    "schedule.steps": OURS,
    "schedule.shape": OURS,
    "schedule.cooldown": OURS,
    "schedule.shares_of": OURS,
    "schedule.guide_ramp": OURS,
    "schedule.decay": LONG,
    "schedule.temperature": f"{PAPER}; {SHORT}",
    "views.crops": SHORT,
    "views.crops.global_crops": AUGMENTATIONS,
    "views.crops.local_px": LONG,
    "views.crops.scale": PAPER,
    "views.crops.aspect": PAPER,
    "views.crops.flips": PAPER,
    "views.crops.right_angles": OURS,
    "views.crops.continuous": OURS,
    "views.crops.resized": PAPER,
    "views.colour": AUGMENTATIONS,
    "views.colour.stain": OURS,
    "views.colour.blur": f"{TRANSFORMS}: by what is done, not by its p",
    "views.colour.sigma": TRANSFORMS,
    "views.colour.solarise": f"{PAPER}, for 2G",
    "views.masking": SHORT,
    "views.masking.aspect": MASKING,
    "views.masking.blocks": OURS,
    "views.masking.least_block": MASKING,
    "views.masking.scattered": OURS,
    "backbone.layer_scale": SHORT,
    "objective.head": SHORT,
    "objective.head.patch_bottleneck": OURS,
    "objective.student_temperature": "DINOv2 loss/dino_clstoken_loss.py",
    "objective.dino_weight": SHORT,
    "objective.ibot_weight": SHORT,
    "objective.targets": LONG,
    "objective.spread": PAPER,
    "objective.spread_weight": PAPER,
    "objective.kappa": PAPER,
    "objective.gram_weight": OURS,
    "objective.gram_every": GRAM,
    "objective.gram_refreshes": GRAM,
    "objective.gram_scale": GRAM,
    "optim": SHORT,
    "optim.kind": "DINOv2 train/train.py",
    "optim.eps": "torch",
    "optim.clip_apart": "DINOv2 train/train.py",
    "optim.decay_tokens": "DINOv2 utils/param_groups.py",
}
"""Of the settings' own defaults, by name or by the beginning of several names; the longest that fits counts."""

_OF_RECIPES: dict[str, Mapping[str, str]] = {}


def sourced(sources: Mapping[str, str]) -> Callable[[Callable[[], Recipe]], Callable[[], Recipe]]:
    """Beside the function that makes a recipe: where the values come from that it sets; ours where nothing is said."""

    def beside(made: Callable[[], Recipe]) -> Callable[[], Recipe]:
        _OF_RECIPES[made.__name__] = sources
        return made

    return beside


def sources_of(recipe: Recipe) -> dict[str, str]:
    """The source of every value of a recipe as its function makes it, under the value's dotted name."""
    own, usual = _OF_RECIPES.get(recipe.name, {}), flat(Recipe("", SamplingSettings(recipe.sampling.batch)))
    return {
        name: _nearest(own, name) or (_nearest(DEFAULTS, name) if usual.get(name) == value else "") or OURS
        for name, value in flat(recipe).items()
    }


def _nearest(sources: Mapping[str, str], name: str) -> str:
    """Of the longest beginning of the name that is there."""
    beginnings = [key for key in sources if not key or name == key or name.startswith(f"{key}.")]
    return sources[max(beginnings, key=len)] if beginnings else ""
