"""Which picture of a TIFF is the slide: OME-TIFFs of every layout, several scenes, labels and overviews, levels in any
order."""

import contextlib

import numpy as np
import pytest
import tifffile

from tests.support.prepared import prepare
from tests.support.pyramids import reduced, require_right
from wsi_prep.errors import UnreadableSlide
from wsi_prep.slides.readers.select import open_slide
from wsi_prep.slides.readers.tiff.ome import OmeChannel, colour_order, um_per_unit

SIZES = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
UM = {"PhysicalSizeXUnit": "µm", "PhysicalSizeYUnit": "µm"}
TILED = {"tile": (256, 256), "compression": "lzw"}
RED, GREEN, BLUE = 0xFF0000FF - 2**32, 0x00FF00FF, 0x0000FFFF


def planes(pixels):
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def write_ome(path, pixels, axes="YXS", levels=(4,), metadata=None, **kind):
    """An OME-TIFF of one image, in the manner of raw2ometiff: levels in SubIFDs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = kind or {"photometric": "rgb" if "S" in axes else "minisblack"}
    with tifffile.TiffWriter(path, ome=True) as tif:
        write_image(tif, pixels, axes, levels, metadata, **kind)
    return path


def write_image(tif, pixels, axes="YXS", levels=(4,), metadata=None, **kind):
    kind = kind or {"photometric": "rgb"}
    as_axes = planes if axes in ("CYX", "SYX") else np.ascontiguousarray
    meta = {"axes": axes, **SIZES, **UM, **(metadata or {})}
    tif.write(as_axes(pixels), subifds=len(levels), metadata=meta, **kind, **TILED)
    for factor in levels:
        tif.write(as_axes(reduced(pixels, factor)), subfiletype=1, **kind, **TILED)


APART = {"photometric": "rgb", "planarconfig": "separate"}


@pytest.mark.parametrize(
    ("axes", "kind", "channels"),
    [
        ("YXS", {}, None),
        ("SYX", APART, None),
        ("CYX", {}, None),
        ("CYX", {}, {"Name": ["Red", "Green", "Blue"]}),
        ("CYX", {}, {"Name": ["r", "g", "b"]}),
        ("CYX", {}, {"Name": ["Channel 0", "Channel 1", "Channel 2"]}),
        ("CYX", {}, {"Color": [RED, GREEN, BLUE]}),
    ],
)
def test_red_green_and_blue_are_put_together(tmp_path, painted, axes, kind, channels):
    meta = {"Channel": channels} if channels else None
    path = write_ome(tmp_path / "in/s.ome.tiff", painted[0], axes, metadata=meta, **kind)
    made = prepare(path, tmp_path / "out")
    require_right(made, painted)
    assert (made.row["mpp_x"], made.row["mpp_source"], made.row["warning"]) == (0.25, "vendor", None)


def test_channels_in_another_order_are_sorted_by_their_names(tmp_path, painted):
    bgr = np.ascontiguousarray(painted[0][..., ::-1])
    meta = {"Channel": {"Name": ["Blue", "Green", "Red"]}}
    require_right(prepare(write_ome(tmp_path / "in/s.ome.tif", bgr, "CYX", metadata=meta), tmp_path / "out"), painted)


def test_the_scale_may_stand_with_any_channel(tmp_path):
    """Red comes last in the file, and TIFF's resolution stands with its first page alone."""
    path, plane = tmp_path / "s.ome.tif", np.full((600, 700), 240, np.uint8)
    with tifffile.TiffWriter(path, ome=True) as tif:
        meta = {"axes": "CYX", "Channel": {"Name": ["Blue", "Green", "Red"]}, "PhysicalSizeX": 0.5}
        meta |= {"PhysicalSizeXUnit": "furlong", "PhysicalSizeY": 0.55, "PhysicalSizeYUnit": "furlong"}
        tif.write(np.stack([plane] * 3), photometric="minisblack", metadata=meta, **TILED)
    with tifffile.TiffFile(path, mode="r+b") as tif:
        for number, page in enumerate(tif.pages):
            page.tags["XResolution"].overwrite((20000, 1) if number == 0 else (1, 1))
            page.tags["YResolution"].overwrite((200000, 11) if number == 0 else (1, 1))
            page.tags["ResolutionUnit"].overwrite(3 if number == 0 else 1)
    info = open_slide(str(path)).info
    assert (info.mpp_x, info.mpp_y, info.mpp_source) == (0.5, 0.55, "tiff-resolution")
    assert "furlong" in info.mpp_stated


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda p: write_ome(p, four_channels(), "CYX", levels=()), "axes CYX"),
        (lambda p: write_ome(p, three(np.uint16), "CYX", levels=()), "not 8-bit RGB"),
        (lambda p: write_ome(p, three(), "CYX", (), {"Channel": {"Name": ["DAPI", "FITC", "Cy3"]}}), "names"),
        (lambda p: write_ome(p, three(), "CYX", (), {"Channel": {"EmissionWavelength": [450, 520, 570]}}), "fluoresc"),
        (lambda p: write_ome(p, three()[..., 0], "YX", levels=(), photometric="minisblack"), "axes YX"),
    ],
)
def test_an_ome_tiff_that_is_refused_never_reaches_openslide(tmp_path, make, why):
    path = make(tmp_path / "s.ome.tif")
    for reader in ("auto", "tiff", "openslide"):
        with pytest.raises(UnreadableSlide, match="OME-TIFF") as refusal:
            open_slide(str(path), reader)
        assert why in str(refusal.value) or reader == "openslide"


