"""One contract for every reader, run on each reader and each kind of slide that it takes."""

import hashlib
import subprocess
import sys

import cv2
import numpy as np
import openslide
import pytest
import tifffile
from PIL import ImageCms

from sample_slides.coordinates import coordinate_slide as make_coordinate_slide
from sample_slides.coordinates import expected
from wsi_prep.errors import BadOption, DamagedSlide, UnreadableSlide
from wsi_prep.slides.readers.select import open_slide
from wsi_prep.slides.readers.tiff.reader import UnsupportedLayout

pytestmark = pytest.mark.slow

WHITE = (255, 255, 255)


@pytest.fixture(scope="module")
def jpeg2000_slide(tmp_path_factory, he_slide):
    """A piece of the H&E slide as Aperio's scanners store JPEG 2000."""
    path = tmp_path_factory.mktemp("jpeg2000") / "s.svs"
    with openslide.OpenSlide(he_slide) as source:
        pixels = np.asarray(source.read_region((1500, 600), 0, (1400, 900)))[..., :3]
    about = "Aperio Image Library v11.2.1 \n1400x900 (256x256) J2K/KDU Q=70|AppMag = 40|MPP = 0.2500"
    options = {"tile": (256, 256), "photometric": "rgb", "compression": 33005, "compressionargs": {"level": 35}}
    tifffile.imwrite(path, pixels, description=about, metadata=None, **options)
    return path


@pytest.fixture(params=["he_slide", "nompp_slide", "coordinate_slide", "jpeg2000_slide"])
def slide(request):
    return request.getfixturevalue(request.param)


def rgb(path, location0, level, size):
    with openslide.OpenSlide(path) as reference:
        rgba = np.asarray(reference.read_region(location0, level, size))
    assert (rgba[..., 3] == 255).all()
    return rgba[..., :3]


class ReaderContract:
    """What every reader must do; a subclass names the reader."""

    name: str

    @pytest.fixture
    def reader(self, slide):
        reader = open_slide(str(slide), self.name)
        yield reader
        reader.close()

    def test_it_says_who_it_is_and_how_big_the_slide_is(self, reader, slide):
        with openslide.OpenSlide(slide) as reference:
            assert (reader.info.width0, reader.info.height0) == reference.dimensions
            assert [(level.width, level.height) for level in reader.info.levels] == list(reference.level_dimensions)
        assert reader.info.reader == self.name
        assert reader.info.levels[0].downsample == 1

    def test_pixels_are_those_of_openslide_at_every_level(self, reader, slide):
        for number, level in enumerate(reader.info.levels):
            width, height = min(500, level.width), min(300, level.height)
            for x, y in ((0, 0), (level.width - width, level.height - height)):
                downsample = round(level.downsample)
                theirs = rgb(slide, (x * downsample, y * downsample), number, (width, height))
                ours = reader.read(number, x, y, width, height)
                assert ours.shape == (height, width, 3)
                assert ours.dtype == np.uint8
                assert np.array_equal(ours, theirs)

    def test_outside_the_slide_is_background_never_black(self, reader):
        width0, height0 = reader.info.width0, reader.info.height0
        piece = reader.read(0, width0 - 20, height0 - 10, 50, 40)
        assert (piece[10:] == WHITE).all()
        assert (piece[:, 20:] == WHITE).all()
        assert np.array_equal(piece[:10, :20], reader.read(0, width0 - 20, height0 - 10, 20, 10))
        assert (reader.read(0, -30, -30, 30, 30) == WHITE).all()

    def test_pieces_join(self, reader):
        whole = reader.read(0, 100, 40, 700, 600)
        parts = [reader.read(0, 100 + dx, 40 + dy, 350, 300) for dy in (0, 300) for dx in (0, 350)]
        joined = np.vstack([np.hstack(parts[:2]), np.hstack(parts[2:])])
        assert np.array_equal(whole, joined)

    def test_what_the_boxes_name_is_there(self, reader):
        boxes = np.array([[110, 60, 90, 70], [600, 500, 40, 40]])
        whole, some = reader.read(0, 100, 40, 700, 600), reader.read(0, 100, 40, 700, 600, boxes)
        for x, y, width, height in boxes - (100, 40, 0, 0):
            assert np.array_equal(some[y : y + height, x : x + width], whole[y : y + height, x : x + width])


