"""What a run will not do as its recipe reads, or not do well, with the tiles that it has: said before it begins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pretrain.data.fields import CLASSES, Field, association, class_field
from pretrain.data.sampler import Sampler
from pretrain.train.recipe.recipe import Recipe

_STUDENTS = ("virchow2g_mini",)
_FEW = 32  # tiles of a stratum
_SHOWN = 3  # strata that are named
_KNOWN = 0.5  # share of the draws
_CONFOUNDED = 0.5  # Cramer's V


def caveats(recipe: Recipe, sampler: Sampler, guide: Sequence[Field] = ()) -> list[str]:
    """A line each, for people; none where all is well. `guide`: the fields of the recipe's guide."""
    found = [_spread(recipe), _masks(recipe), _slides(sampler), _held_out(recipe, sampler), _strata(recipe, sampler)]
    found += [_told(recipe), _unlearnt(recipe), student_alone(recipe)]
    found += [_hardly_known(field) for field in guide] + _confounded(recipe, sampler, guide)
    return [line for line in found if line]


def anchored_to_nothing(recipe: Recipe) -> list[str]:
    """Of a run that begins: a line where its Gram anchoring begins before there is anything to hold on to."""
    if not recipe.objective.gram_weight or recipe.start_from or recipe.continue_from:
        return []
    return [
        "Gram anchoring begins at the first step, with a teacher that has learnt nothing; begin it late: "
        f"stages.{max(1, recipe.schedule.steps * 4 // 5)}.objective.gram_weight={recipe.objective.gram_weight:g}"
    ]


def student_alone(recipe: Recipe) -> str:
    """A line where a recipe for students has no teacher, else an empty one."""
    if recipe.name not in _STUDENTS or recipe.teacher:
        return ""
    return (
        f"{recipe.name} is the recipe of a student, and there is no teacher: this is self-distillation with a "
        "student's rate and masks; name a teacher by teacher=FOLDER in SET, as make distill does, or another recipe"
    )


def _unlearnt(recipe: Recipe) -> str:
    objective = recipe.objective
    spread = objective.spread_weight if objective.spread != "none" else 0
    if any((objective.dino_weight, objective.ibot_weight, objective.gram_weight, spread, recipe.guide.wanted)):
        return ""
    return "nothing is learnt: every weight of objective is 0; raise objective.dino_weight or objective.ibot_weight"


def _spread(recipe: Recipe) -> str:
    """The spreading term looks across the tiles that are computed together, in all processes."""
    objective, batch, parts = recipe.objective, recipe.sampling.batch, recipe.compute.accumulate
    if objective.spread == "none" or not objective.spread_weight or batch // parts > 1:
        return ""
    together = f"a batch of {batch}" + (f" in {parts} parts" if parts > 1 else "")
    name = {"kde": "KDE", "koleo": "KoLeo"}[objective.spread]
    return (
        f"the {name} term will be 0, and nothing will spread the features: it compares different tiles, and {together} "
        "has one at a time; raise sampling.batch or lower compute.accumulate"
    )


def _masks(recipe: Recipe) -> str:
    masking, crops = recipe.views.masking, recipe.views.crops
    patches = (crops.global_px // recipe.backbone.patch_px) ** 2
    if not recipe.objective.ibot_weight or (masking.share and round(masking.most * patches)):
        return ""
    return "the iBOT term will be 0: no patch is masked; raise views.masking, or set objective.ibot_weight=0"


def _slides(sampler: Sampler) -> str:
    if sampler.slides > 1:
        return ""
    return (
        f"all {sampler.eligible:,} tiles that can be drawn are of one slide: no other stain, scanner or patient is "
        "learnt from; add slides, or widen WHERE"
    )


def _held_out(recipe: Recipe, sampler: Sampler) -> str:
    share = recipe.sampling.held_out
    if not share or recipe.sampling.split == "all" or (sampler.index.slides["split"] < share).any():
        return ""
    slides = len(sampler.index.slides)
    return f"sampling.held_out={share:g} holds out none of the {slides:,} slides: the patients are too few"


def _told(recipe: Recipe) -> str:
    if not (recipe.backbone.mpp_token and recipe.guide.wanted.get("mpp")):
        return ""
    return "guide.mpp asks for what backbone.mpp_token tells, so that little is learnt from it; leave out one of them"


def _hardly_known(field: Field) -> str:
    if field.known >= _KNOWN:
        return ""
    return f"guide.{field.name} is known of {field.known:.0%} of the tiles that are drawn: it is learnt of these alone"


def _confounded(recipe: Recipe, sampler: Sampler, guide: Sequence[Field]) -> list[str]:
    """What is to be removed, and tells what there is to learn: tissue and stain, and fields that are encouraged."""
    weights = recipe.guide.wanted
    removed = [field for field in guide if field.classes and weights[field.name] < 0]
    wanted = {name: weight > 0 for name, weight in weights.items()} | {"tissue": True, "stain": True}
    wanted |= {field.name: False for field in removed}
    found = []
    for field in removed:
        for name in (name for name in CLASSES if wanted.get(name)):
            other = class_field(sampler, name)
            if other.classes and (together := association(sampler, field, other)) > _CONFOUNDED:
                found.append(
                    f"guide.{field.name} and {name} go together in these shards (Cramer's V {together:.2f}): what "
                    f"removes the {field.name} removes the {name}, too"
                )
    return found


def _strata(recipe: Recipe, sampler: Sampler) -> str:
    """Tiles of small strata come in many batches; no batch holds one twice."""
    drawn = [stratum for stratum in sampler.strata if stratum["target"] > 0]
    small = sorted((stratum for stratum in drawn if stratum["tiles"] < _FEW), key=lambda stratum: stratum["tiles"])
    if not small:
        return ""
    steps, batch, levels = recipe.schedule.steps, recipe.sampling.batch, sampler.settings.strata

    def named(stratum: dict[str, Any]) -> str:
        each = steps * _in_a_batch(stratum["target"], stratum["tiles"], batch) / stratum["tiles"]
        words = " / ".join(str(stratum[level]) for level in ("magnification", *levels))
        tiles = "1 tile, drawn" if stratum["tiles"] == 1 else f"{stratum['tiles']} tiles, each drawn"
        return f"{words}: {tiles} {each:,.0f} times"

    more = f", and {len(small) - _SHOWN} more" if len(small) > _SHOWN else ""
    which = ", ".join(named(stratum) for stratum in small[:_SHOWN])
    return (
        f"{len(small)} of {len(drawn)} strata have fewer than {_FEW} tiles, which come again and again in {steps:,} "
        f"steps ({which}{more}); a higher sampling.alpha, or WHERE, draws them less"
    )


def _in_a_batch(share: float, tiles: int, batch: int) -> float:
    """How many of a stratum's tiles a batch is expected to hold: of its binomial number of draws, no tile twice."""
    chances = (math.comb(batch, k) * share**k * (1 - share) ** (batch - k) for k in range(min(tiles, batch + 1)))
    return tiles - sum((tiles - k) * chance for k, chance in enumerate(chances))
