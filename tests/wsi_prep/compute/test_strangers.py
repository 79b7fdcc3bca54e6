"""Nobody else gets into a cluster: another user of the machine tries all that listens."""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
from cryptography import x509
from distributed import LocalCluster

from tests.support.dask_processes import ROOT, kill, make_certificates, wait_until
from tests.support.slurm_stand_in import stand_in
from tests.support.stranger import PAGES, WAYS
from wsi_prep.compute.cluster.closed import throw_away_certificates
from wsi_prep.compute.cluster.options import ClusterOptions, SlurmConfig, TlsFiles
from wsi_prep.compute.jobs import cluster, dashboard_link, run_tasks

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

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
    """What another user gets of these addresses, whatever he tries."""
    return tried(secret, 3, [f"{way}@{ip}:{port}" for way in WAYS for ip, port in addresses])


def tried(secret, seconds, tries):
    """What another user gets who waits so long for each answer."""
    command = [sys.executable, "-m", "tests.support.stranger", str(NOBODY), str(secret), str(seconds), *tries]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def new_doors(before, *others):
    """What listens now and did not then, of this process and others."""
    return [door for door in listening(psutil.Process(), *others) if door not in before]


def works(client):
    """The cluster does its work."""
    return list(run_tasks(client, abs, [-1], str)) == [(-1, 1)]


@pytest.mark.long
def test_the_stranger_gets_into_a_cluster_that_is_open(secret):
    with LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as open_:
        (nanny,) = open_.workers.values()
        doors = [address.removeprefix("tcp://") for address in (open_.scheduler_address, nanny.address)]
        doors += [nanny.worker_address.removeprefix("tcp://")]
        pages = f"pages@127.0.0.1:{open_.scheduler.http_server.port}"
        got = tried(secret, 60, [*(f"plain@{door}" for door in doors), pages])
    assert sorted(text.partition(":")[0] for text in got.values() if "the key" in text) == [
        "Nanny",
        "Scheduler",
        "Worker",
    ]
    assert any(page.endswith("/info/main/workers.html") for page in got)


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
        assert set(client.run(watches_itself).values()) == {True}  # a page shows what it is busy with
    with cluster(ClusterOptions(workers=1)) as client:
        assert dashboard_link(client) == ""
        assert set(client.run(watches_itself).values()) == {False}


def watches_itself(dask_worker):
    """Whether a worker looks every 10 ms what it is busy with."""
    return "profile" in dask_worker.periodic_callbacks


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


def test_certificates_are_valid_whatever_the_clock_says():
    for made in (throw_away_certificates(), throw_away_certificates()):
        shown = x509.load_pem_x509_certificate(made.tls_ca_file.encode())
        assert (shown.not_valid_before_utc.year, shown.not_valid_after_utc.year) == (1970, 9999)
        assert {made.tls_client_cert, made.tls_scheduler_cert, made.tls_worker_cert} == {made.tls_ca_file}
    assert made.tls_worker_key != throw_away_certificates().tls_worker_key


@pytest.mark.long
def test_jobs_of_slurm_let_nobody_in(secret, tmp_path, monkeypatch):
    kept = stand_in(tmp_path, monkeypatch)
    before = listening(psutil.Process())
    config = SlurmConfig(1, "2GB", 1, interface="lo", local_directory=str(kept), shared_directory=str(kept))
    with cluster(ClusterOptions(slurm=config)) as client:
        client.wait_for_workers(1, timeout=60)
        assert set(client.run(watches_itself).values()) == {False}
        jobs = [psutil.Process(int(pid)) for pid in (kept / "submitted").read_text().split()]
        doors = new_doors(before, *jobs)
        assert len(doors) >= 5
        assert {ip for ip, _ in doors} == {"127.0.0.1"}
        assert stranger(secret, doors) == {}
        keys = list(kept.glob(".wsi-prep-*/*key*"))
        assert {path.stat().st_mode & 0o777 for path in [*keys, keys[0].parent]} == {0o600, 0o700}
        words = " ".join(
            word for job in jobs for each in [job, *job.children(recursive=True)] for word in each.cmdline()
        )
        assert str(keys[0]) in words
        assert "PRIVATE KEY" not in words
        (scratch,) = kept.glob("wsi-prep-*")
        assert scratch.stat().st_mode & 0o777 == 0o700
        assert (kept / "script_folder").read_text().startswith("drwx------")
        assert works(client)
    assert not [*kept.glob(".wsi-prep-*")]
    for job in jobs:
        wait_until(lambda job=job: not job.is_running())
    assert not scratch.exists()


def test_a_cluster_that_is_started_as_documented_lets_nobody_in(secret, tmp_path, monkeypatch):
    text = (ROOT / "docs/cluster.md").read_text().partition("## By hand")[2].partition("\n## ")[0]
    settings, scheduler, worker = [line for line in text.splitlines() if line.startswith(("export", "dask "))]
    make_certificates(tmp_path)
    (tmp_path / "scratch").mkdir(mode=0o700)
    for name, value in re.findall(r"(DASK_\w+)='?([^ ']+)", settings):
        monkeypatch.setenv(name, value.replace("/scratch/me", str(tmp_path / "scratch")))
    place = tmp_path / "scheduler.json"
    here = {"0.0.0.0": "127.0.0.1", "--port 8786": "--port 0", "127.0.0.1:8787": "127.0.0.1:0"}  # noqa: S104
    with contextlib.ExitStack() as stack:
        started = [_as_documented(stack, scheduler, here, tmp_path, "--scheduler-file", str(place))]
        wait_until(lambda: place.exists() and place.read_text().strip().endswith("}"), *started)
        address = json.loads(place.read_text())["address"]
        started += [
            _as_documented(stack, worker, {"tls://host:8786": address, "--nworkers 16": "--nworkers 1"}, tmp_path)
        ]
        files = [tmp_path / name for name in ("ca.pem", "node.pem", "node.key")]
        with cluster(ClusterOptions(scheduler=address, tls=TlsFiles(*files))) as client:
            client.wait_for_workers(1, timeout=60)
            doors = listening(*(psutil.Process(process.pid) for process in started))
            assert len(doors) >= 5
            assert stranger(secret, doors) == {}
            assert works(client)


def _as_documented(stack, line, replaced, folder, *more):
    """Start what a line of the documents says, in a folder, with a few words of it replaced; ended with the stack."""
    for old, new in replaced.items():
        assert old in line
        line = line.replace(old, new)
    what, words = line.split()[1], line.split()[2:]
    command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *words, *more]
    log = stack.enter_context((folder / f"{what}.log").open("w"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    stack.callback(kill, process)
    return process


def test_processes_of_training_on_one_machine_meet_in_a_file_of_their_own(tmp_path, monkeypatch):
    from pretrain.compute.distributed import world

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    one = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "TORCHELASTIC_RUN_ID": "run"}
    for name, value in (one | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = listening(psutil.Process())
    with world("cpu"):
        assert {ip for ip, _ in new_doors(before)} <= {"127.0.0.1"}
        (meeting,) = tmp_path.rglob("meeting-*")
        assert meeting.parent.stat().st_mode & 0o777 == 0o700