class TestTiffReader(ReaderContract):
    name = "tiff"

    def test_it_decodes_only_what_the_boxes_touch(self, slide):
        reader = open_slide(str(slide), "tiff")
        piece = reader.read(0, 0, 0, 1024, 800, np.array([[300, 300, 10, 10]]))
        assert (piece[:256] == WHITE).all()
        assert (piece[:, 512:] == WHITE).all()

    def test_a_url_gives_the_same_pixels(self, he_slide):
        import fsspec

        fs = fsspec.filesystem("memory")
        fs.pipe_file("/slides/he.svs", he_slide.read_bytes())
        remote, local = open_slide("memory://slides/he.svs"), open_slide(str(he_slide))
        assert remote.info == local.info
        assert np.array_equal(remote.read(0, 900, 700, 800, 600), local.read(0, 900, 700, 800, 600))


class TestOpenSlideReader(ReaderContract):
    name = "openslide"


def test_levels_at_odd_downsamples_hold_what_they_should(coordinate_slide):
    reader = open_slide(str(coordinate_slide))
    for number, factor in enumerate((1, 3, 9)):
        piece = reader.read(number, 70, 40, 200, 100)
        exact = expected(70 * factor, 40 * factor, 200 * factor, 100 * factor, (200, 100))
        assert np.abs(piece - exact).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("mpp", [0.25, None])
def test_mpp_comes_from_resolution_tags_or_from_nowhere(tmp_path, mpp):
    path = make_coordinate_slide(tmp_path / "s.tiff", 700, 500, mpp)
    for reader, source in (("tiff", "tiff-resolution"), ("openslide", "openslide")):
        info = open_slide(str(path), reader).info
        assert info.mpp_x == (pytest.approx(mpp) if mpp else None)
        assert info.mpp_source == (source if mpp else None)


def ome(path, unit=None):
    pixels = np.random.default_rng(0).integers(90, 200, (600, 700, 3), dtype=np.uint8)
    metadata = {"axes": "YXS", "PhysicalSizeX": 0.227, "PhysicalSizeY": 0.227}
    metadata |= {"PhysicalSizeXUnit": unit, "PhysicalSizeYUnit": unit} if unit else {}
    tifffile.imwrite(path, pixels, ome=True, tile=(256, 256), photometric="rgb", metadata=metadata)
    return pixels


@pytest.mark.parametrize(("unit", "um"), [(None, 0.227), ("nm", 0.000227), ("mm", 227.0)])
def test_ome_tiff_that_openslide_refuses_is_read_with_its_own_scale(tmp_path, unit, um):
    path = tmp_path / "slide.ome.tif"
    pixels = ome(path, unit)
    reader = open_slide(str(path))
    assert (reader.info.reader, reader.info.vendor, reader.info.mpp_source) == ("tiff", "ome", "vendor")
    assert reader.info.mpp_x == pytest.approx(um)
    assert np.array_equal(reader.read(0, 0, 0, 700, 600), pixels)


