"""A contact sheet of what the trainer will see: tiles by magnification and stratum, then tiles with their crops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pretrain.colour import ColourSettings, apply_colour, plan_colour
from pretrain.crops import CropSettings, CropWindows, crop, plan_crops
from pretrain.loader import UNREADABLE, read_tile
from pretrain.sampler import Draw, Sampler
from wsi_prep.geometry import MAGNIFICATIONS, TILE_PX

_ACROSS = 10  # tiles of a stratum
_SMALL_PX = 124  # a tile shown small
_GAP = 8
_LINE = 22
_MARGIN = 16
_WIDTH = 2 * _MARGIN + _ACROSS * (_SMALL_PX + _GAP) - _GAP
_INK, _PALE, _PAPER = (30, 30, 30), (110, 110, 110), (255, 255, 255)
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
        strips.append(_heading(f"{magnification.name}, {magnification.mpp:g} um/px: {share:.1%} of the draws"))
        strips += [_stratum(sampler, stratum, row, bad) for stratum, row in shown[: settings.strata]]
        if more := len(shown) - settings.strata:
            strips += [_text(f"and {more} more strata", _PALE)] if more > 0 else []
        most = max(shown, key=lambda row: row[1]["tiles"])[0]
        if example := next(_readable(sampler, most, bad), None):
            draw, pixels = example
            strips.append(_crops(draw, pixels, crops, colour, settings.seed + number))
    return _stack(strips), bad


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


def _stratum(sampler: Sampler, stratum: int, row: dict[str, Any], bad: list[str]) -> Image.Image:
    names = " / ".join(str(row[level]) for level in sampler.settings.strata) or "all tiles"
    count = f"{row['tiles']:,} tiles of {row['slides']:,} slides, {row['target']:.2%} of the draws"
    strip = Image.new("RGB", (_WIDTH, _LINE + _SMALL_PX + _GAP), _PAPER)
    ImageDraw.Draw(strip).text((_MARGIN, 3), f"{names}   {count}", _INK, _font(14))
    for place, (_, pixels) in zip(range(_ACROSS), _readable(sampler, stratum, bad), strict=False):
        small = Image.fromarray(pixels).resize((_SMALL_PX, _SMALL_PX), Image.Resampling.BOX)
        strip.paste(small, (_MARGIN + place * (_SMALL_PX + _GAP), _LINE))
    return strip


def _crops(
    draw: Draw, pixels: NDArray[np.uint8], settings: CropSettings, colour: ColourSettings, seed: int
) -> Image.Image:
    """One tile with its windows drawn in, and beside it what the model gets, all pixel for pixel."""
    tile = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    planned = plan_crops(settings, seed, draw.step, draw.position)
    strip = Image.new("RGB", (_WIDTH, 2 * _LINE + TILE_PX + _GAP), _PAPER)
    words = ImageDraw.Draw(strip)
    words.text((_MARGIN, 3), f"one of them, {float(draw.mpp[0]):.4g} um/px, and its crops", _INK, _font(14))
    whole = Image.fromarray(pixels)
    x = _MARGIN + TILE_PX + _GAP
    kinds = (("global", settings.global_px, _GLOBAL), ("local", settings.local_px, _LOCAL))
    for (kind, px, ink), windows in zip(kinds, planned, strict=True):
        number = windows.x0.shape[1]
        cut = crop(tile, windows)
        cut = apply_colour(cut, plan_colour(colour, seed, draw.step, draw.position, kind, number))
        across = max(1, (TILE_PX + _GAP) // (px + _GAP)) if kind == "local" else number
        for place in range(number):
            _outline(whole, windows, place, ink)
            at = (x + place % across * (px + _GAP), _LINE + place // across * (px + _LINE))
            shown = (cut[place].permute(1, 2, 0) * 255).round().clamp(0, 255).byte().numpy()
            strip.paste(Image.fromarray(shown), at)
            mpp = float(windows.mpp(draw.mpp)[0, place])
            words.text((at[0], at[1] + px + 2), f"{mpp:.3f} um/px", ink, _font(12))
        x += across * (px + _GAP)
    strip.paste(whole, (_MARGIN, _LINE))
    return strip


def _outline(image: Image.Image, windows: CropWindows, place: int, ink: tuple[int, int, int]) -> None:
    x0, y0 = float(windows.x0[0, place]), float(windows.y0[0, place])
    corner = (x0 + float(windows.width[0, place]), y0 + float(windows.height[0, place]))
    ImageDraw.Draw(image).rectangle((x0, y0, *corner), outline=ink, width=2)


def _heading(text: str) -> Image.Image:
    strip = Image.new("RGB", (_WIDTH, 40), _PAPER)
    ImageDraw.Draw(strip).text((_MARGIN, 10), text, _INK, _font(20))
    return strip


def _text(text: str, ink: tuple[int, int, int]) -> Image.Image:
    strip = Image.new("RGB", (_WIDTH, _LINE), _PAPER)
    ImageDraw.Draw(strip).text((_MARGIN, 3), text, ink, _font(14))
    return strip


def _stack(strips: list[Image.Image]) -> Image.Image:
    sheet = Image.new("RGB", (_WIDTH, sum(strip.height for strip in strips) + 2 * _MARGIN), _PAPER)
    y = _MARGIN
    for strip in strips:
        sheet.paste(strip, (0, y))
        y += strip.height
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
