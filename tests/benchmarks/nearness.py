"""How near tiles at their slide's own scale are to it, of its own JPEG quality and of 90: `python -m ... SLIDE ...`.

Against OpenSlide's pixels, whose reading shares no code with ours. `--recoded 30 50` does the same with copies of each
slide's middle, stored as JPEG of YCbCr at these qualities.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import openslide
import tifffile
from numpy.typing import NDArray

from tests.support.real_tiles import prepared
from wsi_prep.format.jpeg import decode_tile, ijg_quality
from wsi_prep.format.magnifications import TILE_PX
from wsi_prep.run.task import PrepareSettings
from wsi_prep.tiles.plan import PlanSettings

_TILES, _PART_PX, _STORED_PX = 25, 6144, 256
_HEAD = "| slide | quality | tiles | kB a tile | PSNR, mean of tiles | worst tile | brightness | colour (Cb, Cr) |"


def main() -> None:
    """Print one line for each slide and quality, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("slides", nargs="+", type=Path, help="slides of JPEG of YCbCr, at 0.25 um/px")
    parser.add_argument("--recoded", nargs="*", type=int, default=[], help="qualities to store copies at")
    given = parser.parse_args()
    print(f"{_HEAD}\n{'| --- ' * 8}|")
    for slide in given.slides:
        _show(slide, slide.name)
        for quality in given.recoded:
            with tempfile.TemporaryDirectory(prefix="nearness-") as folder:
                copy = Path(folder) / "slide.svs"
                _recode(slide, copy, quality)
                _show(copy, f"{slide.name}, its middle at {quality}")


def _show(slide: Path, name: str) -> None:
    for own in (False, True):
        with tempfile.TemporaryDirectory(prefix="nearness-") as folder:
            out = Path(folder) / "out"
            settings = PrepareSettings(plan=PlanSettings(("40x",), max_tiles=(("40x", _TILES),)), own_quality=own)
            row, tiles = prepared(slide, out, settings)
            if row["status"] != "ok":
                raise SystemExit(f"{name}: {row['status']}: {row['error']}")
            jpegs = [_jpeg(out, tile) for tile in tiles]
        with openslide.OpenSlide(slide) as reference:
            errors = np.array([_errors(reference, t, decode_tile(j)) for t, j in zip(tiles, jpegs, strict=True)])
        (quality,) = {ijg_quality(jpeg) for jpeg in jpegs}
        each, (luma, blue, red) = _decibels(errors[:, 0]), _decibels(errors[:, 1:].mean(0))
        size = np.mean([len(jpeg) for jpeg in jpegs]) / 1e3
        print(
            f"| {name} | {quality} | {len(jpegs)} | {size:.1f} | {each.mean():.1f} | {each.min():.1f} | {luma:.1f} "
            f"| {blue:.1f}, {red:.1f} |",
            flush=True,
        )


def _jpeg(out: Path, tile: dict[str, Any]) -> bytes:
    with (out / tile["shard"]).open("rb") as shard:
        shard.seek(tile["offset"])
        return shard.read(tile["nbytes"])


def _errors(slide: Any, tile: dict[str, Any], pixels: NDArray[np.uint8]) -> list[float]:
    """Mean squared errors of RGB, and of Y, Cb and Cr."""
    region = np.asarray(slide.read_region((tile["x0"], tile["y0"]), 0, (TILE_PX, TILE_PX)))[..., :3]
    apart = pixels.astype(float) - region
    luma = apart @ (0.299, 0.587, 0.114)
    parts = luma, (apart[..., 2] - luma) / 1.772, (apart[..., 0] - luma) / 1.402
    return [float((part**2).mean()) for part in (apart, *parts)]


def _decibels(errors: NDArray[np.float64]) -> NDArray[np.float64]:
    return 10 * np.log10(255**2 / errors)


def _recode(slide: Path, copy: Path, quality: int) -> None:
    """The middle of a slide, stored anew."""
    with openslide.OpenSlide(slide) as source:
        side = min(_PART_PX, *(length // _STORED_PX * _STORED_PX for length in source.dimensions))
        corner = tuple((length - side) // 2 for length in source.dimensions)
        pixels = np.asarray(source.read_region(corner, 0, (side, side)))[..., :3]
    places = [(y, x) for y in range(0, side, _STORED_PX) for x in range(0, side, _STORED_PX)]
    parts = (np.ascontiguousarray(pixels[y : y + _STORED_PX, x : x + _STORED_PX]) for y, x in places)
    tiles = (imagecodecs.jpeg8_encode(part, level=quality, colorspace="RGB", subsampling="420") for part in parts)
    about = f"Aperio Image Library v11.2.1 \n{side}x{side} JPEG/YCC|AppMag = 40|MPP = 0.25"
    stored: dict[str, Any] = {"photometric": "ycbcr", "subsampling": (2, 2), "compression": "jpeg"}
    shape, tile = pixels.shape, (_STORED_PX, _STORED_PX)
    tifffile.imwrite(copy, tiles, shape=shape, dtype=np.uint8, tile=tile, description=about, metadata=None, **stored)


if __name__ == "__main__":
    main()
