"""TIFFs that are sound but unusual: scales of other pictures, more samples than colours, damaged profiles, encodings
that nobody reads."""

import contextlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import ImageCms

from tests.support.labels_beside import APERIO
from wsi_prep.errors import UnreadableSlide
from wsi_prep.slides.base import WHITE
from wsi_prep.slides.readers.select import open_slide
from wsi_prep.slides.scale import resolve_scale

READERS = ("auto", "tiff", "openslide")
TILED = {"photometric": "rgb", "tile": (256, 256), "metadata": None}
STRIPS = {"photometric": "rgb", "rowsperstrip": 64, "metadata": None}
QUARTER_UM = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}
HALF_UM = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
DPI_72 = {"resolution": (72, 72), "resolutionunit": "INCH"}


@pytest.fixture(scope="module")
def pixels():
    """(600, 700, 3) uint8 of soft spots."""
    small = np.random.default_rng(0).integers(60, 250, (30, 35, 3), dtype=np.uint8)
    return cv2.resize(small, (700, 600), interpolation=cv2.INTER_CUBIC)


def halved(pixels, times=1):
    sides = pixels.shape[1] // 2**times, pixels.shape[0] // 2**times
    return cv2.resize(pixels, sides, interpolation=cv2.INTER_AREA)


@contextlib.contextmanager
def opened(path, reader="auto"):
    with contextlib.closing(open_slide(str(path), reader)) as slide:
        yield slide


def refusal(path, reader="auto"):
    with pytest.raises(UnreadableSlide) as raised:
        open_slide(str(path), reader)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 500  # the row keeps it all
    return str(raised.value)


def set_compression(path, code):
    with tifffile.TiffFile(path, mode="r+b") as tif:
        tif.pages[0].tags["Compression"].overwrite(code)


def in_strips(path, pixels, tags, texts=(None, None, None), order=(0, 1, 2)):
    """Level 0 in strips, which no reader takes, and two levels in tiles."""
    with tifffile.TiffWriter(path) as tif:
        for number in order:
            kind = STRIPS if number == 0 else TILED
            about = {"description": texts[number], "subfiletype": int(number != order[0])}
            tif.write(halved(pixels, number), **about, **kind, **tags[number])
    return path


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0)])
@pytest.mark.parametrize("tags", [(QUARTER_UM,) * 3, (QUARTER_UM, {}, {})])
def test_the_scale_of_a_finer_picture_is_taken_in_proportion(tmp_path, pixels, tags, order):
    path = in_strips(tmp_path / "s.tif", pixels, tags, order=order)
    with opened(path) as slide:
        assert (slide.info.width0, slide.info.mpp_x, slide.info.mpp_y) == (350, 0.5, 0.5)
        assert any("0.25 um/px for that of 700 x 600 px, 0.5 was used" in note for note in slide.info.notes)
    said = {0: "OpenSlide knows no such format", 1: "leave the reader to auto"}[order[0]]
    assert said in refusal(path, "openslide")


def test_a_level_that_states_its_own_scale_keeps_it(tmp_path, pixels):
    path = in_strips(tmp_path / "s.tif", pixels, (QUARTER_UM, HALF_UM, HALF_UM))
    with opened(path) as slide:
        assert (slide.info.width0, slide.info.mpp_x) == (350, 0.5)
        assert not any("another picture's" in note for note in slide.info.notes)


@pytest.mark.parametrize("every", [False, True])
def test_aperios_scale_belongs_to_the_picture_that_its_first_page_is(tmp_path, pixels, every):
    said = APERIO.format(700, 600).replace("MPP = 1.0", "MPP = 0.25")
    bare = said.partition("|")[0]
    path = in_strips(tmp_path / "s.svs", pixels, ({},) * 3, (said, *[said if every else bare] * 2))
    with opened(path, "tiff") as slide:
        assert (slide.info.width0, slide.info.mpp_x, slide.info.mpp_source) == (350, 0.5, "vendor")


