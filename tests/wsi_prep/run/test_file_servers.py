"""File systems as clusters have them, by a real one that fails as told: errors, quotas, renames, times, rights."""

import itertools
import json
import os
import shutil
import stat
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from pipelines.shards import main
from pipelines.verify import main as verify
from tests.support.fuse_mount import harmful_disk
from tests.support.paths import ROOT
from tests.support.undisturbed import copies, outcome
from wsi_prep.output.catalog import Catalog
from wsi_prep.run.slide import prepare_slide
from wsi_prep.run.task import PrepareSettings, SlideTask
from wsi_prep.slides.find.manifest import EMPTY_ROW
from wsi_prep.slides.find.sources import find_slides
from wsi_prep.storage.base import LOCK
from wsi_prep.storage.locking.marked import HOLDER
from wsi_prep.storage.select import open_storage

pytestmark = [pytest.mark.usefixtures("shared_dask"), pytest.mark.cluster, pytest.mark.slow]

GROUP = 54321
"""A group's number that nobody has."""


@pytest.fixture(scope="module")
def disk(tmp_path_factory, nompp_slide):
    """One whose slides/ holds two, and whole/ what a run made of them that nothing disturbed."""
    with harmful_disk(tmp_path_factory.mktemp("harmful"), direct=True) as mounted:
        copies(nompp_slide, mounted.path / "slides", "ab")
        assert shards(mounted, "whole") == 0
        yield mounted


@pytest.fixture
def out(disk):
    yield "out"
    disk.does()
    shutil.rmtree(disk.behind / "out", ignore_errors=True)


@pytest.fixture(scope="module")
def whole(disk):
    return outcome(disk.behind / "whole")


def shards(disk, out, *more):
    arguments = ["--slides", str(disk.path / "slides"), "--out", str(disk.path / out), "--assume-mpp", "0.5"]
    return main([*arguments, "--workers", "1", *more])


def reasons(disk, out):
    rows = pq.read_table(disk.behind / out / "catalog/slides").to_pylist()
    return {row["file"]: (row["status"], row["error_type"], row["error"]) for row in rows}


LONG = pytest.mark.long
READ = (0, 30, 90)
ONCE = {
    "reading": [("lookup", "slides/a.tiff", 3), ("open", "slides/*", 2), *(("read", "slides/*", n) for n in READ)],
    "making": [("write", "out/.staging/*", 5), ("create", "out/.staging/*", 2), ("mkdir", "out/.staging/*", 3)],
    "publishing": [("rename", "out/stores/*", 0), ("rename", "out/tissue/*", 0)],
    "the catalog": [
        *((call, "out/catalog/*", n) for call, n in (("write", 0), ("fsync", 1), ("rename", 2), ("create", 5))),
        ("opendir", "out/catalog/*", 3),
        ("read", "out/.lock", 1),
        ("unlink", "out/catalog/*", 0),
    ],
}
"""Calls that fail once each, on which files, and after how many that do not."""


@pytest.mark.parametrize("stage", ["reading", *(pytest.param(name, marks=LONG) for name in list(ONCE)[1:])])
def test_errors_that_pass_change_nothing(disk, whole, out, stage, capsys):
    numbers = itertools.cycle(["EIO", "ESTALE"])
    rules = [
        {"call": call, "name": name, "after": n, "times": 1, "errno": number}
        for (call, name, n), number in zip(ONCE[stage], numbers, strict=False)
    ]
    disk.does(*rules)
    assert shards(disk, out) == 0, capsys.readouterr()
    assert disk.does() == [1] * len(rules)
    assert outcome(disk.behind / out) == whole


@LONG
@pytest.mark.parametrize("reader", ["auto", "openslide"])
def test_one_error_in_any_read_of_a_slide_gives_the_same_tiles(disk, tmp_path, reader):
    """Libraries pass over errors, and then take a slide for another format, or a level for a damaged one."""
    (source, _) = find_slides(str(disk.path / "slides"))
    disk.does({"call": "read", "name": "slides/a.tiff", "seconds": 0.0})
    expected = prepared(source, tmp_path / "undisturbed", reader)
    (reads,) = disk.does()
    assert reads > 100
    for after in range(0, reads, 23):
        disk.does({"call": "read", "name": "slides/a.tiff", "after": after, "times": 1, "errno": "EIO"})
        assert prepared(source, tmp_path / str(after), reader) == expected, after
        assert disk.does() == [1]
        shutil.rmtree(tmp_path / str(after))


