"""Models of RUN folders, at a step or the newest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from pretrain.compute import distributed
from pretrain.compute.memory import require_memory
from pretrain.errors import BadRun
from pretrain.features.colours import of_colours
from pretrain.features.embedder import Embedder, of_backbone, of_timm
from pretrain.model.backbone import Backbone, BackboneSettings
from pretrain.model.guide import Eraser
from pretrain.model.initial import initialise
from pretrain.model.network import Network
from pretrain.model.weights.load import released_backbone
from pretrain.model.weights.timm_folder import PREFIX
from pretrain.train.checkpoint import latest_step, step_folder
from pretrain.train.recipe import recipe as recipes
from wsi_prep.errors import first_line

M = TypeVar("M", bound=nn.Module)

_ERASER = "average.backbone.eraser."
COLOURS, UNTRAINED = "colours", "untrained:"
"""Names of what trained features are compared with."""


def load_run(folder: Path, step: int | None = None) -> tuple[Backbone, int]:
    """What a RUN folder is for, the backbone of the student's moving mean; at a step or the newest. Raises BadRun.

    With what erases the fields that its guide has below 0, where it has some.
    """
    settings = recipes.load(folder / "recipe.json").backbone

    def make(depth: int) -> Backbone:
        return Backbone(replace(settings, depth=depth))

    backbone, chosen = _filled(folder, step, "average.backbone", make, settings)
    backbone.eraser = _eraser(folder, chosen, backbone)
    return backbone, chosen


def _eraser(folder: Path, step: int, backbone: Backbone) -> Eraser | None:
    """What erases the guide's fields from the tokens of a step; None where the run erases none. Raises BadRun."""
    at = step_folder(folder / "checkpoints", step)
    try:
        held = distributed.saved_shapes(at)
        if (shape := held.get(f"{_ERASER}into")) is None:
            return None
        layers, kinds, width = backbone.settings.depth + 2, backbone.prefix + 1, backbone.settings.width
        eraser = Eraser(layers, kinds, width, shape[-1] if shape else 0)
        tensors = {f"{_ERASER}{name}": value for name, value in eraser.state_dict().items()}
        _check_shapes(held, tensors)
        distributed.load(tensors, at)
    except Exception as error:  # as of the network
        raise BadRun(f"{at} cannot be read ({first_line(error)})") from error
    if not all(value.isfinite().all() for value in eraser.state_dict().values()):
        raise BadRun(f"{at} holds an eraser with NaN or infinite numbers; name another step")
    return eraser


def _check_shapes(held: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless every tensor is held, in its shape."""
    for name, value in tensors.items():
        if held.get(name) != tuple(value.shape):
            raise ValueError(f"{name} is {held.get(name)} there and {tuple(value.shape)} by the others")


def load_model(where: str | Path) -> Backbone:
    """The backbone of a RUN folder, or of a folder of weights with a config.json. Raises BadRun and BadWeights.

    >>> load_model("model").settings.width
    32
    """
    where = Path(where)
    return load_run(where)[0] if (where / "recipe.json").is_file() else released_backbone(where)


def load_embedder(where: str | Path) -> Embedder:
    """Whatever makes features of tiles: what load_model takes, or a model by a name that timm knows.

    timm's names are as `vit_small_patch14_dinov2.lvd142m`, `hf-hub:owner/name` and `local-dir:folder`; pixels are
    normalised and sized as the model asks. Where no folder has such a name, `untrained:RUN` is a run's network before
    its first step, and `colours` are the colours alone. Raises BadRun and BadWeights.

    >>> load_embedder("model").patch_px
    14
    >>> load_embedder("local-dir:model").px  # by timm's own code; 0: it takes tiles of any size
    0
    """
    folder = Path(where)
    if folder.exists():
        return of_backbone(load_model(folder))
    if str(where) == COLOURS:
        return of_colours()
    if str(where).startswith(UNTRAINED):
        return of_backbone(untrained(Path(str(where).removeprefix(UNTRAINED))))
    return of_timm(str(where))


def model_name(where: str | Path) -> str:
    """What people call what load_embedder loads: a folder's own name, never where it lies; timm's names as they are."""
    if Path(where).exists():
        return Path(where).resolve().name or str(where)
    said = str(where)
    return PREFIX + Path(said.removeprefix(PREFIX)).resolve().name if said.startswith(PREFIX) else said


def load_network(folder: Path, step: int | None = None) -> tuple[Network, int]:
    """The same with its heads; heads that are none where the run was distilled itself. Raises BadRun."""
    recipe = recipes.load(folder / "recipe.json")
    if recipe.teacher:
        backbone, chosen = load_run(folder, step)
        backbone.eraser = None  # as of a run with heads, which have learnt what it makes of tiles otherwise
        return Network(backbone, nn.Identity(), nn.Identity()), chosen
    settings, head = recipe.backbone, recipe.objective.head

    def make(depth: int) -> Network:
        return Network.with_heads(replace(settings, depth=depth), head)

    return _filled(folder, step, "average", make, settings)


def _filled(
    folder: Path, step: int | None, prefix: str, make: Callable[[int], M], settings: BackboneSettings
) -> tuple[M, int]:
    """A module with a checkpoint's tensors, and its step; it is made once the files say that all of it is there."""
    chosen = latest_step(folder / "checkpoints") if step is None else step
    if chosen is None:
        raise BadRun(f"{folder} holds no checkpoint; train it first")
    at = step_folder(folder / "checkpoints", chosen)
    if not at.is_dir():
        raise BadRun(f"{folder} holds no checkpoint of step {chosen}")
    try:
        held = distributed.saved_shapes(at)
        _check_whole(held, prefix, make, settings.depth)
        require_memory(4 * settings.parameters, f"the ViT of {folder}", BadRun)
        module = make(settings.depth)
        tensors = {f"{prefix}.{name}": value for name, value in module.state_dict().items()}
        distributed.load(tensors, at)
    except BadRun:
        raise
    except Exception as error:  # of safetensors, json and torch, each with errors of its own
        raise BadRun(f"{at} cannot be read ({first_line(error)})") from error
    if odd := [name for name, value in tensors.items() if not value.isfinite().all()]:
        raise BadRun(f"{at} holds {odd[0]} with NaN or infinite numbers; name another step")
    return module, chosen


def _check_whole(
    held: Mapping[str, tuple[int, ...]], prefix: str, make: Callable[[int], nn.Module], depth: int
) -> None:
    """Raise ValueError unless every tensor of the module is held, in its shape; one block is made, without memory."""
    with torch.device("meta"):
        one = make(1)
    for name, value in one.state_dict().items():
        before, block, after = name.partition("vit.blocks.0.")
        for full in [f"{before}vit.blocks.{n}.{after}" for n in range(depth)] if block else [name]:
            if (has := held.get(f"{prefix}.{full}")) != tuple(value.shape):
                raise ValueError(f"{full} is {has} there and {tuple(value.shape)} by recipe.json")


def untrained(folder: Path) -> Backbone:
    """The network of a RUN folder as it was before its first step."""
    recipe = recipes.load(folder / "recipe.json")
    require_memory(4 * recipe.backbone.parameters, f"the ViT of {folder}", BadRun)
    backbone = Backbone(recipe.backbone)
    initialise(backbone, recipe.seed, "backbone.")  # as it is named in a network
    return backbone


def load_teacher(where: Path) -> Network:
    """The newest of a RUN folder, with its heads, or released weights with a config.json, without heads."""
    if (where / "recipe.json").is_file():
        return load_network(where)[0]
    return Network(released_backbone(where), nn.Identity(), nn.Identity())
