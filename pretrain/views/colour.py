"""Colour of crops, changed on the device, every crop by numbers of its own.

The operations are torchvision's, in a fixed order: brightness, contrast, saturation, hue, stain, grayscale,
blur, solarisation. The numbers are a pure function of (seed, step, place in the global batch).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pretrain.compute.devices import send_together
from pretrain.compute.randomness import Places, Purpose
from wsi_prep.errors import BadOption
from wsi_prep.format.magnifications import TILE_PX

Operation = Callable[[Tensor, dict[str, Tensor]], Tensor]
Which = Callable[[dict[str, NDArray[Any]]], NDArray[np.bool_]]


_PURPOSE = {"global": Purpose.GLOBAL_COLOUR, "local": Purpose.LOCAL_COLOUR}
_NUMBERS = 16  # of each crop
_LUMA = (0.2989, 0.587, 0.114)
_LEAST = 1e-6  # of transmittance, before its logarithm
_STAINS = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))  # haematoxylin, eosin, DAB: optical densities


@dataclass(frozen=True)
class ColourSettings:
    """How far colours move and how often.

    `jitter`: probability of brightness, contrast, saturation (factors 1 - v to 1 + v) and hue (turns, -v to v).
    `blur`: probability for the first global, the other global, and the local crops; by default what DINOv2's code does,
    whose own p is the probability that a crop stays as it is. `sigma` in px, drawn evenly.
    `solarise`: probability for global crops but the first. `stain`: haematoxylin, eosin and DAB each become
    c (1 + a) + b with a, b even in -v to v (Tellez et al. 2018); 0 is off.
    """

    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    stain: float = 0.0
    grayscale: float = 0.2
    blur: tuple[float, float, float] = (0.0, 0.9, 0.5)
    sigma: tuple[float, float] = (0.1, 2.0)
    solarise: float = 0.0

    def __post_init__(self) -> None:
        shares = {"jitter": self.jitter, "grayscale": self.grayscale, "solarise": self.solarise}
        shares |= {f"blur of {kind}": p for kind, p in zip(("first", "other", "local"), self.blur, strict=True)}
        shares |= {n: getattr(self, n) for n in ("brightness", "contrast", "saturation", "stain")}
        for name, value in shares.items():
            if not 0 <= value <= 1:
                raise BadOption(f"{name} {value} is not between 0 and 1")
        if not 0 <= self.hue <= 0.5:
            raise BadOption(f"hue {self.hue} is not between 0 and 0.5")
        if not 0 < self.sigma[0] <= self.sigma[1] <= TILE_PX:
            raise BadOption(
                f"blur sigma {self.sigma[0]:g} to {self.sigma[1]:g} px is no range above 0 and up to {TILE_PX}"
            )


@dataclass(frozen=True)
class ColourPlan:
    """The numbers of n crops of each of B tiles, (B, n) float64; neutral where an operation is not applied.

    `stain_gain` and `stain_shift` are (B, n, 3). `sigma` is 0 for no blur; `reach` is the kernel's radius in px.
    """

    brightness: NDArray[np.float64]
    contrast: NDArray[np.float64]
    saturation: NDArray[np.float64]
    hue: NDArray[np.float64]
    stain_gain: NDArray[np.float64]
    stain_shift: NDArray[np.float64]
    grayscale: NDArray[np.bool_]
    sigma: NDArray[np.float64]
    solarise: NDArray[np.bool_]
    reach: int


def plan_colour(settings: ColourSettings, places: Places, kind: str, crops: int) -> ColourPlan:
    """Numbers for the "global" or "local" crops of the tiles at these places."""
    numbers = places.uniforms(_PURPOSE[kind], max(crops, 1) * _NUMBERS)
    u = numbers.reshape(len(numbers), -1, _NUMBERS)[:, :crops]
    either = 2 * u - 1
    jitter = u[..., 0] < settings.jitter
    blur = np.full(crops, settings.blur[2])
    solarise = np.zeros(crops)
    if kind == "global":
        blur[:1], blur[1:] = settings.blur[:2]
        solarise[1:] = settings.solarise
    sigma = settings.sigma[0] + u[..., 7] * (settings.sigma[1] - settings.sigma[0])
    return ColourPlan(
        1 + jitter * either[..., 1] * settings.brightness,
        1 + jitter * either[..., 2] * settings.contrast,
        1 + jitter * either[..., 3] * settings.saturation,
        jitter * either[..., 4] * settings.hue,
        1 + either[..., 9:12] * settings.stain,
        either[..., 12:15] * settings.stain,
        u[..., 5] < settings.grayscale,
        np.where(u[..., 6] < blur, sigma, 0.0),
        u[..., 8] < solarise,
        math.ceil(3 * settings.sigma[1]),
    )


def apply_colour(crops: Tensor, plan: ColourPlan) -> Tensor:
    """(n * B, 3, h, w) in [0, 1] with crop k of tile b in row k * B + b -> the same, recoloured, of the same dtype.

    Each operation touches only the crops that want it; which those are is known on the host, so nothing waits.
    """
    if not len(crops):
        return crops
    out = crops.float()
    numbers = {f.name: _rows(getattr(plan, f.name)) for f in fields(plan) if f.name != "reach"}
    wanted = [(np.flatnonzero(which(numbers)), operation) for which, operation in _operations(plan.reach)]
    table = np.concatenate([value.reshape(len(out), -1).astype(np.float32) for value in numbers.values()], axis=1)
    sent, *places = send_together([table, *(rows for rows, _ in wanted)], crops.device)
    widths = [value[0].size for value in numbers.values()]
    for at, (rows, operation) in zip(places, wanted, strict=True):
        if len(rows):
            some = len(rows) < len(out)
            columns = torch.split(sent.index_select(0, at) if some else sent, widths, dim=1)
            chosen = dict(zip(numbers, (column[:, :, None, None] for column in columns), strict=True))
            out = out.index_copy(0, at, operation(out.index_select(0, at), chosen)) if some else operation(out, chosen)
    return out.to(crops.dtype)


def _operations(reach: int) -> list[tuple[Which, Operation]]:
    """In their order: which crops want it, by the plan's numbers, and what is done."""
    return [
        (lambda n: (n["brightness"] != 1) | (n["contrast"] != 1) | (n["saturation"] != 1), _jitter),
        (lambda n: n["hue"] != 0, _hue),
        (lambda n: ((n["stain_gain"] != 1) | (n["stain_shift"] != 0)).any(1), _stain),
        (lambda n: n["grayscale"], lambda x, _: _grey(x).expand_as(x)),
        (lambda n: n["sigma"] > 0, lambda x, chosen: _blur(x, chosen["sigma"], reach)),
        (lambda n: n["solarise"], lambda x, _: torch.where(x >= 128 / 255, 1 - x, x)),
    ]


