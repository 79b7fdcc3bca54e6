"""Released weights of DINOv2-type ViTs as the beginning of a run: timm's, Meta's and Hugging Face's layouts."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretrain.compute.memory import require_memory
from pretrain.compute.plain_files import read_json
from pretrain.compute.tensor_files import TensorFile, open_tensors
from pretrain.errors import BadWeights
from pretrain.model.backbone import Backbone, BackboneSettings
from pretrain.model.normalise import MEAN, STD
from pretrain.model.weights.layouts import Held, HeldTensor, renamed
from wsi_prep.errors import BadOption, first_line

import timm  # isort: skip - backbone has made it importable
from timm.layers.pos_embed import resample_abs_pos_embed  # isort: skip - backbone has made timm importable

_FILES = ("model.safetensors", "pytorch_model.bin")
_OF_FEATURES = ("blocks.", "norm_pre.", "patch_embed.", "norm.")  # names without which features are others
_TIMM = "make evaluate and make embed take it as local-dir:FOLDER, by timm"
_BLOCK = re.compile(r"blocks\.([^.]*)\.(.+)", re.DOTALL)
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Loaded:
    """What was taken from a file: names that it filled, names that it lacks, its own that have no place, and those that
    were resampled to another size.
    """

    file: Path
    filled: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    resampled: tuple[str, ...]

    def lines(self) -> list[str]:
        """For people."""
        total = len(self.filled) + len(self.missing)
        found = [f"{self.file}: {len(self.filled)} of {total} tensors of the backbone are from there"]
        for what, names in (("begin anew", self.missing), ("not used", self.unused), ("resampled", self.resampled)):
            if names:
                more = f" and {len(names) - 8} more" if len(names) > 8 else ""
                found.append(f"{what}: {', '.join(names[:8])}{more}")
        return found


def released_backbone(where: Path) -> Backbone:
    """The backbone of a folder with weights and the config.json that timm or transformers wrote.

    Raises BadWeights, also where this backbone would not compute what the weights were made for. Nothing is built
    before the file's header says that all of it is there.
    """
    file = open_tensors(_file(where))
    held, path = renamed(file), file.path
    told = settings_of(held, path)
    _, side = _grid(held["pos_embed"].shape, 1 + int(told["registers"]), path)
    try:
        settings = BackboneSettings(heads=_heads(path.parent, path), image_px=side * told["patch_px"], **told)
    except BadOption as error:
        raise BadWeights(f"{path} holds no ViT that can be: {error}") from error
    _check_whole(held, settings, path)
    _check_colours(path.parent)
    require_memory(settings.parameters * 4, f"the ViT of {path}", BadWeights)
    backbone = Backbone(settings)
    _fill(backbone, file, held)
    return backbone


def _check_whole(held: Held, settings: BackboneSettings, path: Path) -> None:
    """Raise BadWeights unless the file has every tensor that features depend on, in its shape, and no other."""
    wanted = shapes_of(settings)
    for name, shape in wanted.items():
        if name not in held:
            if name == "mask_token" or name.endswith(".attn.qkv.bias"):  # both are 0
                continue
            raise BadWeights(f"{path} lacks {name}, so that it is of another ViT than is known here; {_TIMM}")
        if name != "pos_embed" and _sides(held[name].shape) != _sides(shape):
            raise BadWeights(
                f"{path} holds {name} of shape {_shown(held[name].shape)}; in this ViT it is {_shown(shape)}"
            )
    if strange := [name for name in sorted(held) if name.startswith(_OF_FEATURES) and name not in wanted]:
        raise BadWeights(f"{path} holds {strange[0]}, so that it is of another ViT than is known here; {_TIMM}")


def shapes_of(settings: BackboneSettings) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of such a backbone, by its name in timm; one block is made, and without memory."""
    with torch.device("meta"):
        one = Backbone(replace(settings, depth=1))
    found = {"mask_token": tuple(one.mask_token.shape)}
    for name, value in one.vit.state_dict().items():
        block = _BLOCK.fullmatch(name)
        names = [f"blocks.{n}.{block[2]}" for n in range(settings.depth)] if block else [name]
        found |= dict.fromkeys(names, tuple(value.shape))
    return found


