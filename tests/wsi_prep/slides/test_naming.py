"""Names that are written in another Unicode form, another case or without their ending than the file has."""

import shutil
import unicodedata
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.shards import main
from wsi_prep.errors import BadManifest
from wsi_prep.slides.find.found import SlideSource
from wsi_prep.slides.find.manifest import read_manifest
from wsi_prep.slides.find.naming import KnownNames, as_stored, told_apart
from wsi_prep.slides.find.sources import find_slides, look_for_slides
from wsi_prep.tissue.masks import find_masks

FORMS = ("NFC", "NFD")
NAME = "Müller é 각.svs"  # letters that NFD takes apart in two and in three


def in_form(form, text=NAME):
    return unicodedata.normalize(form, text)


def source(path, slide_id="id"):
    return SlideSource(slide_id, path, Path(path).name, (path,))


def manifest(path, *cells):
    path.write_text("slide,tissue\n" + "".join(f"{cell},lung\n" for cell in cells), encoding="utf-8")
    return read_manifest(str(path))


@pytest.mark.parametrize("disk", FORMS)
@pytest.mark.parametrize("written", FORMS)
def test_a_name_is_the_same_in_both_unicode_forms(tmp_path, disk, written):
    folder = tmp_path / in_form(disk, "Größe")
    folder.mkdir()
    (folder / in_form(disk)).write_bytes(b"of this file")
    for cell in (in_form(written), f"{in_form(written, 'Größe')}/{in_form(written)}"):
        (slide,) = find_slides(str(tmp_path))
        assert manifest(tmp_path / "m.csv", cell).match([slide]).rows[slide.slide_id].tissue == "lung"
    (tmp_path / "list.csv").write_text(f"slide\n{in_form(written, 'Größe')}/{in_form(written)}\n", encoding="utf-8")
    (listed,) = find_slides(str(tmp_path / "list.csv"))
    assert listed == slide
    assert Path(listed.path).read_bytes() == b"of this file"
    masks = tmp_path / "masks"
    masks.mkdir()
    for stem in (in_form(written), in_form(written).removesuffix(".svs")):
        mask = masks / f"{stem}.png"
        mask.write_bytes(b"")
        found, notes = find_masks(str(masks), None, [slide])
        assert found[slide.slide_id].path == str(mask)
        assert len(notes) == 1
        mask.unlink()


def test_two_files_that_differ_in_their_form_alone_go_by_the_one_that_is_written(tmp_path):
    for form in FORMS:
        (tmp_path / in_form(form)).write_bytes(form.encode())
    slides = {Path(s.path).read_bytes().decode(): s for s in find_slides(str(tmp_path))}
    assert len(slides) == 2
    for form in FORMS:
        (tmp_path / "list.csv").write_text(f"slide\n{in_form(form)}\n", encoding="utf-8")
        assert find_slides(str(tmp_path / "list.csv")) == [slides[form]]
        rows = manifest(tmp_path / "m.csv", in_form(form)).match(list(slides.values())).rows
        assert list(rows) == [slides[form].slide_id]


def test_one_slide_in_both_forms_is_named_twice(tmp_path):
    (tmp_path / in_form("NFD")).write_bytes(b"")
    text = f"{in_form('NFC')}\n{in_form('NFD')}\n"
    (tmp_path / "list.csv").write_text(f"slide\n{text}", encoding="utf-8")
    with pytest.raises(BadManifest, match="twice, in lines 2 and 3"):
        find_slides(str(tmp_path / "list.csv"))
    with pytest.raises(BadManifest, match="twice, in lines 2 and 3"):
        manifest(tmp_path / "m.csv", *text.splitlines()).match(find_slides(str(tmp_path)))


PRINTING = st.characters(
    codec="utf-8", exclude_categories=("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"), exclude_characters='/\\,;"'
)
FORM = st.sampled_from([*FORMS, "as it is"])


@given(st.text(PRINTING, min_size=1, max_size=12), st.text(PRINTING, min_size=1, max_size=12), FORM, FORM)
def test_names_that_are_equal_in_nfc_fit_and_no_others(tmp_path_factory, one, other, form, again):
    file = tmp_path_factory.getbasetemp() / "m.csv"

    def fits(disk, written):
        return bool(manifest(file, written).match([source(f"/slides/{disk}")]).rows)

    disk = f"a{one}.svs" if form not in FORMS else in_form(form, f"a{one}.svs")
    for name in (one, other):
        written = f"a{name}.svs" if again not in FORMS else in_form(again, f"a{name}.svs")
        assert fits(disk, written) == (in_form("NFC", f"a{one}.svs") == in_form("NFC", f"a{name}.svs"))


@given(
    st.lists(st.text(PRINTING, min_size=1, max_size=4).filter(lambda t: t not in (".", "..")), min_size=1, max_size=3)
)
def test_a_path_is_found_by_the_names_that_its_folders_have(tmp_path_factory, parts):
    root = tmp_path_factory.mktemp("p")
    path = root.joinpath(*parts[:-1], f"{parts[-1]}.svs")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    for form in FORMS:
        assert as_stored(in_form(form, str(path))) == str(path)
    assert as_stored(f"{path}x") is None


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("slide1", "slide1.svs"),
        ("SLIDE1.svs", "slide1.svs"),
        ("slide1.SVS", "slide1.svs"),
        ("slide1.ndpi", "slide1.svs"),
        ("Case 2", "case 2.ome.tif"),
        ("case 2.ome", "case 2.ome.tif"),
        ("CASE 2.tif", "case 2.ome.tif"),
        ("straße.svs", "STRASSE.svs"),
        ("slide", None),
        ("slide10.svs", None),
        ("", None),
    ],
)
def test_the_file_that_a_name_means(written, meant):
    assert KnownNames(["slide1.svs", "case 2.ome.tif", "STRASSE.svs"]).meant(written) == meant


