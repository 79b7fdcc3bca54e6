"""Overlays as `make shards` draws them: a disc of tissue on glass, of which each pixel's place is known."""

from pathlib import Path

import numpy as np

from tests.support.shard_folders import add_slide
from wsi_prep.format.magnifications import MAGNIFICATIONS
from wsi_prep.slides.pyramid.thumbnail import Thumbnail
from wsi_prep.tiles.grid import Grid
from wsi_prep.tiles.overlay import draw_overlay
from wsi_prep.tiles.plan import PlanSettings, plan_tiles

GLASS, TISSUE = (240, 240, 240), (200, 110, 160)
STEP = 32  # level-0 px per pixel of the thumbnail


def disc(width: int, height: int) -> np.ndarray:
    """(height, width) mask of a disc in the middle, two thirds as wide as the shorter side."""
    y, x = np.ogrid[:height, :width]
    return (x - width / 2) ** 2 + (y - height / 2) ** 2 < (min(width, height) / 3) ** 2


def disc_overlay(width: int, height: int, magnifications: tuple[str, ...], title: str = "") -> tuple[bytes, dict]:
    """The overlay's JPEG, and its tiles by magnification, of a slide of `width` x `height` px of 8 um."""
    mask = disc(width, height)
    pixels = np.where(mask[..., None], np.uint8(TISSUE), np.uint8(GLASS))
    thumbnail = Thumbnail(pixels, 8.0, STEP, STEP)
    grid = Grid.of_slide(width * STEP, height * STEP, 0.25, 0.25)
    plan = plan_tiles(grid, mask, STEP, STEP, PlanSettings(magnifications), "disc") if magnifications else None
    counts = {m.name: plan.count(m) for m in MAGNIFICATIONS if plan.count(m)} if plan else {}
    return draw_overlay(thumbnail, mask, plan, title), counts


def add_disc(out: Path, number: int, size: tuple[int, int] = (360, 300), **slide) -> str:
    """Commit a slide of a disc with its overlay, and flat tiles at 10x and 5x; returns its id."""
    jpeg, counts = disc_overlay(*size, ("10x", "5x"))
    slide_id = add_slide(out, number, counts, **slide)
    (out / "overlays").mkdir(exist_ok=True)
    (out / "overlays" / f"{slide_id}.jpg").write_bytes(jpeg)
    return slide_id


def greenish(pixels: np.ndarray) -> int:
    """How many pixels of (h, w, 3) have the outline's green, even where it is thin and blurred."""
    red, green, blue = np.moveaxis(pixels[..., :3].astype(int), -1, 0)
    return int(((green - red > 40) & (green - blue > 20)).sum())