def prepared(source, out, reader):
    """What a worker makes of a slide, in this process."""
    storage = open_storage(out)
    storage.create()
    Catalog(storage).create()
    with storage.locked("token", take_over=False):
        settings = PrepareSettings(assume_mpp=0.5, reader=reader)
        row = prepare_slide(SlideTask(source, EMPTY_ROW, None, settings, str(out), "token"))
    assert row["status"] == "ok", row["error"]
    return outcome(out)


def test_a_slide_that_its_server_never_gives_fails_alone_and_is_made_when_it_does(disk, whole, out, capsys):
    disk.does({"call": "read", "name": "slides/a.tiff", "after": 60, "errno": "EIO"})
    assert shards(disk, out) == 3
    status, kind, why = reasons(disk, out)["a.tiff"]
    assert (status, kind) == ("failed", "FileServerFailed")
    assert why.startswith("the file server gives an error again and again (Input/output error); have it looked at")
    assert "Traceback" not in "".join(capsys.readouterr())
    assert reasons(disk, out)["b.tiff"][0] == "ok"
    disk.does()
    assert shards(disk, out) == 0
    assert outcome(disk.behind / out) == whole


def test_slides_that_are_done_stay_while_their_server_fails(disk, whole, capsys):
    before = (disk.behind / "whole/catalog/slides").stat().st_mtime_ns
    disk.does({"call": "read", "name": "slides/*", "errno": "ESTALE"})
    assert shards(disk, "whole") == 0
    disk.does()
    assert "whether 2 slides changed cannot be seen, so what is done of them stays" in capsys.readouterr().out
    assert outcome(disk.behind / "whole") == whole
    assert (disk.behind / "whole/catalog/slides").stat().st_mtime_ns == before


@LONG
def test_a_folder_of_slides_that_its_server_does_not_list_is_not_taken_for_an_empty_one(disk, out, capsys):
    (disk.behind / "slides/more").mkdir()
    try:
        disk.does({"call": "opendir", "name": "slides/more", "errno": "EIO"})
        assert shards(disk, out) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "slides/more (Input/output error)" in error
        assert not (disk.behind / out).exists()
    finally:
        (disk.behind / "slides/more").rmdir()


@pytest.mark.parametrize(
    ("number", "why"),
    [
        ("EDQUOT", "the quota of the output folder's disk is used up, which may be yours, your group's or the"),
        pytest.param("ENOSPC", "the disk of the output folder is full; free some space and", marks=LONG),
    ],
)
def test_a_quota_is_told_from_a_full_disk_and_loses_nothing(disk, whole, out, number, why):
    room = sum(p.stat().st_size for p in (disk.behind / "whole/stores").rglob("*") if p.is_file()) * 3 // 4
    disk.does({"call": "write", "name": "out/.staging/*", "bytes": True, "after": room, "errno": number})
    assert shards(disk, out) == 3
    found = reasons(disk, out)
    assert sorted(status for status, _, _ in found.values()) == ["failed", "ok"]
    (failed,) = (each for each in found.values() if each[0] == "failed")
    assert failed[1] == "WriteFailed"
    assert failed[2].startswith(why)
    assert failed[2].endswith("repeat the command")
    disk.does()
    assert shards(disk, out) == 0
    assert outcome(disk.behind / out) == whole


@pytest.mark.parametrize("call", ["flush", *(pytest.param(name, marks=LONG) for name in ("write", "fsync"))])
def test_a_quota_that_the_catalog_meets_ends_the_command_in_a_line_and_it_goes_on(disk, whole, out, call, capsys):
    """NFS tells of a quota when a file is synced or closed."""
    disk.does({"call": call, "name": "out/catalog/*part-*", "errno": "EDQUOT"})
    assert shards(disk, out) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "Disk quota exceeded: yours, your group's or the project's; free some space" in error
    assert "finished slides are kept" in error
    disk.does()
    assert shards(disk, out) == 0
    assert outcome(disk.behind / out) == whole


