"""What the teacher sees, as a picture: tiles with the principal components of their patch tokens, and nearest tiles."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pretrain.compute.devices import send
from pretrain.compute.randomness import Purpose, uniforms
from pretrain.data.loader import UNREADABLE, read_tile
from pretrain.data.sampler import Draw, Sampler
from pretrain.features.embedder import each_seen, tokens_of
from pretrain.model.backbone import Backbone
from pretrain.pictures.canvas import GAP, MARGIN, PALE, beside, captioned, flow, heading, line, shrunk, stack
from wsi_prep.errors import BadOption, counted
from wsi_prep.format.magnifications import MAGNIFICATIONS, TILE_PX
from wsi_prep.storage.atomic import aside

_BATCH, _READS = 16, 16  # tiles embedded together; reads in flight, for object stores
_SHOWN_PX, _SMALL_PX = 224, 104  # most that a tile is shown at, in its row and among neighbours
_LEAST_WIDTH = 720  # of the picture, for its text


@dataclass(frozen=True)
class LookSettings:
    """`tiles` of each magnification; for the first `queries` of them, `neighbours` among `gallery` other tiles.

    `px`: tiles are embedded and shown at their centre of so many px, rounded down to whole patches. `seed` picks tiles.
    """

    tiles: int = 6
    queries: int = 2
    neighbours: int = 5
    gallery: int = 256
    px: int = 224
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {"tiles": (1, 32), "queries": (0, self.tiles), "neighbours": (1, 32), "gallery": (1, 10_000)}
        ranges |= {"px": (1, TILE_PX), "seed": (0, (1 << 64) - 1)}
        for name, (least, most) in ranges.items():
            if not least <= getattr(self, name) <= most:
                raise BadOption(f"look {name} {getattr(self, name)} is not between {least} and {most}")


class FeaturePictures:
    """The tiles that a run is watched by, chosen and read once, whatever the step.

    `pixels` (N, px, px, 3) uint8 RGB; `slide` (N,), numbers in the index; `magnification` (N,), into MAGNIFICATIONS.
    The first `shown` tiles stand in rows, the others are the gallery. `unreadable`: tiles left out, by name, and why.
    """

    def __init__(self, sampler: Sampler, settings: LookSettings) -> None:
        self.settings = settings
        self.unreadable: dict[str, str] = {}
        shares = np.array([stratum["target"] for stratum in sampler.strata])
        of = sampler.magnification_of(np.arange(len(shares)))
        self._magnifications: list[int] = np.unique(of[shares > 0]).tolist()
        read: list[tuple[Draw, NDArray[np.uint8]]] = []
        for number in self._magnifications:
            draws = _draws(sampler, settings.seed, number, shares * (of == number), 8 * settings.tiles)
            read += self._read(sampler, _spread(draws), settings.tiles)
        self.shown = len(read)
        if settings.queries:
            draws = _draws(sampler, settings.seed, len(MAGNIFICATIONS), shares, 8 * settings.gallery)
            read += self._read(sampler, draws, settings.gallery)
        self.pixels = np.array([pixels for _, pixels in read], np.uint8)
        self.slide = np.array([int(draw.slide[0]) for draw, _ in read], np.int64)
        self.magnification = of[[int(draw.stratum[0]) for draw, _ in read]]

    def draw(self, backbone: Backbone, step: int, device: torch.device) -> Image.Image:
        """The picture of a backbone that lies on the device whole (not in shards of fsdp); its mode stays as it was.

        Raises BadOption where `px` holds no whole patch.
        """
        patch = backbone.settings.patch_px
        grid = self.settings.px // patch
        if not grid:
            raise BadOption(f"look px {self.settings.px} holds no patch of {patch} px")
        px = grid * max(1, min(patch, _SHOWN_PX // grid))  # never enlarged, and whole pixels a patch
        width = max(_LEAST_WIDTH, 2 * MARGIN + self.settings.tiles * (px + GAP) - GAP)
        strips = [heading(f"step {step:,}", width)]
        if self.shown:
            tiles = _centre(self.pixels, grid * patch)
            embeddings, patches = _embed(backbone, tiles, self.shown, device)
            patches = patches.reshape(self.shown, grid, grid, -1)
            strips.append(line("principal components of patch tokens: red, green, blue are 1, 2, 3", width, PALE))
            for number in self._magnifications:
                strips += self._components(number, tiles, patches, px, width)
            strips += self._neighbours(tiles, embeddings, width) if self.settings.queries else []
        else:
            strips.append(line("no tile can be read", width))
        if self.unreadable:
            strips.append(line(f"{counted(len(self.unreadable), 'tile')} skipped: not readable", width, PALE))
        return stack(strips)

    def _read(self, sampler: Sampler, draws: list[Draw], wanted: int) -> list[tuple[Draw, NDArray[np.uint8]]]:
        """The first `wanted` tiles that can be read, with their pixels; not for ever where nothing can be."""
        read: list[tuple[Draw, NDArray[np.uint8]]] = []
        draws = draws[: 2 * wanted + _READS]
        with ThreadPoolExecutor(_READS) as pool:
            while draws and len(read) < wanted:
                some, draws = draws[: wanted - len(read)], draws[wanted - len(read) :]
                tiles = pool.map(lambda draw: self._read_one(sampler, draw), some)
                read += [(draw, pixels) for draw, pixels in zip(some, tiles, strict=True) if pixels is not None]
        return read

    def _read_one(self, sampler: Sampler, draw: Draw) -> NDArray[np.uint8] | None:
        address = sampler.index.address(int(draw.tile[0]))
        try:
            return _centre(read_tile(address), self.settings.px).copy()
        except UNREADABLE as error:
            self.unreadable[address.name] = str(error)
            return None

    def _components(
        self, number: int, tiles: NDArray[np.uint8], patches: NDArray[np.float32], px: int, width: int
    ) -> list[Image.Image]:
        """A magnification's tiles, and below them the colours of their patch tokens (shown, grid, grid, D)."""
        rows = np.flatnonzero(self.magnification[: self.shown] == number)
        what = f"{counted(len(rows), 'tile')} of {counted(len(np.unique(self.slide[rows])), 'slide')}"
        strips = [heading(f"{MAGNIFICATIONS[number].name}, {MAGNIFICATIONS[number].mpp:g} um/px: {what}", width)]
        if len(rows):
            *shape, dim = patches[rows].shape
            colours = as_colours(principal_components(patches[rows].reshape(-1, dim))).reshape(*shape, 3)
            strips += flow([shrunk(tile, px) for tile in tiles[rows]], width)
            strips += flow([Image.fromarray(c).resize((px, px), Image.Resampling.NEAREST) for c in colours], width)
        return strips

    def _neighbours(self, tiles: NDArray[np.uint8], embeddings: NDArray[np.float32], width: int) -> list[Image.Image]:
        """The first tiles of each row, each with the nearest tiles of other slides."""
        of, slide, begin = self.magnification[: self.shown], self.slide, self.shown
        queries = np.concatenate([np.flatnonzero(of == m)[: self.settings.queries] for m in self._magnifications])
        groups = []
        for query in queries:
            elsewhere = slide[begin:] != slide[query]
            found = nearest(embeddings[query], embeddings[begin:], elsewhere, self.settings.neighbours)
            others = [self._small(tiles, begin + row, f"{cosine:.3f}") for row, cosine in found]
            if others:
                groups.append(beside([self._small(tiles, query, "query"), beside(others)], 2 * GAP))
        if not groups:
            return [line("no nearest neighbours are shown: there is no tile of another slide", width)]
        what = f"{counted(len(slide) - begin, 'tile')} of {counted(len(np.unique(slide[begin:])), 'slide')}"
        return [
            heading(f"nearest of {what}", width),
            line("by cosine of class token and mean patch token; never of the query's own slide", width, PALE),
            *flow(groups, width, 3 * GAP),
        ]

    def _small(self, tiles: NDArray[np.uint8], row: int, text: str) -> Image.Image:
        name = MAGNIFICATIONS[self.magnification[row]].name
        return captioned(shrunk(tiles[row], min(tiles.shape[1], _SMALL_PX)), f"{text}  {name}")


