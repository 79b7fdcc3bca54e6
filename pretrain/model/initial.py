"""The weights that training begins with: each parameter's own random numbers, so that shards are filled like the whole.

A network can be made on torch's meta device, spread over processes, and filled then: no process ever holds all of it.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from pretrain.compute import distributed
from pretrain.model.backbone import Backbone
from pretrain.model.heads import Head, prototype_bound

from timm.layers.layer_scale import LayerScale  # isort: skip - backbone has made timm importable
from timm.models.vision_transformer import VisionTransformer  # isort: skip


def initialise(module: nn.Module, seed: int, prefix: str = "") -> None:
    """Fill every parameter, in place, by its name (after `prefix`) and the seed; in shards or whole alike.

    As DINOv2 does: weights of linear layers and positions from a normal distribution of 0.02, biases 0; class and
    register tokens of 1e-6; prototypes and convolutions as torch makes its layers.
    """
    with torch.no_grad():
        for path, owner in module.named_modules():
            for name, parameter in owner.named_parameters(recurse=False):
                full = f"{prefix}{path}.{name}" if path else f"{prefix}{name}"
                digest = hashlib.blake2b(f"{seed}/{full}".encode(), digest_size=8).digest()
                numbers = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
                distributed.fill(parameter, _values(owner, name, torch.empty(parameter.shape), numbers))


def _values(owner: nn.Module, name: str, empty: Tensor, numbers: torch.Generator) -> Tensor:
    match owner:
        case nn.LayerNorm():
            values = empty.fill_(1.0 if name == "weight" else 0.0)
        case LayerScale():
            values = empty.fill_(owner.init_values)
        case nn.Conv2d():
            bound = 1 / math.sqrt(owner.in_channels * math.prod(owner.kernel_size))
            values = empty.uniform_(-bound, bound, generator=numbers)
        case nn.Linear():
            values = empty.zero_() if name == "bias" else empty.normal_(std=0.02, generator=numbers)
        case VisionTransformer():
            values = empty.normal_(std=0.02 if name == "pos_embed" else 1e-6, generator=numbers)
        case Head():
            bound = prototype_bound(owner.prototypes.shape[1])
            values = empty.uniform_(-bound, bound, generator=numbers)
        case Backbone():
            values = empty.zero_()  # the mask token
        case _:
            raise TypeError(f"no rule fills {name} of {type(owner).__name__}")
    return values
