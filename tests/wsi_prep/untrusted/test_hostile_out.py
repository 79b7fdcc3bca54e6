"""An output folder that somebody else made: what is in it leads nowhere else, and ends no call but by one line."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipelines.forget import main as forget
from pipelines.interchange import main as interchange
from pipelines.verify import main as verify
from tests.support.shard_folders import add_overlay, add_slide
from wsi_prep.curation.audit.count import count, open_catalogs
from wsi_prep.curation.audit.pictures import overlays
from wsi_prep.curation.verify.slide import SlideCheck, check_slide
from wsi_prep.errors import BadCatalog, BadOutput, UsageError
from wsi_prep.format.layout import (
    is_part,
    is_slide_file,
    is_slide_id,
    make_slide_id,
    output_places,
    shard_place,
    slide_of,
)
from wsi_prep.output.catalog import Catalog
from wsi_prep.output.folder import begin, held_output, read_run, writing
from wsi_prep.output.terms import Terms
from wsi_prep.output.tombstone import read_tombstone
from wsi_prep.storage.locking.holder import ProcessMark
from wsi_prep.storage.select import open_storage

TERMS = Terms({"format": 2}, {}, redo=False)
OUTLINE = {"type": "FeatureCollection", "features": []}
SLIDE = "slide1-00000001"
GB = 2**30


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """An output of two slides, one of them in a part."""
    out = tmp_path_factory.mktemp("sound") / "out"
    for number in (1, 2):
        slide_id = add_slide(out, number, {"20x": 3, "5x": 1}, width=4000, height=4000, bounds_x0=0, bounds_y0=0)
        add_overlay(out, slide_id)
        (out / "tissue").mkdir(exist_ok=True)
        (out / f"tissue/{slide_id}.geojson").write_text(json.dumps(OUTLINE))
        if number == 1:
            Catalog(out).merge()
    (out / "run.json").write_text(json.dumps({"settings": TERMS.settings, "last_call": {"warnings": ["a"]}}))
    (out / "forgotten.json").write_text(json.dumps({"patients": [], "slides": []}))
    (out / "catalog/.journal.json").write_text(json.dumps({"part": "part-00000.parquet", "singles": []}))
    (out / ".staging").mkdir()
    (out / ".lock").write_text("0" * 32)
    return out


@pytest.fixture
def out(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "out")


def content(folder):
    return {p.relative_to(folder): p.is_file() and p.read_bytes() for p in sorted(folder.rglob("*"))}


def run_on(out):
    """What `make shards` does to an output before and after its slides."""
    storage = open_storage(out)
    with held_output(storage, TERMS, "token"):
        catalog = begin(storage, TERMS)
        with writing(storage):
            read_tombstone(storage)
            storage.dismiss_workers()
            catalog.drop({SLIDE})
            catalog.merge()


LINKED = [
    *(".lock", ".staging", "run.json", "forgotten.json", "stores", "tissue", "overlays"),
    *("catalog", "catalog/.journal.json", "catalog/slides", "catalog/tiles", "catalog/slides/part-00000.parquet"),
    *(f"stores/{SLIDE}.zarr", f"tissue/{SLIDE}.geojson", "stores/else-0123456789.zarr", "catalog/.else"),
]


@pytest.mark.parametrize("name", LINKED)
def test_nothing_behind_a_link_is_changed(out, tmp_path, name):
    victim = tmp_path / "victim"
    shutil.copytree(out, victim)
    (victim / "stores/mine-0123456789.zarr").mkdir()  # of no row: a sweep would take it
    (victim / "catalog/.mine").write_text("mine")
    target = victim / name
    if not target.exists():
        target = victim / "stores/mine-0123456789.zarr"
    elif (out / name).is_dir():
        shutil.rmtree(out / name)
    else:
        (out / name).unlink()
    (out / name).symlink_to(target)
    before = content(victim)
    said = []
    for call in (run_on, lambda out: forget(["--yes", "--shards", str(out), "--slide", SLIDE])):
        try:
            call(out)
        except UsageError as error:
            said.append(str(error))
    assert content(victim) == before
    for line in said:
        assert "\n" not in line
        assert f"{out / name} is a link" in line
    swept = (".staging", "stores/", "tissue/", "catalog/.else")  # what goes anyway: the link itself is removed
    assert said or name.startswith(swept)


def test_the_folder_itself_may_be_a_link(out, tmp_path):
    (tmp_path / "link").symlink_to(out)
    run_on(tmp_path / "link")
    assert [row["slide_id"] for row in Catalog(out).slides()] == ["slide2-00000002"]


@pytest.mark.usefixtures("shared_dask")
def test_a_repair_deletes_nothing_behind_a_link(out, tmp_path):
    victim = tmp_path / "victim"
    (victim / "mine").mkdir(parents=True)
    (victim / "mine/file").write_text("mine")
    (out / "catalog/.journal.json").unlink()
    (out / f"stores/{SLIDE}.zarr/more").symlink_to(victim)
    (out / "stores/more").symlink_to(victim)
    before = content(victim)
    assert verify(["--shards", str(out), "--repair", "--yes", "--workers", "1"]) == 3
    assert content(victim) == before
    assert not os.path.lexists(out / "stores/more")


@pytest.mark.parametrize("mine", ["a letter of mine.\n", "hunter2-hunter2", "c0ffee" * 5, ""])
def test_a_lock_that_is_another_name_of_somebodys_file_is_left(out, tmp_path, mine, capsys):
    (tmp_path / "mine").write_text(mine)
    (out / ".lock").unlink()
    (out / ".lock").hardlink_to(tmp_path / "mine")
    with pytest.raises(BadOutput, match=r"\.lock is a hard link.*; remove it"):
        run_on(out)
    assert verify(["--shards", str(out), "--repair", "--yes", "--workers", "1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "mine").read_text() == mine
    (out / ".lock").unlink()
    run_on(out)


def test_a_lock_that_is_no_lock_is_left(out):
    (out / ".lock").write_text("a letter of mine.\n")
    with pytest.raises(BadOutput, match=r"\.lock is no lock of a run; remove it"):
        run_on(out)
    assert (out / ".lock").read_text() == "a letter of mine.\n"


NAMES = st.one_of(
    st.text(st.characters(codec=None), max_size=40),
    st.builds("{}{}".format, st.sampled_from(["../", "../../", "/", "./", "a/../", "~", "\0", ".", ""]), st.text()),
    st.sampled_from(["../../victim/file", "../victim/file", "part-00000.parquet", "part-٠٠٠٠٠.parquet", None, 7]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(NAMES, st.lists(NAMES, max_size=3))
@example("part-00001.parquet", ["../../../victim/file"])
@example("../../victim/file", [])
def test_a_journal_names_files_of_the_catalog_or_nothing_is_done(tmp_path, part, singles):
    out, victim = tmp_path / "out", tmp_path / "victim"
    Catalog(out).create()
    victim.mkdir(exist_ok=True)
    for name in ("file", ".file"):
        (victim / name).write_text("mine")
    (out / "catalog/.journal.json").write_text(json.dumps({"part": part, "singles": [str(victim / "file"), *singles]}))
    with pytest.raises(BadOutput, match=r"journal\.json is no journal of make shards"):
        Catalog(out).recover()
    (out / "catalog/.journal.json").write_text(json.dumps({"part": part, "singles": singles}))
    with contextlib.suppress(BadOutput):
        Catalog(out).recover()
    assert [p.read_text() for p in sorted(victim.iterdir())] == ["mine", "mine"]


@given(NAMES)
def test_what_the_rule_takes_is_a_plain_name(name):
    for known in (is_part(name), is_slide_file(name), is_slide_id(name)):
        if known:
            assert name.isascii()
            assert Path(name).name == name
    if isinstance(name, str):
        assert (slide_of(f"{name}.zarr", ".zarr") == name) == is_slide_id(name)
    if not is_slide_id(name):
        for place in (output_places, lambda name: shard_place(name, "20x", 0)):
            with pytest.raises(BadCatalog, match="which is no slide id"):
                place(name)


@given(st.text(max_size=30), st.text(max_size=30))
def test_what_is_made_is_known_again(name, identity):
    slide_id = make_slide_id(name, identity)
    assert is_slide_file(f"{slide_id}.parquet")
    assert slide_of(f"{slide_id}.geojson", ".geojson") == slide_id
    assert shard_place(slide_id, "5x", 2048) == f"stores/{slide_id}.zarr/5x/c.1.0.0.0"


def pipe(path):
    os.mkfifo(path)


def listening(path):
    here = Path.cwd()
    os.chdir(path.parent)  # the address of a socket is short
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(path.name)
    os.chdir(here)


def sparse(path):
    path.write_bytes(b"")
    os.truncate(path, 20 * GB)


READ = ["run.json", "forgotten.json", "catalog/.journal.json", ".lock"]


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("make", [pipe, listening, Path.mkdir, sparse])
def test_what_is_no_file_or_far_too_large_ends_in_a_line(out, name, make):
    (out / name).unlink()
    make(out / name)
    with pytest.raises(BadOutput, match=rf"{name}.*(; move it away|; restore it|is no lock)") as error:
        run_on(out)
    assert "\n" not in str(error.value)


DEEP = b'{"a": ' * 600 + b"1" + b"}" * 600
NONSENSE = {
    "a list": b"[]",
    "a number": b"7",
    "bytes": b"\xff\xfe\x00",
    "nothing": b"",
    "lists without end": b"[" * 200_000,
    "objects without end": b'{"part":' * 200_000,
    "deep": b'{"settings": ' + DEEP + b', "last_call": ' + DEEP + b"}",
    "a long number": b'{"settings": ' + b"9" * 100_000 + b"}",
    "other kinds": b'{"settings": [1], "last_call": 3, "part": [], "singles": {}, "patients": "ab", "slides": 1}',
    "warnings of other kinds": b'{"last_call": {"warnings": [1, null]}}',
}


@pytest.mark.parametrize("data", NONSENSE.values(), ids=NONSENSE)
@pytest.mark.parametrize("name", READ[:3])
def test_nonsense_in_json_ends_in_a_line(out, name, data):
    (out / name).write_bytes(data)
    with pytest.raises(BadOutput, match=rf"{name}.*(REPAIR=1 restores it|restore it|remove it)") as error:
        run_on(out)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_a_mark_of_other_types_is_of_no_known_process():
    assert ProcessMark.of({"pid": "../../etc", "host": ["x"], "boot": 1, "start": None}) == ProcessMark()
    own = ProcessMark.own()
    assert ProcessMark.of(own.as_dict()) == own


def test_a_catalogs_file_of_another_slide_ends_in_a_line(out):
    singles = out / "catalog/slides"
    (singles / "slide2-00000002.parquet").rename(singles / "slide3-00000003.parquet")
    with pytest.raises(BadCatalog, match=r"slide3-00000003\.parquet holds no row of the slide"):
        Catalog(out).merge()
    shutil.copy(singles / "slide3-00000003.parquet", singles / "part-99999.parquet")
    (singles / "slide3-00000003.parquet").rename(singles / "slide2-00000002.parquet")
    with pytest.raises(BadCatalog, match=r"part-99999\.parquet has the last number that a part can have"):
        Catalog(out).merge({"slide2-00000002"})


CHECK = SlideCheck("", {"slide_id": SLIDE, "status": "ok", "width": 4000, "height": 4000}, "part-00000.parquet")
COUNTS = {"tiles_5x": 1, "tiles_10x": 0, "tiles_20x": 3, "tiles_40x": 0}
OF_SLIDE = {
    f"stores/{SLIDE}.zarr/zarr.json": "metadata",
    f"stores/{SLIDE}.zarr/20x/zarr.json": "metadata",
    f"stores/{SLIDE}.zarr/20x/c.0.0.0.0": "index",
    f"tissue/{SLIDE}.geojson": "pictures",
    f"overlays/{SLIDE}.jpg": "pictures",
}


def looked_at(out):
    return check_slide(SlideCheck(str(out), CHECK.row | COUNTS, CHECK.name)).faults


@pytest.mark.parametrize("name", OF_SLIDE)
@pytest.mark.parametrize("make", [pipe, sparse, lambda path: path.symlink_to(path.parent / "kept")])
def test_checking_a_slide_opens_no_pipe_and_reads_nothing_without_end(out, name, make):
    assert looked_at(out) == ()
    (out / name).rename((out / name).parent / "kept")
    make(out / name)
    found = looked_at(out)
    assert {fault.kind for fault in found} == {OF_SLIDE[name]}
    assert all("\n" not in fault.what for fault in found)


@pytest.mark.parametrize("make", [pipe, sparse, lambda path: path.symlink_to("/etc/hostname")])
def test_outlines_and_overlays_of_others_are_left_out_with_the_reason(out, tmp_path, make, capsys):
    for name in (f"tissue/{SLIDE}.geojson", f"overlays/{SLIDE}.jpg"):
        (out / name).unlink()
        make(out / name)
    assert interchange(["--kind", "qupath", "--shards", str(out), "--to", str(tmp_path / "to")]) == 3
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["slide2-00000002.geojson"]
    assert SLIDE in capsys.readouterr().err
    with open_catalogs([str(out)]) as connection:
        shown = {picture.slide: picture for picture in overlays(count(connection, [str(out)]), 9, 0).pictures}
    assert [bool(picture.jpeg) for _, picture in sorted(shown.items())] == [False, True]


def test_folders_without_end_end_in_a_line(out):
    at = os.open(out / f"stores/{SLIDE}.zarr", os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("a", dir_fd=at)
        inner = os.open("a", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(at)
    storage = open_storage(out)
    for call in (storage.sizes, storage.remove):
        with pytest.raises(BadOutput, match="folders within folders without end"):
            call(f"stores/{SLIDE}.zarr")
    subprocess.run(["rm", "-rf", str(out)], check=True)  # which pytest could not


def test_run_json_is_read_as_it_was_written(out):
    assert read_run(open_storage(out))["last_call"] == {"warnings": ["a"]}
