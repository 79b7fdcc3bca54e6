"""Folders that are links, or that may not be looked into: no slide is left out unsaid, and none is there twice."""

import codecs
import contextlib
import os
import re
import tempfile
from pathlib import Path

import pytest

from pipelines.shards import main
from tests.support.found_files import touch
from wsi_prep.errors import NoSlides
from wsi_prep.slides.find.folders import unseen_note
from wsi_prep.slides.find.sources import find_slides, look_for_slides


def below(folder, found):
    """The paths of slides below a folder, as a user sees them."""
    return [os.path.relpath(source.path, folder) for source in found.sources]


def link(at, to):
    at.parent.mkdir(parents=True, exist_ok=True)
    at.symlink_to(to)


@pytest.fixture
def everybodys():
    """A folder that anybody may look into."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@contextlib.contextmanager
def without_rights():
    """As somebody to whom the rights of folders apply."""
    root = os.geteuid() == 0
    codecs.lookup("utf-8-sig")  # Python's own files may be root's, and are read when they are asked for
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize("slides", ["s", "s/**/*.svs"])
def test_a_link_to_a_folder_is_followed(tmp_path, slides):
    touch(tmp_path, "s/a.svs", "other/c.svs", "other/deep/d.svs", "third/e.svs")
    link(tmp_path / "s/2025", tmp_path / "other")
    link(tmp_path / "other/more", "../third")
    found = look_for_slides(str(tmp_path / slides))
    assert below(tmp_path / "s", found) == ["2025/c.svs", "2025/deep/d.svs", "2025/more/e.svs", "a.svs"]
    assert found.unseen == ()


@pytest.mark.parametrize("slides", ["s", "s/**/*.svs", "s/*/*.svs"])
def test_a_folder_of_links_alone_holds_slides(tmp_path, slides):
    touch(tmp_path, "disk/b.svs")
    link(tmp_path / "s/batch", tmp_path / "disk")
    assert below(tmp_path / "s", look_for_slides(str(tmp_path / slides))) == ["batch/b.svs"]


def test_a_further_link_changes_no_id_and_adds_no_slide(tmp_path):
    """`aaa` comes before `b`, but a slide that lies below SLIDES keeps its own path."""
    touch(tmp_path, "s/b/x.svs", "s/b/in/y.svs", "other/z.svs")
    before = find_slides(str(tmp_path / "s"))
    for name in ("s/aaa", "s/latest", "s/b/again"):
        link(tmp_path / name, tmp_path / "s/b")
    link(tmp_path / "s/aab", tmp_path / "s/b/in")
    link(tmp_path / "s/c1", tmp_path / "other")
    link(tmp_path / "s/c2", tmp_path / "s/c1")
    found = look_for_slides(str(tmp_path / "s"))
    assert below(tmp_path / "s", found) == ["b/in/y.svs", "b/x.svs", "c1/z.svs"]
    assert list(found.sources)[:2] == before
    assert found.unseen == ()
    assert below(tmp_path / "s", look_for_slides(str(tmp_path / "s/*/*.svs"))) == [
        *("aab/y.svs", "b/x.svs", "c1/z.svs")
    ]


def test_a_folder_around_one_that_is_linked_adds_the_rest(tmp_path):
    touch(tmp_path, "disk/deep/x.svs", "disk/y.svs")
    link(tmp_path / "s/1", tmp_path / "disk/deep")
    link(tmp_path / "s/2", tmp_path / "disk")
    link(tmp_path / "s/3", tmp_path / "disk/deep")
    assert below(tmp_path / "s", look_for_slides(str(tmp_path / "s"))) == ["1/x.svs", "2/y.svs"]


def test_loops_end_and_a_link_upwards_is_named(tmp_path):
    touch(tmp_path, "s/a.svs", "s/b/c.svs", "beside/d.svs", "disk/e.svs")
    link(tmp_path / "s/b/self", ".")
    link(tmp_path / "s/b/top", "..")
    link(tmp_path / "s/itself", "itself")
    link(tmp_path / "s/disk", tmp_path / "disk")
    link(tmp_path / "disk/back", tmp_path / "s")
    link(tmp_path / "s/up", tmp_path)
    for slides in ("s", "s/**/*"):
        found = look_for_slides(str(tmp_path / slides))
        assert below(tmp_path / "s", found) == ["a.svs", "b/c.svs", "disk/e.svs"]
        assert sorted((os.path.relpath(path, tmp_path), why) for path, why in found.unseen) == [
            ("s/itself", os.strerror(40)),
            ("s/up", "a link to a folder above it"),
        ]


def test_of_nested_links_each_folder_is_walked_once(tmp_path):
    """Two links a level to the level below: without that, 2**25 paths lead to the last."""
    for level in range(25):
        link(tmp_path / f"level{level}/a", tmp_path / f"level{level + 1}")
        link(tmp_path / f"level{level}/b", tmp_path / f"level{level + 1}")
    touch(tmp_path, "level25/x.svs")
    (slide,) = find_slides(str(tmp_path / "level0"))
    assert slide.path == f"{tmp_path}/level0{'/a' * 25}/x.svs"


def test_hidden_folders_are_found_by_a_link_alone(tmp_path):
    touch(tmp_path, "s/.data/v1/a.svs", "s/b.svs")
    assert below(tmp_path / "s", look_for_slides(str(tmp_path / "s"))) == ["b.svs"]
    link(tmp_path / "s/now", ".data/v1")
    assert below(tmp_path / "s", look_for_slides(str(tmp_path / "s"))) == ["b.svs", "now/a.svs"]


@pytest.mark.parametrize("inside", ["out", "out/in", "out/stores", "out/stores/s.zarr", "c.zarr", "c.zarr/0"])
def test_neither_our_own_output_nor_a_zarr_is_walked_through_a_link(tmp_path, inside):
    touch(tmp_path, "s/a.svs", "out/run.json", "out/catalog/x", "out/in/d.svs", "c.zarr/e.svs", "c.zarr/0/f.svs")
    touch(tmp_path, "out/stores/b.svs", "out/stores/s.zarr/b.svs")
    link(tmp_path / "s/link", tmp_path / inside)
    found = look_for_slides(str(tmp_path / "s"))
    assert below(tmp_path / "s", found) == ["a.svs"]
    said = [(f"{tmp_path}/s/link", "a link into a .zarr, which is not read")]
    assert list(found.unseen) == (said if inside.startswith("c") else [])


def test_an_mrxs_keeps_its_folder_where_that_is_a_link(tmp_path):
    touch(tmp_path, "s/m.mrxs", "disk/m/Slidedat.ini", "disk/m/extra.tif")
    link(tmp_path / "s/m", tmp_path / "disk/m")
    link(tmp_path / "s/other", tmp_path / "s/m")
    (slide,) = find_slides(str(tmp_path / "s/m.mrxs"))
    assert [Path(file).name for file in slide.files] == ["m.mrxs", "Slidedat.ini", "extra.tif"]


def test_ids_below_a_root_are_by_the_path_as_one_sees_it(tmp_path):
    touch(tmp_path, "first/c.svs")
    link(tmp_path / "s/2025", tmp_path / "first")
    (before,) = find_slides(str(tmp_path / "s"), id_root=str(tmp_path / "s"))
    (tmp_path / "first").rename(tmp_path / "second")
    (tmp_path / "s/2025").unlink()
    link(tmp_path / "s/2025", tmp_path / "second")
    (after,) = find_slides(str(tmp_path / "s"), id_root=str(tmp_path / "s"))
    assert before.slide_id == after.slide_id


def test_links_that_lead_nowhere_are_named_where_they_may_be_folders(tmp_path):
    """As those to a disk that is not mounted. Of a slide's file its reader says so."""
    touch(tmp_path, "a.svs")
    for name in ("2025", "gone.svs", "notes.txt", ".hidden"):
        link(tmp_path / name, "/nowhere/at/all")
    found = look_for_slides(str(tmp_path))
    assert below(tmp_path, found) == ["a.svs", "gone.svs"]
    assert found.unseen == ((f"{tmp_path}/2025", "a link that leads nowhere"),)


