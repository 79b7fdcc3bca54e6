"""DINOv2's and DINOv3's training step on a CPU, made of their own modules: see train_peers."""

from __future__ import annotations

import functools
import importlib
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

import pretrain.model.torchvision_schemas  # noqa: F401 - before torchvision
from pretrain.learning import schedules
from pretrain.model.network import Network
from pretrain.train.recipe.recipe import Recipe

_NEEDED = (
    "layers/dino_head.py",
    "models/vision_transformer.py",
    "loss/dino_clstoken_loss.py",
    "loss/ibot_patch_loss.py",
    "data/augmentations.py",
)


class Given(NamedTuple):
    """What a step learns from: crops, crop k of tile b in row k * B + b, and the masked patches of the global ones.

    `mask`: (S, N) bool. `index`: (M,) in the flattened mask. `weight`: (M,), one over the number masked in the crop.
    `room`: as many patches as DINOv2 computes its heads for, M at least.
    """

    global_crops: Tensor
    local_crops: Tensor
    mask: Tensor
    index: Tensor
    weight: Tensor
    room: int


class Told(NamedTuple):
    """A step's loss, and its terms before their weights."""

    total: Tensor
    terms: dict[str, Tensor]


def require(name: str, folder: Path) -> None:
    """End with one line where the folder has not their code."""
    for file in _NEEDED:
        if not (folder / name / file).is_file():
            raise SystemExit(
                f"--{name} {folder}: there is no {name}/{file}; give a clone of github.com/facebookresearch/{name}"
            )


class _Modules:
    """What is imported from a clone of their repository. Ends with one line where it cannot be."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder.resolve()
        os.environ.setdefault("XFORMERS_DISABLED", "1")  # it has no kernels for CPUs
        sys.path.insert(0, str(self.folder))

    def get(self, module: str, what: str) -> Any:
        try:
            found = importlib.import_module(f"{self.name}.{module}")
        except ModuleNotFoundError as error:
            raise SystemExit(f"--{self.name} {self.folder}: it needs the package {error.name}; install it") from None
        if not Path(str(found.__file__)).is_relative_to(self.folder):
            raise SystemExit(f"--{self.name} {self.folder}: {found.__file__} was imported in its place")
        return getattr(found, what)


class Peer:
    """Student, teacher and optimizer of a peer's modules, and the order of its step."""

    name = ""
    prototypes = ""  # their parameter's name in a head

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.recipe, self.modules = recipe, _Modules(self.name, folder)
        self.student, self.teacher = self.network(recipe.backbone.drop_path), self.network(0.0)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.student.train()
        self.teacher.eval()
        get = self.modules.get
        self.dino_loss, self.ibot_loss = (
            get("loss", kind)(recipe.objective.head.prototypes) for kind in ("DINOLoss", "iBOTPatchLoss")
        )
        self.koleo_loss = get("loss", "KoLeoLoss")()
        self.optimizer = torch.optim.AdamW(self.groups(), betas=recipe.optim.betas)
        self.ema = [list(network.parameters()) for network in (self.teacher, self.student)]
        cut = recipe.views.crops
        self.side = cut.global_px // recipe.backbone.patch_px
        self.augment = get("data", "DataAugmentationDINO")(
            cut.area[:2], cut.area[2:], cut.local_crops, global_crops_size=cut.global_px, local_crops_size=cut.local_px
        )
        self.masks = get("data", "MaskingGenerator")(
            input_size=(self.side, self.side), max_num_patches=0.5 * self.side**2
        )

    def network(self, drop_path: float) -> nn.ModuleDict:
        """A backbone and two heads."""
        head = self.recipe.objective.head
        sizes = {"hidden_dim": head.hidden, "bottleneck_dim": head.bottleneck, "nlayers": head.layers}
        kind = self.modules.get("layers.dino_head", "DINOHead")
        heads = {
            name: kind(self.recipe.backbone.width, head.prototypes, **sizes) for name in ("dino_head", "ibot_head")
        }
        return nn.ModuleDict({"backbone": self.backbone(drop_path), **heads})

    def backbone(self, drop_path: float) -> nn.Module:
        raise NotImplementedError

    def groups(self) -> list[dict[str, Any]]:
        raise NotImplementedError

    def told(self, given: Given) -> Told:
        raise NotImplementedError

    def step(self, given: Given, number: int) -> None:
        recipe = self.recipe
        at = schedules.at(recipe.schedule, number, recipe.sampling.batch)
        for group in self.optimizer.param_groups:
            group["lr"] = at.rate * group["lr_multiplier"] * (not (at.frozen and group["is_last_layer"]))
            group["weight_decay"] = at.decay * group["wd_multiplier"]
        self.optimizer.zero_grad(set_to_none=True)
        self.told(given).total.backward()
        for part in self.student.values():
            nn.utils.clip_grad_norm_(part.parameters(), recipe.optim.clip)
        self.optimizer.step()
        teacher, student = self.ema
        with torch.no_grad():
            torch._foreach_mul_(teacher, at.momentum)
            torch._foreach_add_(teacher, student, alpha=1 - at.momentum)

    def crops(self, images: Sequence[Image.Image], _number: int) -> Given:
        """By their augmentation, collation and masks."""
        masking = self.recipe.views.masking
        found = self.modules.get("data", "collate_data_and_cast")(
            [(self.augment(image), None) for image in images],
            (masking.least, masking.most),
            masking.share,
            torch.float32,
            n_tokens=self.side**2,
            mask_generator=self.masks,
        )
        crops = (found[f"collated_{name}"] for name in ("global_crops", "local_crops", "masks"))
        return Given(*crops, found["mask_indices_list"], found["masks_weight"], found["upperbound"])

    def both(self, images: Sequence[Image.Image], number: int) -> None:
        self.step(self.crops(images, number), number)

    def take(self, network: Network) -> None:
        """These weights, for student and teacher; positions are not added, and not turned by."""
        vit = network.backbone.vit.state_dict() | {"mask_token": network.backbone.mask_token[None]}
        weights = {f"backbone.{name}": value for name, value in vit.items()}
        for part, head in (("dino_head", network.cls_head), ("ibot_head", network.patch_head)):
            weights |= {f"{part}.mlp.{name}": value for name, value in head.mlp.state_dict().items()}  # type: ignore[union-attr]
            weights[f"{part}.last_layer.{self.prototypes}"] = nn.functional.normalize(head.prototypes, dim=-1)  # type: ignore[arg-type]
        for each in (self.student, self.teacher):
            own = each.state_dict()
            each.load_state_dict({name: weights.get(name, own[name]) for name in own})
            each["backbone"].rope_embed = None


