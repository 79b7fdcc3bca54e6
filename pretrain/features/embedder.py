"""What turns tiles into features, whatever made it: a run, a folder of weights, or a model that timm knows by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pretrain.compute.devices import send
from pretrain.data.labelled import Tiles, read_batches, resized, whole_patches
from pretrain.errors import BadWeights
from pretrain.model.backbone import Backbone
from pretrain.model.normalise import MEAN, STD, normalise
from pretrain.model.weights.timm_folder import PREFIX, check_timm_folder
from wsi_prep.errors import first_line
from wsi_prep.storage.atomic import aside

import timm  # isort: skip - backbone has made it importable
from timm.data.config import resolve_model_data_config  # isort: skip

_READING = 2  # changes when the same files become other pixels


@dataclass(frozen=True)
class Embedder:
    """`features` of (b, 3, h, w) float32 tiles in [0, 1], on the module's device; h and w are multiples of `patch_px`.

    `px`: the only side that it takes, 0 for any. `module` holds the weights, `about` says what else features depend on.
    """

    module: nn.Module
    features: Callable[[Tensor], Tensor]
    patch_px: int
    px: int = 0
    about: str = ""

    @property
    def stamp(self) -> str:
        """Another one where the features are others."""
        return f"{weights_digest(self.module, self.about)} {self.patch_px} {self.px}"


def weights_digest(module: nn.Module, about: str = "") -> str:
    """Another one where a weight differs, or what `about` says of the rest."""
    digest = hashlib.blake2b(about.encode(), digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def backbone_digest(backbone: Backbone) -> str:
    """Of what makes the features of a backbone of ours; the same for a run's and for what was exported of it."""
    return weights_digest(backbone.vit, _about(backbone))


def _about(backbone: Backbone) -> str:
    """What no weight's name or shape tells."""
    return f"{backbone.settings.heads} heads"


def of_backbone(backbone: Backbone) -> Embedder:
    """Class token and mean patch token of a backbone of ours."""
    backbone.eval()
    patch_px, about = backbone.settings.patch_px, _about(backbone)
    return Embedder(backbone, lambda tiles: backbone([normalise(tiles)])[0].embedding, patch_px, about=about)


def of_timm(name: str) -> Embedder:
    """A model of timm with its released weights: a name, `hf-hub:owner/name` or `local-dir:folder`.

    A ViT gives class token and mean patch token, another network what it hands to its classifier. Tiles are normalised
    and sized as the model asks. Raises BadWeights.
    """
    if name.startswith(PREFIX):
        check_timm_folder(Path(name.removeprefix(PREFIX)))
    try:
        model: Any = timm.create_model(name, pretrained=True, num_classes=0).eval()
    except Exception as error:  # of timm, the hub and the network, each with errors of its own
        reason = first_line(error)
        raise BadWeights(f"{name} is no folder, and timm cannot make it: {reason}") from error
    config: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    mean, std = (torch.tensor(config.get(key, ours)).view(3, 1, 1) for key, ours in (("mean", MEAN), ("std", STD)))
    prefix = int(getattr(model, "num_prefix_tokens", 0))

    def features(tiles: Tensor) -> Tensor:
        found = model.forward_features((tiles - mean.to(tiles.device)) / std.to(tiles.device))
        if found.ndim == 3 and prefix:
            return torch.cat([found[:, 0], found[:, prefix:].mean(1)], dim=1)
        pooled: Tensor = model.forward_head(found, pre_logits=True)
        return pooled

    embed = getattr(model, "patch_embed", None)
    patch = getattr(embed, "patch_size", (1, 1))
    strict = prefix or getattr(embed, "strict_img_size", False)
    fixed = int(config["input_size"][-1]) if strict and not getattr(model, "dynamic_img_size", False) else 0
    about = f"{type(model).__name__} {mean.flatten().tolist()} {std.flatten().tolist()} {prefix}"
    return Embedder(model, features, int(patch[0]), fixed, about)


def cached(folder: Path | None, who: str, tiles: Tiles, px: int, make: Callable[[], Tensor]) -> Tensor:
    """Features (n, F) of these tiles by `who`, from the folder where they are there, else made and kept there."""
    if folder is None:
        return make()
    key = hashlib.blake2b(f"{_READING}\n{who}\n{tiles.stamp}\n{px}".encode(), digest_size=16).hexdigest()
    file = folder / f"{key}.safetensors"
    try:
        features = load_file(file)["features"]
        if len(features) == len(tiles):
            return features
    except (OSError, SafetensorError, KeyError):
        pass  # not there, or broken: made anew
    features = make()
    folder.mkdir(parents=True, exist_ok=True)
    with aside(file) as unfinished:
        save_file({"features": features.contiguous()}, unfinished)
    return features


def features_of(
    embedder: Embedder,
    tiles: Tiles,
    px: int,
    device: torch.device,
    folder: Path | None = None,
    progress: Callable[[int], None] = lambda tiles: None,
    batch: int = 64,
    threads: int = 2,
) -> Tensor:
    """(n, F) float32 of all tiles, from the cache in `folder` where they are there. `px` as in tasks.Task."""
    side = embedder.px or px

    def make() -> Tensor:
        embedder.module.to(device)
        return embed_tiles(embedder.features, tiles, embedder.patch_px, side, device, batch, threads, progress)

    return cached(folder, embedder.stamp, tiles, side, make) if folder else make()


def embed_tiles(
    features: Callable[[Tensor], Tensor],
    tiles: Tiles,
    patch_px: int,
    px: int,
    device: torch.device,
    batch: int = 64,
    threads: int = 2,
    progress: Callable[[int], None] = lambda tiles: None,
) -> Tensor:
    """(n, F) float32 on the CPU: `features` of (b, 3, h, w) float32 in [0, 1], for every tile in order.

    `px`: the side that tiles are resized to, 0 for their own; then their middle in whole patches. Tiles are read and
    decoded by threads while others are computed. Raises BadTask.
    """
    rows = []
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        for pixels in read_batches(tiles, batch, threads, lambda tile: resized(tile, px)):
            rows.append(features(send(whole_patches(pixels, patch_px), device)).float())
            progress(len(pixels))
    return torch.cat(rows).cpu()
