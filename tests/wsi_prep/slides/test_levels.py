"""Reduced levels that do not show what level 0 shows: tiles and tissue are right all the same, and the row says so."""

import shutil

import cv2
import imagecodecs
import numpy as np
import pydicom
import pytest
import tifffile

from tests.support.dicom_wsi import write_dicom_slide
from tests.support.prepared import prepare
from tests.support.pyramids import FACTORS, reduced, require_right, write_svs, write_tiff
from wsi_prep.format.jpeg import is_ycc
from wsi_prep.slides.pyramid.thumbnail import read_thumbnail
from wsi_prep.slides.pyramid.trusted import TrustedLevels
from wsi_prep.slides.readers.select import open_slide


def overwrite_tile(path, page, index, data):
    """Put other data in a tile's place."""
    with tifffile.TiffFile(path) as tif:
        offset, count = tif.pages[page].dataoffsets[index], tif.pages[page].databytecounts[index]
    assert len(data) <= count
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data.ljust(count, b"\0"))


def test_sound_levels_are_used_without_a_word(tmp_path, painted):
    made = prepare(write_svs(tmp_path / "in/s.svs", painted[0]), tmp_path / "out")
    require_right(made, painted)
    assert made.row["warning"] is None


@pytest.mark.parametrize("reader", ["tiff", "openslide"])
def test_tiles_that_a_level_lacks_come_from_a_finer_one(tmp_path, painted, reader):
    path = write_svs(tmp_path / "in/s.svs", painted[0])
    with tifffile.TiffFile(path, mode="r+b") as tif:
        for page in tif.pages[2:]:
            keep = [i % 2 for i in range(len(page.dataoffsets))]
            for name, numbers in (("TileByteCounts", page.databytecounts), ("TileOffsets", page.dataoffsets)):
                page.tags[name].overwrite([n * k for n, k in zip(numbers, keep, strict=True)])
    made = prepare(path, tmp_path / "out", reader=reader)
    require_right(made, painted)
    if reader == "tiff":
        assert "missing in the level 900 px wide: a finer one is used" in made.row["warning"]


