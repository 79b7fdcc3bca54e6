import os
import shutil
from pathlib import Path

import fsspec
import pytest

from tests.support.found_files import dicom, touch
from wsi_prep.errors import BadManifest, BadOption, NoSlides, UnreadableSlide
from wsi_prep.slides.find.fingerprint import fingerprint
from wsi_prep.slides.find.found import require_files
from wsi_prep.slides.find.sources import find_slides, look_for_slides


def names(slides):
    return [s.name for s in slides]


def test_a_folder_is_searched_for_what_is_a_slide(tmp_path):
    touch(
        tmp_path,
        "a.svs",
        "b/c.TIFF",
        "b/d.ome.tif",
        "b/e.ndpi",
        "notes.txt",
        "b/thumb.jpg",
        ".hidden.svs",
        ".git/x.svs",
    )
    touch(tmp_path, "m.mrxs", "m/Slidedat.ini", "m/Data0001.dat", "m/extra.tif")
    assert names(find_slides(str(tmp_path))) == ["a.svs", "c.TIFF", "d.ome.tif", "e.ndpi", "m.mrxs"]


def test_an_mrxs_brings_its_folder_along(tmp_path):
    touch(tmp_path, "m.mrxs", "m/Slidedat.ini", "m/Data0001.dat")
    (slide,) = find_slides(str(tmp_path))
    assert [Path(f).name for f in slide.files] == ["m.mrxs", "Data0001.dat", "Slidedat.ini"]
    before = fingerprint(slide)
    (tmp_path / "m/Data0001.dat").write_bytes(b"changed")
    assert fingerprint(slide) != before


def test_our_own_output_holds_no_slides(tmp_path):
    touch(tmp_path, "a.svs", "out/run.json", "out/catalog/x", "out/stores/s.zarr/b.tif", "loose.zarr/c.tif")
    assert names(find_slides(str(tmp_path))) == ["a.svs"]


def test_a_dicom_file_whose_tags_make_no_sense_is_a_slide_to_be_refused(tmp_path):
    dicom(tmp_path / "good.dcm", "1.2.3")
    dicom(tmp_path / "bad.dcm", "1.2.4", columns=0x11223344)
    data = (tmp_path / "bad.dcm").read_bytes()
    cut = data.index(b"UL\x04\0\x44\x33\x22\x11")
    (tmp_path / "bad.dcm").write_bytes(data[:cut] + b"UL\x01\0\x44" + data[cut + 8 :])
    assert [s.name for s in find_slides(str(tmp_path))] == ["bad.dcm", "good.dcm"]


def test_a_part_of_a_dicom_series_in_a_folder_of_its_own_is_no_slide(tmp_path):
    """As a DICOMDIR medium lays them out; a copy of all of it is a slide too."""
    for folder, columns in {"disc/1": 4000, "disc/2": 2000, "disc/3": 1000, "copy": 4000}.items():
        dicom(tmp_path / folder / "a.dcm", "1.2.3", columns=columns)
    dicom(tmp_path / "disc/4/label.dcm", "1.2.3", kind="LABEL", columns=9000)
    dicom(tmp_path / "other/a.dcm", "1.2.4", columns=1000)
    found = look_for_slides(str(tmp_path))
    assert [source.path for source in found.sources] == [
        str(tmp_path / folder / "a.dcm") for folder in ("copy", "disc/1", "other")
    ]
    assert [folder for folder, _ in found.unseen] == [str(tmp_path / "disc" / part) for part in "234"]
    assert {why.partition(":")[0] for _, why in found.unseen} == {
        "a part of a DICOM series whose scan lies in another folder"
    }


def test_a_dicom_series_is_one_slide(tmp_path):
    dicom(tmp_path / "case/level0.dcm", "1.2.3", columns=4000)
    dicom(tmp_path / "case/level1.dcm", "1.2.3", columns=1000)
    dicom(tmp_path / "case/label.dcm", "1.2.3", kind="LABEL", columns=9000)
    dicom(tmp_path / "mixed/a.dcm", "1.2.4")
    dicom(tmp_path / "mixed/b.dcm", "1.2.5")
    dicom(tmp_path / "mixed/ct.dcm", "1.2.6", sop_class="1.2.840.10008.5.1.4.1.1.2")
    dicom(tmp_path / "bare/1.2.840.77", "1.2.7")
    slides = find_slides(str(tmp_path))
    assert names(slides) == ["1.2.840.77", "case", "a.dcm", "b.dcm"]
    case = slides[1]
    assert case.path.endswith("case/level0.dcm")
    assert len(case.files) == 3


