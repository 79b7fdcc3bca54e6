"""The vision transformer: timm's, held, with a mask token, over crops of several sizes at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pretrain.model.guide import Eraser
from pretrain.model.packing import BlockRows, Kept, PackedBlock, Packing
from wsi_prep.errors import BadOption

from timm.layers.pos_embed import resample_abs_pos_embed  # isort: skip - packing has made timm importable
from timm.layers.mlp import Mlp, SwiGLUPacked  # isort: skip
from timm.models.vision_transformer import VisionTransformer  # isort: skip


_LARGEST = {"width": 65_536, "depth": 1000, "heads": 1024, "registers": 1024, "patch_px": 4096, "image_px": 4096}
_MOST_PARAMETERS = 100e9  # some ten times the largest ViT that there is
_WAVES = 6
_LONGEST = 16.0  # octaves: from 0.004 to 250 um/px nothing comes again


@dataclass(frozen=True)
class BackboneSettings:
    """A ViT of `depth` blocks, `width` wide, with `heads` attention heads and `registers` register tokens.

    `mlp_ratio`: hidden width over `width`; with `swiglu` that of both halves together. `layer_scale`: where its gains
    begin, 0 for none. `drop_path`: share of the crops that each residual branch leaves out. `image_px`: the crop that
    the position embedding is made for; other sizes resample it. `mpp_token`: it is told the um/px of each crop.

    >>> round(BackboneSettings(width=384, depth=12, heads=6).parameters / 1e6)
    22
    """

    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    swiglu: bool = False
    registers: int = 0
    qk_norm: bool = False
    layer_scale: float = 1e-5
    drop_path: float = 0.0
    patch_px: int = 14
    image_px: int = 224
    mpp_token: bool = False

    def __post_init__(self) -> None:
        for name, most in _LARGEST.items():
            if not (least := int(name != "registers")) <= getattr(self, name) <= most:
                raise BadOption(f"backbone {name} {getattr(self, name)} is not between {least} and {most:,}")
        if self.width % self.heads:
            raise BadOption(f"backbone width {self.width} does not divide by {self.heads} heads")
        if self.image_px % self.patch_px:
            raise BadOption(
                f"images of {self.image_px} px (backbone.image_px) do not divide into patches of {self.patch_px} px "
                "(backbone.patch_px)"
            )
        if not 0 <= self.drop_path < 1:
            raise BadOption(f"backbone.drop_path {self.drop_path} is not at least 0 and below 1")
        if not 0 <= self.layer_scale < math.inf:
            raise BadOption(f"backbone.layer_scale {self.layer_scale} must be at least 0")
        hidden, most = self.width * self.mlp_ratio, _LARGEST["width"]
        if not 1 <= hidden <= most or (self.swiglu and int(hidden) % 2):
            raise BadOption(
                f"an MLP of {self.mlp_ratio} (backbone.mlp_ratio) x {self.width} is not between 1 and {most:,} wide, "
                "or not even as SwiGLU needs it"
            )
        if self.parameters > _MOST_PARAMETERS:
            raise BadOption(
                f"a ViT {self.width} wide and {self.depth} deep has {self.parameters / 1e9:,.0f} billion parameters, "
                f"more than {_MOST_PARAMETERS / 1e9:,.0f}; make it narrower"
            )

    @property
    def parameters(self) -> int:
        """How many numbers its large matrices have: all but some thousandths of it."""
        hidden = int(self.width * self.mlp_ratio)
        tokens = (self.image_px // self.patch_px) ** 2 + self.registers
        block = 4 * self.width**2 + (hidden + hidden // (1 + self.swiglu)) * self.width
        return self.depth * block + (tokens + 3 * self.patch_px**2) * self.width


@dataclass(frozen=True)
class Tokens:
    """What the backbone makes of one group of crops: `cls` (B, D) and `patches` (B, N, D), after the last norm."""

    cls: Tensor
    patches: Tensor

    @property
    def embedding(self) -> Tensor:
        """(B, 2 D): class token and mean of the patch tokens, Virchow2's embedding of a tile."""
        return torch.cat([self.cls, self.patches.mean(1)], dim=1)


def make_vit(settings: BackboneSettings) -> VisionTransformer:
    """Timm's transformer of these settings, without a head."""
    return VisionTransformer(
        img_size=settings.image_px,
        patch_size=settings.patch_px,
        embed_dim=settings.width,
        depth=settings.depth,
        num_heads=settings.heads,
        mlp_ratio=settings.mlp_ratio,
        qk_norm=settings.qk_norm,
        init_values=settings.layer_scale or None,
        reg_tokens=settings.registers,
        mlp_layer=SwiGLUPacked if settings.swiglu else Mlp,  # type: ignore[arg-type]
        act_layer=nn.SiLU if settings.swiglu else None,
        num_classes=0,
        global_pool="",
        dynamic_img_size=True,
        block_fn=PackedBlock,
    )


