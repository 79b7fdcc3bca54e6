"""Nobody else gets into a cluster: another user of the machine tries all that listens."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from distributed import LocalCluster

from tests.dask_processes import ROOT
from tests.stranger import PAGES
from wsi_prep.cluster_options import ClusterOptions
from wsi_prep.jobs import cluster, dashboard_link, run_tasks

NOBODY = 65534 if os.getuid() == 0 else -1  # without the right to become another user, one without the certificates


@pytest.fixture
def secret(tmp_path):
    """A file of ours alone."""
    path = tmp_path / "secret"
    path.write_text("the key")
    path.chmod(0o600)
    return path


def listening(*processes):
    """(ip, port) of every TCP socket on which these processes and their children wait."""
    tree = [each for process in processes for each in [process, *process.children(recursive=True)]]
    sockets = [socket for each in tree for socket in each.net_connections("tcp") if socket.status == "LISTEN"]
    return sorted({(socket.laddr.ip, socket.laddr.port) for socket in sockets})


def stranger(secret, addresses):
    """What another user gets of these addresses."""
    command = [sys.executable, "-m", "tests.stranger", str(NOBODY), str(secret)]
    command += [f"{ip}:{port}" for ip, port in addresses]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def new_doors(before):
    """What listens now and did not then."""
    return [door for door in listening(psutil.Process()) if door not in before]


def works(client):
    """The cluster does its work."""
    return list(run_tasks(client, abs, [-1], str)) == [(-1, 1)]


def test_the_stranger_gets_into_a_cluster_that_is_open(secret):
    before = listening(psutil.Process())
    with LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"):
        got = stranger(secret, new_doors(before))
    assert sum("the key" in text for text in got.values()) == 3  # scheduler, nanny and worker
    assert any(door.endswith("/info/main/workers.html") for door in got)


def test_a_local_cluster_lets_nobody_in(secret):
    before = listening(psutil.Process())
    with cluster(ClusterOptions(workers=1)) as client:
        doors = new_doors(before)
        assert len(doors) >= 3
        assert {ip for ip, _ in doors} == {"127.0.0.1"}
        assert stranger(secret, doors) == {}
        assert works(client)


def test_the_dashboard_is_seen_by_who_has_its_link_alone():
    with cluster(ClusterOptions(workers=1, dashboard=True)) as client:
        link = dashboard_link(client)
        assert link.startswith("http://127.0.0.1:")
        for page in ("status", "info/main/workers.html", "metrics", "statics/css/base.css"):
            assert fetched(link.replace("status", page)) == 200
        start, path = link.rsplit("/", 2)[:2]
        guesses = [
            path,
            f"{path[:-1]}/status",
            f"x{path}/status",
            f"{path}x/status",
            f"//{path}/status",
            "sitemap.json",
        ]
        for guess in (*guesses, "%C3%A9/status", *PAGES):
            assert fetched(f"{start}/{guess.removeprefix('/')}") == 404
    with cluster(ClusterOptions(workers=1)) as client:
        assert dashboard_link(client) == ""


def fetched(address):
    """The status of a page."""
    try:
        with urllib.request.urlopen(address, timeout=20) as answer:  # noqa: S310
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_folder_that_somebody_else_has_made_is_not_used(secret, tmp_path, monkeypatch):
    """Dask cuts lock files in its folder to nothing, and imports from there, in the process that has the keys."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    temporary.chmod(0o1777)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    planted = [temporary / "dask-scratch-space", temporary / f"wsi-prep-{os.getuid()}"]
    for folder in planted:
        folder.mkdir()
        folder.chmod(0o777)
        (folder / "global.lock").symlink_to(secret)
        if NOBODY >= 0:
            os.chown(folder, NOBODY, NOBODY)
    with cluster(ClusterOptions(workers=1)) as client:
        places = [*client.run(lambda: sys.path).values(), sys.path]
        assert not {place for each in places for place in each}.intersection(map(str, planted))
        (used,) = client.run(lambda dask_worker: dask_worker.local_directory).values()
    (made,) = set(temporary.iterdir()) - set(planted)
    assert Path(used).is_relative_to(made)
    assert (made.stat().st_uid, made.stat().st_mode & 0o777) == (os.getuid(), 0o700)
    assert secret.read_text() == "the key"