@LONG
def test_where_folders_cannot_be_renamed_across_they_are_copied(disk, whole, out):
    """As between layers of an overlay, mounts, and folders of two projects' quotas."""
    places = [f"out/{folder}/[!.]*" for folder in ("stores", "tissue")]
    disk.does(*({"call": "rename", "name": name, "times": 1, "errno": "EXDEV"} for name in places))
    assert shards(disk, out) == 0
    assert min(disk.does()) > 0
    assert outcome(disk.behind / out) == whole
    (disk.behind / out / "stores/.killed.zarr.moving").mkdir()
    disk.does({"call": "rename", "name": "out/.staging/*.before", "errno": "EXDEV"})
    assert shards(disk, out, "--redo", "--quality", "80") == 0
    disk.does()
    assert shards(disk, out, "--redo") == 0
    assert outcome(disk.behind / out) == whole


@LONG
def test_renames_that_are_not_atomic_slow_answers_and_whole_seconds_change_nothing(tmp_path, nompp_slide):
    with harmful_disk(tmp_path, direct=True, whole_seconds=True) as disk:
        copies(nompp_slide, disk.path / "slides", "a")
        disk.does({"call": "rename", "apart": 0.05}, {"call": "getattr", "seconds": 0.002})
        assert shards(disk, "out") == 0
        before, times = outcome(disk.behind / "out"), _times(disk.behind / "out")
        assert shards(disk, "out") == 0
        assert (outcome(disk.behind / "out"), _times(disk.behind / "out")) == (before, times)
        assert verify(["--shards", str(disk.path / "out")]) == 0


def _times(out):
    return {p.name: p.stat().st_mtime_ns for p in (out / "catalog").rglob("*.parquet")}


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ("read", "whole/stores/*/c.*"),
        pytest.param("read", "whole/catalog/*", marks=LONG),
        pytest.param("open", "whole/tissue/*", marks=LONG),
    ],
)
def test_an_error_of_the_server_is_no_damage_and_nothing_is_repaired(disk, whole, call, name, capsys):
    arguments = ["--shards", str(disk.path / "whole"), "--repair", "--yes"]
    disk.does({"call": call, "name": name, "after": 1, "times": 1, "errno": "EIO"})
    assert verify(arguments) == 0
    assert disk.does() == [1]
    disk.does({"call": call, "name": name, "errno": "EIO"})
    assert verify(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "the file server gives an error again and again for " in error
    disk.does()
    assert outcome(disk.behind / "whole") == whole


@LONG
def test_without_locks_a_run_of_another_machine_is_taken_over_only_on_request(tmp_path, nompp_slide, capsys):
    with harmful_disk(tmp_path, locks="ENOLCK") as disk:
        copies(nompp_slide, disk.path / "slides", "a")
        assert shards(disk, "out", "--check") == 0
        assert shards(disk, "out") == 0
        before = outcome(disk.behind / "out")
        elsewhere = {"token": "old", "host": "elsewhere", "boot": "another", "namespace": "", "pid": 7, "start": "1"}
        (disk.behind / "out" / LOCK).write_text("old")
        (disk.behind / "out" / HOLDER).write_text(json.dumps(elsewhere))
        capsys.readouterr()
        assert shards(disk, "out") == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "another run (process 7 on elsewhere) is writing to " in error
        assert verify(["--shards", str(disk.path / "out")]) == 2
        assert shards(disk, "out", "--take-over") == 0
        assert verify(["--shards", str(disk.path / "out"), "--repair", "--yes"]) == 0
        assert outcome(disk.behind / "out") == before


@LONG
@pytest.mark.usefixtures("own_dask")
def test_what_is_made_can_be_read_by_the_group_that_the_folder_says(tmp_path, nompp_slide):
    if os.getuid():
        pytest.skip("needs the right to give a folder to another group")
    copies(nompp_slide, tmp_path / "slides", "a")
    out = tmp_path / "shared/out"
    out.parent.mkdir()
    os.chown(out.parent, -1, GROUP)
    out.parent.chmod(0o2770)
    command = [sys.executable, "-m", "pipelines.shards", "--slides", tmp_path / "slides", "--out", out]
    subprocess.run([*command, "--assume-mpp", "0.5", "--workers", "1"], cwd=ROOT, check=True, umask=0o027)
    found = [p for p in out.rglob("*") if p.name != ".staging"]
    assert len(found) > 15
    for path in found:
        about = path.stat()
        assert about.st_gid == GROUP, path
        wanted = 0o750 if path.is_dir() else 0o640
        assert stat.S_IMODE(about.st_mode) & 0o777 == wanted, path
