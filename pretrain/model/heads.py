"""The projection heads of DINO and iBOT (Caron et al. 2021, arXiv 2104.14294; Zhou et al. 2021, arXiv 2111.07832)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi_prep.errors import BadOption

_LARGEST = {"prototypes": 1 << 24, "hidden": 65_536, "bottleneck": 65_536, "layers": 64, "patch_bottleneck": 65_536}


@dataclass(frozen=True)
class HeadSettings:
    """An MLP of `layers` linear layers, `hidden` wide, to `bottleneck` numbers, compared with `prototypes`.

    `patch_bottleneck`: that of iBOT's head, 0 for the same as DINO's.
    """

    prototypes: int = 65536
    hidden: int = 2048
    bottleneck: int = 256
    layers: int = 3
    patch_bottleneck: int = 0

    def __post_init__(self) -> None:
        for name, most in _LARGEST.items():
            if not (least := int(name != "patch_bottleneck")) <= getattr(self, name) <= most:
                raise BadOption(f"{name} {getattr(self, name)} of a head is not between {least} and {most:,}")

    @property
    def of_patches(self) -> HeadSettings:
        """Those of iBOT's head."""
        return replace(self, bottleneck=self.patch_bottleneck or self.bottleneck)

    def parameters(self, width: int) -> int:
        """How many numbers the matrices of a head over features `width` wide have."""
        inner = self.hidden * (width + self.bottleneck + max(self.layers - 2, 0) * self.hidden)
        return (inner if self.layers > 1 else width * self.bottleneck) + self.prototypes * self.bottleneck


def prototype_bound(bottleneck: int) -> float:
    """Prototypes begin evenly between this and its negative, as torch makes a linear layer, and so DINOv2's.

    Only their direction is compared, but AdamW moves every number by about the learning rate: shorter ones turn faster.
    """
    return 1 / math.sqrt(bottleneck)


class Projection(NamedTuple):
    """What a head says of some rows: the cosines of `vectors` (rows, b) with `prototypes` (K, b), both of length 1.

    float32: bfloat16 is too coarse for a temperature of 0.04. The (rows, K) cosines are the largest matrix there is,
    so they are made by whoever needs them, some rows at a time: see learning.targets.Cosines.
    """

    vectors: Tensor
    prototypes: Tensor


class Head(nn.Module):
    """(rows, D) features -> their projection, whose cosines with the K prototypes lie in -1 to 1."""

    def __init__(self, width: int, settings: HeadSettings) -> None:
        super().__init__()
        sizes = [width, *[settings.hidden] * (settings.layers - 1), settings.bottleneck]
        layers: list[nn.Module] = []
        for number, (inward, outward) in enumerate(itertools.pairwise(sizes)):
            layers += [nn.GELU()] if number else []
            layers.append(nn.Linear(inward, outward))
        self.mlp = nn.Sequential(*layers)
        self.prototypes = nn.Parameter(torch.empty(settings.prototypes, settings.bottleneck))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        bound = prototype_bound(settings.bottleneck)
        nn.init.uniform_(self.prototypes, -bound, bound)

    def forward(self, x: Tensor) -> Projection:  # noqa: D102 - see the class
        vectors = functional.normalize(self.mlp(x).float(), dim=-1, eps=1e-6)
        # last, so that the backward pass has their gradient before FSDP sums the head's over the processes
        prototypes = functional.normalize(self.prototypes.float(), dim=-1)
        return Projection(vectors, prototypes)