def test_what_is_meant_is_asked_and_not_taken(tmp_path):
    for name in ("slide1.svs", "Größe 2.ome.tif", "x.qptiff"):
        (tmp_path / "slides" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "slides" / name).write_bytes(b"")
    (tmp_path / "masks").mkdir()
    for name in ("SLIDE1.png", "größe 2.geojson", "none.png"):
        (tmp_path / "masks" / name).write_bytes(b"")
    found = look_for_slides(str(tmp_path / "slides"))
    matched = manifest(tmp_path / "m.csv", "slide1", "größe 2.ome.tif", "x.qptiff", "gone.svs").match(
        found.sources, found.left_out
    )
    assert matched.rows == {}
    not_read = "(it is there, but .qptiff is not read: convert it to a tiled TIFF)"
    assert matched.notes(private=False) == [
        "the manifest names 4 slides that were not found: slide1 (did you mean slide1.svs?), "
        f"größe 2.ome.tif (did you mean Größe 2.ome.tif?), x.qptiff {not_read}, gone.svs",
        "2 slides have no row in the manifest: Größe 2.ome.tif, slide1.svs",
    ]
    but = "(a slide's name but for case or ending)"
    assert matched.notes(private=True) == [
        f"the manifest names 4 slides that were not found: line 2 {but}, line 3 {but}, line 4 {not_read}, line 5",
        "2 slides have no row in the manifest: " + ", ".join(sorted(source.slide_id for source in found.sources)),
    ]
    masks, notes = find_masks(str(tmp_path / "masks"), None, found.sources)
    assert masks == {}
    assert notes[1] == (
        "MASKS holds 3 files named after no slide: SLIDE1.png (did you mean slide1.svs?), "
        "größe 2.geojson (did you mean Größe 2.ome.tif?), none.png"
    )
    (tmp_path / "slides/list.csv").write_text("slide\nslide1\nnone.svs\n")
    with pytest.raises(BadManifest) as refused:
        find_slides(str(tmp_path / "slides/list.csv"))
    assert "(line 2: slide1 (did you mean slide1.svs?); line 3: none.svs)" in str(refused.value)


@pytest.mark.usefixtures("shared_dask")
def test_a_run_takes_what_a_manifest_in_another_form_says_and_tells_what_it_left_out(nompp_slide, tmp_path, capsys):
    (tmp_path / "slides/thumbs").mkdir(parents=True)
    shutil.copy(nompp_slide, tmp_path / "slides" / in_form("NFD", "Müller.tiff"))
    for name in ("b.qptiff", *(f"thumbs/{n}.jpg" for n in range(30))):
        (tmp_path / "slides" / name).write_bytes(b"")
    (tmp_path / "m.csv").write_text(f"slide,mpp\n{in_form('NFC', 'Müller.tiff')},0.5\n", encoding="utf-8")
    call = ["--slides", str(tmp_path / "slides"), "--out", str(tmp_path / "out"), "--workers", "1", "--mags", "5x"]
    assert main([*call, "--manifest", str(tmp_path / "m.csv")]) == 0
    (row,) = pq.read_table(tmp_path / "out/catalog/slides").to_pylist()
    assert (row["status"], row["mpp_source"]) == ("ok", "manifest")
    (note,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    assert note.startswith("note: 31 files were skipped: 30 .jpg, 1 .qptiff; the formats that are read are .svs ")


def told(*paths):
    return told_apart((path, path.rpartition("/")[2], path) for path in paths)


def test_only_slides_of_one_name_are_told_apart_by_as_much_of_the_folder_as_that_takes():
    assert told("a/1.svs", "b/1.svs", "b/2.svs") == {"a/1.svs": "a", "b/1.svs": "b"}
    assert told("2024/a/1.svs", "2025/a/1.svs", "2025/b/1.svs") == {
        "2024/a/1.svs": "2024/a",
        "2025/a/1.svs": "2025/a",
        "2025/b/1.svs": "2025/b",
    }
    assert told("1.svs", "a/1.svs") == {"a/1.svs": "a"}
    assert told("/x/a/1.svs", "/y/a/1.svs") == {"/x/a/1.svs": "x/a", "/y/a/1.svs": "y/a"}


def test_a_series_that_is_called_by_its_folder_is_told_apart_by_what_holds_that():
    series = [("1", "series", "a/series/1.dcm"), ("2", "series", "b/series/1.dcm")]
    assert told_apart(series) == {"1": "a", "2": "b"}


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=3), unique_by=tuple, min_size=2, max_size=8))
def test_what_is_told_and_the_name_are_together_one_slides_alone(folders):
    paths = ["/".join([*folder, "slide.svs"]) for folder in folders]
    told_of = told(*paths)
    assert len({told_of.get(path, "") for path in paths}) == len(paths)
    for path in paths:
        assert f"/{path}".endswith(f"/{told_of[path]}/slide.svs" if path in told_of else "/slide.svs")