def three(dtype=np.uint8):
    return np.random.default_rng(0).integers(0, 255, (400, 500, 3)).astype(dtype)


def four_channels():
    return np.random.default_rng(0).integers(0, 255, (400, 500, 4), dtype=np.uint8)


@pytest.mark.parametrize(
    "order",
    [
        *(("small", "slide"), ("slide", "small"), ("Overview 1", "slide"), ("label_2", "slide")),
        *(("macro photo of the slide", "slide"), ("Label 77-1234 Doe", "slide")),
    ],
)
def test_the_largest_scene_of_an_ome_tiff_is_the_slide(tmp_path, painted, order):
    small = np.ascontiguousarray(painted[0][1000:2500, 500:2600])
    path = tmp_path / "in/s.ome.tif"
    path.parent.mkdir()
    with tifffile.TiffWriter(path, ome=True) as tif:
        for name in order:
            meta = {"Name": name} if name != "slide" else {}
            write_image(tif, painted[0] if name == "slide" else small, metadata=meta)
    made = prepare(path, tmp_path / "out")
    require_right(made, painted)
    assert (made.row["width"], made.row["height"]) == (3600, 3400)
    told = "1 more picture of tissue size (2100 x 1500 px), skipped"
    assert (told in (made.row["warning"] or "")) == ("small" in order)


@pytest.mark.parametrize("others", [0, 1])
def test_a_word_within_a_name_does_not_make_a_label(tmp_path, painted, others):
    path = tmp_path / "in/s.ome.tif"
    path.parent.mkdir()
    with tifffile.TiffWriter(path, ome=True) as tif:
        write_image(tif, painted[0], metadata={"Name": "Label-free H&E"})
        for _ in range(others):
            write_image(tif, np.ascontiguousarray(painted[0][1000:2500, 500:2600]), metadata={"Name": "scene 2"})
    made = prepare(path, tmp_path / "out")
    require_right(made, painted)
    assert ("1 more picture of tissue size" in (made.row["warning"] or "")) == bool(others)


@pytest.mark.parametrize("name", ["label", "Label_1", "label.png", "Slide label image", "barcode", "Macro"])
def test_a_picture_that_is_named_a_label_is_never_read(tmp_path, name):
    path = write_ome(tmp_path / "s.ome.tif", three(), metadata={"Name": name}, levels=())
    with pytest.raises(UnreadableSlide, match="named a label or macro image, which is never read"):
        open_slide(str(path))


