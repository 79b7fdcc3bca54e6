"""How near tiles are to their slide, cut as planes and, with a quality of 90, as RGB: `python -m ... SLIDE ...`.

Against exact means of OpenSlide's pixels, whose reading shares no code with ours. `--recoded 30 50` does the same with
copies of each slide's middle, stored as JPEG of YCbCr at these qualities; `--mpp 0.2281` as if slides said so.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from numpy.typing import NDArray

from tests.support.real_tiles import prepared
from tests.support.ycc_slides import area_means, write
from wsi_prep.format.jpeg import decode_tile, ijg_quality
from wsi_prep.format.magnifications import TILE_PX
from wsi_prep.run.task import PrepareSettings
from wsi_prep.tiles.plan import PlanSettings

_TILES, _PART_PX = 25, 6144
_HEAD = "| slide | at | quality | tiles | kB a tile | PSNR, mean of tiles | worst tile | brightness | colour (Cb, Cr) |"


def main() -> None:
    """Print one line for each slide and quality, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("slides", nargs="+", type=Path, help="slides of JPEG of YCbCr")
    parser.add_argument("--at", nargs="+", default=["40x"], help="magnifications (default: 40x)")
    parser.add_argument("--mpp", type=float, help="um/px, as a manifest says it")
    parser.add_argument("--subsampling", default="420", help="of the copies' colour: 420, 422 or 444")
    parser.add_argument("--recoded", nargs="*", type=int, default=[], help="qualities to store copies at")
    given = parser.parse_args()
    print(f"{_HEAD}\n{'| --- ' * 9}|")
    for slide in given.slides:
        _show(slide, slide.name, given.at, given.mpp)
        for quality in given.recoded:
            with tempfile.TemporaryDirectory(prefix="nearness-") as folder:
                copy = Path(folder) / "slide.svs"
                _recode(slide, copy, quality, given.subsampling)
                _show(copy, f"{slide.name}, its middle at {quality}", given.at, given.mpp)


def _show(slide: Path, name: str, magnifications: list[str], mpp: float | None) -> None:
    most = tuple((magnification, _TILES) for magnification in magnifications)
    for own in (False, True):
        with tempfile.TemporaryDirectory(prefix="nearness-") as folder:
            out = Path(folder) / "out"
            settings = PrepareSettings(plan=PlanSettings(tuple(magnifications), max_tiles=most), own_quality=own)
            row, tiles = prepared(slide, out, settings, mpp)
            if row["status"] != "ok":
                raise SystemExit(f"{name}: {row['status']}: {row['error']}")
            jpegs = [(tile, _jpeg(out, tile)) for tile in tiles]
        for magnification in magnifications:
            _line(slide, name, magnification, [(t, j) for t, j in jpegs if t["magnification"] == magnification])


def _line(slide: Path, name: str, magnification: str, jpegs: list[tuple[dict[str, Any], bytes]]) -> None:
    if not jpegs:
        return
    with openslide.OpenSlide(slide) as reference:
        errors = np.array([_errors(reference, tile, decode_tile(jpeg)) for tile, jpeg in jpegs])
    (quality,) = {ijg_quality(jpeg) for _, jpeg in jpegs}
    each, (luma, blue, red) = _decibels(errors[:, 0]), _decibels(errors[:, 1:].mean(0))
    size = np.mean([len(jpeg) for _, jpeg in jpegs]) / 1e3
    print(
        f"| {name} | {magnification} | {quality} | {len(jpegs)} | {size:.1f} | {each.mean():.1f} | {each.min():.1f} "
        f"| {luma:.2f} | {blue:.2f}, {red:.2f} |",
        flush=True,
    )


def _jpeg(out: Path, tile: dict[str, Any]) -> bytes:
    with (out / tile["shard"]).open("rb") as shard:
        shard.seek(tile["offset"])
        return shard.read(tile["nbytes"])


def _errors(slide: Any, tile: dict[str, Any], pixels: NDArray[np.uint8]) -> list[float]:
    """Mean squared errors of RGB, and of Y, Cb and Cr."""
    span = tile["span0"]
    side = math.ceil(span - 1e-6)
    region = np.asarray(slide.read_region((tile["x0"], tile["y0"]), 0, (side, side)))[..., :3]
    exact = [area_means(region[..., channel], 0, 0, span, span, TILE_PX) for channel in range(3)]
    apart = pixels - np.stack(exact, axis=2)
    luma = apart @ (0.299, 0.587, 0.114)
    parts = luma, (apart[..., 2] - luma) / 1.772, (apart[..., 0] - luma) / 1.402
    return [float((part**2).mean()) for part in (apart, *parts)]


def _decibels(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    return 10 * np.log10(255**2 / errors)


def _recode(slide: Path, copy: Path, quality: int, subsampling: str) -> None:
    """The middle of a slide, stored anew."""
    with openslide.OpenSlide(slide) as source:
        side = min(_PART_PX, *source.dimensions)
        corner = tuple((length - side) // 2 for length in source.dimensions)
        pixels = np.asarray(source.read_region(corner, 0, (side, side)))[..., :3]
    write(copy, pixels, subsampling, quality)


if __name__ == "__main__":
    main()
