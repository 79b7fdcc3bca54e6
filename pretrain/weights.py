"""Released weights of DINOv2-type ViTs as the beginning of a run: timm's, Meta's and Hugging Face's layouts."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pretrain.backbone import Backbone, BackboneSettings
from pretrain.colour import MEAN, STD
from pretrain.errors import BadWeights

import timm  # isort: skip - backbone has made it importable
from timm.layers.pos_embed import resample_abs_pos_embed  # isort: skip - backbone has made timm importable

_FILES = ("model.safetensors", "pytorch_model.bin")
_HUGGING_FACE = (  # transformers' Dinov2Model and Dinov2WithRegistersModel
    (r"^(dinov2|dinov2_with_registers)\.", ""),
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.mask_token$", "mask_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"^layernorm\.", "norm."),
)
_OF_FEATURES = ("blocks.", "norm_pre.", "patch_embed.", "norm.")  # names without which features are others
_TIMM = "make evaluate takes it as local-dir:FOLDER, by timm"
_QKV = re.compile(r"(blocks\.\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)$")


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

    Raises BadWeights, also where this backbone would not compute what the weights were made for.
    """
    file = _file(where)
    weights = _rename(_read(file))
    told = settings_of(weights, file)
    if "pos_embed" not in weights:
        raise BadWeights(f"{file} holds no ViT that is known here (pos_embed is not in it)")
    _, side = _grid(weights["pos_embed"], 1 + int(told["registers"]), file)
    settings = BackboneSettings(heads=_heads(file.parent, file), image_px=side * told["patch_px"], **told)
    backbone = Backbone(settings)
    loaded = load_backbone(backbone, file)
    new = [
        name for name in loaded.missing if name != "mask_token" and not name.endswith(".attn.qkv.bias")
    ]  # both are 0
    strange = [name for name in loaded.unused if name.startswith(_OF_FEATURES)]
    if wrong := new + strange:
        what = "lacks" if new else "holds"
        raise BadWeights(f"{file} {what} {wrong[0]}, so that it is of another ViT than is known here; {_TIMM}")
    _check_colours(file.parent)
    return backbone


def _check_colours(folder: Path) -> None:
    """Tiles are normalised as in training; BadWeights where the folder says that its model wants it otherwise."""
    for name, keys in (("config.json", ("mean", "std")), ("preprocessor_config.json", ("image_mean", "image_std"))):
        try:
            told = json.loads((folder / name).read_text())
            told = told.get("pretrained_cfg", told)
            wanted = [told.get(key) for key in keys]
        except (OSError, ValueError, AttributeError):
            continue
        for values, ours in zip(wanted, (MEAN, STD), strict=True):
            if values is not None and not np.allclose(values, ours, atol=1e-3):
                raise BadWeights(
                    f"{folder / name} asks for colours normalised by {values}, not by {list(ours)}; {_TIMM}"
                )


def _heads(folder: Path, file: Path) -> int:
    """The number of attention heads, which no tensor's shape tells."""
    try:
        config = json.loads((folder / "config.json").read_text())
        if "num_attention_heads" in config:
            return int(config["num_attention_heads"])
        if heads := config.get("model_args", {}).get("num_heads"):
            return int(heads)
        plain = re.findall(r"^\w+$", config["architecture"])[0]  # timm would fetch what "hf-hub:..." names
        with torch.device("meta"):
            model: Any = timm.create_model(plain)
            return int(model.blocks[0].attn.num_heads)
    except Exception as error:  # of files, json and timm, each with errors of its own
        raise BadWeights(
            f"{file} needs a config.json beside it that names the architecture, as timm and transformers write it"
        ) from error


