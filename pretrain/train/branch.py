"""Runs that go on under changed settings: one that is made longer, and one that begins with what another has learnt."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from pretrain.compute import distributed
from pretrain.errors import BadRun
from pretrain.learning.schedules import same_until
from pretrain.train.checkpoint import latest_step, step_folder
from pretrain.train.recipe import recipe as recipes
from pretrain.train.recipe.overrides import at_step
from pretrain.train.recipe.recipe import Recipe
from wsi_prep.errors import first_line

_OF_BACKBONE = re.compile(r"(student|average)\.backbone\.")
_OF_GUIDE = re.compile(r"(student|optimizer)\.guide\.")  # whose classes are those of the shards


def prolonged(asked: Recipe, saved: Recipe, done: int) -> Recipe | None:
    """The recipe that a run of `saved` goes on with after `done` steps, where `asked` changes nothing of these steps.

    That is so where only the schedule or stages differ, and only in later steps. None otherwise.
    """
    schedule = saved.schedule
    if asked.schedule != saved.schedule:
        shares_of = asked.schedule.shares_of or saved.schedule.shares_of or saved.schedule.steps
        schedule = replace(asked.schedule, shares_of=shares_of)
    if recipes.differences(replace(asked, schedule=saved.schedule, stages=saved.stages), saved):
        return None
    begun = [[stage for stage in each.stages if stage.start < done] for each in (asked, saved)]
    if begun[0] != begun[1]:
        return None
    return replace(asked, schedule=schedule) if same_until(schedule, saved.schedule, done) else None


def origin_of(text: str) -> tuple[Path, int]:
    """A RUN folder and a step of it, of `runs/a@1000`, or of `runs/a`, which is its newest. Raises BadRun."""
    folder, at, number = text.rpartition("@")
    if Path(text).is_dir() or not (at and number.isascii() and number.isdigit()):
        folder, number = text, ""
    if not (Path(folder) / "recipe.json").is_file():
        raise BadRun(f"CONTINUE={text} is no folder of a run: it has no recipe.json")
    step = int(number) if number else latest_step(Path(folder) / "checkpoints")
    if step is None or not step_folder(Path(folder) / "checkpoints", step).is_dir():
        raise BadRun(f"CONTINUE={text} holds no checkpoint" + (f" of step {number}" if number else "; train it first"))
    return Path(folder).resolve(), step


def branched(text: str, steps: bool = False) -> Recipe:
    """The recipe of a new run that begins with what the run that CONTINUE names has learnt. Raises BadRun.

    Of stages, those that have begun are part of it; later ones where the count of `steps` goes on.
    """
    folder, step = origin_of(text)
    return replace(_recipe_at(folder, step, steps), start_from="", continue_from=f"{folder}@{step}")


def _recipe_at(folder: Path, step: int, steps: bool) -> Recipe:
    """That of a run at a step."""
    whole = recipes.load(folder / "recipe.json")
    later = tuple(stage for stage in whole.stages if stage.start > step) if steps else ()
    return replace(at_step(whole, step), stages=later)


def begin_with(recipe: Recipe, tensors: Mapping[str, Tensor]) -> None:
    """Fill a new run's tensors, by their names in checkpoints, from the one that it continues. Raises BadRun."""
    folder, step = origin_of(recipe.continue_from)
    at = step_folder(folder / "checkpoints", step)
    wanted = {name: value for name, value in tensors.items() if _is_continued(name, recipe.continue_with)}
    try:
        held = distributed.saved_shapes(at)
        other = next((name for name, value in wanted.items() if held.get(name) != tuple(value.shape)), None)
        if other is None:
            distributed.load(wanted, at)
    except Exception as error:  # of safetensors, json and torch, each with errors of its own
        raise BadRun(f"{at} cannot be read ({first_line(error)})") from error
    if other is not None:
        raise BadRun(
            f"{at} holds {other} as {held.get(other)}, and this recipe has it as {tuple(wanted[other].shape)}; leave "
            "the network's settings as they are, or begin with new heads: SET=continue_with=backbone"
        )
    if odd := [name for name, value in wanted.items() if not distributed.local(value).isfinite().all()]:
        raise BadRun(f"{at} holds {odd[0]} with NaN or infinite numbers; name another step, as in CONTINUE=run@1000")


def _is_continued(name: str, how: str) -> bool:
    if _OF_GUIDE.match(name) or name.startswith("anchor."):  # a new run anchors to what it begins with
        return False
    if how == "backbone":
        return _OF_BACKBONE.match(name) is not None
    return how == "all" or not name.startswith("optimizer.")


def continued(recipe: Recipe) -> dict[str, object]:
    """What run.json says of where a run began; empty where it began by itself."""
    if not recipe.continue_from:
        return {}
    folder, _, step = recipe.continue_from.rpartition("@")
    return {"run": folder, "step": int(step), "with": recipe.continue_with, "changes": _changes(recipe)}


def _changes(recipe: Recipe) -> list[str]:
    """What a recipe has otherwise than the run that it continues."""
    folder, _, step = recipe.continue_from.rpartition("@")
    before = _recipe_at(Path(folder), int(step), recipe.continue_with == "steps")
    own = replace(recipe, continue_from=before.continue_from, continue_with=before.continue_with)
    return recipes.differences(own, before)


def continued_notes(recipe: Recipe) -> list[str]:
    """What a user should know of a run's beginning in another."""
    if not recipe.continue_from:
        return []
    folder, _, step = recipe.continue_from.rpartition("@")
    what = {
        "all": "network, moving mean and optimizer",
        "steps": "network, moving mean, optimizer and the count of steps",
        "network": "network and moving mean",
    }.get(recipe.continue_with, "backbone and its moving mean")
    changes = _changes(recipe)
    said = f"; changed: {', '.join(changes)}" if changes else ""
    notes = [f"begins with {what} of {folder} at step {step}{said}"]
    if recipe.continue_with != "steps" and not any(change.startswith("sampling.seed:") for change in changes):
        notes.append("the seed is as there: the same shards give the same tiles; SET=sampling.seed=1 draws others")
    return notes