@pytest.mark.parametrize("reader", ["tiff", "openslide"])
@pytest.mark.parametrize(
    ("name", "kinds"), [("s.svs", (0, 0)), ("s.svs", (0, 1)), ("s.tif", (1, 1)), ("s.tif", (1, 9))]
)
def test_a_label_stored_in_tiles_is_no_level(tmp_path, reader, name, kinds):
    pixels = np.random.default_rng(0).integers(90, 200, (1024, 1536, 3), dtype=np.uint8)
    about = "Aperio Image Library v11.2.1 \n1536x1024 (256x256)|AppMag = 20|MPP = 0.5" if name == "s.svs" else None
    common = {"photometric": "rgb", "metadata": None, "description": about}
    with tifffile.TiffWriter(tmp_path / name) as tiff:
        tiff.write(pixels, tile=(128, 128), **common)
        if about:
            tiff.write(pixels[::4, ::4], **common)
        for picture, kind in ((np.full((300, 400, 3), 9, np.uint8), kinds[1]), (pixels[::8, ::8], kinds[0])):
            tiff.write(picture, tile=(128, 128), subfiletype=kind, **common)
    opened = open_slide(str(tmp_path / name), reader)
    assert (400, 300) not in [(level.width, level.height) for level in opened.info.levels]
    for number, level in enumerate(opened.info.levels):
        step = round(level.downsample)
        assert np.array_equal(opened.read(number, 0, 0, 100, 50), pixels[::step, ::step][:50, :100])


def test_tiles_that_call_themselves_rgb_but_are_jfif_keep_their_colours(tmp_path):
    """As Bio-Formats writes OME-TIFF."""
    pixels = np.full((512, 512, 3), (180, 90, 200), np.uint8)
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", compression="jpeg")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        assert tiff.pages[0].is_jfif
        tiff.pages[0].tags["PhotometricInterpretation"].overwrite(2)
    assert np.abs(open_slide(str(path), "tiff").read(0, 0, 0, 512, 512).astype(int) - pixels).max() <= 2


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tile": None}, "not tiled"),
        ({"shape": (300, 300), "photometric": "minisblack"}, "one RGB plane|not 8-bit RGB"),
        ({"dtype": np.uint16}, "not 8-bit RGB"),
    ],
)
def test_the_tiff_reader_refuses_what_it_does_not_read(tmp_path, options, reason):
    options = {"tile": (128, 128), "photometric": "rgb", "shape": (300, 300, 3), "dtype": np.uint8} | options
    shape, dtype = options.pop("shape"), options.pop("dtype")
    tifffile.imwrite(tmp_path / "s.tif", np.zeros(shape, dtype), **options)
    with pytest.raises(UnsupportedLayout, match=reason):
        open_slide(str(tmp_path / "s.tif"), "tiff")


def test_a_vendors_own_tiff_is_left_to_openslide(tmp_path):
    """Trestle's tiles overlap, and only OpenSlide knows by how much."""
    pixels = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "s.tif", pixels, tile=(256, 256), photometric="rgb", software="MedScan")
    info = open_slide(str(tmp_path / "s.tif")).info
    assert (info.reader, info.vendor) == ("openslide", "trestle")


def test_transparent_pixels_become_background(tmp_path, monkeypatch):
    """OpenSlide gives transparency where a slide has no pixels: here a tile that the file does not hold."""
    path = make_coordinate_slide(tmp_path / "s.tiff", 1024, 512, 0.25)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        counts = list(tiff.pages[0].databytecounts)
        counts[1] = 0
        tiff.pages[0].tags["TileByteCounts"].overwrite(counts)
    for name in ("tiff", "openslide"):
        reader = open_slide(str(path), name)
        piece = reader.read(0, 200, 0, 400, 200)
        assert (piece[:, 56:312] == WHITE).all()
        assert (piece[:, :56] != WHITE).any()


@pytest.mark.parametrize("kind", ["text", "empty", "missing", "noise"])
def test_what_is_no_slide_is_refused_in_one_line(tmp_path, kind):
    path = tmp_path / "notes.svs"
    if kind != "missing":
        noise = np.random.default_rng(0).bytes(5000)
        path.write_bytes({"text": b"dear colleague,\n", "empty": b"", "noise": noise}[kind])
    for reader in ("auto", "tiff", "openslide"):
        with pytest.raises(UnreadableSlide) as refusal:
            open_slide(str(path), reader)
        assert "\n" not in str(refusal.value)


def test_a_truncated_slide_is_refused_before_any_pixel_is_used(tmp_path, he_slide):
    data = he_slide.read_bytes()
    for share in (0.3, 0.9):
        path = tmp_path / "cut.svs"
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises((DamagedSlide, UnreadableSlide)):
            open_slide(str(path))