def principal_components(tokens: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, D) -> (N, 3): along the first three principal components, each with its largest loading positive."""
    centred = tokens - tokens.mean(0, dtype=np.float64)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, :-4:-1]
    loading = np.take_along_axis(axes, np.abs(axes).argmax(0, keepdims=True), 0)
    return np.asarray(centred @ (axes * np.sign(loading)))


def as_colours(along: NDArray[np.float64]) -> NDArray[np.uint8]:
    """(N, 3) -> (N, 3) uint8: each column from its 2nd to its 98th percentile; grey where it hardly varies."""
    low, high = np.percentile(along, (2, 98), axis=0)
    varies = high - low > 1e-6 * np.abs(along).max() + 1e-12
    scaled = np.where(varies, (along - low) / np.where(varies, high - low, 1), 0.5)
    return (255 * scaled.clip(0, 1)).round().astype(np.uint8)


def nearest(
    query: NDArray[np.float32], gallery: NDArray[np.float32], allowed: NDArray[np.bool_], count: int
) -> list[tuple[int, float]]:
    """At most `count` of the allowed rows of a (G, E) gallery, nearest to the query (E,) first, with their cosines."""
    length = np.linalg.norm(gallery, axis=1) * np.linalg.norm(query)
    cosines = gallery @ query / length.clip(1e-12)
    rows = np.flatnonzero(allowed)
    best = rows[np.argsort(-cosines[rows], kind="stable")[:count]]
    return [(int(row), float(cosines[row])) for row in best]


def save_picture(image: Image.Image, file: Path) -> None:
    """As PNG, written aside and renamed, so that nobody sees half of it; its folder is made. Raises OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with aside(file) as unfinished:
        image.save(unfinished, format="PNG")