def load_backbone(backbone: Backbone, where: Path) -> Loaded:
    """Fill the backbone from a file, or from a folder with one, of .safetensors, or of .pth / .bin without code in it.

    Raises BadWeights where there is none, or where its architecture is another one.
    """
    file = _file(where)
    given = _rename(_read(file))
    _check(backbone.settings, settings_of(given, file), file)
    before = given["pos_embed"].shape
    given["pos_embed"] = _positions(given["pos_embed"], backbone, file)
    own = {"mask_token": backbone.mask_token, **backbone.vit.state_dict()}
    fitting = {n: v for n, v in given.items() if n in own and v.numel() == own[n].numel()}
    with torch.no_grad():
        for name, value in fitting.items():
            own[name].copy_(value.view(own[name].shape))
    return Loaded(
        file,
        tuple(name for name in own if name in fitting),
        tuple(name for name in own if name not in fitting),
        tuple(sorted(set(given) - set(fitting))),
        ("pos_embed",) if before != own["pos_embed"].shape else (),
    )


def _positions(given: Tensor, backbone: Backbone, file: Path) -> Tensor:
    """A position embedding as timm has it with a row for every token, on the backbone's grid.

    Files hold the patches' rows alone (timm's no_embed_class), with one for the class token (Meta), or with all.
    """
    prefix = backbone.prefix
    held, side = _grid(given, prefix, file)
    first = torch.zeros(1, prefix, given.shape[2], dtype=given.dtype)
    first[:, :held] = given[:, :held]
    grid = list(backbone.vit.patch_embed.grid_size)
    whole = torch.cat([first, given[:, held:]], dim=1)
    resampled: Tensor = resample_abs_pos_embed(whole, new_size=grid, old_size=[side, side], num_prefix_tokens=prefix)
    return resampled


def _grid(given: Tensor, prefix: int, file: Path) -> tuple[int, int]:
    """How many rows of a position embedding come before the patches', and the patches a side."""
    rows = given.shape[1]
    for held in (prefix, 1, 0):
        side = math.isqrt(rows - held)
        if side * side == rows - held:
            return held, side
    raise BadWeights(f"{file} has positions of {rows} tokens, which are no square of patches")


def settings_of(weights: dict[str, Tensor], file: Path) -> dict[str, Any]:
    """The BackboneSettings that the shapes of timm-named weights tell; the number of heads is not among them."""
    try:
        width, _, patch, _ = weights["patch_embed.proj.weight"].shape
        depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
        inner, outer = weights["blocks.0.mlp.fc1.weight"], weights["blocks.0.mlp.fc2.weight"]
    except (KeyError, ValueError) as error:
        raise BadWeights(f"{file} holds no ViT that is known here ({error} is not in it)") from error
    registers = weights.get("reg_token")
    return {
        "width": width,
        "depth": depth,
        "patch_px": patch,
        "registers": registers.shape[1] if registers is not None else 0,
        "swiglu": inner.shape[0] == 2 * outer.shape[1],
        "mlp_ratio": inner.shape[0] / width,
        "qk_norm": "blocks.0.attn.q_norm.weight" in weights,
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in weights else 0.0,
    }


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


def _read(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise BadWeights(f"{file} cannot be read: {_line(error)}") from error
    except Exception as error:  # pickle's own, for files that hold more than tensors
        raise BadWeights(f"{file} holds more than tensors and is not opened; convert it to .safetensors") from error
    for key in ("model", "state_dict", "teacher"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise BadWeights(f"{file} holds no table of tensors by name")
    return found


def _rename(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Timm's names in place of those of transformers or of Meta's repository."""
    out: dict[str, Tensor] = {}
    split: dict[str, dict[str, Tensor]] = {}
    for name, value in weights.items():
        name = name.removeprefix("module.").removeprefix("backbone.")  # noqa: PLW2901 - wrappers of other trainers
        for pattern, replacement in _HUGGING_FACE:
            name = re.sub(pattern, replacement, name)  # noqa: PLW2901
        if found := _QKV.match(name):
            split.setdefault(f"{found[1]}.attn.qkv.{found[3]}", {})[found[2]] = value
            continue
        name = name.replace("register_tokens", "reg_token")  # noqa: PLW2901
        out[re.sub(r"\.mlp\.w12\.", ".mlp.fc1.", re.sub(r"\.mlp\.w3\.", ".mlp.fc2.", name))] = value
    for name, parts in split.items():
        out[name] = torch.cat([parts[key] for key in ("query", "key", "value")])
    return out


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
