"""A contact sheet of what the trainer will see: tiles by magnification and stratum, then tiles with their crops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pretrain.compute.randomness import Places
from pretrain.data.loader import UNREADABLE, Loader, LoaderSettings, read_tile
from pretrain.data.sampler import Draw, Sampler
from pretrain.pictures.canvas import GAP, INK, LINE, MARGIN, PALE, blank, flow, font, heading, line, shrunk, stack
from pretrain.views.colour import ColourSettings, apply_colour, plan_colour
from pretrain.views.crops import CropSettings, CropWindows, TileScales, crop, plan_crops
from wsi_prep.errors import counted
from wsi_prep.format.magnifications import MAGNIFICATIONS, TILE_PX

_ACROSS = 10  # tiles of a stratum
_EXAMPLES = 6  # of any um/px
_SMALL_PX = 124  # a tile shown small
_WIDTH = 2 * MARGIN + _ACROSS * (_SMALL_PX + GAP) - GAP
_GLOBAL, _LOCAL = (0, 130, 60), (220, 90, 0)


@dataclass(frozen=True)
class PeekSettings:
    """`strata`: most strata shown of each magnification, those drawn most often first; `seed` chooses the tiles."""

    strata: int = 12
    seed: int = 0


def contact_sheet(
    sampler: Sampler, crops: CropSettings, colour: ColourSettings, settings: PeekSettings
) -> tuple[Image.Image, list[str]]:
    """The sheet, and the tiles that could not be read, by name with the reason."""
    bad: list[str] = []
    strips: list[Image.Image] = []
    for number, magnification in enumerate(MAGNIFICATIONS):
        rows = [(n, s) for n, s in enumerate(sampler.strata) if s["magnification"] == magnification.name]
        shown = sorted(((n, s) for n, s in rows if s["target"]), key=lambda row: -row[1]["target"])
        if not shown:
            continue
        share = sum(s["target"] for _, s in shown)
        strips.append(heading(f"{magnification.name}, {magnification.mpp:g} um/px: {share:.1%} of the draws", _WIDTH))
        for stratum, row in shown[: settings.strata]:
            strips += _stratum(sampler, stratum, row, bad)
        if more := len(shown) - settings.strata:
            strips += [line(f"and {more} more strata", _WIDTH, PALE)] if more > 0 else []
        most = max(shown, key=lambda row: row[1]["tiles"])[0]
        if example := next(_readable(sampler, most, bad), None):
            draw, pixels = example
            strips.append(_crops(draw, pixels, crops, colour, settings.seed + number))
    if sampler.settings.any_mpp:
        strips.append(heading(f"any um/px: {_EXAMPLES} draws", _WIDTH))
        with Loader(sampler, LoaderSettings(threads=1, ahead=1)) as loader:
            for batch in loader.batches(0, _EXAMPLES):
                pixels = batch.pixels[0].permute(1, 2, 0).numpy()
                strips.append(_crops(batch.draw.take(np.arange(1)), pixels, crops, colour, settings.seed))
        bad += [f"{name}: {why}" for name, why in loader.bad.named.items()]
    return stack(strips), bad


def _readable(sampler: Sampler, stratum: int, bad: list[str]) -> Iterator[tuple[Draw, NDArray[np.uint8]]]:
    """Different tiles of a stratum with their (392, 392, 3) uint8 pixels."""
    seen: set[int] = set()
    for attempt in range(8 * _ACROSS):
        draw = sampler.replacement(0, attempt, stratum, 0)
        tile = int(draw.tile[0])
        if tile in seen:
            continue
        seen.add(tile)
        address = sampler.index.address(tile)
        try:
            yield draw, read_tile(address)
        except UNREADABLE as error:
            bad.append(f"{address.name}: {error}")


def _stratum(sampler: Sampler, stratum: int, row: dict[str, Any], bad: list[str]) -> list[Image.Image]:
    names = " / ".join(str(row[level]) for level in sampler.settings.strata) or "all tiles"
    of = f"{counted(row['tiles'], 'tile')} of {counted(row['slides'], 'slide')}"
    count = f"{of}, {row['target']:.2%} of the draws"
    read = zip(range(_ACROSS), _readable(sampler, stratum, bad), strict=False)
    small = [shrunk(pixels, _SMALL_PX) for _, (_, pixels) in read]
    return [line(f"{names}   {count}", _WIDTH), *(flow(small, _WIDTH) or [blank(_WIDTH, _SMALL_PX + GAP)])]


def _crops(
    draw: Draw, pixels: NDArray[np.uint8], settings: CropSettings, colour: ColourSettings, seed: int
) -> Image.Image:
    """One tile with its windows drawn in, and beside it what the model gets, all pixel for pixel."""
    tile = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    places = Places(seed, draw.step, draw.position)
    planned = plan_crops(settings, places, TileScales(draw.mpp, draw.wanted))
    strip = blank(_WIDTH, 2 * LINE + TILE_PX + GAP)
    words = ImageDraw.Draw(strip)
    said = f"one of them, {float(draw.mpp[0]):.4g} um/px, and its crops"
    if draw.any_mpp is not None:
        made = "four tiles" if len(draw.needed(0)) > 1 else f"a tile of {float(draw.mpp[0]):.4g} um/px"
        said = f"{float(draw.wanted[0]):.4g} um/px, out of {made}, and its crops"
    words.text((MARGIN, 3), said, INK, font(14))
    whole = Image.fromarray(pixels)
    x = MARGIN + TILE_PX + GAP
    kinds = (("global", settings.global_px, _GLOBAL), ("local", settings.local_px, _LOCAL))
    for (kind, px, ink), windows in zip(kinds, planned, strict=True):
        number = windows.x0.shape[1]
        cut = crop(tile, windows)
        cut = apply_colour(cut, plan_colour(colour, places, kind, number))
        across = max(1, (TILE_PX + GAP) // (px + GAP)) if kind == "local" else number
        for place in range(number):
            _outline(whole, windows, place, ink)
            at = (x + place % across * (px + GAP), LINE + place // across * (px + LINE))
            shown = (cut[place].permute(1, 2, 0) * 255).round().clamp(0, 255).byte().numpy()
            strip.paste(Image.fromarray(shown), at)
            mpp = float(windows.mpp(draw.mpp)[0, place])
            words.text((at[0], at[1] + px + 2), f"{mpp:.3f} um/px", ink, font(12))
        x += across * (px + GAP)
    strip.paste(whole, (MARGIN, LINE))
    return strip


def _outline(image: Image.Image, windows: CropWindows, place: int, ink: tuple[int, int, int]) -> None:
    x0, y0 = float(windows.x0[0, place]), float(windows.y0[0, place])
    corner = (x0 + float(windows.width[0, place]), y0 + float(windows.height[0, place]))
    ImageDraw.Draw(image).rectangle((x0, y0, *corner), outline=ink, width=2)