class MppToken(nn.Module):
    """What is added to the class token of a crop: an MLP of waves over the octaves of its um/px.

    The waves are 16, 8, 4, 2, 1 and 1/2 octaves long. A crop whose um/px is not known gets nothing added.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(2 * _WAVES, width)
        self.second = nn.Linear(width, width)

    def forward(self, mpp: Tensor) -> Tensor:
        """(B,) float32 um/px, NaN where it is not known -> (B, width), in the precision of products."""
        known = torch.isfinite(mpp)
        octaves = torch.log2(torch.where(known, mpp, 1.0))
        turns = octaves[:, None] * 2.0 ** torch.arange(_WAVES, device=mpp.device) / _LONGEST
        waves = torch.cat([torch.sin(2 * math.pi * turns), torch.cos(2 * math.pi * turns)], dim=1)
        told: Tensor = self.second(functional.gelu(self.first(waves.to(self.first.weight.dtype))))
        return torch.where(known[:, None], told, 0.0)


class Backbone(nn.Module):
    """A ViT and its mask token. `recompute`: how much is computed again for the backward pass, see recompute.MODES.

    `eraser`: None, or what erases fields of the catalog from its tokens after every layer; never while it learns.

    >>> import torch
    >>> backbone = Backbone(BackboneSettings(width=32, depth=1, heads=2)).eval()
    >>> of_large, of_small = backbone([torch.zeros(2, 3, 224, 224), torch.zeros(8, 3, 98, 98)])
    >>> of_large.patches.shape, of_small.embedding.shape
    (torch.Size([2, 256, 32]), torch.Size([8, 64]))
    """

    def __init__(self, settings: BackboneSettings, recompute: str = "none") -> None:
        super().__init__()
        self.settings, self.recompute = settings, recompute
        self.vit = make_vit(settings)
        self.mask_token = nn.Parameter(torch.zeros(settings.width))
        self.mpp_token = MppToken(settings.width) if settings.mpp_token else None
        self.eraser: Eraser | None = None

    @property
    def prefix(self) -> int:
        """Tokens before the patches: class and registers."""
        return 1 + self.settings.registers

    def packing(self, shapes: Sequence[tuple[int, int]]) -> Packing:
        """How groups of (crops, px a side) lie in memory."""
        patch = self.settings.patch_px
        return Packing(tuple((crops, self.prefix + (px // patch) ** 2) for crops, px in shapes))

    def compile_blocks(self) -> None:
        """Compile each block when it is first called. Crops keep their sizes, so shapes are fixed; what the last block
        reads may change with the number of masked patches.
        """
        *most, last = self.vit.blocks
        for block in most:
            block.compile(dynamic=False)
        last.compile(dynamic=None)

    def forward(
        self,
        groups: Sequence[Tensor],
        masks: Sequence[Tensor | None] | None = None,
        kept: Kept | None = None,
        mpp: Sequence[Tensor] = (),
    ) -> list[Tokens]:
        """Groups of (B, 3, h, w) normalised crops -> the tokens of each.

        `masks`: for each group None, or (B, N) bool, true where the mask token stands in a patch's place. `mpp`: for
        each group (B,) float32 um/px, NaN where it is not known; without it, of none.
        """
        x, packing = self._packed(groups, masks, mpp)
        if self.eraser is not None:
            x = self._erased(0, x, packing)
        for number in range(self.settings.depth):
            x = self._block(number, x, packing, kept)
            if self.eraser is not None:
                x = self._erased(number + 1, x, packing)
        normed = torch.split(self._normed(x), packing.sizes)
        whole = [part.view(*shape, -1) for part, shape in zip(normed, packing.shapes, strict=True)]
        if self.eraser is not None:
            whole = [self.eraser(self.settings.depth + 1, tokens) for tokens in whole]
        return [Tokens(tokens[:, 0], tokens[:, self.prefix :]) for tokens in whole]

    def read(
        self,
        groups: Sequence[Tensor],
        chosen: Tensor,
        masks: Sequence[Tensor | None] | None = None,
        kept: Kept | None = None,
        mpp: Sequence[Tensor] = (),
    ) -> tuple[list[Tensor], Tensor]:
        """What losses read: class tokens (B, D) of each group, and the first one's `chosen` patches (M, D).

        The same as `forward` gives, but for rounding. No other token passes through the last block's MLP. `chosen`:
        (M,) int64, in the flattened patches of the first group.
        """
        if self.eraser is not None:
            tokens = self(groups, masks, kept, mpp)
            return [group.cls for group in tokens], tokens[0].patches.flatten(0, 1)[chosen]
        x, packing = self._packed(groups, masks, mpp)
        last = self.settings.depth - 1
        for number in range(last):
            x = self._block(number, x, packing, kept)
        x = self._normed(self._block(last, x, packing, kept, self._rows_read(packing, chosen)))
        *cls, patches = torch.split(x, [*(crops for crops, _ in packing.shapes), len(chosen)])
        return cls, patches

    def _rows_read(self, packing: Packing, chosen: Tensor) -> Tensor:
        """The packed tokens that `read` returns: every crop's first, and the chosen patches."""
        rows, first = [], 0
        for (_, tokens), size in zip(packing.shapes, packing.sizes, strict=True):
            rows.append(torch.arange(first, first + size, tokens, device=chosen.device))
            first += size
        patches = packing.shapes[0][1] - self.prefix
        return torch.cat([*rows, chosen + (chosen // patches + 1) * self.prefix])

    def _packed(
        self, groups: Sequence[Tensor], masks: Sequence[Tensor | None] | None, mpp: Sequence[Tensor]
    ) -> tuple[Tensor, Packing]:
        """All tokens before the first block, (T, D), and how they lie."""
        masks = masks or [None] * len(groups)
        embedded = [self._embed(crops, mask) for crops, mask in zip(groups, masks, strict=True)]
        if self.mpp_token is not None:
            embedded = [self._tell(tokens, mpp[n] if mpp else None) for n, tokens in enumerate(embedded)]
        packing = Packing(tuple((len(tokens), tokens.shape[1]) for tokens in embedded))
        return torch.cat([tokens.flatten(0, 1) for tokens in embedded]), packing

    def _block(self, number: int, x: Tensor, packing: Packing, kept: Kept | None, read: Tensor | None = None) -> Tensor:
        recompute = self.recompute if torch.is_grad_enabled() else "none"
        block: Any = self.vit.blocks[number]
        rows = BlockRows(kept.of_block(number) if kept else None, read)
        out: Tensor = block(x, packing=kept.packing if kept else packing, rows=rows, recompute=recompute)
        return out

    def _normed(self, x: Tensor) -> Tensor:
        normed: Tensor = self.vit.norm(x)
        return normed.to(torch.promote_types(x.dtype, torch.float32))

    def _erased(self, layer: int, x: Tensor, packing: Packing) -> Tensor:
        assert self.eraser is not None
        parts = zip(torch.split(x, packing.sizes), packing.shapes, strict=True)
        return torch.cat([self.eraser(layer, part.view(*shape, -1)).flatten(0, 1) for part, shape in parts])

    def after(self, layer: int, x: Tensor, mpp: Tensor | None = None) -> Tensor:
        """What a layer makes of the (B, prefix + N, D) tokens before it, as an Eraser counts layers; nothing is erased.

        The first takes (B, 3, h, w) normalised crops, and (B,) um/px where the backbone is told them.
        """
        if layer == 0:
            tokens = self._embed(x, None)
            return tokens if self.mpp_token is None else self._tell(tokens, mpp)
        if layer > self.settings.depth:
            normed: Tensor = self.vit.norm(x).float()
            return normed
        out: Tensor = self.vit.blocks[layer - 1](x.flatten(0, 1), packing=Packing(((x.shape[0], x.shape[1]),)))
        return out.view(x.shape)

    def _tell(self, tokens: Tensor, mpp: Tensor | None) -> Tensor:
        """(B, tokens, D), the class tokens being told the (B,) um/px."""
        assert self.mpp_token is not None
        mpp = torch.full((len(tokens),), math.nan, device=tokens.device) if mpp is None else mpp
        told = self.mpp_token(mpp).to(tokens.dtype)
        return torch.cat([tokens[:, :1] + told[:, None], tokens[:, 1:]], dim=1)

    def _embed(self, crops: Tensor, mask: Tensor | None) -> Tensor:
        """(B, 3, h, w) -> (B, prefix + N, D) with positions, in the precision of products however weights are kept."""
        vit: Any = self.vit
        patches = vit.patch_embed(crops)  # (B, h / 14, w / 14, D)
        grid = patches.shape[1:3]
        patches = patches.flatten(1, 2)
        if mask is not None:
            patches = torch.where(mask[:, :, None], self.mask_token.to(patches.dtype), patches)
        count = len(crops)
        first = [vit.cls_token, *([vit.reg_token] if vit.reg_token is not None else [])]
        first = [token.to(patches.dtype).expand(count, -1, -1) for token in first]
        position = resample_abs_pos_embed(
            vit.pos_embed,
            new_size=list(grid),
            old_size=list(vit.patch_embed.grid_size),
            num_prefix_tokens=0 if vit.no_embed_class else self.prefix,
        ).to(patches.dtype)
        if vit.no_embed_class:
            return torch.cat([*first, patches + position], dim=1)
        return torch.cat([*first, patches], dim=1) + position  # type: ignore[no-any-return]
