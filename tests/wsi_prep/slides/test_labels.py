"""Labels and photographs of the glass are in no output, wherever a file has them; and the slide is still made."""

import contextlib

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from sample_slides.layout import make_layout
from sample_slides.scene import make_scene
from sample_slides.texture import he_stain
from tests.support.labels_beside import APERIO, MPP, Placement, odd_name, picture, placement, write
from tests.support.prepared import prepare
from wsi_prep.errors import UnreadableSlide
from wsi_prep.slides.readers.select import open_slide
from wsi_prep.slides.readers.tiff.aside import is_aside, name_in

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slide():
    """(850, 900, 3) pixels of H&E at 1 um/px."""
    layout = make_layout(900, 850, MPP, seed=1, marks=False)
    return make_scene(layout, he_stain(MPP, seed=2), seed=3).paint(0, 0, 900, 850)


def require_the_slide_alone(made, slide):
    assert made.row["status"] == "ok", made.row["error"]
    width, height = made.row["width"], made.row["height"]
    assert (width, height) in ((900, 850), (1024, 1024))  # MIRAX has whole tiles alone
    shown = np.pad(slide, ((0, height - 850), (0, width - 900), (0, 0)), mode="edge")
    assert made.row["mpp_x"] == MPP
    assert len(made.tiles) == made.row["tiles_5x"] + made.row["tiles_10x"] >= 1
    assert made.worst_colour(shown) < 3
    assert made.worst_match(shown) > 0.97
    picture = cv2.imread(str(made.out / "overlays" / f"{made.row['slide_id']}.jpg"))[28:, :, ::-1]
    scale = 720 / max(width, height)
    panel = picture[: round(height * scale), : round(width * scale)]
    size = (panel.shape[1] // 20, panel.shape[0] // 20)
    apart = [cv2.resize(p, size, interpolation=cv2.INTER_AREA).astype(float) for p in (panel, shown)]
    off = np.abs(apart[0] - apart[1]).max(axis=2)
    assert off.mean() < 8  # the outline is drawn on it
    assert np.percentile(off, 95) < 60


@pytest.mark.parametrize("seed", range(40))
def test_a_label_is_in_no_output_wherever_it_is_put(tmp_path, slide, seed):
    rng = np.random.default_rng(1000 + seed)
    what = placement(rng)
    require_the_slide_alone(prepare(write(tmp_path / "in", slide, what, rng), tmp_path / "out"), slide)


def test_a_picture_that_stands_alone_is_no_slide_beside_a_pyramid_that_cannot_be_read(tmp_path, slide):
    """The slide has four channels; the label, which OpenSlide takes, has three."""
    label = np.random.default_rng(0).integers(0, 256, (600, 700, 3), np.uint8)
    kind = {"photometric": "rgb", "tile": (256, 256), "metadata": None}
    scale = {"resolution": (10_000, 10_000), "resolutionunit": "CENTIMETER"}
    (tmp_path / "in").mkdir()
    with tifffile.TiffWriter(tmp_path / "in/s.tiff") as tif:
        tif.write(label, **kind)
        for factor in (1, 4):
            level = cv2.cvtColor(np.ascontiguousarray(slide[::factor, ::factor]), cv2.COLOR_RGB2RGBA)
            tif.write(level, extrasamples=["unassalpha"], **scale, **kind)
    made = prepare(tmp_path / "in/s.tiff", tmp_path / "out")
    assert (made.row["status"], made.tiles, (made.out / "overlays").exists()) == ("failed", [], False)
    assert "its slide, of 900 x 850 px, is not read" in made.row["error"]


def test_a_blank_thumbnail_of_another_picture_is_not_drawn(tmp_path, slide):
    """Thin letters on white are no tissue, so nothing but the look of it all tells that the level is a label."""
    label = np.full((212, 225, 3), 250, np.uint8)
    cv2.putText(label, "DOE JANE 1961", (10, 60), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (60, 60, 60), 1)
    common = {"photometric": "rgb", "tile": (256, 256), "metadata": None, "compression": "zlib"}
    glass = np.full((850, 900, 3), 246, np.uint8)
    (tmp_path / "in").mkdir()
    with tifffile.TiffWriter(tmp_path / "in/s.tiff") as tif:
        tif.write(glass, resolution=(10_000, 10_000), resolutionunit="CENTIMETER", **common)
        tif.write(label, subfiletype=1, **common)
    made = prepare(tmp_path / "in/s.tiff", tmp_path / "out")
    assert "the level of 225 x 212 px shows something else than level 0" in made.row["warning"]
    assert cv2.imread(str(made.out / "overlays" / f"{made.row['slide_id']}.jpg"))[28:][:600, :600].min() > 200


def test_of_two_pictures_that_nothing_tells_apart_none_is_taken(tmp_path, slide):
    """A photograph of the slide's proportions that is larger: levels of the slide that are all wrong look the same."""
    what = Placement("generic", "last", "larger like", "", "macro")
    path = write(tmp_path / "in", slide, what, np.random.default_rng(3))
    with pytest.raises(UnreadableSlide, match="is not what smaller ones of its proportions show"):
        open_slide(str(path))


@pytest.mark.parametrize("levels", [(), (4, 8)])
def test_a_label_with_levels_of_its_own_is_no_slide_beside_a_picture_in_colour(tmp_path, slide, levels):
    label = picture(np.random.default_rng(5), "label", 1350, 1275)
    (tmp_path / "in").mkdir()
    with tifffile.TiffWriter(tmp_path / "in/s.ome.tif", ome=True) as tif:
        for pixels in (label, slide):
            common = {"photometric": "rgb", "tile": (256, 256), "compression": "zlib"}
            meta = {"axes": "YXS", "PhysicalSizeX": MPP, "PhysicalSizeY": MPP}
            tif.write(pixels, subifds=len(levels), metadata=meta, **common)
            for factor in levels:
                tif.write(np.ascontiguousarray(pixels[::factor, ::factor]), subfiletype=1, **common)
    require_the_slide_alone(prepare(tmp_path / "in/s.ome.tif", tmp_path / "out"), slide)


@pytest.mark.parametrize("reader", ["auto", "tiff", "openslide"])
def test_a_file_with_nothing_but_a_label_fails_with_every_reader(tmp_path, reader):
    pixels = np.random.default_rng(0).integers(0, 255, (400, 500, 3), dtype=np.uint8)
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", description="slide label", metadata=None)
    with pytest.raises(UnreadableSlide, match="named a label or macro image, which is never read"):
        open_slide(str(path), reader)


def test_openslide_by_name_does_not_take_another_picture_than_the_slide(tmp_path, slide):
    what = Placement("generic", "first", "larger", "", "label")
    path = write(tmp_path / "in", slide, what, np.random.default_rng(4))
    with pytest.raises(UnreadableSlide, match=r"OpenSlide takes one of .* px for the slide"):
        open_slide(str(path), "openslide")


@given(seed=st.integers(0, 2**32 - 1))
def test_a_word_for_labels_is_found_in_any_name(seed):
    rng = np.random.default_rng(seed)
    name = odd_name(rng)
    mixed = "".join(c.upper() if rng.random() < 0.5 else c.lower() for c in name)
    assert is_aside(name)
    assert is_aside(mixed)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "Label-free H&E",
            "unlabeled",
            "label free",
            "LabelFree 2",
            "immunolabeled CD3",
            "labelling",
            "without label",
        ),
        *("macrophages CD68", "Macrovesicular steatosis", "slide", "Image:0", "20x_01", "", "scan", "S19-0044721 A1"),
    ],
)
def test_a_word_within_a_word_is_no_label(name):
    assert not is_aside(name)


