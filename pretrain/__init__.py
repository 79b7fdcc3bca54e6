"""From shards to a trained mixed-magnification vision transformer: index, sampler, loader, model, features.

What is in `__all__` is for everybody, and is imported when it is first used; all else may change without notice.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pretrain.data.index import Index, open_index
    from pretrain.data.loader import Loader, LoaderSettings
    from pretrain.data.regions import SlideTiles, open_slide_tiles, read_region
    from pretrain.data.sampler import Sampler, SamplingSettings
    from pretrain.features.embed import EmbedSettings, FeaturesTo, WantedTiles, embed_shards
    from pretrain.features.embedder import Embedder, Inference
    from pretrain.model.backbone import Backbone, BackboneSettings
    from pretrain.train.recipe.recipe import Recipe
    from pretrain.train.recipe.recipes import recipe
    from pretrain.train.runs import load_embedder, load_model

_PLACES = {
    "data.index": ("Index", "open_index"),
    "data.loader": ("Loader", "LoaderSettings"),
    "data.regions": ("SlideTiles", "open_slide_tiles", "read_region"),
    "data.sampler": ("Sampler", "SamplingSettings"),
    "features.embed": ("EmbedSettings", "FeaturesTo", "WantedTiles", "embed_shards"),
    "features.embedder": ("Embedder", "Inference"),
    "model.backbone": ("Backbone", "BackboneSettings"),
    "train.recipe.recipe": ("Recipe",),
    "train.recipe.recipes": ("recipe",),
    "train.runs": ("load_embedder", "load_model"),
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names}

__all__ = [
    "Backbone",
    "BackboneSettings",
    "EmbedSettings",
    "Embedder",
    "FeaturesTo",
    "Index",
    "Inference",
    "Loader",
    "LoaderSettings",
    "Recipe",
    "Sampler",
    "SamplingSettings",
    "SlideTiles",
    "WantedTiles",
    "embed_shards",
    "load_embedder",
    "load_model",
    "open_index",
    "open_slide_tiles",
    "read_region",
    "recipe",
]


def __getattr__(name: str) -> object:
    if name not in _PLACE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
