"""Names of the tensors of a DINOv2-type ViT: timm's, in place of those of transformers and of Meta's repository."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pretrain.compute.tensor_files import TensorFile
from pretrain.errors import BadWeights

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
_QKV = re.compile(r"(blocks\.\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)$")


@dataclass(frozen=True)
class HeldTensor:
    """A tensor by its name in timm: the shape that the file's header says, and its `parts` in the file, stacked."""

    shape: tuple[int, ...]
    parts: tuple[str, ...]


Held = dict[str, HeldTensor]
"""A file's tensors by their names in timm."""


def renamed(file: TensorFile) -> Held:
    """Timm's names in place of those of transformers or of Meta's repository. Raises BadWeights for two of one name."""
    out: Held = {}
    split: dict[str, dict[str, str]] = {}
    for given, info in file.tensors.items():
        name = given.removeprefix("module.").removeprefix("backbone.")  # wrappers of other trainers
        for pattern, replacement in _HUGGING_FACE:
            name = re.sub(pattern, replacement, name)
        if found := _QKV.match(name):
            name, part = f"{found[1]}.attn.qkv.{found[3]}", found[2]
            if part in split.setdefault(name, {}):
                raise BadWeights(f"{file.path} holds the {part} of {name} twice")
            split[name][part] = given
            continue
        name = name.replace("register_tokens", "reg_token")
        name = re.sub(r"\.mlp\.w12\.", ".mlp.fc1.", re.sub(r"\.mlp\.w3\.", ".mlp.fc2.", name))
        if name in out:
            raise BadWeights(f"{file.path} holds {name} twice, also as {given}")
        out[name] = HeldTensor(info.shape, (given,))
    for name, parts in split.items():
        shapes = {file.tensors[part].shape for part in parts.values()}
        if name in out or set(parts) != {"query", "key", "value"} or len(shapes) > 1 or not (shape := shapes.pop()):
            raise BadWeights(f"{file.path} does not hold query, key and value of {name} once each, in one shape")
        three = tuple(parts[key] for key in ("query", "key", "value"))
        out[name] = HeldTensor((3 * shape[0], *shape[1:]), three)
    return out