def test_naming_one_file_of_a_series_means_the_series(tmp_path):
    dicom(tmp_path / "case/level0.dcm", "1.2.3", columns=4000)
    dicom(tmp_path / "case/level1.dcm", "1.2.3", columns=1000)
    by_folder, by_file = find_slides(str(tmp_path)), find_slides(str(tmp_path / "case/level1.dcm"))
    assert by_folder == by_file


def test_files_that_claim_to_be_slides_are_listed_even_if_they_are_not(tmp_path):
    touch(tmp_path, "text.svs", "broken.dcm")
    (tmp_path / "empty.svs").write_bytes(b"")
    assert names(find_slides(str(tmp_path))) == ["broken.dcm", "empty.svs", "text.svs"]


def test_globs_single_files_and_urls(tmp_path):
    touch(tmp_path, "a.svs", "b.svs", "x/c.svs", "d.txt")
    assert names(find_slides(str(tmp_path / "*.svs"))) == ["a.svs", "b.svs"]
    assert names(find_slides(str(tmp_path / "**/*.svs"))) == ["a.svs", "b.svs", "c.svs"]
    assert names(find_slides(str(tmp_path / "a.svs"))) == ["a.svs"]
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/cohort/site/a.svs", b"a")
    fs.pipe_file("/cohort/readme.txt", b"a")
    (slide,) = find_slides("memory://cohort")
    assert slide.path == "memory:///cohort/site/a.svs"


def test_a_slide_has_one_id_however_it_is_named(tmp_path, monkeypatch):
    touch(tmp_path, "x/a.svs")
    monkeypatch.chdir(tmp_path)
    ways = [".", "x", "x/a.svs", "x/*.svs", str(tmp_path), "x/../x"]
    assert len({find_slides(way)[0].slide_id for way in ways}) == 1


def test_slides_of_one_name_get_ids_of_their_own(tmp_path):
    touch(tmp_path, "x/a.svs", "y/a.svs")
    first, second = find_slides(str(tmp_path))
    assert first.name == second.name
    assert first.slide_id != second.slide_id


def test_ids_can_outlive_a_move(tmp_path):
    touch(tmp_path, "here/x/a.svs")
    before = find_slides(str(tmp_path / "here"), id_root=str(tmp_path / "here"))
    shutil.move(tmp_path / "here", tmp_path / "there")
    after = find_slides(str(tmp_path / "there"), id_root=str(tmp_path / "there"))
    assert before[0].slide_id == after[0].slide_id
    with pytest.raises(BadOption, match="not inside the id root"):
        find_slides(str(tmp_path / "there"), id_root=str(tmp_path / "elsewhere"))


def test_a_name_that_is_no_text_is_a_slide_all_the_same(tmp_path):
    (tmp_path / os.fsdecode(b"M\xfcller.svs")).write_bytes(b"")
    (tmp_path / os.fsdecode(b"M\xe4ller.svs")).write_bytes(b"")
    found = find_slides(str(tmp_path))
    assert [source.name for source in found] == ["M\ufffdller.svs"] * 2
    assert len({source.slide_id for source in found}) == 2
    assert all(source.slide_id.isascii() and Path(source.path).is_file() for source in found)


def test_a_fingerprint_is_of_the_content(tmp_path):
    data = bytearray(os.urandom(400_000))
    path, copy = tmp_path / "a.svs", tmp_path / "sub/of another name.svs"
    path.write_bytes(data)
    copy.parent.mkdir()
    shutil.copy(path, copy)
    os.utime(copy, (1, 1))
    before = fingerprint(find_slides(str(path))[0])
    assert fingerprint(find_slides(str(copy))[0]) == before
    for change in (0, 399_999, 200_000):
        changed = bytearray(data)
        changed[change] ^= 1
        path.write_bytes(changed)
        assert fingerprint(find_slides(str(path))[0]) != before
    path.write_bytes(data[:-1])
    assert fingerprint(find_slides(str(path))[0]) != before