def test_bare_glass_that_no_level_holds_stays_background(tmp_path, painted):
    pixels = np.full((3400, 3600, 3), 243, np.uint8)
    pixels[:, :1800] = painted[0][:, :1800]
    path = write_svs(tmp_path / "in/s.svs", pixels)
    with tifffile.TiffFile(path, mode="r+b") as tif:
        for number in (0, 2, 3):
            page = tif.pages[number]
            across, side = -(-page.imagewidth // 256), 256 * (3600 // page.imagewidth)
            keep = [i % across * side < 1800 for i in range(len(page.dataoffsets))]
            for name, numbers in (("TileByteCounts", page.databytecounts), ("TileOffsets", page.dataoffsets)):
                page.tags[name].overwrite([n * k for n, k in zip(numbers, keep, strict=True)])
    made = prepare(path, tmp_path / "out")
    assert made.row["status"] == "ok"
    assert made.row["warning"] is None


@pytest.mark.parametrize("reader", ["tiff", "openslide"])
def test_a_garbled_tile_of_a_level_does_not_cost_the_slide(tmp_path, painted, reader):
    path = write_svs(tmp_path / "in/s.svs", painted[0])
    overwrite_tile(path, 2, 5, b"\xff\xd8 this is no JPEG \xff\xd9")
    made = prepare(path, tmp_path / "out", reader=reader)
    require_right(made, painted)
    assert "900" in made.row["warning"]
    assert "finer" in made.row["warning"]


def test_a_garbled_tile_of_level_0_still_fails_the_slide(tmp_path, painted):
    path = write_svs(tmp_path / "in/s.svs", painted[0])
    overwrite_tile(path, 0, 97, b"\xff\xd8 this is no JPEG \xff\xd9")
    row = prepare(path, tmp_path / "out", mags="40x").row
    assert (row["status"], row["error_type"]) == ("failed", "DamagedSlide")


def test_a_garbled_tile_of_level_0_costs_nothing_where_no_tile_is_cut(tmp_path, painted):
    path = write_svs(tmp_path / "in/s.svs", painted[0])
    for corner in (0, 14, 13 * 15, 14 * 14):  # of glass
        overwrite_tile(path, 0, corner, b"\xff\xd8 this is no JPEG \xff\xd9")
    require_right(prepare(path, tmp_path / "out"), painted)


def other_scene(painted):
    return np.ascontiguousarray(painted[0][::-1, ::-1])


def shifted(painted):
    return np.roll(painted[0], (400, 700), (0, 1))


def black(painted):
    return np.zeros_like(painted[0])


def white(painted):
    return np.full_like(painted[0], 255)


def green_label(painted):
    return np.full_like(painted[0], (60, 190, 90))


@pytest.mark.parametrize("picture", [other_scene, shifted, black, white, green_label])
@pytest.mark.parametrize("wrong", [(4,), (16,), (4, 16)])
def test_a_level_that_shows_something_else_serves_nothing(tmp_path, painted, picture, wrong):
    levels = [reduced(picture(painted) if factor in wrong else painted[0], factor) for factor in FACTORS]
    made = prepare(write_svs(tmp_path / "in/s.svs", painted[0], levels), tmp_path / "out")
    require_right(made, painted)
    for factor in wrong:
        sides = f"{3600 // factor} x {3400 // factor} px"
        assert f"the level of {sides} shows something else than level 0" in made.row["warning"]


@pytest.mark.parametrize("tile", [0, 3, 6, 10, 15])
def test_one_wrong_tile_of_a_level_is_seen(tmp_path, painted, tile):
    levels = [reduced(painted[0], factor) for factor in FACTORS]
    row, col = divmod(tile, 4)
    levels[0][row * 256 : row * 256 + 256, col * 256 : col * 256 + 256] = 20
    made = prepare(write_svs(tmp_path / "in/s.svs", painted[0], levels), tmp_path / "out")
    require_right(made, painted)


@pytest.mark.parametrize("white", [255, 250])
def test_a_tile_of_a_level_that_reads_as_white_is_seen(tmp_path, painted, white):
    """Where tissue is cut off by it; the last row of tiles is a sliver at level 0 here."""
    pixels = painted[0][800:3400, 50:3550]
    level = reduced(pixels, 4)
    sound = write_svs(tmp_path / "sound.svs", pixels, [level])
    blank = imagecodecs.jpeg8_encode(np.full((256, 256, 3), white, np.uint8), colorspace="RGB", outcolorspace="RGB")

    def confirmed(path):
        reader = TrustedLevels(open_slide(str(path)))
        try:
            reader.thumbnail = read_thumbnail(reader, 0.25, 0.25, 8.0)
            assert reader.thumbnail.level == 1
            return reader.confirms()
        finally:
            reader.close()

    assert confirmed(sound)
    for row, col in np.ndindex(3, 4):
        shown = level[row * 256 : row * 256 + 256, col * 256 : col * 256 + 256].astype(int)
        if (np.abs(shown - white).max(-1) > 40).mean() > 0.02:
            path = shutil.copy(sound, tmp_path / "wrong.svs")
            overwrite_tile(path, 2, row * 4 + col, blank)
            assert not confirmed(path), (row, col)


@pytest.mark.parametrize("tile", [0, 5, 6, 9, 11])
def test_one_wrong_tile_of_the_level_that_takes_a_wrong_ones_place_is_seen(tmp_path, painted, tile):
    levels = [reduced(painted[0], 2), reduced(other_scene(painted), 16)]
    row, col = divmod(tile, 4)
    levels[0][row * 512 : row * 512 + 256, col * 512 : col * 512 + 256] = 20
    made = prepare(write_svs(tmp_path / "in/s.svs", painted[0], levels), tmp_path / "out")
    require_right(made, painted)


def test_levels_of_nearest_pixels_are_no_other_picture(tmp_path, painted):
    """Some writers reduce by leaving pixels out."""
    levels = [np.ascontiguousarray(painted[0][::factor, ::factor]) for factor in FACTORS]
    made = prepare(write_svs(tmp_path / "in/s.svs", painted[0], levels), tmp_path / "out", mags="5x")
    assert made.row["warning"] is None


def padded_levels(pixels, factors, tile):
    levels = []
    for factor in factors:
        small = reduced(pixels, factor)
        height, width = small.shape[:2]
        levels.append(np.pad(small, ((0, -height % tile), (0, -width % tile), (0, 0)), constant_values=255))
    return levels


def test_levels_padded_to_whole_tiles_serve_nothing_in_tiff(tmp_path, painted):
    path = write_tiff(tmp_path / "in/s.tiff", painted[0], padded_levels(painted[0], (4, 16), 256))
    require_right(prepare(path, tmp_path / "out"), painted)


@pytest.mark.parametrize("pad_first", [True, False])
def test_levels_padded_to_whole_tiles_serve_nothing_in_dicom(tmp_path, painted, pad_first):
    levels = padded_levels(painted[0], (1, 2, 4, 8, 16), 256)
    if not pad_first:
        levels[0] = painted[0]
    files = write_dicom_slide(tmp_path / "in/s", levels, 0.25)
    for path, factor in zip(files, (1, 2, 4, 8, 16), strict=False):
        data = pydicom.dcmread(path)
        data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0.25 * factor / 1000] * 2
        data.save_as(path)
    made = prepare(files[0], tmp_path / "out")
    require_right(made, painted)
    assert "do not lie on level 0's grid" in made.row["warning"]


