"""Other tools at the same work: tiles of given magnifications of one slide as JPEG, in one process.

OpenSlide is here anyway; the others are measured where the extra `peers` has installed them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from PIL import Image

from tests.benchmarks.measure import Run
from wsi_prep.format.jpeg import JpegSettings, encode_tile
from wsi_prep.format.magnifications import MAGNIFICATIONS, TILE_PX

_SAMPLE = 300


def peers(slide: Path, rows: list[dict[str, Any]], folder: Path) -> dict[str, Run]:
    """What is installed, by name. `rows` are the catalog's tiles; loops over tiles take some hundred of them."""
    chosen = rows[:: max(1, len(rows) // _SAMPLE)]
    found: dict[str, Run] = {"OpenSlide, tile by tile": lambda: _openslide(slide, chosen)}
    if importlib.util.find_spec("fastslide"):
        found["fastslide, tile by tile"] = lambda: _fastslide(slide, chosen)
    if importlib.util.find_spec("hs2p"):
        names = {row["magnification"] for row in rows}
        spacings = [m.mpp for m in MAGNIFICATIONS if m.name in names]
        found["hs2p"] = lambda: _hs2p(slide, spacings, folder / "hs2p")
    return found


def _openslide(slide: Path, rows: Sequence[dict[str, Any]]) -> int:
    with openslide.OpenSlide(slide) as opened:
        for row in rows:
            level = opened.get_best_level_for_downsample(row["span0"] / TILE_PX + 1e-3)
            side = round(row["span0"] / opened.level_downsamples[level])
            region = opened.read_region((row["x0"], row["y0"]), level, (side, side)).convert("RGB")
            _encode(region)
    return len(rows)


def _fastslide(slide: Path, rows: Sequence[dict[str, Any]]) -> int:
    import fastslide

    with fastslide.FastSlide.from_file_path(str(slide)) as opened:
        for row in rows:
            level = opened.get_best_level_for_downsample(row["span0"] / TILE_PX + 1e-3)
            side = round(row["span0"] / opened.level_downsamples[level])
            corner = opened.convert_level0_to_level_native(row["x0"], row["y0"], level)
            _encode(Image.fromarray(np.asarray(opened.read_region(corner, level, (side, side)).numpy())[..., :3]))
    return len(rows)


def _hs2p(slide: Path, spacings: Sequence[float], folder: Path) -> int:
    """Its own detection of tissue, its own tiles with 65 % of it, and its tar files."""
    import hs2p
    from hs2p.tiling.tar import extract_tiles_to_tar

    count = 0
    tissue = {"pixel_mapping": {"background": (0,), "tissue": (1,)}, "min_coverage": {"tissue": 0.65}}
    masks = hs2p.MaskSamplingConfig(colors=None, output_mode="per_annotation", strategy="joint", **tissue)
    with contextlib.redirect_stdout(io.StringIO()):
        for spacing in spacings:
            size = {"requested_spacing_um": spacing, "requested_tile_size_px": TILE_PX}
            result: Any = hs2p.tile_slide(
                hs2p.SlideSpec(sample_id="slide", image_path=slide),
                tiling=hs2p.TilingConfig(**size, tolerance=0.05, overlap=0.0, backend="openslide"),
                segmentation=hs2p.SegmentationConfig(method="hsv"),
                masks=masks,
            )
            extract_tiles_to_tar(result, folder, num_workers=1)
            count += len(result.x)
    shutil.rmtree(folder)
    return count


def _encode(region: Image.Image) -> None:
    side = (TILE_PX, TILE_PX)
    encode_tile(np.asarray(region if region.size == side else region.resize(side)), JpegSettings())