def test_truncation_is_seen_where_the_directory_comes_first(tmp_path):
    path = tmp_path / "s.tif"
    pixels = np.random.default_rng(0).integers(0, 255, (600, 600, 3), dtype=np.uint8)
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb")
    with tifffile.TiffFile(path) as tiff:
        assert tiff.pages[0].offset < tiff.pages[0].dataoffsets[0]
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DamagedSlide, match="truncated"):
        open_slide(str(path))


@pytest.mark.parametrize(
    ("tag", "value"), [("TileWidth", 0), ("TileLength", 16), ("ImageWidth", 0), ("ImageLength", 9)]
)
def test_a_directory_of_nonsense_is_refused_in_one_line(tmp_path, tag, value):
    path = make_coordinate_slide(tmp_path / "s.tiff", 700, 500, 0.25)
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags[tag].overwrite(value)
    with pytest.raises((UnreadableSlide, DamagedSlide)) as refusal:
        open_slide(str(path), "tiff")
    assert "\n" not in str(refusal.value)


def test_a_damaged_tile_is_named(tmp_path, he_slide):
    path = tmp_path / "damaged.svs"
    path.write_bytes(he_slide.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offset, count = page.dataoffsets[30], page.databytecounts[30]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * count)
    reader = open_slide(str(path))
    with pytest.raises(DamagedSlide, match=r"the tile at x \d+, y \d+ .* copy the slide again"):
        reader.read(0, 0, 0, reader.info.width0, 1024)


def test_an_unknown_reader_is_refused(he_slide):
    with pytest.raises(BadOption, match="choose from auto tiff openslide"):
        open_slide(str(he_slide), "magic")


def test_decoded_tiles_are_kept_only_as_long_as_neighbours_need_them(he_slide):
    reader = open_slide(str(he_slide), "tiff")
    for y in range(0, 3000, 600):
        for x in range(0, 6000, 600):
            reader.read(0, x, y, 600, 600)
    assert reader.cached_bytes <= 2 * 26 * 256 * 256 * 3  # about one row of tiles, not the slide's 350


def test_a_walk_from_the_top_keeps_nothing_of_what_it_has_passed(he_slide):
    """Where tiles are cut here and there, nobody comes for most of what was decoded beside them."""

    def kept(rows):
        reader = open_slide(str(he_slide), "tiff")
        for y in rows:
            for x in (300, 1500):
                reader.expect(0, x, y, 600, 600)
                reader.read(0, x, y, 600, 600)
        return reader.cached_bytes

    assert 0 < kept(range(100, 2500, 600)) == kept(range(1300, 2500, 600))


def test_real_slides_open_with_the_reader_that_suits_them(real_slides):
    chosen = {p.name: open_slide(str(p)).info.reader for p in real_slides.iterdir() if p.suffix not in (".md", ".csv")}
    assert {n for n, reader in chosen.items() if reader == "openslide"} == {
        "camelyon-overview_HE.dcm",
        "marrow_special-stain_jpeg2000.dcm",
        "fluorescence_TRITC.ndpi",
    }
    for name in ("CMU-1-Small-Region.svs", "crohn-colon_HE_40x.tiff"):
        ours, theirs = (open_slide(str(real_slides / name), reader) for reader in ("tiff", "openslide"))
        assert np.array_equal(ours.read(0, 801, 603, 700, 500), theirs.read(0, 801, 603, 700, 500))


@pytest.mark.parametrize(
    ("mpp", "um"), [("0,2500", 0.25), ("0.2500", 0.25), (" 0,499 ", 0.499), ("0.25 um", None), ("unknown", None)]
)
def test_aperio_writes_its_scale_with_the_comma_of_the_country(tmp_path, mpp, um):
    about = f"Aperio Image Library v11.2.1 \n700x600 (256x256) JPEG/RGB Q=75|AppMag = 40|MPP = {mpp}|Left = 1"
    options = {"tile": (256, 256), "photometric": "rgb", "metadata": None, "description": about}
    tifffile.imwrite(tmp_path / "s.svs", np.full((600, 700, 3), 240, np.uint8), **options)
    info = open_slide(str(tmp_path / "s.svs"), "tiff").info
    assert info.mpp_x == um
    assert info.mpp_stated == ("" if um else f"MPP = {mpp}")


