"""Pictures made of strips, one below the other: what peek and look draw with."""

from __future__ import annotations

import functools
import unicodedata
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

GAP, LINE, MARGIN = 8, 22, 16
"""Pixels between tiles, of a line of text, and around the sheet."""

INK, PALE, PAPER = (30, 30, 30), (110, 110, 110), (255, 255, 255)

_CAPTION_PX = 96  # room for a caption, so that neighbours' do not touch


def blank(width: int, height: int) -> Image.Image:
    """An empty strip."""
    return Image.new("RGB", (width, height), PAPER)


def heading(text: str, width: int) -> Image.Image:
    """A strip of one line in large letters."""
    strip = blank(width, 40)
    ImageDraw.Draw(strip).text((MARGIN, 10), drawable(text), INK, font(20))
    return strip


def line(text: str, width: int, ink: tuple[int, int, int] = INK) -> Image.Image:
    """A strip of one line, or of as many as the text needs."""
    rows = _wrapped(drawable(text), width - 2 * MARGIN, font(14))
    strip = blank(width, LINE * len(rows))
    words = ImageDraw.Draw(strip)
    for number, row in enumerate(rows):
        words.text((MARGIN, LINE * number + 3), row, ink, font(14))
    return strip


def drawable(text: str) -> str:
    """The text as the font can draw it: Latin, Greek, Cyrillic and more; what it lacks, as CJK, is escaped."""
    known = _known()
    return "".join(
        c if c.isprintable() and ord(c) in known else c.encode("unicode_escape").decode()
        for c in unicodedata.normalize("NFC", text)
    )


def _wrapped(text: str, width: int, letters: ImageFont.FreeTypeFont) -> list[str]:
    """The text in rows of at most `width` px, each of a character at least; cut behind a space where there is one."""
    rows = []
    while letters.getlength(text) > width:
        most = next((n for n in range(len(text), 1, -1) if letters.getlength(text[:n]) <= width), 1)
        cut = text.rfind(" ", 1, most) + 1 or most
        rows.append(text[:cut])
        text = text[cut:]
    return [*rows, text]


def shrunk(pixels: NDArray[np.uint8], px: int) -> Image.Image:
    """A square (h, h, 3) tile as `px` by `px`, by area means."""
    return Image.fromarray(pixels).resize((px, px), Image.Resampling.BOX)


def captioned(image: Image.Image, text: str, ink: tuple[int, int, int] = INK) -> Image.Image:
    """The picture with a few words below it."""
    below = blank(max(image.width, _CAPTION_PX), image.height + LINE)
    below.paste(image, (0, 0))
    ImageDraw.Draw(below).text((0, image.height + 3), drawable(text), ink, font(12))
    return below


def beside(images: list[Image.Image], gap: int = GAP) -> Image.Image:
    """The pictures from left to right, at least one."""
    together = blank(sum(image.width + gap for image in images) - gap, max(image.height for image in images))
    x = 0
    for image in images:
        together.paste(image, (x, 0))
        x += image.width + gap
    return together


def flow(images: list[Image.Image], width: int, gap: int = GAP) -> list[Image.Image]:
    """Strips of pictures, as many beside each other as fit but at least one, with a margin left and a gap below."""
    widest = max((image.width for image in images), default=0)
    across = max(1, (width - 2 * MARGIN + gap) // (widest + gap))
    strips = []
    for at in range(0, len(images), across):
        row = beside(images[at : at + across], gap)
        strips.append(blank(max(width, row.width + 2 * MARGIN), row.height + GAP))
        strips[-1].paste(row, (MARGIN, 0))
    return strips


def stack(strips: list[Image.Image]) -> Image.Image:
    """The sheet, as wide as its widest strip: from top to bottom, with a margin above and below."""
    sheet = blank(max(strip.width for strip in strips), sum(strip.height for strip in strips) + 2 * MARGIN)
    y = MARGIN
    for strip in strips:
        sheet.paste(strip, (0, y))
        y += strip.height
    return sheet


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, `size` px high: that of matplotlib, which has more scripts than Pillow's own."""
    return ImageFont.truetype(str(_FONT), size)


_FONT = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@functools.cache
def _known() -> frozenset[int]:
    """Code points that the font has a picture for."""
    return frozenset(FT2Font(str(_FONT)).get_charmap())