@pytest.fixture
def barred(everybodys):
    """Slides in folders that may be looked into and in others."""
    touch(everybodys, "s/a.svs", "s/barred/b.svs", "disk/c.svs", "only/in/d.svs", "m/m.mrxs", "m/m/Slidedat.ini")
    link(everybodys / "s/disk", everybodys / "disk")
    (everybodys / "list.csv").write_text("slide\ns/a.svs\ns/barred/b.svs\n")
    folders = [everybodys / name for name in ("s/barred", "disk", "only/in", "m/m")]
    for folder in folders:
        folder.chmod(0o700 if os.geteuid() == 0 else 0)
    with without_rights():
        yield everybodys
    for folder in folders:
        folder.chmod(0o755)


@pytest.mark.parametrize("slides", ["s", "s/**/*.svs", "s/**"])
def test_a_folder_that_may_not_be_looked_into_is_named(barred, slides):
    found = look_for_slides(str(barred / slides))
    assert below(barred / "s", found) == ["a.svs"]
    unseen = [(f"{barred}/s/{name}", "Permission denied") for name in ("barred", "disk")]
    assert sorted(found.unseen) == unseen


@pytest.mark.parametrize(
    ("slides", "named"),
    [
        *[(name, name) for name in ("s/barred", "s/barred/b.svs", "s/disk", "s/disk/c.svs", "s/barred/*.svs")],
        ("list.csv", "s/barred/b.svs"),
    ],
)
def test_one_that_was_asked_for_is_an_error(barred, slides, named):
    with pytest.raises(NoSlides, match=rf"/{re.escape(named)} may not be looked into \(permission denied\); have its "):
        look_for_slides(str(barred / slides))


