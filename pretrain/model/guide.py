"""What guides a backbone by fields of the catalog: heads that tell them, and maps that erase them from its tokens.

A head learns to tell a field as well as it can; on its way into the backbone its gradient is scaled (as Ganin &
Lempitsky 2015, arXiv 1409.7495, do it, without turning it round). Erasure is that of Belrose et al. 2023 (LEACE, arXiv
2306.03819) after every layer, which they call concept scrubbing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

HIDDEN = 256
REST = "rest"
"""In Told.sent, all but the guide."""


class Told(NamedTuple):
    """What a guide's heads say of (B, D) class tokens, and what comes back from them.

    `outputs`: by field, (B, classes) logits or (B, 1) numbers, float32. `sent`: single numbers that the backward pass
    fills, the sum of squares of the gradient that each head sends into these tokens, and all but the guide (`REST`).
    """

    outputs: dict[str, Tensor]
    sent: dict[str, Tensor]


class GuideHead(nn.Module):
    """(B, D) class tokens -> (B, outputs) float32."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, outputs)
        )

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102 - see the class
        out: Tensor = self.mlp(x)
        return out.float()


class GuideHeads(nn.ModuleDict):
    """A head a field: with `outputs` numbers, that sends `weights` times its gradient into the backbone, by field.

    Called with (B, D) class tokens and the `ramp` that all weights are multiplied with; returns the tokens for all
    else to go on with, and what it tells of them.
    """

    def __init__(self, width: int, outputs: Mapping[str, int], weights: Mapping[str, float]) -> None:
        super().__init__({name: GuideHead(width, count) for name, count in outputs.items()})
        self.weights = dict(weights)

    def forward(self, cls: Tensor, ramp: float) -> tuple[Tensor, Told]:  # noqa: D102 - see the class
        if not len(self):
            return cls, Told({}, {})
        sent = {name: cls.new_zeros((), dtype=torch.float32) for name in (*self, REST)}
        outputs = {name: head(scaled(cls, ramp * self.weights[name], sent[name])) for name, head in self.items()}
        return scaled(cls, 1.0, sent[REST]), Told(outputs, sent)


class Eraser(nn.Module):
    """Affine maps of tokens, after each of a backbone's `layers`: x - out (into x - offset), as learning.erasure fits.

    Layers are the embedded crops, every block, and the last norm. `kinds`: each token before the patches has a map of
    its own, and the patches have one together, the last. `columns`: of the labels that are erased. A new one changes
    nothing.
    """

    def __init__(self, layers: int, kinds: int, width: int, columns: int) -> None:
        super().__init__()
        self.into: Tensor
        self.out: Tensor
        self.offset: Tensor
        self.register_buffer("into", torch.zeros(layers, kinds, width, columns))
        self.register_buffer("out", torch.zeros(layers, kinds, width, columns))
        self.register_buffer("offset", torch.zeros(layers, kinds, columns))

    def forward(self, layer: int, tokens: Tensor) -> Tensor:
        """(B, prefix + N, D) tokens as they are after a layer -> the same without what tells the labels."""
        into, out, offset = self.into[layer], self.out[layer], self.offset[layer]
        before = len(into) - 1
        with torch.autocast(tokens.device.type, enabled=False):
            x = tokens.float()
            first, patches = x[:, :before], x[:, before:]
            told = torch.einsum("bpd,pdk->bpk", first, into[:before]) - offset[:before]
            first = first - torch.einsum("bpk,pdk->bpd", told, out[:before])
            patches = patches - (patches @ into[before] - offset[before]) @ out[before].T
            return torch.cat([first, patches], dim=1).to(tokens.dtype)


def scaled(x: Tensor, scale: float, sent: Tensor) -> Tensor:
    """`x` as it is; its gradient comes back times `scale`, and its sum of squares is then added to `sent`."""
    out: Tensor = _Scaled.apply(x, scale, sent)  # type: ignore[no-untyped-call]
    return out


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, scale: float, sent: Tensor) -> Tensor:
        context.scale, context.sent = scale, sent
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        back = gradient * context.scale
        context.sent += back.float().square().sum()
        return back, None, None