def _draws(sampler: Sampler, seed: int, stream: int, shares: NDArray[np.float64], most: int) -> list[Draw]:
    """Different tiles of strata drawn in proportion to their shares; `most` draws, which repeat some."""
    upto = np.cumsum(shares)
    u = uniforms(seed, Purpose.PICTURE, stream, range(most), 2)
    strata = np.searchsorted(upto, u[:, 0] * upto[-1], side="right")
    places = (u[:, 1] * 2**52).astype(np.int64)  # in the sampler's table of replacements, which has its own seed
    draws = [sampler.replacement(0, place, n, 0) for place, n in zip(places.tolist(), strata.tolist(), strict=True)]
    return list({int(draw.tile[0]): draw for draw in draws}.values())


def _spread(draws: list[Draw]) -> list[Draw]:
    """The first tile of every slide, then the second of each, and so on."""
    slides = [int(draw.slide[0]) for draw in draws]
    turns = [slides[:at].count(slide) for at, slide in enumerate(slides)]
    return [draws[at] for at in np.argsort(turns, kind="stable")]


def _embed(
    backbone: Backbone, tiles: NDArray[np.uint8], patches_of: int, device: torch.device
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(N, 2 D) embeddings of all tiles, and (`patches_of`, P, D) patch tokens of the first."""
    begins = range(0, len(tiles), _BATCH)
    rows = (np.minimum(np.arange(at, at + _BATCH), len(tiles) - 1) for at in begins)  # all batches of one size
    batches = (send(tiles[some], device).permute(0, 3, 1, 2).float() / 255 for some in rows)
    embeddings, patches = [], []
    for at, tokens in zip(begins, each_seen(backbone, partial(tokens_of, backbone), batches), strict=True):
        embeddings.append(tokens.embedding.float().cpu())
        if at < patches_of:
            patches.append(tokens.patches.float().cpu())
    return torch.cat(embeddings)[: len(tiles)].numpy(), torch.cat(patches)[:patches_of].numpy()


def _centre(pixels: NDArray[np.uint8], px: int) -> NDArray[np.uint8]:
    """(..., h, w, 3) -> (..., px, px, 3)."""
    y, x = ((side - px) // 2 for side in pixels.shape[-3:-1])
    return pixels[..., y : y + px, x : x + px, :]
