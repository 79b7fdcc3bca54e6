"""run.json and forgotten.json that somebody deleted: verify misses them, and nothing is made again for that."""

import json
import shutil

import pytest

from pipelines.forget import main as forget
from pipelines.shards import main as make_shards
from pipelines.verify import main as verify
from tests.support.shard_folders import add_row
from wsi_prep.output.catalog import Catalog
from wsi_prep.output.folder import read_run, write_run
from wsi_prep.output.sealed_json import SealedFile
from wsi_prep.output.tombstone import read_tombstone
from wsi_prep.slides.find.sources import find_slides
from wsi_prep.storage.select import open_storage

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory, nompp_slide):
    """Two slides, and an output in which one of them is forgotten: (slides folder, its parent)."""
    folder = tmp_path_factory.mktemp("lost")
    (folder / "slides").mkdir()
    for name in ("gone", "kept"):
        shutil.copy(nompp_slide, folder / f"slides/{name}.tiff")
    assert remake(folder) == 0
    assert forget(["--shards", str(folder / "out"), "--slide", ids(folder / "out")["gone.tiff"], "--yes"]) == 0
    return folder


def remake(folder, *more):
    call = ["--slides", folder / "slides", "--id-root", folder / "slides", "--out", folder / "out"]
    return make_shards([*map(str, call), "--assume-mpp", "0.5", "--workers", "1", *more])


def ids(out):
    return {row["file"]: row["slide_id"] for row in Catalog(out).slides() if row["status"] == "ok"}


def look(out, *more):
    return verify(["--shards", str(out), "--workers", "1", *more])


@pytest.fixture
def folder(made, tmp_path):
    """A copy of all of it."""
    return shutil.copytree(made, tmp_path / "all")


def contents(out):
    return {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.long
def test_a_copy_that_is_gone_is_a_fault_and_restored_and_what_is_beside_is_left(folder, capsys):
    out = folder / "out"
    before = contents(out)
    for name in ("run.json", ".forgotten.json"):
        (out / name).unlink()
    (out / "notes.txt").write_text("mine")
    (out / ".staging/left").mkdir()
    capsys.readouterr()
    assert look(out, "--repair", "--yes") == 3
    said = capsys.readouterr().out
    assert "run       run.json: it is missing, but its copy exists\n" in said
    assert "run       .forgotten.json: the copy of forgotten.json is missing\n" in said
    assert "run.json is restored from its copy, forgotten.json is restored from its copy" in said
    assert "not checked: 2 files or folders in OUT that make shards did not write (notes.txt, .staging/left)\n" in said
    assert contents(out) == {**before, out / "notes.txt": b"mine"}


@pytest.mark.parametrize("name", ["run.json", "forgotten.json"])
def test_each_copy_is_missed_where_one_was_ever_written(folder, name):
    storage = open_storage(folder / "out")
    assert not SealedFile.look_at(storage, name).wrong
    for path, other in ((name, f".{name}"), (f".{name}", name)):
        kept = (folder / "out" / path).read_bytes()
        (folder / "out" / path).unlink()
        found = SealedFile.look_at(storage, name)
        assert list(found.wrong) == [path]
        assert found.sound == (folder / "out" / other).read_bytes()
        (folder / "out" / path).write_bytes(kept)
    (folder / "out" / name).write_text(json.dumps({"settings": {}}))  # as earlier versions wrote it, without a copy
    (folder / "out" / f".{name}").unlink()
    assert not SealedFile.look_at(storage, name).wrong


def test_both_copies_of_run_json_gone_are_a_fault_and_nothing_is_made(folder, capsys):
    out = folder / "out"
    kept = (out / "run.json").read_bytes()
    for name in ("run.json", ".run.json"):
        (out / name).unlink()
    before = contents(out)
    assert look(out, "--repair", "--yes") == 3
    said = capsys.readouterr().out
    assert "run.json: it and its copy are missing: the settings of its slides are lost" in said
    assert "not repaired: run.json" in said
    assert remake(folder) == 2
    assert remake(folder, "--redo") == 2
    assert "holds a catalog and no run.json" in capsys.readouterr().err
    assert contents(out) == before
    (out / "run.json").write_bytes(kept)
    assert remake(folder) == 0
    assert list(ids(out)) == ["kept.tiff"]


@pytest.mark.parametrize("told_by", ["run.json", "the catalog"])
def test_a_tombstone_that_is_gone_is_missed_and_nobody_comes_back(folder, told_by, capsys):
    out = folder / "out"
    if told_by == "the catalog":  # as an earlier version left it
        found = find_slides(str(folder / "slides"), id_root=str(folder / "slides"))
        gone = next(source.slide_id for source in found if source.name == "gone.tiff")
        add_row(out, gone, status="excluded", error_type="Forgotten", file="gone.tiff")
        run = read_run(open_storage(out))
        write_run(open_storage(out), {name: value for name, value in run.items() if name != "forgotten"})
    kept = (out / "forgotten.json").read_bytes()
    for name in ("forgotten.json", ".forgotten.json"):
        (out / name).unlink()
    capsys.readouterr()
    assert look(out, "--repair", "--yes") == 3
    said = capsys.readouterr().out
    assert "run       forgotten.json: it " in said
    assert "not repaired: forgotten.json" in said
    assert remake(folder) == 2
    assert "forgotten.json is missing or outdated" in capsys.readouterr().err
    assert list(ids(out)) == ["kept.tiff"]
    (out / "forgotten.json").write_bytes(kept)
    assert remake(folder) == 0
    assert list(ids(out)) == ["kept.tiff"]


def test_who_says_that_the_tombstone_is_lost_goes_on_without_it(folder):
    out = folder / "out"
    for name in ("forgotten.json", ".forgotten.json"):
        (out / name).unlink()
    assert remake(folder, "--forgotten-lost") == 0
    assert sorted(ids(out)) == ["gone.tiff", "kept.tiff"]
    assert look(out) == 0
    assert remake(folder) == 0


def test_an_older_tombstone_is_missed_too(folder):
    out, kept = folder / "out", {}
    for name in ("forgotten.json", ".forgotten.json"):
        kept[name] = (out / name).read_bytes()
    assert forget(["--shards", str(out), "--slide", ids(out)["kept.tiff"], "--yes"]) == 0
    for name, data in kept.items():
        (out / name).write_bytes(data)
    assert remake(folder) == 2
    assert len(read_tombstone(open_storage(out))) == 1