def _jitter(x: Tensor, chosen: dict[str, Tensor]) -> Tensor:
    x = (x * chosen["brightness"]).clamp(0, 1)
    mean = _grey(x).mean((1, 2, 3), keepdim=True)
    x = torch.lerp(mean, x, chosen["contrast"]).clamp(0, 1)
    return torch.lerp(_grey(x), x, chosen["saturation"]).clamp(0, 1)


def _hue(x: Tensor, chosen: dict[str, Tensor]) -> Tensor:
    """Turn the hue of HSV: value and chroma stay."""
    value, least = x.amax(1), x.amin(1)
    chroma = value - least
    safe = torch.where(chroma > 0, chroma, 1.0)
    red, green, blue = x.unbind(1)
    hue = torch.where(value == blue, (red - green) / safe + 4, torch.zeros((), device=x.device))
    hue = torch.where(value == green, (blue - red) / safe + 2, hue)
    hue = torch.where(value == red, (green - blue) / safe, hue)  # in sixths of a turn
    hue = hue + chosen["hue"][:, 0] * 6
    channels = []
    for shift in (5.0, 3.0, 1.0):  # Smith 1978, in the form that needs no case for each sixth
        k = torch.remainder(hue + shift, 6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)


def _stain(x: Tensor, chosen: dict[str, Tensor]) -> Tensor:
    """Ruifrok & Johnston 2001, in the units of scikit-image's rgb2hed, whose negative amounts are kept here."""
    stains = np.array(_STAINS)
    apart, together = send_together([np.linalg.inv(stains).astype(np.float32), stains.astype(np.float32)], x.device)
    density = x.clamp_min(_LEAST).log() / math.log(_LEAST)
    amounts = torch.einsum("nchw,cs->nshw", density, apart)
    amounts = amounts * chosen["stain_gain"] + chosen["stain_shift"]
    return torch.exp(torch.einsum("nshw,sc->nchw", amounts, together) * math.log(_LEAST)).clamp(0, 1)


def _blur(x: Tensor, sigma: Tensor, reach: int) -> Tensor:
    """Gaussian of `sigma` px (N, 1, 1, 1), cut at `reach` px, edges mirrored: two banded matrix products."""
    reach = min(reach, min(x.shape[2:]) - 1)
    height, width = x.shape[2:]
    down = _blur_matrix(sigma.view(-1, 1, 1), height, reach)
    across = down if width == height else _blur_matrix(sigma.view(-1, 1, 1), width, reach)
    return torch.matmul(torch.matmul(down[:, None], x), across[:, None].transpose(2, 3))


def _blur_matrix(sigma: Tensor, size: int, reach: int) -> Tensor:
    """(N, size, size) float32: row i holds the weights of output i."""
    at = torch.arange(size, device=sigma.device, dtype=sigma.dtype)
    total = torch.zeros((), device=sigma.device)
    # the mirrored pixel j is also met at -j and at 2 (size - 1) - j; the two ends themselves have no image there
    inner = (at > 0) & (at < size - 1)
    for image, there in ((at, at >= 0), (-at, inner | (at == size - 1)), (2 * (size - 1) - at, inner | (at == 0))):
        distance = image[None, :] - at[:, None]
        weight = torch.exp(-0.5 * (distance / sigma) ** 2)
        total = total + torch.where((distance.abs() <= reach) & there, weight, 0.0)
    return total / total.sum(2, keepdim=True)


def _grey(x: Tensor) -> Tensor:
    red, green, blue = x.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue)[:, None]


def _rows(values: NDArray[Any]) -> NDArray[Any]:
    """(B, n, ...) as rows k * B + b."""
    return np.ascontiguousarray(values.swapaxes(0, 1).reshape(-1, *values.shape[2:]))