def _sides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without sides of one, which layouts have here and there."""
    return tuple(side for side in shape if side != 1)


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"


def read_config(file: Path) -> dict[str, Any]:
    """What a small JSON file says; nothing where it is not there. Raises BadWeights where it says no such thing."""
    try:
        told = read_json(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadWeights(f"{file} cannot be read: {first_line(error)}") from error
    if not isinstance(told, dict):
        raise BadWeights(f"{file} is no record of a model")
    return told


def _check_colours(folder: Path) -> None:
    """Tiles are normalised as in training; BadWeights where the folder says that its model wants it otherwise."""
    for name, keys in (("config.json", ("mean", "std")), ("preprocessor_config.json", ("image_mean", "image_std"))):
        told = read_config(folder / name)
        told = told.get("pretrained_cfg", told)
        wanted = [told.get(key) for key in keys] if isinstance(told, dict) else []
        for values, ours in zip(wanted, (MEAN, STD), strict=False):
            if values is not None and not _close(values, ours):
                raise BadWeights(
                    f"{folder / name} asks for colours normalised by {str(values)[:80]}, not by {list(ours)}; {_TIMM}"
                )


def _close(values: Any, ours: tuple[float, ...]) -> bool:
    numbers = isinstance(values, list) and len(values) == len(ours) and all(type(v) in (int, float) for v in values)
    return numbers and bool(np.allclose(values, ours, atol=1e-3))


def _heads(folder: Path, file: Path) -> int:
    """The number of attention heads, which no tensor's shape tells."""
    config = read_config(folder / "config.json")
    arguments = config.get("model_args")
    told = config.get("num_attention_heads", arguments.get("num_heads") if isinstance(arguments, dict) else None)
    if told is not None:
        if type(told) is not int or told < 1:
            raise BadWeights(
                f"{folder / 'config.json'} says {str(told)[:80]!r} heads, which is no whole number from 1 up"
            )
        return told
    try:
        plain = re.findall(r"^\w+$", config["architecture"])[0]  # timm would fetch what "hf-hub:..." names
        with torch.device("meta"):
            model: Any = timm.create_model(plain)
            return int(model.blocks[0].attn.num_heads)
    except Exception as error:  # of timm, with errors of its own
        raise BadWeights(
            f"{file} needs a config.json beside it that names the architecture, as timm and transformers write it"
        ) from error


def load_backbone(backbone: Backbone, where: Path) -> Loaded:
    """Fill the backbone from a file, or from a folder with one, of .safetensors, or of .pth / .bin without code in it.

    Raises BadWeights where there is none, or where its architecture is another one.
    """
    file = open_tensors(_file(where))
    held, path = renamed(file), file.path
    _check(backbone.settings, settings_of(held, path), path)
    before = held["pos_embed"].shape
    _grid(before, backbone.prefix, path)
    own = _own(backbone)
    filled = _fill(backbone, file, held)
    return Loaded(
        path,
        tuple(name for name in own if name in filled),
        tuple(name for name in own if name not in filled),
        tuple(sorted(set(held) - filled)),
        ("pos_embed",) if before != own["pos_embed"].shape else (),
    )


def _own(backbone: Backbone) -> dict[str, Tensor]:
    return {"mask_token": backbone.mask_token, **backbone.vit.state_dict()}


def _fill(backbone: Backbone, file: TensorFile, held: Held) -> set[str]:
    """Copy each tensor of the file that fits into the backbone, one after another; returns their names."""
    filled = set()
    with torch.no_grad():
        for name, target in _own(backbone).items():
            if name not in held:
                continue
            fits = name == "pos_embed" or _sides(held[name].shape) == _sides(tuple(target.shape))
            if fits:
                value = _whole(file, held[name])
                value = _positions(value, backbone, file.path) if name == "pos_embed" else value
                target.copy_(value.view(target.shape))
                filled.add(name)
    return filled


def _whole(file: TensorFile, held: HeldTensor) -> Tensor:
    parts = [file.read(part) for part in held.parts]
    value = parts[0] if len(parts) == 1 else torch.cat(parts)
    if value.dtype == torch.float64 and not torch.isfinite(value.float()).all():
        raise BadWeights(f"{file.path} holds numbers in {held.parts[0]} that float32 cannot hold")
    return value


