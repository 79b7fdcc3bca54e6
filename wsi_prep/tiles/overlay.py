"""A picture to check a slide by: its thumbnail, the tissue outline, and the tiles of each magnification."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from wsi_prep.format.jpeg import JpegSettings, encode_tile
from wsi_prep.format.magnifications import MAGNIFICATIONS
from wsi_prep.slides.pyramid.thumbnail import Thumbnail
from wsi_prep.tiles.plan import TilePlan

_PANEL_PX = 720
_CAPTION_PX = 28
_GAP_PX = 6
_WHITE = 250  # glass is darker
_OUTLINE = (0, 150, 70)
_TILE = (30, 60, 220)
_INK = (30, 30, 30)
_BARS_UM = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)
_BAR_ROOM_PX = 120
_FONT = "uni"  # in OpenCV from 5 on


class Panel(NamedTuple):
    """Where in an overlay one of its pictures lies, in px; its caption and the gap beside it are outside."""

    name: str
    x: int
    y: int
    width: int
    height: int


def draw_overlay(thumbnail: Thumbnail, tissue: NDArray[np.bool_], plan: TilePlan | None, title: str) -> bytes:
    """A JPEG of panels side by side: the bare slide with a bar of its scale, then one for each magnification that has
    tiles.
    """
    scale = _PANEL_PX / max(thumbnail.pixels.shape[:2])
    size = tuple(max(1, round(side * scale)) for side in thumbnail.pixels.shape[1::-1])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    picture = np.asarray(cv2.resize(thumbnail.pixels, size, interpolation=method), dtype=np.uint8)
    outlined = _outlined(picture, tissue)
    drawn = [mag for mag in reversed(MAGNIFICATIONS) if plan is not None and plan.count(mag)]
    canvas = np.full((size[1] + _CAPTION_PX, (1 + max(1, len(drawn))) * (size[0] + _GAP_PX), 3), 255, np.uint8)
    _draw_scale(_fill(canvas, 0, picture, title), thumbnail.mpp / scale)
    if plan is None or not drawn:
        _fill(canvas, 1, outlined, "tissue, no tiles")
    else:
        step = (thumbnail.step_x0 / scale, thumbnail.step_y0 / scale)
        for number, mag in enumerate(drawn, 1):
            panel = _fill(canvas, number, outlined, f"{mag.name}: {plan.count(mag):,} tiles")
            _draw_tiles(panel, plan, MAGNIFICATIONS.index(mag), step)
    return encode_tile(canvas, JpegSettings(quality=85))


def panels_of(overlay: NDArray[np.uint8], tiles: Sequence[int]) -> tuple[Panel, ...]:
    """The panels of a (h, w, 3) picture that draw_overlay made of a slide with so many `tiles`, by MAGNIFICATIONS.

    "slide" is bare; "tissue", or the names of magnifications, have its outline. One panel without a name, all of the
    picture, where it is not laid out so.
    """
    height, width = overlay.shape[:2]
    drawn = [mag.name for mag, count in zip(MAGNIFICATIONS, tiles, strict=True) if count]
    names = ["slide", *(drawn[::-1] or ["tissue"])]
    step, over = divmod(width, len(names))
    gaps = [overlay[:, (n + 1) * step - _GAP_PX + 1 : (n + 1) * step - 1] for n in range(len(names))]
    if over or step <= _GAP_PX or height <= _CAPTION_PX or min(gap.mean() for gap in gaps) < _WHITE:
        return (Panel("", 0, 0, width, height),)
    return tuple(
        Panel(name, n * step, _CAPTION_PX, step - _GAP_PX, height - _CAPTION_PX) for n, name in enumerate(names)
    )


def _outlined(picture: NDArray[np.uint8], tissue: NDArray[np.bool_]) -> NDArray[np.uint8]:
    size = picture.shape[1::-1]
    mask = cv2.resize(tissue.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return np.asarray(cv2.drawContours(picture.copy(), contours, -1, _OUTLINE, 2), dtype=np.uint8)


def _draw_tiles(panel: NDArray[np.uint8], plan: TilePlan, number: int, step0: tuple[float, float]) -> None:
    """Draw the outlines of the tiles at MAGNIFICATIONS[number]; `step0` is level-0 px per panel px."""
    mag = MAGNIFICATIONS[number]
    width, height = plan.grid.span_x0(mag) / step0[0], plan.grid.span_y0(mag) / step0[1]
    of_mag = plan.mag == number
    for x0, y0 in zip(plan.x0[of_mag].tolist(), plan.y0[of_mag].tolist(), strict=True):
        x, y = x0 / step0[0], y0 / step0[1]
        corner = round(x), round(y)
        cv2.rectangle(
            panel, corner, (max(corner[0], round(x + width) - 1), max(corner[1], round(y + height) - 1)), _TILE
        )


def _draw_scale(panel: NDArray[np.uint8], mpp: float) -> None:
    """Draw a bar of a round length, at most a quarter of the panel, and that length; `mpp` is um per panel px."""
    height, width = panel.shape[:2]
    fitting = [um for um in _BARS_UM if um / mpp <= width / 4]
    if not fitting or height < _BAR_ROOM_PX or width < _BAR_ROOM_PX:
        return
    length = round(fitting[-1] / mpp)
    cv2.rectangle(panel, (8, height - 14), (8 + length + 3, height - 7), (255, 255, 255), -1)
    cv2.rectangle(panel, (10, height - 12), (10 + length - 1, height - 9), _INK, -1)
    said = f"{fitting[-1] / 1000:g} mm" if fitting[-1] >= 1000 else f"{fitting[-1]} um"
    panel[height - 34 : height - 14, 8 : 14 + 9 * len(said)] = 255
    _write(panel[height - 36 :, 6:], said)


def _fill(canvas: NDArray[np.uint8], number: int, picture: NDArray[np.uint8], text: str) -> NDArray[np.uint8]:
    """Put the picture into panel `number` of the canvas, under its caption; returns where it is there, a view."""
    width = picture.shape[1]
    left = number * (width + _GAP_PX)
    _write(canvas[:, left : left + width + _GAP_PX], text)
    panel = canvas[_CAPTION_PX:, left : left + width]
    panel[:] = picture
    return panel


def _write(panel: NDArray[np.uint8], text: str) -> None:
    """Draw the caption. OpenCV 5 has a font for most scripts; what it, or an older one, cannot draw is escaped."""
    text = "".join(
        c if _can_draw(c) else c.encode("unicode_escape").decode() for c in unicodedata.normalize("NFC", text)
    )
    if text.isascii():
        cv2.putText(panel, text, (4, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.5, _INK, 1, cv2.LINE_AA)
    else:
        cv2.putText(panel, text, (4, 19), _INK, cv2.FontFace(_FONT), 15)


@functools.lru_cache(4096)
def _can_draw(character: str) -> bool:
    if not character.isprintable():
        return False
    return character.isascii() or (hasattr(cv2, "FontFace") and _glyph(character) != _glyph("?"))


def _glyph(character: str) -> bytes:
    """The character's picture; that of a question mark where the font has none."""
    picture = np.full((24, 32), 255, np.uint8)
    cv2.putText(picture, character, (4, 19), (0,), cv2.FontFace(_FONT), 15)
    return picture.tobytes()