def test_aperios_scale_of_a_picture_of_other_proportions_is_not_taken(tmp_path, pixels):
    said = APERIO.format(300, 300)
    with tifffile.TiffWriter(path := tmp_path / "s.svs") as tif:
        tif.write(pixels[:300, :300], description=said, **TILED)
        tif.write(pixels, description=said.partition("|")[0], **TILED)
    with opened(path, "tiff") as slide:
        assert (slide.info.width0, slide.info.mpp_x) == (700, None)
        assert "1.0 of another picture" in slide.info.mpp_stated


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "zstd"])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("extra", [["unspecified"], ["unspecified", "unspecified"], ["unspecified", "unassalpha"]])
def test_samples_that_are_no_transparency_are_left_out(tmp_path, pixels, compression, apart, extra):
    """Infrared, say: libtiff takes the first of them for transparency."""
    more = np.dstack([pixels, *[255 - pixels[..., 0] // 2] * len(extra)])
    data = np.ascontiguousarray(more.transpose(2, 0, 1)) if apart else more
    how = {"planarconfig": "separate" if apart else "contig", "compression": compression, "extrasamples": extra}
    tifffile.imwrite(path := tmp_path / "s.tif", data, **how, **TILED, **QUARTER_UM)
    with opened(path) as slide:
        assert np.array_equal(slide.read(0, 0, 0, 700, 600), pixels)
        number = "1 sample" if len(extra) == 1 else "2 samples"
        assert slide.info.notes == (f"its pixels have {number} beside red, green and blue, skipped",)
    assert "leave the reader to auto" in refusal(path, "openslide")


def test_a_fourth_sample_that_no_tag_explains_is_left_out(tmp_path, pixels):
    more = np.dstack([pixels, pixels[..., 0] // 2])
    tifffile.imwrite(path := tmp_path / "s.tif", more, extrasamples=["unspecified"], compression="lzw", **TILED)
    tag = tifffile.TiffFile(path).pages[0].tags["ExtraSamples"]
    with path.open("r+b") as file:
        file.seek(tag.offset)
        file.write((65000).to_bytes(2, "little"))  # a private tag
    with opened(path) as slide:
        assert np.array_equal(slide.read(0, 0, 0, 700, 600), pixels)


def test_more_samples_in_a_jpeg_are_refused(tmp_path, pixels):
    more = np.dstack([pixels, pixels[..., 0]])
    tifffile.imwrite(path := tmp_path / "s.tif", more, extrasamples=["unspecified"], **TILED)
    set_compression(path, 7)
    for reader in READERS:
        assert "4 samples, of which only the first three are colours, compressed by JPEG" in (
            said := refusal(path, reader)
        )
        assert "vips extract_band in.tif" in said


@pytest.mark.parametrize("kind", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("reader", ["auto", "openslide"])
@pytest.mark.parametrize("alpha", [255, 254, 0])
def test_transparency_is_told_where_there_is_some(tmp_path, pixels, kind, reader, alpha):
    veil = np.full((600, 700, 1), 255, np.uint8)
    veil[250:350, 300:400] = alpha
    colours = pixels if kind == "unassalpha" else (pixels * (veil / 255)).astype(np.uint8)
    with tifffile.TiffWriter(path := tmp_path / "s.tif") as tif:
        for number in (0, 1):
            how = {"extrasamples": [kind], "compression": "lzw", "subfiletype": number}
            tif.write(halved(np.dstack([colours, veil]), number), **how, **TILED, **QUARTER_UM)
    with opened(path, reader) as slide:
        piece = slide.read(0, -50, -50, 900, 900)
        slide.read(1, 0, 0, 400, 400)
        assert (piece[330, 380] == WHITE).all() == (alpha == 0)
        assert slide.warnings == ([] if alpha == 255 else [slide.warnings[0]])
        assert all("parts of it are transparent" in warning for warning in slide.warnings)


SOUND = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("profile", [bytes(4), bytes(128), SOUND[:300], SOUND[:100], b"?" * 400, b"\0"])
def test_a_damaged_colour_profile_loses_no_slide(tmp_path, pixels, profile, reader):
    tifffile.imwrite(path := tmp_path / "s.tif", pixels, iccprofile=profile, **TILED, **QUARTER_UM)
    with opened(path, reader) as slide:
        assert np.array_equal(slide.read(0, 0, 0, 700, 600), pixels)
        assert slide.info.icc_profile is None or reader == "openslide"  # which makes a profile of what is left
        assert slide.info.notes == ("the file's colour profile is damaged and was not used",)


@pytest.mark.parametrize(
    ("dtype", "what"), [("f4", "32-bit floating"), ("f2", "16-bit floating"), ("u4", "32-bit whole")]
)
def test_samples_that_no_reader_takes_are_named(tmp_path, pixels, dtype, what):
    tifffile.imwrite(path := tmp_path / "s.tif", pixels.astype(dtype), compression="lzw", **TILED)
    for reader in READERS:
        said = refusal(path, reader)
        assert f"its samples are {what}" in said
        assert "vips linear in.tif" in said


@pytest.mark.parametrize(
    ("compression", "name"), [("webp", "WebP"), ("jpegxl", "JPEG XL"), ("lerc", "LERC"), (999, "999")]
)
def test_compressions_that_no_reader_takes_are_named(tmp_path, pixels, compression, name):
    named = isinstance(compression, str)
    tifffile.imwrite(path := tmp_path / "s.tif", pixels, compression=compression if named else None, **TILED)
    if not named:
        set_compression(path, compression)
    said = refusal(path)
    assert f"its tiles are compressed by {name}" in said or f"TIFF's number {name}" in said
    assert "vips tiffsave in.tif out.tif --tile --pyramid" in said
    assert "COMPRESSION" not in said


@pytest.mark.parametrize("end", [".svs", ".tif"])
@pytest.mark.parametrize("reader", READERS)
def test_a_resolution_for_printers_is_no_scale_whatever_the_file(tmp_path, pixels, end, reader):
    about = "Aperio Image Library v11.2.1 \n700x600 (256x256) JPEG/RGB Q=75|AppMag = 40" if end == ".svs" else None
    tifffile.imwrite(path := tmp_path / f"s{end}", pixels, description=about, **TILED, **DPI_72)
    with opened(path, reader) as slide:
        assert resolve_scale(slide.info, None, 0.25).source == "assumed"
