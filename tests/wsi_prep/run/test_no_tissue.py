"""Slides on which no tissue is found say why that may be."""

import re

import numpy as np
import pytest
import tifffile

from tests.support.prepared import prepare


@pytest.mark.parametrize("colour", [(60, 110, 190), None])
def test_a_slide_of_what_looks_like_ink_alone_says_how_much(tmp_path, colour):
    """An even blue square of 1.2 mm, which may be a dye that nobody has seen."""
    noise = np.random.default_rng(0).normal(0, 2, (2400, 2400, 1))
    pixels = np.full((2400, 2400, 3), 242.0)
    if colour:
        pixels[600:1800, 600:1800] = colour
    path = tmp_path / "s.tiff"
    scale = {"resolution": (10_000, 10_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, (pixels + noise).clip(0, 255).astype(np.uint8), tile=(256, 256), photometric="rgb", **scale)
    row = prepare(path, tmp_path / "out").row
    assert row["status"] == "empty"
    told = re.fullmatch(
        r"no tissue was found(; some (\S+) mm2 look like ink: .* give a mask \(MASKS=\))?", row["error"]
    )
    assert bool(told[1]) == bool(colour)
    if colour:
        assert float(told[2]) == pytest.approx(1.44, rel=0.2)  # and its rim
