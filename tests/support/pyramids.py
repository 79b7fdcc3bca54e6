"""Slides whose levels are made by hand, and what tiles of them must show."""

from __future__ import annotations

import cv2
import pytest
import tifffile

ABOUT = "Aperio Image Library v11.2.1 \n3600x3400 (256x256) JPEG/RGB Q=75|AppMag = 40|MPP = 0.25"

FACTORS = (4, 16)


def reduced(pixels, factor):
    height, width = (side // factor for side in pixels.shape[:2])
    cut = pixels[: height * factor, : width * factor]
    return cv2.resize(cut, (width, height), interpolation=cv2.INTER_AREA)


def write_svs(path, pixels, levels=None):
    """An SVS as Aperio's library writes it; `levels` in place of the true ones."""
    levels = [reduced(pixels, factor) for factor in FACTORS] if levels is None else levels
    path.parent.mkdir(parents=True, exist_ok=True)
    common = {"photometric": "rgb", "compression": "jpeg", "metadata": None, "description": ABOUT}
    with tifffile.TiffWriter(path) as tif:
        tif.write(pixels, tile=(256, 256), **common)
        tif.write(reduced(pixels, 16), rowsperstrip=16, **common)
        for level in levels:
            tif.write(level, tile=(256, 256), **common)
    return path


def write_tiff(path, pixels, levels, **kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    scale = {"resolution": (40000, 40000), "resolutionunit": "CENTIMETER"}
    common = {"photometric": "rgb", "tile": (256, 256), "compression": "jpeg", "metadata": None, **kind}
    with tifffile.TiffWriter(path) as tif:
        tif.write(pixels, **scale, **common)
        for level in levels:
            tif.write(level, subfiletype=1, **common)
    return path


def require_right(made, painted, least=0.97):
    pixels, mask = painted
    assert made.row["status"] == "ok", made.row["error"]
    assert {(t["magnification"], t["row"], t["col"]) for t in made.tiles} >= {("10x", 1, 1), ("5x", 0, 0)}
    assert made.row["tissue_mm2"] == pytest.approx(mask.sum() * 64e-6, rel=0.2)
    assert made.row["stain"] == "HE"
    assert made.worst_colour(pixels) < 3
    assert made.worst_match(pixels) > least