@pytest.mark.parametrize("reader", ["tiff", "openslide"])
def test_a_colour_profile_is_recorded_by_a_mark(tmp_path, reader):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    options = {"tile": (256, 256), "photometric": "rgb", "metadata": None}
    pixels = np.full((600, 700, 3), 240, np.uint8)
    tifffile.imwrite(tmp_path / "with.tiff", pixels, iccprofile=profile, **options)
    tifffile.imwrite(tmp_path / "without.tiff", pixels, **options)
    mark = open_slide(str(tmp_path / "with.tiff"), reader).info.icc_profile
    assert mark == hashlib.blake2b(profile).hexdigest()[:16]
    assert open_slide(str(tmp_path / "without.tiff"), reader).info.icc_profile is None


def test_readers_that_disagree_are_both_heard(tmp_path):
    """An overview stands first, which is the slide to OpenSlide; then two scales in one file."""
    pixels = np.random.default_rng(0).integers(90, 200, (1200, 1400, 3), dtype=np.uint8)
    common = {"tile": (256, 256), "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(tmp_path / "s.tiff") as tif:
        tif.write(pixels[:300, :500], **common)
        tif.write(pixels, **common)
    notes = open_slide(str(tmp_path / "s.tiff")).info.notes
    assert any("read as 1400 x 1200 px, where OpenSlide reads 500 x 300 px" in note for note in notes)
    path = make_coordinate_slide(tmp_path / "sound.tiff", 700, 500, 0.25)
    assert open_slide(str(path)).info.notes == ()


def test_openslide_shifts_no_pixels_at_the_edge_of_a_level(tmp_path):
    """Of 3.0069, which is no whole downsample: a region that begins one pixel outside."""
    pixels = cv2.resize(np.random.default_rng(0).integers(60, 250, (40, 48, 3), dtype=np.uint8), (1308, 1084))
    reduced = cv2.resize(pixels, (435, 361), interpolation=cv2.INTER_AREA)
    common = {"tile": (256, 256), "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(tmp_path / "s.tiff") as tif:
        tif.write(pixels, **common)
        tif.write(reduced, subfiletype=1, **common)
    reader = open_slide(str(tmp_path / "s.tiff"), "openslide")
    piece = reader.read(1, -1, -1, 200, 150)
    assert (piece[0] == 255).all()
    assert (piece[:, 0] == 255).all()
    assert np.abs(piece[1:, 1:].astype(int) - reduced[:149, :199]).max() <= 1


@pytest.mark.parametrize("reader", ["auto", "openslide"])
def test_openslide_never_gets_an_svs_that_would_end_its_process(tmp_path, reader):
    """A level lacks a tile, and a macro that is stored in more tiles follows."""
    pixels = np.full((1024, 1536, 3), 200, np.uint8)
    about = "Aperio Image Library v11.2.1 \n1536x1024 (256x256)|AppMag = 20|MPP = 0.5"
    common = {"tile": (256, 256), "photometric": "rgb", "metadata": None}
    with tifffile.TiffWriter(tmp_path / "s.svs") as tif:
        tif.write(pixels, description=about, **common)
        empty = {"shape": (256, 256, 3), "dtype": np.uint8, "compression": "jpeg"}
        tif.write(iter([b""]), description=about, **empty, **common)
        tif.write(pixels[:600, :800], description="macro", **common)
    opened = f"open_slide({str(tmp_path / 's.svs')!r}, {reader!r}).info.width0"
    code = f"from wsi_prep.slides.readers.select import open_slide; print({opened})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if reader == "auto":
        assert done.stdout.strip() == "1536", done.stderr
    else:
        assert "a level lacks tiles, and a picture with more tiles follows it" in done.stderr.splitlines()[-1]
