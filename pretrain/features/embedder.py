"""What turns tiles into features, whatever made it: a run, a folder of weights, or a model that timm knows by name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pretrain.compute.devices import best_device, send
from pretrain.data.labelled import Tiles, read_batches, resized, whole_patches
from pretrain.errors import BadWeights
from pretrain.features.kept_features import POOLED, TOKENS
from pretrain.model.backbone import Backbone, Tokens
from pretrain.model.normalise import MEAN, STD, normalise
from pretrain.model.weights.timm_folder import timm_model
from wsi_prep.errors import BadOption, first_line
from wsi_prep.storage.atomic import aside

from timm.data.config import resolve_model_data_config  # isort: skip - backbone has made timm importable

Seen = TypeVar("Seen")

_READING = 2  # changes when the same files become other pixels


@dataclass(frozen=True)
class Inference:
    """How a model is run over tiles: `batch` at once on `device`, read and decoded by `threads`.

    `autocast`: the type that matrices are multiplied in, None for the weights' own.

    >>> Inference(batch=256).threads
    2
    """

    device: torch.device = field(default_factory=best_device)
    batch: int = 64
    threads: int = 2
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.batch < 1 or self.threads < 1:
            raise BadOption("batch and threads must be at least 1")


@dataclass(frozen=True)
class Embedder:
    """`features`, (b, F), of (b, 3, h, w) float32 tiles in [0, 1], on the module's device.

    h and w are multiples of `patch_px`. `px`: the only side that it takes, 0 for any; tiles are resized to it. `module`
    holds the weights, `about` says what else features depend on, and `what` says for people what the features are.
    `patches`: (b, rows, columns, D), the patch tokens of the same tiles, or a convolutional network's last map.
    `at`: of a model that takes um/px, the features of tiles at these, (b,) float32; `features` then does without.

    >>> import torch
    >>> embedder = load_embedder("model")
    >>> embedder.patch_px, embedder.what
    (14, 'class token, then mean of the patch tokens')
    >>> with torch.no_grad():
    ...     embedder.features(torch.rand(5, 3, 224, 224)).shape
    torch.Size([5, 64])
    """

    module: nn.Module
    features: Callable[[Tensor], Tensor]
    patch_px: int
    px: int = 0
    about: str = ""
    what: str = TOKENS
    patches: Callable[[Tensor], Tensor] | None = None
    at: Callable[[Tensor, Tensor], Tensor] | None = None

    @property
    def digest(self) -> str:
        """Another one where a weight differs, or what `about` says; of a run as of what is exported of it."""
        digest = hashlib.blake2b(self.about.encode(), digest_size=16)
        for name, value in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    @property
    def stamp(self) -> str:
        """Another one where the features are others."""
        return f"{self.digest} {self.patch_px} {self.px}"


def of_backbone(backbone: Backbone) -> Embedder:
    """Class token and mean patch token of a backbone of ours."""
    patch_px, about = backbone.settings.patch_px, f"{backbone.settings.heads} heads"  # which no weight's shape tells

    def features(tiles: Tensor) -> Tensor:
        return tokens_of(backbone, tiles).embedding

    def patches(tiles: Tensor) -> Tensor:
        return _as_map(tokens_of(backbone, tiles).patches, tiles, patch_px)

    told = Embedder(backbone.vit, features, patch_px, about=about, patches=patches)
    if backbone.eraser is not None:
        told = replace(told, module=backbone, about=f"{about}, erased")
    if backbone.mpp_token is None:
        return told
    whole = replace(told, module=backbone, about=f"{told.about}, um/px")
    return replace(whole, at=lambda tiles, mpp: tokens_of(backbone, tiles, mpp).embedding)


def tokens_of(backbone: Backbone, tiles: Tensor, mpp: Tensor | None = None) -> Tokens:
    """Of (b, 3, h, w) tiles in [0, 1], whole patches of the backbone's; (b,) um/px, for one that takes them."""
    tokens: Tokens = backbone([normalise(tiles)], mpp=() if mpp is None else (mpp,))[0]
    return tokens


def of_timm(name: str) -> Embedder:
    """A model of timm with its released weights: a name, `hf-hub:owner/name` or `local-dir:folder`.

    A ViT gives class token and mean patch token, another network what it hands to its classifier. Tiles are normalised
    and sized as the model asks. Raises BadWeights.
    """
    model: Any = timm_model(name)
    config: dict[str, Any] = resolve_model_data_config(model)  # type: ignore[no-untyped-call]
    mean, std = (torch.tensor(config.get(key, ours)).view(3, 1, 1) for key, ours in (("mean", MEAN), ("std", STD)))
    has_class = getattr(model, "cls_token", None) is not None  # with registers alone, the first token is one of them
    prefix = int(getattr(model, "num_prefix_tokens", 0)) if has_class else 0

    def features(tiles: Tensor) -> Tensor:
        found = model.forward_features((tiles - mean.to(tiles.device)) / std.to(tiles.device))
        if found.ndim == 3 and prefix:
            return torch.cat([found[:, 0], found[:, prefix:].mean(1)], dim=1)
        pooled: Tensor = model.forward_head(found, pre_logits=True)
        return pooled

    patch = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    patch_px = patch if isinstance(patch, int) else int(patch[0])

    def patches(tiles: Tensor) -> Tensor:
        found: Tensor = model.forward_features((tiles - mean.to(tiles.device)) / std.to(tiles.device))
        if found.ndim == 3:
            return _as_map(found[:, int(getattr(model, "num_prefix_tokens", 0)) :], tiles, patch_px)
        last = (
            found.shape[-1] == model.num_features != found.shape[1]
        )  # (b, rows, columns, D), as some networks have it
        return found if last else found.permute(0, 2, 3, 1)

    fixed = int(config["input_size"][-1]) if _is_fixed(model) else 0
    about = f"{type(model).__name__} {mean.flatten().tolist()} {std.flatten().tolist()} {prefix}"
    what = (TOKENS if prefix else POOLED) + (f", of tiles resized to {fixed} px" if fixed else "")
    return Embedder(model, features, patch_px, fixed, about, what, patches)


def _as_map(tokens: Tensor, tiles: Tensor, patch_px: int) -> Tensor:
    """(b, N, D) tokens of (b, 3, h, w) tiles, row by row -> (b, rows, columns, D)."""
    return tokens.reshape(len(tokens), tiles.shape[2] // patch_px, tiles.shape[3] // patch_px, -1)


def _is_fixed(model: Any) -> bool:
    """Whether a model of timm takes tiles of one size alone."""
    if getattr(model, "dynamic_img_size", False):
        return False
    strict = getattr(getattr(model, "patch_embed", None), "strict_img_size", False)
    told = getattr(model, "pretrained_cfg", None) or {}
    return bool(strict or getattr(model, "num_prefix_tokens", 0) or told.get("fixed_input_size", False))


def width_at(embedder: Embedder, px: int, inference: Inference) -> int:
    """How many numbers the features of tiles of `px` a side have; one tile is computed, by a module on the device.

    Raises BadWeights where the model does not take such tiles.
    """
    blank = torch.zeros(1, 3, px, px, device=inference.device)
    try:
        (found,) = each_seen(embedder.module, embedder.features, [blank], inference.autocast)
        tiles, width = found.shape
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of any network, each with errors of its own
        raise BadWeights(f"the model does not take tiles of {px} px ({first_line(error)}); try another PX") from error
    if tiles != 1 or not width:
        raise BadWeights(f"the model makes {tiles} x {width} numbers of one tile, which are no features")
    return int(width)


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
