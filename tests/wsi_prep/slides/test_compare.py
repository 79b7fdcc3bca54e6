"""What strikes the eye in a picture, whether two show the same, and tiles that were looked at before they are cut."""

import shutil

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from wsi_prep.slides.pyramid.compare import alike, jumps_along, striking
from wsi_prep.slides.readers.tiff.reader import TiffReader


@given(st.integers(0, 90), st.integers(0, 120), st.integers(5, 12), st.sampled_from([5, 8]))
def test_a_mark_on_bright_ground_strikes_the_eye(top, left, side, patch):
    picture = np.full((110, 140, 3), 240, np.uint8)
    picture[top : top + side, left : left + side] = (120, 40, 160)
    places = striking(picture, 4, patch)
    assert places
    for x, y in places:
        assert left - patch <= x <= left + side + patch
        assert top - patch <= y <= top + side + patch


@given(st.integers(0, 3), st.integers(0, 2), st.sampled_from([(16.0, 16.0), (15.3, 20.5)]))
def test_a_piece_of_glass_in_a_tile_s_place_is_looked_at_on_both_sides_of_its_edges(col, row, pitch):
    noise = np.random.default_rng(0).normal(0, 8, (82, 100, 1))
    picture = ((180, 110, 160) + noise).clip(0, 255).astype(np.uint8)
    picture[66:], picture[:, 88:] = 242, 242
    assert jumps_along(picture[:60, :80], *pitch) == []
    left, top, right, bottom = (
        round(at) for at in (col * pitch[0], row * pitch[1], (col + 1) * pitch[0], (row + 1) * pitch[1])
    )
    picture[top:bottom, left:right] = 242
    places = jumps_along(picture, *pitch)
    inside = [left <= x < right and top <= y < bottom for x, y in places]
    assert any(inside)
    assert not all(inside)


def test_bare_glass_and_nothing_else_does_not():
    glass = np.random.default_rng(0).normal(238, 3, (200, 300, 3)).clip(0, 255).astype(np.uint8)
    assert striking(glass, 12, 5) == []


@pytest.mark.parametrize("shift", [0, 4])
def test_a_picture_is_like_itself_in_other_words_and_not_like_its_neighbour(shift):
    rng = np.random.default_rng(1)
    one = np.repeat(np.repeat(rng.integers(60, 240, (12, 12, 1)), 4, 0), 4, 1).repeat(3, 2).astype(np.uint8)
    other = np.roll(one, shift, axis=(0, 1)).astype(int) + rng.integers(-4, 5, one.shape)
    assert alike(one, other.clip(0, 255).astype(np.uint8)) == (shift == 0)


def test_a_tile_that_was_looked_at_is_cut_as_it_is_and_kept_no_longer(he_slide):
    looked, fresh = TiffReader(str(he_slide)), TiffReader(str(he_slide))
    side = looked.info.tile_px
    whole = (0, 0, 2 * side, 2 * side)
    for _ in range(2):
        looked.read(0, side, side, side, side)
    for reader in (looked, fresh):
        reader.expect(0, *whole)
    np.testing.assert_array_equal(looked.read(0, *whole), fresh.read(0, *whole))
    assert looked.cached_bytes == fresh.cached_bytes == 0
    looked.close()
    fresh.close()


def test_tiles_that_share_their_data_are_each_cut_whole(he_slide, tmp_path):
    """Writers store equal tiles once; one of them may lie at the edge, where the picture ends within it."""
    slide = shutil.copy(he_slide, tmp_path / "shared.svs")
    with tifffile.TiffFile(slide, mode="r+b") as tiff:
        page = tiff.pages[0]
        edge = -(-page.imagewidth // page.tilewidth) - 1
        assert page.imagewidth % page.tilewidth
        for name, values in (("TileOffsets", page.dataoffsets), ("TileByteCounts", page.databytecounts)):
            page.tags[name].overwrite([values[edge], *values[1:]])
        side = page.tilewidth
    looked, fresh = TiffReader(str(slide)), TiffReader(str(slide))
    looked.read(0, edge * side, 0, looked.info.width0 - edge * side, side)
    looked.expect(0, 0, 0, side, side)
    np.testing.assert_array_equal(looked.read(0, 0, 0, side, side), fresh.read(0, 0, 0, side, side))
    looked.close()
    fresh.close()