class Dinov2(Peer):
    """Its training code at a batch of one process."""

    name = "dinov2"
    prototypes = "weight_v"

    def backbone(self, drop_path: float) -> nn.Module:
        of = self.recipe.backbone
        get = self.modules.get
        made: nn.Module = get("models.vision_transformer", "DinoVisionTransformer")(
            img_size=of.image_px,
            patch_size=of.patch_px,
            embed_dim=of.width,
            depth=of.depth,
            num_heads=of.heads,
            mlp_ratio=of.mlp_ratio,
            init_values=of.layer_scale or None,
            drop_path_rate=drop_path,
            drop_path_uniform=True,
            block_fn=functools.partial(get("layers", "NestedTensorBlock"), attn_class=get("layers", "MemEffAttention")),
            block_chunks=0,
        )
        return made

    def groups(self) -> list[dict[str, Any]]:
        optim, get = self.recipe.optim, self.modules.get
        of_parts = [
            get("utils.param_groups", "get_params_groups_with_decay")(part, optim.layer_decay, optim.patch_rate)
            for part in self.student.values()
        ]
        fused = itertools.chain(*(get("utils.param_groups", "fuse_params_groups")(groups) for groups in of_parts))
        return [dict(group, foreach=True) for group in fused]

    def told(self, given: Given) -> Told:
        cls_targets, patch_targets = self._teach(given)
        backbone = self.student["backbone"]
        seen = backbone(given.global_crops, masks=given.mask, is_training=True)
        local = backbone(given.local_crops, is_training=True)["x_norm_clstoken"]
        cls = seen["x_norm_clstoken"]
        patches = self.student["ibot_head"](_padded(seen["x_norm_patchtokens"], given))[: len(given.index)]
        of_local, of_global = self.student["dino_head"](torch.cat([local, cls])).split([len(local), len(cls)])
        crops = self.recipe.views.crops.local_crops
        pairs = 2 * crops + 2
        dino = self.dino_loss(of_local.chunk(crops), cls_targets) / pairs
        dino = dino + self.dino_loss([of_global], [cls_targets.flatten(0, 1)]) * 2 / pairs
        koleo = sum(self.koleo_loss(half) for half in cls.chunk(2))
        return _told(self.recipe, dino, _of_patches(self.ibot_loss, patches, patch_targets, given), koleo)

    @torch.no_grad()
    def _teach(self, given: Given) -> tuple[Tensor, Tensor]:
        temperature = schedules.at(self.recipe.schedule, 0, 1).temperature
        seen = self.teacher["backbone"](given.global_crops, is_training=True)
        first, second = seen["x_norm_clstoken"].chunk(2)
        cls = self.teacher["dino_head"](torch.cat([second, first]))  # each beside the other's student
        patches = self.teacher["ibot_head"](_padded(seen["x_norm_patchtokens"], given))[: len(given.index)]
        cls_targets = self.dino_loss.sinkhorn_knopp_teacher(cls, teacher_temp=temperature)
        patch_targets = self.ibot_loss.sinkhorn_knopp_teacher(
            patches, teacher_temp=temperature, n_masked_patches_tensor=torch.full((1,), len(given.index))
        )
        return cls_targets.view(2, -1, cls.shape[-1]), patch_targets


