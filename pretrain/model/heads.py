"""The projection heads of DINO and iBOT (Caron et al. 2021, arXiv 2104.14294; Zhou et al. 2021, arXiv 2111.07832)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsi_prep.errors import BadOption

_LARGEST = {"prototypes": 1 << 24, "hidden": 65_536, "bottleneck": 65_536, "layers": 64}


@dataclass(frozen=True)
class HeadSettings:
    """An MLP of `layers` linear layers, `hidden` wide, to `bottleneck` numbers, compared with `prototypes`."""

    prototypes: int = 65536
    hidden: int = 2048
    bottleneck: int = 256
    layers: int = 3

    def __post_init__(self) -> None:
        for name, most in _LARGEST.items():
            if not 1 <= getattr(self, name) <= most:
                raise BadOption(f"{name} {getattr(self, name)} of a head is not between 1 and {most:,}")

    def parameters(self, width: int) -> int:
        """How many numbers the matrices of a head over features `width` wide have."""
        inner = self.hidden * (width + self.bottleneck + max(self.layers - 2, 0) * self.hidden)
        return (inner if self.layers > 1 else width * self.bottleneck) + self.prototypes * self.bottleneck


class Head(nn.Module):
    """(..., D) features -> (..., K) cosines with the K prototypes, in -1 to 1."""

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
        nn.init.normal_(self.prototypes)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - see the class
        x = functional.normalize(self.mlp(x).float(), dim=-1, eps=1e-6)
        with torch.autocast(x.device.type, enabled=False):  # bfloat16 is too coarse for a temperature of 0.04
            prototypes = functional.normalize(self.prototypes.float(), dim=-1)
            return functional.linear(x, prototypes)
