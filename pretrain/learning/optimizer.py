"""Optimizers: fused AdamW and StableAdamW, with a learning rate by layer.

A step whose gradients are not finite is left out. Whether they are is a number on the device (`found_inf`, as PyTorch's
fused AdamW has it), so that nobody waits to know.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.compute import distributed
from pretrain.learning.schedules import Scheduled
from wsi_prep.errors import BadOption

KINDS = ("adamw", "stable_adamw")


@dataclass(frozen=True)
class OptimSettings:
    """`layer_decay`: each block's learning rate over that of the next. `patch_rate`: the patch embedding's share of its
    layer's. `clip`: largest norm of the gradient of the backbone and of each head (`clip_apart`), or of all together; 0
    for any. `decay_tokens`: whether tokens and positions decay as matrices do.
    """

    kind: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    layer_decay: float = 0.9
    patch_rate: float = 0.2
    clip: float = 3.0
    clip_apart: bool = True
    decay_tokens: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadOption(f"optimizer {self.kind!r} is not known; choose from {', '.join(KINDS)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise BadOption(f"betas {self.betas} are not at least 0 and below 1")
        if not 0 < self.layer_decay <= 1 or not 0 < self.patch_rate <= 1:
            raise BadOption("layer_decay and patch_rate must be above 0 and at most 1")
        if not (self.clip >= 0 and self.eps > 0):
            raise BadOption("clip must be at least 0 and eps above 0")


def make_optimizer(network: nn.Module, depth: int, settings: OptimSettings) -> torch.optim.Optimizer:
    """An optimizer of every parameter of `network` that wants a gradient, its state already there.

    `network`: a network.Network of `depth` blocks. Groups carry `rate_share`, `decays` and `prototypes`.
    """
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(_group(name, parameter, depth, settings), []).append(parameter)
    listed: list[dict[str, Any]] = [
        {"params": parameters, "rate_share": share, "decays": decays, "prototypes": prototypes}
        for (share, decays, prototypes), parameters in groups.items()
    ]
    if settings.kind == "stable_adamw":
        return StableAdamW(listed, settings.betas, settings.eps)
    optimizer = torch.optim.AdamW(listed, lr=0.0, betas=settings.betas, eps=settings.eps, fused=True)
    for parameter in _parameters(optimizer):
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def take_step(optimizer: torch.optim.Optimizer, at: Scheduled, found_inf: Tensor) -> None:
    """One update with the step's learning rate and weight decay, unless `found_inf` (float32 of shape ()) is 1."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if at.frozen and group["prototypes"] else at.rate * group["rate_share"]
        group["weight_decay"] = at.decay if group["decays"] else 0.0
    optimizer.found_inf = found_inf  # type: ignore[attr-defined]
    optimizer.step()


def optimizer_state(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the optimizer's state, named `<parameter>.<what>`."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    return {f"{names[p]}.{key}": value for p in _parameters(optimizer) for key, value in optimizer.state[p].items()}


def _parameters(optimizer: torch.optim.Optimizer) -> Iterable[nn.Parameter]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _group(name: str, parameter: Tensor, depth: int, settings: OptimSettings) -> tuple[float, bool, bool]:
    """Share of the learning rate, whether weights decay, whether these are prototypes."""
    layer = depth + 1
    if found := re.search(r"\bblocks\.(\d+)\.", name):
        layer = int(found[1]) + 1
    elif re.search(r"\b(patch_embed|pos_embed|cls_token|reg_token|mask_token|mpp_token)\b", name):
        layer = 0
    share = settings.layer_decay ** (depth + 1 - layer)
    if "patch_embed" in name:
        share *= settings.patch_rate
    learned = re.search(r"\b(pos_embed|cls_token|reg_token|mask_token)\b", name)
    decays = settings.decay_tokens if learned else parameter.ndim > 1
    return share, decays, name.endswith("prototypes")


class StableAdamW(torch.optim.Optimizer):
    """AdamW whose learning rate shrinks for a tensor whose gradients have outgrown their second moments.

    Wortsman et al. 2023 (arXiv 2304.13013), algorithm 2: of each tensor the rate is divided by max(1, RMS) with
    RMS = sqrt(mean(g^2 / max(v, eps^2))), v and m without their bias. A tensor in shards has one RMS for all of it.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "betas": betas, "eps": eps})
        self._sizes: dict[tuple[int, ...], Tensor] = {}
        for parameter in _parameters(self):
            self.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update; `closure` is not used."""
        for group in self.param_groups:
            if parameters := [p for p in group["params"] if p.grad is not None]:
                self._update(group, parameters)

    def _update(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        states = [self.state[p] for p in parameters]
        values = [distributed.local(p) for p in parameters]
        gradients = [distributed.local(p.grad).float() for p in parameters if p.grad is not None]
        first = [distributed.local(s["exp_avg"]) for s in states]
        second = [distributed.local(s["exp_avg_sq"]) for s in states]
        go = torch.ones((), device=values[0].device) if found_inf is None else 1 - found_inf.reshape(())
        gradients = [torch.where(go > 0, g, 0.0) for g in gradients]  # 0 times a NaN would be one
        beta1, beta2 = group["betas"]
        steps = [s["step"] for s in states]
        torch._foreach_add_(steps, [go] * len(steps))
        count = steps[0].clamp_min(1)  # 0 where the first step is left out
        torch._foreach_mul_(first, 1 - (1 - beta1) * go)
        torch._foreach_add_(first, gradients, alpha=1 - beta1)
        torch._foreach_mul_(second, 1 - (1 - beta2) * go)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        correction1, correction2 = 1 - beta1**count, 1 - beta2**count
        unbiased = torch._foreach_div(second, correction2)
        rates = group["lr"] * go / self._rms(gradients, unbiased, parameters, group["eps"]).clamp_min(1)
        for value, mean, square, rate in zip(values, first, unbiased, rates.unbind(), strict=True):
            value.mul_(1 - rate * group["weight_decay"])
            value.sub_(rate * (mean / correction1) / (square.sqrt() + group["eps"]))

    def _rms(
        self, gradients: Sequence[Tensor], second: Sequence[Tensor], parameters: list[nn.Parameter], eps: float
    ) -> Tensor:
        """(tensors,): of each tensor, over all its shards."""
        sums = [(g.square() / v.clamp_min(eps**2)).sum() for g, v in zip(gradients, second, strict=True)]
        total = torch.stack(sums)
        if any(distributed.local(p) is not p for p in parameters):
            total = distributed.all_sum(total / distributed.copies(parameters[0]))
        counts = tuple(p.numel() for p in parameters)
        if counts not in self._sizes:  # once: a step must not wait for a copy to the device
            self._sizes[counts] = torch.tensor(counts, dtype=total.dtype, device=total.device)
        return (total / self._sizes[counts]).sqrt()


def _apart(network: nn.Module) -> Iterator[nn.Module]:
    """The backbone and each head."""
    for part in network.children():
        yield from part.children() if isinstance(part, nn.ModuleDict) else [part]


def clip_gradients(network: nn.Module, settings: OptimSettings) -> Tensor:
    """Scale gradients as the settings say; returns the norm of all together before, one number on the device."""
    parts = [*_apart(network)] if settings.clip_apart else [network]
    norms = []
    for part in parts:
        if held := [parameter for parameter in part.parameters() if parameter.grad is not None]:
            norm = nn.utils.clip_grad_norm_(held, settings.clip or math.inf, foreach=True)
            norms.append(distributed.whole(norm))
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total