def test_where_nothing_else_is_found_the_error_names_it(barred):
    skipped = rf"1 folder was skipped, with all slides in there: {barred}/only/in \(Permission"
    said = rf"holds no slide among 0 files; .*; {skipped}"
    with pytest.raises(NoSlides, match=said):
        look_for_slides(str(barred / "only"))


def test_parts_of_a_slide_that_may_not_be_seen_are_its_readers_to_miss(barred):
    (slide,) = find_slides(str(barred / "m"))
    assert slide.name == "m.mrxs"


def test_a_note_names_some_folders_and_in_private_none():
    unseen = [(f"/s/Smith{n}", "Permission denied") for n in range(7)] + [("/s/up", "a link to a folder above it")]
    (said,) = unseen_note(unseen)
    assert said.startswith("8 folders were skipped, with all slides in there: /s/Smith0 (Permission denied)")
    assert said.endswith("/s/Smith4 (Permission denied) and 3 more")
    (bare,) = unseen_note(unseen, private=True)
    assert bare.endswith("skipped, with all slides in there (Permission denied, a link to a folder above it)")
    assert unseen_note([]) == []


@pytest.mark.parametrize("private", [False, True])
def test_a_check_says_it(tmp_path, capsys, nompp_slide, private):
    (tmp_path / "s").mkdir()
    link(tmp_path / "s/a.svs", nompp_slide)
    link(tmp_path / "s/Smith", "/nowhere/at/all")
    call = ["--slides", str(tmp_path / "s"), "--out", str(tmp_path / "out"), "--check"]
    if private:
        (tmp_path / "key").write_bytes(b"k" * 32)
        call += ["--private", "--id-key", str(tmp_path / "key")]
    main(call)
    said = capsys.readouterr().out
    assert "1 folder was skipped, with all slides in there" in said
    assert ("Smith" in said) is not private
