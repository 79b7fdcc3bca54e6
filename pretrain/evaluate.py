"""Finished backbones judged on labelled tiles, beside the same network untrained and the colours alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pretrain import distributed
from pretrain import recipe as recipes
from pretrain.backbone import Backbone
from pretrain.checkpoint import latest_step, step_folder
from pretrain.errors import BadRun
from pretrain.network import Network
from pretrain.probe import Task, colour_statistics, embed, score
from pretrain.weights import released_backbone

_MOST_FOLDS = 32


@dataclass(frozen=True)
class Judged:
    """Balanced accuracy of one kind of features on one task: the mean over `folds`, and the standard deviation."""

    task: str
    features: str
    linear: float
    linear_sd: float
    knn: float
    knn_sd: float
    folds: int


def load_run(folder: Path, step: int | None = None) -> tuple[Backbone, int]:
    """What a RUN folder is for, the backbone of the student's moving mean; at a step or the newest. Raises BadRun."""
    backbone = Backbone(recipes.load(folder / "recipe.json").backbone)
    return backbone, _fill(folder, step, "average.backbone", backbone)


def load_model(where: Path) -> Backbone:
    """The backbone of a RUN folder, or of a folder of weights with a config.json. Raises BadRun and BadWeights."""
    return load_run(where)[0] if (where / "recipe.json").is_file() else released_backbone(where)


def load_network(folder: Path, step: int | None = None) -> tuple[Network, int]:
    """The same with its heads; heads that are none where the run was distilled itself. Raises BadRun."""
    recipe = recipes.load(folder / "recipe.json")
    if recipe.teacher:
        backbone, chosen = load_run(folder, step)
        return Network(backbone, nn.Identity(), nn.Identity()), chosen
    network = Network.with_heads(recipe.backbone, recipe.objective.head)
    return network, _fill(folder, step, "average", network)


def _fill(folder: Path, step: int | None, prefix: str, module: nn.Module) -> int:
    """Load a module's tensors from a checkpoint; returns its step."""
    chosen = latest_step(folder / "checkpoints") if step is None else step
    if chosen is None:
        raise BadRun(f"{folder} holds no checkpoint; train it first")
    at = step_folder(folder / "checkpoints", chosen)
    if not at.is_dir():
        raise BadRun(f"{folder} holds no checkpoint of step {chosen}")
    try:
        distributed.load({f"{prefix}.{name}": value for name, value in module.state_dict().items()}, at)
    except OSError as error:
        raise BadRun(f"{at} cannot be read ({error})") from error
    return chosen


def untrained(folder: Path) -> Backbone:
    """The network of a RUN folder as it was before its first step."""
    recipe = recipes.load(folder / "recipe.json")
    torch.manual_seed(recipe.sampling.seed)
    return Backbone(recipe.backbone)  # the first thing that an objective makes


def folds(task: Task) -> list[Task]:
    """The task as the table divides it; else, where groups are few, once for each choice of a group of every class.

    The chosen groups are held out with all their tiles. Where there are more than 32 choices, as load_task divides it.
    """
    by_class = [np.unique(task.groups[task.labels == number]) for number in range(len(task.classes))]
    choices = int(np.prod([len(groups) for groups in by_class]))
    if task.divided or choices > _MOST_FOLDS:
        return [task]
    found = []
    for chosen in itertools.product(*by_class):
        train = ~np.isin(task.groups, chosen)
        if all(train[task.labels == n].any() and not train[task.labels == n].all() for n in range(len(task.classes))):
            found.append(replace(task, train=train))
    return found or [task]


def judge(tasks: Sequence[Task], backbones: dict[str, Backbone], device: torch.device) -> Iterator[Judged]:
    """Colours alone, then every backbone, on every task."""
    for task in tasks:
        divided = folds(task)
        yield _judged(task, "colours alone", colour_statistics(task), divided)
        for name, backbone in backbones.items():
            yield _judged(task, name, embed(backbone.to(device), task, device), divided)


def _judged(task: Task, name: str, features: Tensor, divided: list[Task]) -> Judged:
    scores = [score(features, fold) for fold in divided]
    linear, knn = (np.array([getattr(s, kind) for s in scores]) for kind in ("linear", "knn"))
    spread = [float(values.std()) for values in (linear, knn)]
    return Judged(task.name, name, float(linear.mean()), spread[0], float(knn.mean()), spread[1], len(scores))
