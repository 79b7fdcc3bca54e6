"""Tiles decoded for one rectangle and wanted by the next: the same pixels, in no more memory than they must have."""

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from wsi_prep.slides.readers.tiff.reader import TiffReader

WIDTH, HEIGHT, TILE = 710, 590, 64


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """YCbCr JPEG of 4:2:0, whose last column and row of tiles reach beyond the picture."""
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    path = tmp_path_factory.mktemp("edges") / "slide.tiff"
    jpeg = {"photometric": "ycbcr", "compression": "jpeg", "subsampling": (2, 2)}
    tifffile.imwrite(path, pixels, tile=(TILE, TILE), metadata=None, **jpeg)
    return str(path)


RECTANGLES = st.tuples(*[st.integers(0, 500)] * 2, *[st.integers(1, 300)] * 2)


@given(st.lists(st.tuples(RECTANGLES, st.booleans()), min_size=2, max_size=8))
def test_what_was_read_before_changes_no_pixel(slide, reads):
    walked = TiffReader(slide)
    for (x, y, width, height), planar in reads:
        fresh = TiffReader(slide)
        if planar:
            seen = [each.read_planes(0, x // 2 * 2, y // 2 * 2, width, height).rgb() for each in (walked, fresh)]
        else:
            seen = [each.read(0, x, y, width, height) for each in (walked, fresh)]
        np.testing.assert_array_equal(*seen)
        fresh.close()
    walked.close()


def test_of_tiles_below_an_edge_only_what_lies_there_is_kept(slide):
    reader = TiffReader(slide)
    reader.read(0, 0, 0, WIDTH, TILE + 48)
    assert reader.cached_bytes == WIDTH * (TILE - 48) * 3
    reader.read(0, 0, TILE + 48, WIDTH, HEIGHT - TILE - 48)
    assert reader.cached_bytes == 0
    reader.read(0, 0, 0, 32, HEIGHT)
    assert reader.cached_bytes == (TILE - 32) * HEIGHT * 3
    reader.read(0, 32, 0, WIDTH - 32, HEIGHT)
    assert reader.cached_bytes == 0
    reader.close()