@pytest.mark.parametrize(
    ("description", "aside"),
    [
        ("Aperio Image Library v11.2.1 \r\nlabel 387x463", True),
        ("Aperio Image Library v11.2.1 \n9x9 (256x256) JPEG/RGB Q=75|AppMag = 40|Title = label study", False),
        ('{"Name": "Slide Label"}', True),
        ('{"shape": [400, 500, 3]}', False),
        ("ImageType=MacroImage;n=3", True),
        ("Label: S19-1", True),
        ("label-free imaging, stain H&E", False),
        ("H&E slide, label removed", False),
        ("Exported without macro image", False),
        ("Label and macro removed, H&E", False),
        ("scanned anew, as there was ink on the label", False),
        ("/archive/overview/S12-345.tif", False),
        ("C:\\label\\label.png", True),
        ("S12 label", True),
        ("Kidney overview", True),
        ("2 qr code17", True),
        ("scanner\nmacro image", True),
        (f"{APERIO.format(9, 9)}|Slide Name = Macro 12|User Name = Label Lab", False),
        ("Leica v2|Slide Name = Macro 12", False),
        ("Leica v2|Associated image name = label", True),
        ("Leica v2\nmacro 1280x431|AppMag = 40", True),
        ('{"image": {"name": "label"}}', True),
        ('<Image ID="1" Name="Macro"/>', True),
        ('<Experimenter UserName="Label Lab"/>', False),
    ],
)
def test_a_description_names_its_picture(description, aside):
    assert is_aside(name_in(description)) == aside


