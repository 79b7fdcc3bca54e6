"""Transformer blocks over crops of several sizes at once, and stochastic depth that leaves out whole crops.

All tokens lie in one (T, D) matrix, group after group: linear layers and norms run once over all of them, attention
once for each size of crop. What stochastic depth drops is not computed (arXiv 2304.07193, section 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

import pretrain.model.torchvision_schemas  # noqa: F401 - before timm
from pretrain.compute.devices import send_together
from pretrain.compute.randomness import Places, Purpose
from pretrain.model.recompute import recomputed

from timm.models.vision_transformer import Block  # isort: skip


@dataclass(frozen=True)
class Packing:
    """How groups of crops lie in one matrix of tokens: (crops, tokens a crop) of each group, in order."""

    shapes: tuple[tuple[int, int], ...]

    @property
    def sizes(self) -> list[int]:
        """Tokens of each group."""
        return [crops * tokens for crops, tokens in self.shapes]


class KeptRows(NamedTuple):
    """The packed tokens that a block's two branches are computed for, (K,) int64 each, and their `gain` (K, 1)."""

    attention: Tensor
    mlp: Tensor
    gain: Tensor


class BlockRows(NamedTuple):
    """Which packed tokens a block takes, `kept`, and which (R,) int64 it returns, `read`; None: all.

    A tuple, since FSDP brings tensors in tuples to the precision of products, and those in other records not.
    """

    kept: KeptRows | None = None
    read: Tensor | None = None


@dataclass(frozen=True)
class Kept:
    """What some residual branches are computed for: `packing` of the crops kept, the same number for every branch.

    `rows`: (branches, K) int64, the K kept rows of the packed tokens. `gain`: (K, 1) float32, one over the share kept.
    """

    packing: Packing
    rows: Tensor
    gain: Tensor

    def of_block(self, number: int) -> KeptRows:
        """What the block's two branches are computed for."""
        return KeptRows(self.rows[2 * number], self.rows[2 * number + 1], self.gain)


class PackedBlock(Block):
    """timm's block, which also takes packed tokens; its parameters and their names are timm's.

    timm's transformer takes its blocks' class as an argument, and FSDP gathers a module's parameters when the module is
    called, so the packed way goes through the block's own `forward`. So does recomputation, inside what is compiled: a
    compiled block does not show which operations it is made of.
    """

    def forward(  # noqa: D102 - timm's, but for the last three
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        packing: Packing | None = None,
        rows: BlockRows = BlockRows(),  # noqa: B008 - nothing can be changed in a tuple
        recompute: str = "none",
    ) -> Tensor:
        if packing is None:
            plain: Tensor = super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
            return plain
        return recomputed(self._packed, recompute, x, packing, rows)

    def _packed(self, x: Tensor, packing: Packing, rows: BlockRows) -> Tensor:
        """(T, D) -> (T, D), or (R, D) of the rows that are read, which attend to all; the MLP takes only these."""
        kept, read = rows
        if kept is None:
            branch = self._attend(x, packing, read)
            x = (x if read is None else x[read]) + branch.to(x.dtype)
            return x + self._mix(x).to(x.dtype)
        x = x.index_add(0, kept.attention, (self._attend(x[kept.attention], packing) * kept.gain).to(x.dtype))
        if read is not None:  # few, so the MLP is computed even where a crop drops it: shapes stay the same
            gain = kept.gain.new_zeros((len(x), 1)).index_copy(0, kept.mlp, kept.gain)[read]
            x = x[read]
            return x + (self._mix(x) * gain).to(x.dtype)
        return x.index_add(0, kept.mlp, (self._mix(x[kept.mlp]) * kept.gain).to(x.dtype))

    def _attend(self, x: Tensor, packing: Packing, read: Tensor | None = None) -> Tensor:
        attn: Any = self.attn
        out = []
        for qkv, (crops, tokens) in zip(attn.qkv(self.norm1(x)).split(packing.sizes), packing.shapes, strict=True):
            q, k, v = qkv.view(crops, tokens, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
            attended = functional.scaled_dot_product_attention(attn.q_norm(q), attn.k_norm(k), v)
            out.append(attended.transpose(1, 2).reshape(crops * tokens, -1))
        joined = torch.cat(out)
        branch: Tensor = self.ls1(attn.proj(joined if read is None else joined[read]))
        return branch

    def _mix(self, x: Tensor) -> Tensor:
        branch: Tensor = self.ls2(self.mlp(self.norm2(x)))
        return branch


def plan_drop(places: Places, crops: int, depth: int) -> NDArray[np.float64]:
    """(2 * depth, crops * B) numbers in [0, 1): of each branch, the crops with the smallest are kept.

    Crop k of tile b is in column k * B + b.
    """
    numbers = places.uniforms(Purpose.DROP_PATH, 2 * depth * crops)
    return numbers.reshape(len(numbers), 2 * depth, crops).transpose(1, 2, 0).reshape(2 * depth, -1)


def keep_crops(plan: NDArray[np.float64], packing: Packing, drop_path: float, device: torch.device) -> Kept | None:
    """The crops that remain at this rate, at least one of each group; None if all do.

    `plan`: as from `plan_drop`, with the columns of all groups one after another.
    """
    if not drop_path:
        return None
    chosen = []
    first_crop = 0
    for crops, _ in packing.shapes:
        kept = max(1, round(crops * (1 - drop_path)))
        numbers = plan[:, first_crop : first_crop + crops]
        chosen.append(np.sort(np.argpartition(numbers, kept - 1, axis=1)[:, :kept], axis=1))
        first_crop += crops
    shapes, rows, gains = [], [], []
    first_row = 0
    for (crops, tokens), some in zip(packing.shapes, send_together(chosen, device), strict=True):
        kept = some.shape[1]
        within = some[:, :, None] * tokens + torch.arange(tokens, device=device)
        rows.append(first_row + within.flatten(1))
        gains.append(torch.full((kept * tokens, 1), crops / kept, device=device))
        shapes.append((kept, tokens))
        first_row += crops * tokens
    return Kept(Packing(tuple(shapes)), torch.cat(rows, dim=1), torch.cat(gains))
