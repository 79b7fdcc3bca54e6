"""Training on file systems that fail as told: quotas, and handles of shards that get stale."""

import gc
import os
import stat

import pytest

from pretrain.data.sources import LocalFolder
from tests.support.fuse_mount import harmful_disk
from tests.support.training import figures, make_shards, run

pytestmark = pytest.mark.slow

GROUP = 54321
"""A group's number that nobody has."""

FULL = "Disk quota exceeded"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards") / "shards")


@pytest.fixture(scope="module")
def unbroken(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert run(shards, folder) == 0
    return folder


@pytest.fixture
def disk(tmp_path):
    with harmful_disk(tmp_path) as mounted:
        yield mounted
        gc.collect()  # which closes the index's files before they are taken away


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ("flush", ".partial-00000006/*.safetensors"),  # NFS tells of a quota when a file is closed
        pytest.param("write", ".partial-00000006/*.safetensors", marks=pytest.mark.long),
        pytest.param("fsync", ".partial-00000006/*.safetensors", marks=pytest.mark.long),
        pytest.param("write", ".partial-00000006/state.json", marks=pytest.mark.long),
        pytest.param("mkdir", ".partial-00000006", marks=pytest.mark.long),
        pytest.param("rename", "step-00000006", marks=pytest.mark.long),
    ],
)
def test_a_quota_that_a_checkpoint_meets_costs_the_steps_since_the_one_before(
    shards, unbroken, disk, call, name, capsys
):
    disk.does({"call": call, "name": f"run/checkpoints/{name}", "errno": "EDQUOT"})
    assert run(shards, disk.path / "run") == 3
    error = capsys.readouterr().err
    (line,) = (line for line in error.splitlines() if "stopped" in line)
    assert "the checkpoint of step 6 cannot be written to " in line
    assert FULL in line
    assert line.endswith("repeat the command to continue from the one before")
    assert "Traceback" not in error
    kept = [path.name for path in (disk.behind / "run/checkpoints").glob("step-*")]
    assert kept == ["step-00000003"]
    disk.does()
    assert run(shards, disk.path / "run") == 0
    assert figures(disk.behind / "run") == figures(unbroken)


@pytest.mark.parametrize("number", ["ESTALE", "EIO"])
def test_a_stale_handle_of_a_shard_is_opened_anew(tmp_path, number):
    with harmful_disk(tmp_path, direct=True) as disk:
        _read_by_a_stale_handle(disk, number)


def _read_by_a_stale_handle(disk, number):
    (disk.behind / "file").write_bytes(bytes(range(100)))
    source = LocalFolder(str(disk.path))
    disk.does({"call": "read", "name": "file", "after": 1, "times": 2, "errno": number})
    opened = {"call": "open", "name": "file", "seconds": 0.0}
    assert source.read("file", 10, 3) == bytes([10, 11, 12])
    assert source.read("file", 20, 3) == bytes([20, 21, 22])
    assert disk.does(opened) == [2]
    assert source.read("file", 30, 3) == bytes([30, 31, 32])
    assert disk.does() == [0]  # the handle that works stays


def test_a_run_is_the_same_where_files_cannot_be_mapped(shards, unbroken, tmp_path):
    with harmful_disk(tmp_path, direct=True) as disk:
        run(shards, disk.path / "run", stop_at=4)
        assert run(shards, disk.path / "run") == 0  # from the checkpoint of that step
        assert figures(disk.path / "run") == figures(unbroken)
        gc.collect()


@pytest.mark.long
def test_a_run_can_be_read_by_the_group_that_its_folder_says(shards, tmp_path):
    if os.getuid():
        pytest.skip("needs the right to give a folder to another group")
    os.chown(tmp_path, -1, GROUP)
    tmp_path.chmod(0o2750)
    before = os.umask(0o027)
    try:
        assert run(shards, tmp_path / "run") == 0
    finally:
        os.umask(before)
    found = list(tmp_path.rglob("*"))
    assert {path.name for path in found} > {"checkpoints", "state.json", "metrics.jsonl", "index"}
    for path in found:
        about = path.stat()
        assert about.st_gid == GROUP, path
        assert stat.S_IMODE(about.st_mode) & 0o777 == (0o750 if path.is_dir() else 0o640), path