def test_a_black_and_white_slide_that_its_file_names_is_not_given_up_for_a_coloured_level(tmp_path, slide):
    """As of another slide by mistake: the file says which picture is the slide, and that level is not used."""
    grey = np.where(slide.min(axis=2, keepdims=True) < 140, 40, 240).astype(np.uint8).repeat(3, axis=2)
    other = np.ascontiguousarray(slide[::-2, ::-2])
    kind = {"photometric": "rgb", "tile": (256, 256), "metadata": None}
    with tifffile.TiffWriter(tmp_path / "s.svs") as tif:
        tif.write(grey, description="Aperio Image Library v1\n900x850 [0,0 900x850] (256x256)|MPP = 1.0", **kind)
        tif.write(other, description="Aperio Image Library v1\n900x850 -> 450x425", subfiletype=1, **kind)
    opened = open_slide(str(tmp_path / "s.svs"))
    assert (opened.info.width0, opened.info.height0) == (900, 850)
    opened.close()


TILED = {"photometric": "rgb", "tile": (256, 256), "metadata": None}
SCALED = {**TILED, "resolution": (10_000, 10_000), "resolutionunit": "CENTIMETER"}
"""As a loop writes it: the scale of level 0 stands with all levels."""


def levels_of(pixels, factors=(2, 4)):
    return [cv2.resize(pixels, None, fx=1 / f, fy=1 / f, interpolation=cv2.INTER_AREA) for f in factors]


@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize("where", ["first", "every"])
@pytest.mark.parametrize(
    "text",
    ["H&E slide, label removed", "/archive/overview/S12.tif", f"{APERIO.format(900, 850)}|Slide Name = Macro 12"],
)
def test_a_word_in_a_slides_description_does_not_make_its_level_the_slide(tmp_path, slide, text, where, below):
    with tifffile.TiffWriter(path := tmp_path / "s.tif") as tif:
        tif.write(slide, subifds=2 if below else 0, description=text, **SCALED)
        for level in levels_of(slide):
            tif.write(level, subfiletype=1, description=text if where == "every" else None, **SCALED)
    require_level_0(path)


@pytest.mark.parametrize("name", ["Macro 12", "Overview", "Kidney overview"])
def test_a_name_is_not_believed_where_all_else_is_that_picture_reduced(tmp_path, slide, name):
    with tifffile.TiffWriter(path := tmp_path / "s.tif") as tif:
        tif.write(slide, description=name, **SCALED)
        for level in levels_of(slide):
            tif.write(level, subfiletype=1, **SCALED)
        tif.write(picture(np.random.default_rng(1), "label", 100, 90), **TILED)
    require_level_0(path)


def require_level_0(path):
    with contextlib.closing(open_slide(str(path))) as opened:
        assert [(level.width, level.height) for level in opened.info.levels] == [(900, 850), (450, 425), (225, 212)]
        assert (opened.info.mpp_x, opened.info.mpp_y) == (MPP, MPP)
        assert not any("more picture" in note for note in opened.info.notes)


def test_a_name_is_believed_beside_a_pyramid_of_another_picture(tmp_path, slide):
    """The macro is the larger one, and has a copy without a name."""
    macro = picture(np.random.default_rng(2), "macro", 1400, 1000)
    with tifffile.TiffWriter(path := tmp_path / "s.tif") as tif:
        tif.write(macro, description="macro", **TILED)
        tif.write(levels_of(macro)[0], **TILED)
        for pixels in (slide, *levels_of(slide)):
            tif.write(pixels, **SCALED)
    require_level_0(path)


def test_where_nothing_tells_whether_the_name_is_right_no_picture_is_read(tmp_path, slide):
    macro = picture(np.random.default_rng(2), "macro", 1400, 1000)
    with tifffile.TiffWriter(path := tmp_path / "s.tif") as tif:
        tif.write(macro, description="macro", **SCALED)
        tif.write(levels_of(macro)[0], **SCALED)
        tif.write(slide, **SCALED)
    with pytest.raises(UnreadableSlide, match=r"named a label or macro image, but others show it.*tiffset"):
        open_slide(str(path))


def test_a_named_picture_is_not_the_slide_where_the_slide_cannot_be_read(tmp_path, slide):
    """It is 16-bit, which OpenSlide reads; nothing shows it reduced, but the macro has a copy."""
    macro = picture(np.random.default_rng(2), "macro", 700, 500)
    with tifffile.TiffWriter(path := tmp_path / "s.tif") as tif:
        tif.write(macro, description="macro", **SCALED)
        tif.write(levels_of(macro)[0], **SCALED)
        tif.write(slide.astype(np.uint16) * 257, **SCALED)
    with pytest.raises(UnreadableSlide, match="its slide, of 900 x 850 px, is not read"):
        open_slide(str(path))
