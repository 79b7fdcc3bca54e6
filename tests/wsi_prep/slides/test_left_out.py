"""Pictures that lie where slides are and are not read: what is said of them, in one line."""

import pytest

from tests.support.found_files import dicom, touch
from wsi_prep.errors import NoSlides, UnreadableSlide
from wsi_prep.slides.find.endings import PICTURE_ENDINGS, SLIDE_ENDINGS, is_left_out, left_out_note
from wsi_prep.slides.find.manifest import read_manifest
from wsi_prep.slides.find.sources import find_slides, look_for_slides
from wsi_prep.slides.readers.select import open_slide


def left_out(slides):
    """Names of what is left out, below the folder."""
    return sorted(path.rsplit("/", 1)[1] for path in look_for_slides(str(slides)).left_out)


def test_pictures_are_left_out_and_companions_are_none(tmp_path):
    touch(
        tmp_path, "a.svs", "b.qptiff", "x/c.QPTIFF", "x/d.jpg", "e.vsi", "_e_/stack1/frame_t.ets", "f.svs.gz", "g.zip"
    )
    touch(tmp_path, "readme.txt", "meta.xml", "m.csv", "m.json", "m.csv.gz", ".hidden.jpg", ".git/a.png", "noending")
    touch(tmp_path, "m.mrxs", "m/Slidedat.ini", "m/Data0000.dat", "m/preview.png")
    touch(tmp_path, "out/run.json", "out/catalog/x", "out/overlays/a.jpg", "n.ome.zarr/c.png")
    (tmp_path / "v.vms").write_bytes(b"[Virtual Microscope Specimen]\nImageFile=v.jpg\nMapFile=v_map.jpg\n")
    (tmp_path / "gone.vms").symlink_to(tmp_path / "nowhere")
    touch(tmp_path, "v.jpg", "v_map.jpg", "v_other.jpg")
    assert left_out(tmp_path) == [
        *("b.qptiff", "c.QPTIFF", "d.jpg", "e.vsi", "f.svs.gz", "g.zip", "n.ome.zarr", "v_other.jpg")
    ]
    assert [s.name for s in find_slides(str(tmp_path))] == ["a.svs", "gone.vms", "m.mrxs", "v.vms"]


def test_masks_beside_their_slides_are_no_pictures_that_were_left_out(tmp_path):
    touch(tmp_path, "a.svs", "a.mask.png", "b.ome.tif", "b.mask.png", "c.mask.png", "x/a.mask.png", "a.masks.png")
    for slides in (tmp_path, tmp_path / "**" / "*"):
        assert left_out(slides) == ["a.mask.png", "a.masks.png", "c.mask.png"]
    assert str(tmp_path / "x/a.mask.png") in look_for_slides(str(tmp_path)).left_out


def test_a_name_that_ends_in_a_blank_is_said_to(tmp_path):
    touch(tmp_path, "a.svs", "x.tif ", "y.JPG\u00a0", "notes.txt ", ".z.svs ")
    (tmp_path / "m.csv").write_text("slide\nx.tif\n")
    found = look_for_slides(str(tmp_path))
    assert [source.name for source in found.sources] == ["a.svs"]
    (line,) = left_out_note(found.left_out)
    assert line.startswith(
        "2 files were skipped: 1 .tif with a blank behind it (rename it), 1 .jpg with a blank behind it (rename it); "
    )
    (said,) = read_manifest(str(tmp_path / "m.csv")).match(found.sources, found.left_out).hints
    assert said == " (it is there, but its name ends in a blank: rename it)"


def test_no_ending_is_both_a_slides_and_left_out():
    assert not PICTURE_ENDINGS & set(SLIDE_ENDINGS)
    assert not any(map(is_left_out, ("a.svs", "a.dat", "a.ini", "a.txt", "a.xml", "a.csv", "a.json", "a", ".a.jpg")))


def test_dicom_of_other_kinds_is_counted_too(tmp_path):
    dicom(tmp_path / "slide.dcm", "1.2.3")
    dicom(tmp_path / "ct.dcm", "1.2.6", sop_class="1.2.840.10008.5.1.4.1.1.2")
    dicom(tmp_path / "DICOMDIR", "1.2.7", sop_class="1.2.840.10008.1.3.10")
    assert left_out(tmp_path) == ["ct.dcm"]
    assert left_out_note(look_for_slides(str(tmp_path)).left_out)[0].startswith(
        "1 file was skipped: 1 DICOM that is no slide; "
    )


def test_a_dicom_file_of_another_kind_that_is_named_is_refused_by_its_reader(tmp_path):
    dicom(tmp_path / "ct.dcm", "1.2.6", sop_class="1.2.840.10008.5.1.4.1.1.2")
    (tmp_path / "list.csv").write_text("slide\nct.dcm\n")
    for slides in ("ct.dcm", "list.csv"):
        (slide,) = find_slides(str(tmp_path / slides))
        with pytest.raises(UnreadableSlide, match="no reader takes this file"):
            open_slide(slide.path)


def test_thousands_are_one_line():
    paths = [f"/a/{n}.jpg" for n in range(1200)] + ["/a/x.QPTIFF", "/b/y.qptiff"]
    paths += [f"/a/x{end}" for end in (".lif", ".nd2", ".png", ".bmp", ".gif", ".jp2")]
    (line,) = left_out_note(paths)
    assert line.startswith("1,208 files were skipped: 1,200 .jpg, 2 .qptiff, 1 .lif, 1 .nd2, 1 .png, 1 .bmp, ")
    assert ", 2 of 2 other kinds; the formats that are read are .svs .tif " in line
    assert left_out_note([]) == []


@pytest.mark.parametrize("where", ["", "/*", "/*.qptiff"])
def test_where_only_such_are_found_the_call_ends_and_says_what_they_are(tmp_path, where):
    touch(tmp_path, "a.qptiff", "b.qptiff")
    with pytest.raises(NoSlides, match=r"; 2 files were skipped: 2 \.qptiff: convert what is a slide") as raised:
        find_slides(f"{tmp_path}{where}")
    assert "\n" not in str(raised.value)


def test_a_glob_tells_of_the_pictures_that_it_fits(tmp_path):
    touch(tmp_path, "a.svs", "b.qptiff", "c.jpg", "d.txt")
    assert left_out(tmp_path / "*") == ["b.qptiff", "c.jpg"]
    assert left_out(tmp_path / "*.svs") == []