def test_a_slide_that_vanished_says_so(tmp_path):
    touch(tmp_path, "a.svs")
    (slide,) = find_slides(str(tmp_path))
    (tmp_path / "a.svs").unlink()
    with pytest.raises(UnreadableSlide, match="cannot be opened"):
        fingerprint(slide)


def test_a_list_names_slides(tmp_path):
    touch(tmp_path, "x/a.svs", "b.svs")
    (tmp_path / "list.csv").write_text(f"\ufeffSlide;stain\nx/a.svs;HE\n\n{tmp_path}/b.svs;\n")
    assert names(find_slides(str(tmp_path / "list.csv"))) == ["b.svs", "a.svs"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide\n../b.svs\n", "line 2: ../b.svs leaves the list's own folder"),
        ("slide\na.svs\nx/../a.svs\n", "twice, in lines 2 and 3"),
        ("slide\na.svs\nnone.svs\n", "names 1 slide that does not exist .line 3: none.svs"),
        ("file\na.svs\n", "no column 'slide'; its columns are file"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(tmp_path, text, message):
    touch(tmp_path, "cohort/a.svs", "b.svs")
    (tmp_path / "cohort/list.csv").write_text(text)
    with pytest.raises(BadManifest, match=message):
        find_slides(str(tmp_path / "cohort/list.csv"))


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("nothing", "does not exist"),
        ("empty", "holds no slide among 2 files; known endings are .svs"),
        ("empty/*.svs", "matches 0 files"),
        ("nothing.csv", "does not exist"),
        ("nosuch://x", "cannot be reached"),
    ],
)
def test_nothing_to_do_is_one_clear_line(tmp_path, where, message):
    touch(tmp_path, "empty/a.txt", "empty/b/c.jpg")
    with pytest.raises(NoSlides, match=message) as error:
        find_slides(where if "://" in where else str(tmp_path / where))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["list.txt", "LIST.TSV", "cohort.xlsx", "list.csv.gz"])
def test_a_list_of_another_kind_is_no_slide(tmp_path, name):
    touch(tmp_path, name, "a.svs")
    with pytest.raises(
        NoSlides, match=rf"{name} is no slide; if it lists slides, save it as .csv with a column 'slide'"
    ):
        find_slides(str(tmp_path / name))


@pytest.mark.parametrize("name", ["pipe.svs", "pipe.csv.svs", "x/pipe.mrxs"])
def test_a_pipe_is_refused_at_once(tmp_path, name):
    """Whoever opened it would wait for ever."""
    touch(tmp_path, "x/a.svs", "x/pipe/Slidedat.ini")
    os.mkfifo(tmp_path / name)
    with pytest.raises(NoSlides, match=rf"{name} is no file but a pipe"):
        find_slides(str(tmp_path / name))
    assert name.rpartition("/")[2] in names(find_slides(str(tmp_path)))  # among others it fails alone
    for slide in find_slides(str(tmp_path)):
        if slide.name in name:
            for look in (fingerprint, require_files):
                with pytest.raises(UnreadableSlide, match=r"^it is no file but a pipe$"):
                    look(slide)


def test_a_device_is_no_slide_either(tmp_path):
    (tmp_path / "a.svs").symlink_to("/dev/zero")
    with pytest.raises(NoSlides, match="is no file but a device"):
        find_slides(str(tmp_path / "a.svs"))


def test_colons_in_a_name_are_no_chain_of_urls(tmp_path, monkeypatch):
    touch(tmp_path, "S12::A1.svs", "a::b/zip::c.svs", "memory::d.svs")
    (tmp_path / "list.csv").write_text("slide\nS12::A1.svs\n")
    found = find_slides(str(tmp_path))
    assert names(found) == ["S12::A1.svs", "zip::c.svs", "memory::d.svs"]
    assert len({fingerprint(slide) for slide in found}) == 3
    monkeypatch.chdir(tmp_path)
    alone = ["S12::A1.svs", str(tmp_path / "S12::A1.svs"), f"file://{tmp_path}/S12::A1.svs", "list.csv", "*A1.svs"]
    assert [find_slides(way) for way in alone] == [[found[0]]] * len(alone)


def test_real_slides_are_all_found(real_slides):
    assert len(find_slides(str(real_slides))) == 13