class Dinov3(Peer):
    """Its training code at a batch of one process."""

    name = "dinov3"
    prototypes = "weight"

    def network(self, drop_path: float) -> nn.ModuleDict:
        made = super().network(drop_path)
        for part in made.values():
            part.init_weights()
        return made

    def backbone(self, drop_path: float) -> nn.Module:
        of = self.recipe.backbone
        made: nn.Module = self.modules.get("models.vision_transformer", "DinoVisionTransformer")(
            img_size=of.image_px,
            patch_size=of.patch_px,
            embed_dim=of.width,
            depth=of.depth,
            num_heads=of.heads,
            ffn_ratio=of.mlp_ratio,
            layerscale_init=of.layer_scale or None,
            drop_path_rate=drop_path,
            pos_embed_rope_dtype="fp32",
        )
        return made

    def groups(self) -> list[dict[str, Any]]:
        optim, get = self.recipe.optim, self.modules.get
        of_parts = [
            get("train.param_groups", "get_params_groups_with_decay_fsdp")(part, optim.layer_decay, optim.patch_rate)
            for part in self.student.values()
        ]
        fused = itertools.chain(*(get("train.param_groups", "fuse_params_groups")(groups) for groups in of_parts))
        return [dict(group, foreach=True, fused=True) for group in fused]

    def told(self, given: Given) -> Told:
        tiles, crops = len(given.global_crops) // 2, self.recipe.views.crops.local_crops
        cls_targets, patch_targets = self._teach(given)
        seen, local = self.student["backbone"](
            [given.global_crops, given.local_crops], masks=[given.mask, None], is_training=True
        )
        chosen = seen["x_norm_patchtokens"].flatten(0, 1).index_select(0, given.index)
        patches = self.student["ibot_head"](chosen)
        cls = [seen["x_norm_clstoken"], local["x_norm_clstoken"]]
        of_global, of_local = self.student["dino_head"](torch.cat(cls)).split([len(each) for each in cls])
        of_pairs = self.dino_loss(student_logits=of_local.unflatten(0, (crops, tiles)), teacher_probs=cls_targets)
        of_global_pairs = self.dino_loss(
            student_logits=of_global.unflatten(0, (2, tiles)), teacher_probs=cls_targets, ignore_diagonal=True
        )
        dino = (2 * crops * of_pairs + 2 * of_global_pairs) / (2 * crops + 2)
        koleo = sum(self.koleo_loss(half) for half in cls[0].unflatten(0, (2, tiles)))
        return _told(self.recipe, dino, _of_patches(self.ibot_loss, patches, patch_targets, given), koleo)

    @torch.no_grad()
    def _teach(self, given: Given) -> tuple[Tensor, Tensor]:
        temperature = schedules.at(self.recipe.schedule, 0, 1).temperature
        seen = self.teacher["backbone"](given.global_crops, is_training=True)
        chosen = seen["x_norm_patchtokens"].flatten(0, 1).index_select(0, given.index)
        patches = self.teacher["ibot_head"](chosen)
        cls = self.teacher["dino_head"](seen["x_norm_clstoken"])
        cls_targets = self.dino_loss.sinkhorn_knopp_teacher(cls, teacher_temp=temperature)
        patch_targets = self.ibot_loss.sinkhorn_knopp_teacher(
            patches, teacher_temp=temperature, n_masked_patches_tensor=torch.full((1,), len(given.index))
        )
        return cls_targets.unflatten(0, (2, len(cls) // 2)), patch_targets


def _padded(patches: Tensor, given: Given) -> Tensor:
    """(room, D): the masked patches, and zeros."""
    chosen = patches.flatten(0, 1).index_select(0, given.index)
    return torch.cat([chosen, chosen.new_zeros(given.room - len(chosen), chosen.shape[1])])


def _of_patches(loss: Any, patches: Tensor, targets: Tensor, given: Given) -> Tensor:
    """Their iBOT term; both have the same call."""
    found: Tensor = loss.forward_masked(
        patches,
        targets,
        student_masks_flat=given.mask,
        n_masked_patches=len(given.index),
        masks_weight=given.weight,
    )
    return found


def _told(recipe: Recipe, dino: Tensor, ibot: Tensor, koleo: Tensor) -> Told:
    weights = recipe.objective
    total = weights.dino_weight * dino + weights.ibot_weight * ibot + weights.spread_weight * koleo
    return Told(total, {"dino": dino, "ibot": ibot, "koleo": koleo})