@pytest.mark.parametrize("first", ["label", "reduced", "scene", "level 0 last"])
@pytest.mark.parametrize("tiled", [True, False])
def test_the_largest_picture_of_a_generic_tiff_is_the_slide(tmp_path, painted, first, tiled):
    pixels = painted[0]
    slide, levels = (pixels, 0.25, True), [(reduced(pixels, factor), 0.25 * factor, True) for factor in (4, 16)]
    beside = {
        "label": [(np.full((400, 500, 3), (60, 190, 90), np.uint8), 10.0, tiled)],
        "reduced": [(np.full((850, 900, 3), (60, 190, 90), np.uint8), 10.0, tiled)],  # of the slide's proportions
        "scene": [(np.ascontiguousarray(pixels[1000:2500, 500:2600]), 0.25, tiled)],
        "level 0 last": [],
    }[first]
    pictures = [*beside, *levels[::-1], slide] if first == "level 0 last" else [*beside, slide, *levels]
    path = tmp_path / "in/s.tiff"
    path.parent.mkdir()
    with tifffile.TiffWriter(path) as tif:
        for picture, mpp, in_tiles in pictures:
            kind = {"tile": (256, 256)} if in_tiles else {}
            scale = {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
            tif.write(picture, photometric="rgb", metadata=None, **scale, **kind)
    made = prepare(path, tmp_path / "out")
    require_right(made, painted)
    assert (made.row["width"], made.row["height"], made.row["mpp_x"]) == (3600, 3400, 0.25)
    if first == "scene" and tiled:
        assert "1 more picture of tissue size (2100 x 1500 px)" in made.row["warning"]


def test_openslide_alone_says_what_else_the_file_holds(tmp_path, painted):
    """It takes the pyramid that stands first; of a larger picture behind it, only the TIFF reader knows."""
    pixels = np.ascontiguousarray(painted[0][1000:2600, 500:2600])
    scale = {"resolution": (4e4, 4e4), "resolutionunit": "CENTIMETER", "metadata": None, "tile": (256, 256)}
    with tifffile.TiffWriter(path := tmp_path / "s.tiff") as tif:
        tif.write(pixels, photometric="rgb", **scale)
        tif.write(reduced(pixels, 4), photometric="rgb", subfiletype=1, **scale)
        tif.write(painted[0], photometric="rgb", **scale)
    with contextlib.closing(open_slide(str(path), "openslide")) as slide:
        assert (slide.info.width0, slide.info.height0) == (2100, 1600)
        assert any("1 more picture of tissue size (3600 x 3400 px)" in note for note in slide.info.notes)


def test_a_smaller_picture_is_not_taken_where_the_slide_itself_cannot_be_read(tmp_path, painted):
    """Its first picture is 16-bit; what OpenSlide or we could read is the overview alone."""
    path = tmp_path / "s.tiff"
    with tifffile.TiffWriter(path) as tif:
        tif.write(reduced(painted[0], 16), photometric="rgb", tile=(256, 256), metadata=None)
        tif.write(painted[0].astype(np.uint16) * 257, photometric="rgb", tile=(256, 256), metadata=None)
    with pytest.raises(UnreadableSlide, match="3600 x 3400 px, is not read"):
        open_slide(str(path))


@pytest.mark.parametrize("unit", ["\u00b5m", "\u03bcm", "um", "micron", "microns", "micrometer"])
def test_a_micrometre_has_many_spellings(unit):
    assert um_per_unit(unit) == 1.0


@pytest.mark.parametrize(
    ("unit", "um"),
    [
        *(("nm", 1e-3), ("mm", 1e3), ("cm", 1e4), ("m", 1e6), ("pm", 1e-6), ("in", 25400.0), ("inch", 25400.0)),
        *(("pt", 352.777777), ("thou", 25.4), ("li", 2116.6666), ("ft", 304800.0), ("yd", 914400.0)),
        *(("\u00c5", 1e-4), ("\u212b", 1e-4), ("angstrom", 1e-4), ("dm", 1e5), ("km", 1e9), ("fm", 1e-9)),
        *(("", None), ("pixel", None), ("reference frame", None), ("parsec?", None)),
    ],
)
def test_every_unit_of_length_of_ome(unit, um):
    assert um_per_unit(unit) == (pytest.approx(um) if um else None)


def channel(name="", colour=None):
    return OmeChannel(name, colour, fluoresces=False)


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (("Red", "Green", "Blue"), (0, 1, 2)),
        (("channel blue", "RED", "Green 1"), (1, 2, 0)),
        (("", "", ""), (0, 1, 2)),
        (("C:0", "C:1", "C:2"), (0, 1, 2)),
        (("Channel:0:0", "Channel:0:1", "Channel:0:2"), (0, 1, 2)),
        (("TL Brightfield",) * 3, (0, 1, 2)),
    ],
)
def test_channels_are_known_by_names_or_stand_in_order(names, order):
    assert colour_order([channel(name) for name in names]) == order


@pytest.mark.parametrize("names", [("DAPI", "FITC", "TRITC"), ("Red", "Red", "Blue"), ("CD3", "CD8", "PanCK")])
def test_channels_of_other_names_are_no_colours(names):
    assert "not red, green and blue" in colour_order([channel(name) for name in names])
