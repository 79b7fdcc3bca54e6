"""Memory of the machine, beside its GPUs, that a process of a run needs for what is not a step."""

from __future__ import annotations

from pretrain.compute.distributed import Spread
from pretrain.train.learner import DTYPES
from pretrain.train.recipe.recipe import Recipe
from wsi_prep.format.magnifications import TILE_PX

_FLOAT_BYTES = 4


def erasing_bytes(recipe: Recipe) -> int:
    """Of the first process at each checkpoint, where the guide erases fields: the tokens of all tiles, in float32.

    As learning.erasure holds them: (saving.erase_tiles, prefix + N, width).
    """
    if not recipe.guide.erased:
        return 0
    backbone, saving = recipe.backbone, recipe.saving
    patches = ((saving.erase_px or TILE_PX) // backbone.patch_px) ** 2
    return saving.erase_tiles * (1 + backbone.registers + patches) * backbone.width * _FLOAT_BYTES


def starting_bytes(recipe: Recipe, gpus: int) -> int:
    """Of every process when a run begins: student and average, and an anchor, where it makes all of them at first.

    With shards of them it does so only to begin with `start_from`. A teacher and biases of heads are not counted.
    """
    compute, objective = recipe.compute, recipe.objective
    shards = Spread(compute.parallel, compute.shard_group, DTYPES[compute.precision]).shards(gpus)
    if shards > 1 and not recipe.start_from:
        return 0
    heads = sum(each.parameters(recipe.backbone.width) for each in (objective.head, objective.head.of_patches))
    anchor = recipe.backbone.parameters if objective.gram_weight else 0
    return (2 * (recipe.backbone.parameters + heads) + anchor) * _FLOAT_BYTES


def unread(recipe: Recipe) -> str:
    """A line on the weights that a run begins with, which no plan looks at; empty where there are none."""
    if not (recipe.start_from or recipe.continue_from):
        return ""
    name = "start_from" if recipe.start_from else "continue_from"
    return (
        f"{name} {recipe.start_from or recipe.continue_from} is not read: whether it fits is seen when the run begins"
    )
