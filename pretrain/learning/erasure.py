"""Fields of the catalog erased from what a backbone makes of tiles: the least affine change that no linear model reads.

LEACE, Belrose et al. 2023 (arXiv 2306.03819): of features x and labels z with covariances Sxx and Sxz, the map is
x - Sxz (Szx Sxx^-1 Sxz)^+ Szx Sxx^-1 (x - mean), after which no affine function of x tells z better than its mean does.
Fitted to the tokens after each layer in turn, those before being erased already: what blocks make linear is then erased
after them. Nothing is learnt by gradients, and the network stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from pretrain.data.fields import Field, LabelArray
from pretrain.model.backbone import Backbone
from pretrain.model.guide import Eraser

_SHRUNK = 1e-3
"""Of the mean variance, added to each: it changes which of the maps that erase is taken, and not how well it does."""
_CONSTANT = 1e-9
"""Tokens that vary by less of their mean square, and labels that they tell by less, are left as they are."""


def columns(fields: Sequence[Field], labels: Sequence[LabelArray]) -> Tensor:
    """(n, k) float64 for n tiles: a column for each class, and one for a field of numbers.

    Centred over the tiles whose value is known, and 0 where it is not: such tiles then say nothing.
    """
    found = []
    for field, label in zip(fields, labels, strict=True):
        values = torch.from_numpy(label)
        known = values >= 0 if field.classes else values.isfinite()
        if field.classes:
            column = torch.nn.functional.one_hot(values.clamp_min(0), len(field.classes)).double()
        else:
            column = torch.where(known, values, 0.0).double()[:, None]
        mean = (column * known[:, None]).sum(0) / known.sum().clamp_min(1)
        found.append((column - mean) * known[:, None])
    return torch.cat(found, dim=1)


def width(fields: Sequence[Field]) -> int:
    """How many columns these fields have."""
    return sum(max(1, len(field.classes)) for field in fields)


def leace(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The map x - out (into x - offset), fitted to features x (n, D) and columns of labels z (n, k), as float32.

    Returns `into` (D, k), `out` (D, k) and `offset` (k,); zeros where the features are all the same.
    """
    x, z = x.double(), z.to(x.device, torch.float64)
    mean, square = x.mean(0), x.square().mean()
    x, z = x - mean, z - z.mean(0)
    own = x.T @ x / len(x)
    spread = own.diagonal().mean()
    if spread <= _CONSTANT * square:
        return (x.new_zeros(x.shape[1], z.shape[1], dtype=torch.float32),) * 2 + (x.new_zeros(z.shape[1]).float(),)
    own.diagonal().add_(_SHRUNK * spread)
    with_labels = x.T @ z / len(x)
    towards = torch.linalg.solve(own, with_labels)
    told = with_labels.T @ towards
    least = _CONSTANT * float(z.square().mean(0).max())
    into = towards @ torch.linalg.pinv((told + told.T) / 2, atol=least, rtol=1e-9, hermitian=True)
    return into.float(), with_labels.float(), (mean @ into).float()


@torch.no_grad()
def fit_eraser(
    backbone: Backbone, batches: Iterable[tuple[Tensor, Tensor | None]], labels: Callable[[], Tensor]
) -> Eraser:
    """What erases labels (n, k), as `columns` has them, from the tokens of a backbone that has no eraser yet.

    `batches`: (b, 3, h, w) normalised crops, n in all, with their (b,) um/px for a backbone that is told it; each is
    taken once, and `labels` are asked for after the last. The tokens of all are held on the CPU: n x (prefix + N) x D
    float32. The class token, registers, and mean patch token are each erased by themselves.
    """
    device = backbone.mask_token.device
    held = [backbone.after(0, x.to(device), None if mpp is None else mpp.to(device)).cpu() for x, mpp in batches]
    z, before = labels(), backbone.prefix
    layers = backbone.settings.depth + 2
    eraser = Eraser(layers, before + 1, backbone.settings.width, z.shape[1]).to(device)
    for layer in range(layers):
        seen = []
        for number, x in enumerate(held):
            tokens = backbone.after(layer, x.to(device)) if layer else x.to(device)
            held[number] = tokens.cpu()
            seen.append(torch.cat([tokens[:, :before], tokens[:, before:].mean(1, keepdim=True)], dim=1).float())
        for kind, of_kind in enumerate(torch.cat(seen).unbind(1)):
            into, out, offset = leace(of_kind, z)
            eraser.into[layer, kind], eraser.out[layer, kind], eraser.offset[layer, kind] = into, out, offset
        held = [eraser(layer, x.to(device)).cpu() for x in held]
    return eraser
