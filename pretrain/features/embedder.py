"""What turns tiles into features, whatever made it: a run, a folder of weights, or a model that timm knows by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pretrain.compute.devices import send
from pretrain.data.labelled import Tiles, read_batches, resized, whole_patches
from pretrain.errors import BadWeights
from pretrain.model.backbone import Backbone, Tokens
from pretrain.model.normalise import MEAN, STD, normalise
from pretrain.model.weights.timm_folder import PREFIX, check_timm_folder
from wsi_prep.errors import BadOption, first_line
from wsi_prep.storage.atomic import aside

import timm  # isort: skip - backbone has made it importable
from timm.data.config import resolve_model_data_config  # isort: skip

Seen = TypeVar("Seen")

_READING = 2  # changes when the same files become other pixels


@dataclass(frozen=True)
class Inference:
    """How a model is run over tiles: `batch` at once on `device`, read and decoded by `threads`.

    `autocast`: the type that matrices are multiplied in, None for the weights' own.
    """

    device: torch.device
    batch: int = 64
    threads: int = 2
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.batch < 1 or self.threads < 1:
            raise BadOption("batch and threads must be at least 1")


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
    patch_px, about = backbone.settings.patch_px, _about(backbone)
    return Embedder(backbone, lambda tiles: tokens_of(backbone, tiles).embedding, patch_px, about=about)


def tokens_of(backbone: Backbone, tiles: Tensor) -> Tokens:
    """Of (b, 3, h, w) tiles in [0, 1], whole patches of the backbone's."""
    tokens: Tokens = backbone([normalise(tiles)])[0]
    return tokens


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
    inference: Inference,
    folder: Path | None = None,
    progress: Callable[[int], None] = lambda tiles: None,
) -> Tensor:
    """(n, F) float32 of all tiles, from the cache in `folder` where they are there. `px` as in tasks.Task."""
    side = embedder.px or px

    def make() -> Tensor:
        embedder.module.to(inference.device)
        return embed_tiles(embedder, tiles, side, inference, progress)

    return cached(folder, embedder.stamp, tiles, side, make) if folder else make()


def embed_tiles(
    embedder: Embedder,
    tiles: Tiles,
    px: int,
    inference: Inference,
    progress: Callable[[int], None] = lambda tiles: None,
) -> Tensor:
    """(n, F) float32 on the CPU: the features of every tile in order, by a module that is on the device.

    `px`: the side that tiles are resized to, 0 for their own; then their middle in whole patches. Tiles are read and
    decoded by threads while others are computed. Raises BadTask.
    """
    read = read_batches(tiles, inference.batch, inference.threads, lambda tile: resized(tile, px))
    batches = (send(whole_patches(pixels, embedder.patch_px), inference.device) for pixels in read)
    rows = []
    for found in each_seen(embedder.module, embedder.features, batches, inference.autocast):
        rows.append(found.float())
        progress(len(found))
    return torch.cat(rows).cpu()


def each_seen(
    module: nn.Module, see: Callable[[Tensor], Seen], batches: Iterable[Tensor], autocast: torch.dtype | None = None
) -> Iterator[Seen]:
    """What `see` makes of each batch of (b, 3, h, w) float32 tiles in [0, 1], which are where the module is.

    In eval mode, and every part of the module back in its own afterwards; without gradients. Compiled blocks run as
    they are written, since each size of tile and of last batch would be compiled anew. `autocast` as in Inference.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        for tiles in batches:
            cast = torch.autocast(tiles.device.type, autocast, enabled=autocast is not None)
            with torch.no_grad(), torch.compiler.set_stance("force_eager"), cast:
                seen = see(tiles)
            yield seen
    finally:
        for part, mode in modes:
            part.training = mode
