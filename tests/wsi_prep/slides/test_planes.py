"""JPEG of YCbCr read as planes: against libjpeg's own reading and exact means, and what is refused."""

import imagecodecs
import numpy as np
import pytest
import simplejpeg
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from tests.support.ycc_slides import SAMPLINGS, picture, with_other_tables, write, ycc
from wsi_prep.errors import DamagedSlide
from wsi_prep.format.jpeg import JpegSettings, encode_planes, encode_tile, ijg_quality
from wsi_prep.slides.images import Planes, reduce_by
from wsi_prep.slides.readers.select import open_slide


def mean_of_blocks(plane):
    return plane.reshape(plane.shape[0] // 2, 2, -1, 2).mean((1, 3))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_planes_hold_what_the_file_stores_and_colour_is_not_shifted(tmp_path, sampling):
    pixels = picture(384, 512)
    reader = open_slide(str(write(tmp_path / "s.svs", pixels, sampling, quality=98)), "tiff")
    assert reader.planar_quality(0) == 98
    planes = reader.read_planes(0, 0, 0, 512, 384)
    luma, blue, red = ycc(pixels)
    assert np.abs(planes.luma - luma).mean() < 1
    for plane, exact in ((planes.blue, blue), (planes.red, red)):
        apart = {
            (dx, dy): np.abs(plane - mean_of_blocks(np.roll(exact, (dy, dx), (0, 1))))[4:-4, 4:-4].mean()
            for dx in (-1, 0, 1)
            for dy in (-1, 0, 1)
        }
        assert min(apart, key=apart.get) == (0, 0)
        assert apart[0, 0] < 1


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("rectangle", [(64, 32, 200, 150), (300, 200, 160, 140), (-20, -40, 100, 90)])
def test_a_rectangle_is_what_the_rgb_reading_shows(tmp_path, sampling, rectangle):
    reader = open_slide(str(write(tmp_path / "s.svs", picture(301, 403), sampling)), "tiff")
    planes, rgb = reader.read_planes(0, *rectangle), reader.read(0, *rectangle)
    assert planes.rgb().shape == rgb.shape
    assert np.abs(planes.rgb().astype(int) - rgb).mean() < 1.5  # the interpolation of colour sees the next tile
    assert np.abs(planes.luma - ycc(rgb)[0]).mean() < 1


def test_the_slide_ends_where_it_ends_also_at_an_odd_side(tmp_path):
    reader = open_slide(str(write(tmp_path / "s.svs", np.full((301, 403, 3), (150, 120, 160), np.uint8))), "tiff")
    rgb = reader.read_planes(0, 384, 256, 128, 128).rgb()
    np.testing.assert_allclose(rgb[:44, :18], np.broadcast_to((150, 120, 160), (44, 18, 3)), atol=4)
    assert (rgb[47:] > 250).all()
    assert (rgb[:, 22:] > 250).all()


def test_other_tiles_are_not_planes(tmp_path):
    pixels = picture(256, 256)
    rgb, stored = tmp_path / "rgb.svs", {"tile": (128, 128), "photometric": "rgb"}
    tifffile.imwrite(rgb, pixels, compression="jpeg", compressionargs={"outcolorspace": "rgb"}, **stored)
    plain = tmp_path / "plain.tif"
    tifffile.imwrite(plain, pixels, compression="zlib", **stored)
    for path in (rgb, plain):
        assert open_slide(str(path), "tiff").planar_quality(0) is None


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_jpeg_that_ends_early_is_no_tile(tmp_path, share):
    """libjpeg makes the rest of it grey, and says nothing."""
    path = write(tmp_path / "s.svs", picture(256, 256))
    with tifffile.TiffFile(path) as tiff:
        at, size = tiff.pages[0].dataoffsets[1], tiff.pages[0].databytecounts[1]
    data = bytearray(path.read_bytes())
    cut = at + int(size * share)
    data[cut : at + size] = b"\xff\xd9" + bytes(at + size - cut - 2)
    path.write_bytes(data)
    reader = open_slide(str(path), "tiff")
    assert reader.read_planes(0, 0, 0, 128, 128).luma.mean() > 60  # another tile
    with pytest.raises(DamagedSlide, match=r"x 128, y 0 .* is not a complete JPEG; copy the slide again"):
        reader.read_planes(0, 128, 0, 128, 128)
    with pytest.raises(DamagedSlide, match="is not a complete JPEG"):
        reader.read_shrunk(8, 16, 0, 16, 16)


@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_a_shrunk_reading_is_near_the_area_mean(tmp_path, shrink):
    reader = open_slide(str(write(tmp_path / "s.svs", picture(384, 512))), "tiff")
    small = reader.read_shrunk(shrink, 0, 0, 512 // shrink, 384 // shrink)
    mean = reduce_by(reader.read(0, 0, 0, 512, 384), shrink)
    error = ((small.astype(float) - mean) ** 2).mean()
    assert 10 * np.log10(255**2 / error) > 36


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_a_grey_picture_is_the_same_by_planes(height, width, seed):
    grey = np.random.default_rng(seed).integers(0, 256, (height, width, 1)).astype(np.uint8)
    rgb = np.repeat(grey, 3, 2)
    np.testing.assert_array_equal(Planes.of_rgb(rgb).rgb(), rgb)


@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from([2, 4]), st.integers(0, 2**32 - 1))
def test_planes_are_reduced_by_the_mean_of_each_block(rows, cols, factor, seed):
    rng = np.random.default_rng(seed)
    sides = 2 * rows * factor, 2 * cols * factor
    planes = Planes(*(rng.integers(0, 256, s).astype(np.uint8) for s in (sides, *[(sides[0] // 2, sides[1] // 2)] * 2)))
    small = planes.reduced(factor)
    for before, after in ((planes.luma, small.luma), (planes.blue, small.blue), (planes.red, small.red)):
        mean = before.reshape(after.shape[0], factor, after.shape[1], factor).mean((1, 3))
        assert np.abs(after - mean).max() <= 0.5


@pytest.mark.parametrize("quality", [3, 30, 50, 75, 90, 100])
def test_a_jpeg_says_its_quality(quality):
    pixels = picture(64, 160)
    assert ijg_quality(encode_tile(pixels, JpegSettings(quality))) == quality
    assert ijg_quality(imagecodecs.jpeg8_encode(pixels, level=quality)) == quality
    planes = Planes.of_rgb(pixels)
    assert ijg_quality(encode_planes(planes.luma, planes.blue, planes.red, quality)) == quality


def test_tables_that_no_quality_has_are_none():
    assert ijg_quality(with_other_tables(encode_tile(picture(64, 160), JpegSettings(75)))) is None


def test_encoded_planes_are_decoded_as_they_were():
    planes = Planes.of_rgb(picture(392, 392))
    decoded = simplejpeg.decode_jpeg(encode_planes(planes.luma, planes.blue, planes.red, 98))
    assert np.abs(decoded.astype(int) - planes.rgb()).mean() < 1.5