def _positions(given: Tensor, backbone: Backbone, file: Path) -> Tensor:
    """A position embedding as timm has it with a row for every token, on the backbone's grid.

    Files hold the patches' rows alone (timm's no_embed_class), with one for the class token (Meta), or with all.
    """
    prefix = backbone.prefix
    held, side = _grid(tuple(given.shape), prefix, file)
    first = torch.zeros(1, prefix, given.shape[2], dtype=given.dtype)
    first[:, :held] = given[:, :held]
    grid = list(backbone.vit.patch_embed.grid_size)
    whole = torch.cat([first, given[:, held:]], dim=1)
    resampled: Tensor = resample_abs_pos_embed(whole, new_size=grid, old_size=[side, side], num_prefix_tokens=prefix)
    return resampled


def _grid(shape: tuple[int, ...], prefix: int, file: Path) -> tuple[int, int]:
    """How many rows of a position embedding come before the patches', and the patches a side."""
    rows = shape[1]
    for held in (prefix, 1, 0):
        side = math.isqrt(max(rows - held, 0))
        if side and side * side == rows - held:
            return held, side
    raise BadWeights(f"{file} has positions of {rows} tokens, which are no square of patches")


def settings_of(held: Held, file: Path) -> dict[str, Any]:
    """The BackboneSettings that the shapes of timm-named weights tell; the number of heads is not among them.

    Raises BadWeights for shapes that no ViT has, and for blocks with gaps between them.
    """

    def sides(name: str, count: int) -> tuple[int, ...]:
        if name not in held:
            raise BadWeights(f"{file} holds no ViT that is known here ({name} is not in it)")
        shape = held[name].shape
        if len(shape) != count or min(shape) < 1:
            raise BadWeights(f"{file} holds {name} of shape {_shown(shape)}; a ViT's has {count} sides, each from 1 up")
        return shape

    width, colours, patch, across = sides("patch_embed.proj.weight", 4)
    if colours != 3 or patch != across:
        raise BadWeights(f"{file} takes patches of {_shown((colours, patch, across))}; here they are 3 x px x px")
    inner, outer = sides("blocks.0.mlp.fc1.weight", 2), sides("blocks.0.mlp.fc2.weight", 2)
    one, _, across = sides("pos_embed", 3)
    registers = sides("reg_token", 3) if "reg_token" in held else (1, 0, width)
    if (one, across) != (1, width) or registers[::2] != (1, width):
        raise BadWeights(f"{file} has positions or registers that are not {width} wide, as its patches are")
    return {
        "width": width,
        "depth": _depth(held, file),
        "patch_px": patch,
        "registers": registers[1],
        "swiglu": inner[0] == 2 * outer[1],
        "mlp_ratio": inner[0] / width,
        "qk_norm": "blocks.0.attn.q_norm.weight" in held,
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in held else 0.0,
    }


def _depth(held: Held, file: Path) -> int:
    """How many blocks there are. Raises BadWeights where they are not numbered from 0 without a gap."""
    words = {found[1] for found in map(_BLOCK.fullmatch, held) if found}
    if odd := sorted(word for word in words if not _NUMBER.fullmatch(word)):
        raise BadWeights(f"{file} holds a block {odd[0][:40]!r}, which is no number")
    numbers = sorted(map(int, words))
    if missing := next((n for n, number in enumerate(numbers) if n != number), None):
        raise BadWeights(f"{file} holds a block {numbers[-1]} and no block {missing}; blocks are numbered without gaps")
    return len(numbers)


def _check(wanted: BackboneSettings, given: dict[str, Any], file: Path) -> None:
    def differs(name: str) -> bool:
        mine, theirs = getattr(wanted, name), given[name]
        if name == "mlp_ratio":
            mine, theirs = int(wanted.width * mine), round(wanted.width * theirs)
        elif name == "layer_scale":  # its value is where it begins
            mine, theirs = bool(mine), bool(theirs)
        return bool(mine != theirs)

    if differing := [name for name in given if differs(name)]:
        change = " ".join(f"backbone.{name}={str(given[name]).lower()}" for name in differing)
        raise BadWeights(f"{file} holds another ViT than the recipe; set {change}, or name other weights")


def _file(where: Path) -> Path:
    if where.is_file():
        return where
    if found := [where / name for name in _FILES if (where / name).is_file()]:
        return found[0]
    raise BadWeights(f"{where} is no file of weights and holds none of {', '.join(_FILES)}")