def test_dicom_frames_that_are_ycc_under_a_tag_of_rgb_have_right_colours(tmp_path, painted):
    files = write_dicom_slide(tmp_path / "in/s", [painted[0], reduced(painted[0], 4)], 0.25)
    for path in files:
        data = pydicom.dcmread(path)
        data.PhotometricInterpretation = "RGB"
        data.save_as(path)
    require_right(prepare(files[0], tmp_path / "out"), painted)


def test_dicom_whose_scan_was_not_copied_says_that_it_is_a_reduced_copy(tmp_path, painted):
    files = write_dicom_slide(tmp_path, [painted[0], reduced(painted[0], 2)], 0.25)
    whole = open_slide(str(files[0])).info
    assert (whole.mpp_x, whole.notes) == (0.25, ())
    files[0].unlink()
    part = open_slide(str(files[1])).info
    assert part.mpp_x == 0.5
    assert "its finest file is a reduced copy" in " ".join(part.notes)


def test_dicom_whose_files_disagree_about_their_colours_is_refused(tmp_path, painted):
    files = write_dicom_slide(tmp_path / "in/s", [painted[0], reduced(painted[0], 4)], 0.25)
    data = pydicom.dcmread(files[1])
    data.PhotometricInterpretation = "RGB"
    data.save_as(files[1])
    row = prepare(files[0], tmp_path / "out").row
    assert (row["status"], row["error_type"]) == ("failed", "UnreadableSlide")
    assert "YCbCr that is tagged RGB" in row["error"]


def test_a_jpeg_tells_its_colours_by_its_markers(painted):
    tile = np.ascontiguousarray(painted[0][:64, :64])
    ycc = imagecodecs.jpeg8_encode(tile, level=90, colorspace="RGB", outcolorspace="YCBCR")
    rgb = imagecodecs.jpeg8_encode(tile, level=90, colorspace="RGB", outcolorspace="RGB")
    assert (is_ycc(ycc), is_ycc(rgb)) == (True, False)
    unmarked = [
        imagecodecs.jpeg8_encode(tile, level=90, colorspace="RGB", subsampling=chroma)
        for chroma in ("444", "422", "420")
    ]
    assert [is_ycc(jpeg[:2] + jpeg[20:]) for jpeg in unmarked] == [None, True, True]  # without APP0, by its samples
    assert is_ycc(rgb[:2] + rgb[18:]) is False  # without Adobe's marker, by names


def test_a_grey_slide_is_not_taken_for_a_label_beside_its_own_empty_levels(tmp_path, painted):
    grey = cv2.merge([cv2.cvtColor(painted[0], cv2.COLOR_RGB2GRAY)] * 3)
    filled = np.pad(grey, ((0, 1400), (0, 1500), (0, 0)), constant_values=255)
    path = write_svs(tmp_path / "s.svs", filled)
    with tifffile.TiffFile(path, mode="r+b") as tif:
        for page in tif.pages[2:]:
            for name in ("TileByteCounts", "TileOffsets"):
                page.tags[name].overwrite([0] * len(page.dataoffsets))
    assert open_slide(str(path)).info.width0 == filled.shape[1]
