"""Clusters of real processes: encrypted ones, workers that come and go, and machines that must be refused."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import dask
import pytest
from distributed import Client, LocalCluster

from pipelines.shards import main
from tests.support.dask_processes import ROOT, DaskProcesses, kill, make_certificates, wait_until
from tests.support.slurm_stand_in import stand_in
from tests.support.undisturbed import committed, copies, outcome
from wsi_prep.compute.cluster.options import ClusterOptions
from wsi_prep.compute.jobs import cluster, run_tasks

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def slides(tmp_path_factory, nompp_slide):
    return copies(nompp_slide, tmp_path_factory.mktemp("cluster") / "slides", "abcd")


@pytest.fixture(scope="module")
def undisturbed(slides, shared_dask, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert main(arguments(slides, out)) == 0
    return outcome(out)


def arguments(slides, out, *more):
    return ["--slides", str(slides), "--out", str(out), "--assume-mpp", "0.5", *map(str, more)]


def command(slides, out, *more):
    """The same call as a process of its own."""
    return [sys.executable, "-m", "pipelines.shards", *arguments(slides, out, *more)]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority and one certificate of it, and another authority that nobody trusts."""
    return make_certificates(tmp_path_factory.mktemp("tls"))


def tls(folder, ca="ca.pem"):
    paths = {"ca": folder / ca, "cert": folder / "node.pem", "key": folder / "node.key"}
    return {name: str(path) for name, path in paths.items()}


def test_an_encrypted_cluster_takes_those_who_have_its_certificate(slides, undisturbed, certificates, tmp_path, capsys):
    files = tls(certificates)
    of_dask = ["--tls-ca-file", files["ca"], "--tls-cert", files["cert"], "--tls-key", files["key"]]
    ours = ["--tls-ca", files["ca"], "--tls-cert", files["cert"], "--tls-key", files["key"]]
    with DaskProcesses(tmp_path, tls=of_dask) as cluster, pytest.MonkeyPatch.context() as patch:
        patch.setattr("wsi_prep.compute.jobs._CONNECT_SECONDS", 3)
        cluster.worker()
        assert cluster.address.startswith("tls://")
        named = ["--scheduler", cluster.address]
        assert main(arguments(slides, tmp_path / "out", *named, *ours)) == 0
        assert outcome(tmp_path / "out") == undisturbed
        other = [*ours[:1], str(certificates / "other.pem"), *ours[2:]]
        assert main(arguments(slides, tmp_path / "refused", *named, *other)) == 2
        assert "were both sides' certificates made by TLS_CA?" in capsys.readouterr().err
        assert main(arguments(slides, tmp_path / "refused", *named)) == 2
        assert "no Dask scheduler answers at tls://" in capsys.readouterr().err
        of_config = {"ca-file": files["ca"], "client.cert": files["cert"], "client.key": files["key"]}
        with dask.config.set({f"distributed.comm.tls.{name}": path for name, path in of_config.items()}):
            assert main(arguments(slides, tmp_path / "configured", *named)) == 0


def test_the_scheduler_serves_metrics_for_prometheus(tmp_path):
    with DaskProcesses(tmp_path) as cluster, urllib.request.urlopen(f"{cluster.dashboard}/metrics") as answer:  # noqa: S310
        text = answer.read().decode()
    assert "dask_scheduler_workers" in text
    assert "dask_scheduler_tasks" in text


@pytest.mark.long
def test_workers_may_join_and_leave_in_the_middle(slides, undisturbed, tmp_path):
    out = tmp_path / "out"
    with DaskProcesses(tmp_path) as cluster:
        cluster.sabotage("c", "tile", "hold")
        cluster.worker("--name", "first")
        run = cluster.start("pipelines.shards", *arguments(slides, out, "--scheduler", cluster.address))
        wait_until(cluster.sabotaged, run)
        cluster.worker("--name", "second")
        with Client(cluster.address, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
            client.retire_workers(names=["first"], close_workers=True)  # in the middle of a slide
        cluster.go()
        assert run.wait() == 0
        assert outcome(out) == undisturbed


@pytest.fixture
def other_imagecodecs(tmp_path):
    """A folder that, first on the path, gives the package imagecodecs another version."""
    place = tmp_path / "site" / "imagecodecs-2020.1.1.dist-info"
    place.mkdir(parents=True)
    (place / "METADATA").write_text("Metadata-Version: 2.1\nName: imagecodecs\nVersion: 2020.1.1\n")
    return place.parent


def test_a_worker_with_other_versions_is_refused_before_work(slides, tmp_path, other_imagecodecs, capsys):
    changed = tmp_path / "changed"
    shutil.copytree(ROOT / "wsi_prep", changed / "wsi_prep")
    with (changed / "wsi_prep/stain/classify.py").open("a") as file:
        file.write("# another state of the code\n")
    for path, says in ((other_imagecodecs, "imagecodecs 2020.1.1 (here "), (changed, "the code of wsi_prep ")):
        with DaskProcesses(tmp_path) as cluster:
            cluster.worker(paths=[path])
            with Client(cluster.address, set_as_default=False) as client:
                client.wait_for_workers(1, timeout=60)
            assert main(arguments(slides, tmp_path / "out", "--scheduler", cluster.address)) == 2
        line = capsys.readouterr().err.strip()
        assert line.startswith("shards: worker tcp://127.0.0.1:")
        assert says in line
        assert "\n" not in line
        assert committed(tmp_path / "out") == 0


@pytest.mark.long
@pytest.mark.parametrize("ends", [False, True])
def test_a_worker_that_hangs_or_ends_when_a_run_begins_is_not_said_to_lack_the_package(tmp_path, monkeypatch, ends):
    monkeypatch.setattr("wsi_prep.compute.jobs._VERSIONS_SECONDS", 30 if ends else 2)
    with DaskProcesses(tmp_path) as running:
        nanny = running.worker()
        with Client(running.address, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=60)
            (pid,) = client.run(os.getpid).values()
        os.kill(pid, signal.SIGSTOP)
        ending = threading.Timer(1, kill, [nanny])
        if ends:
            ending.start()
        said = []
        with cluster(ClusterOptions(scheduler=running.address), said.append) as client:
            assert client.status == "running"
        assert [line.partition(";")[0] for line in said] == ([] if ends else ["a worker has not answered for 2 s"])
        if ends:
            ending.join()


@pytest.mark.long
def test_a_worker_that_hangs_when_a_run_begins_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("wsi_prep.compute.jobs._VERSIONS_SECONDS", 2)
    with DaskProcesses(tmp_path) as running:
        running.worker()
        with Client(running.address, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=60)
            (pid,) = client.run(os.getpid).values()
        os.kill(pid, signal.SIGSTOP)
        try:
            with cluster(ClusterOptions(scheduler=running.address)) as client:
                assert client.status == "running"
        finally:
            os.kill(pid, signal.SIGCONT)


def test_a_worker_with_other_versions_that_joins_late_is_sent_away(slides, undisturbed, tmp_path, other_imagecodecs):
    out = tmp_path / "out"
    with DaskProcesses(tmp_path) as cluster:
        cluster.sabotage("a", "open", "hold")
        cluster.worker()
        run = cluster.start("pipelines.shards", *arguments(slides, out, "--scheduler", cluster.address))
        wait_until(cluster.sabotaged, run)
        late = cluster.worker(paths=[other_imagecodecs])
        wait_until(lambda: late.poll() is not None, run)
        assert committed(out) == 0
        cluster.go()
        assert run.wait() == 0
        assert outcome(out) == undisturbed


@pytest.mark.long
def test_a_run_with_only_other_versions_left_ends_and_can_go_on(slides, undisturbed, tmp_path, other_imagecodecs):
    out = tmp_path / "out"
    with DaskProcesses(tmp_path) as cluster:
        cluster.sabotage("c", "open", "hold")
        good = cluster.worker()
        run = cluster.start("pipelines.shards", *arguments(slides, out, "--scheduler", cluster.address))
        wait_until(cluster.sabotaged, run)
        kill(good)
        cluster.worker(paths=[other_imagecodecs])
        assert run.wait() == 2
        assert "imagecodecs 2020.1.1 (here " in next(tmp_path.glob("shards-*.log")).read_text()
        cluster.worker()
        with Client(cluster.address, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=60)
        assert main(arguments(slides, out, "--scheduler", cluster.address)) == 0
        assert outcome(out) == undisturbed


TOGETHER = threading.Barrier(6)


def met(_):
    TOGETHER.wait(timeout=20)
    return True


def test_workers_that_come_late_get_work_before_the_first_slide_is_done():
    """As jobs do that wait in a queue. Each of six tasks waits for the others, so they need six workers at once."""
    with LocalCluster(n_workers=0, threads_per_worker=1, processes=False, dashboard_address=None) as late:

        def tasks():
            late.scale(6)
            yield from range(6)

        with Client(late, set_as_default=False) as client:
            ended = dict(run_tasks(client, met, tasks(), str))
    assert ended == dict.fromkeys(range(6), True)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Stand-ins for sbatch and scancel first on the PATH; yields the folder where they keep what they did."""
    return stand_in(tmp_path, monkeypatch)


KEEPS_CTRL_C = """
import signal
from wsi_prep.compute.cluster.options import ClusterOptions, SlurmConfig
from wsi_prep.compute.jobs import cluster
from wsi_prep.errors import BadOption

before = signal.getsignal(signal.SIGINT)
try:
    cluster(ClusterOptions(slurm=SlurmConfig(1, "2GB", 1))).__enter__()
except BadOption as error:
    assert "sbatch" in str(error)
assert signal.getsignal(signal.SIGINT) is before
"""


def test_ctrl_c_stays_what_it_was_where_slurm_is_asked_for(tmp_path):
    """dask-jobqueue, once imported, has it end the process with exit code 0."""
    environment = {"PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", KEEPS_CTRL_C], env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def config(folder, text):
    (folder / "slurm.yaml").write_text(text)
    return ["--cluster", "slurm", "--cluster-config", folder / "slurm.yaml"]


def test_slurm_runs_the_workers(slides, undisturbed, slurm):
    text = """
        cores: 1
        memory: 2GB
        jobs: 2
        queue: pathology
        account: lab7
        walltime: "02:00:00"
        interface: lo
        prologue: ["echo started > $JOBS/prologue"]
        directives: ["--exclusive"]
    """
    assert main(arguments(slides, slurm / "out", *config(slurm, text))) == 0
    assert outcome(slurm / "out") == undisturbed
    script = (slurm / "script").read_text()
    for line in ("-p pathology", "-A lab7", "--cpus-per-task=1", "--mem=2G", "-t 02:00:00", "--exclusive"):
        assert f"#SBATCH {line}\n" in script
    (start,) = [line for line in script.splitlines() if "dask_worker" in line]
    assert "--nthreads 1 " in start
    assert "--lifetime 6900s" in start
    assert (slurm / "prologue").exists()
    submitted = (slurm / "submitted").read_text().split()
    assert len(submitted) >= 1
    for job in submitted:
        wait_until(lambda job=job: not Path(f"/proc/{job}").exists())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cores: 4\nmemory: 8GB\njobs: 2\nwaltime: '1:00:00'", "'waltime' is not known; did you mean walltime?"),
        ("cores: 4\nmemory: 8GB", "jobs must be given"),
        ("cores: four\nmemory: 8GB\njobs: 2", "cores is 'four'; it must be a whole number"),
        ("cores: 4\nmemory: 8\njobs: 2", "memory is 8; it must be a text"),
        ("cores: 4\nmemory: lots\njobs: 2", "memory 'lots' is not understood"),
        ("cores: 4\nmemory: 8GB\njobs: 2\nwalltime: 30", "walltime is 30; it must be a text"),
        ("cores: 4\nmemory: 8GB\njobs: 2\nminimum_jobs: 3", "must be from 0 to jobs, which is 2"),
        ("cores: 4\nmemory: 8GB\njobs: 2\ndirectives: --exclusive", "it must be a list of texts"),
        ("cores: [", "is no YAML"),
        ("- cores", "holds no keys"),
        ("cores: 1\nmemory: 2GB\njobs: 1\nqueue: nowhere\ninterface: lo", "invalid partition: nowhere"),
        ("cores: 1\nmemory: 2GB\njobs: 1\nshared_directory: /no/such", "no certificates can be kept in /no/such"),
        ("cores: 1\nmemory: 2GB\njobs: 1\nshared_directory: $JOBS/a b", "choose a path of letters"),
    ],
)
def test_a_wrong_slurm_config_is_refused_in_one_line(slides, slurm, text, says, capsys):
    (slurm / "a b").mkdir()
    text = text.replace("$JOBS", str(slurm))
    assert main(arguments(slides, slurm / "out", *config(slurm, text))) == 2
    line = capsys.readouterr().err.strip()
    assert says in line
    assert "\n" not in line


def test_parts_of_a_cluster_that_do_not_fit_are_refused(slides, tmp_path, monkeypatch, capsys):
    (tmp_path / "x.pem").write_text("no certificate")
    calls = {
        ("--tls-ca", tmp_path / "x.pem"): "TLS_CERT and TLS_KEY is missing",
        ("--cluster", "slurm"): "need each other",
        ("--scheduler", "dask://here"): "write it as tcp://host:8786",
        ("--scheduler", "tcp://here:8786", "--dashboard"): "omit it with SCHEDULER",
        tuple(f for n in ("ca", "cert", "key") for f in (f"--tls-{n}", tmp_path / "x.pem")): "is no PEM file",
        tuple(config(tmp_path, "cores: 1\nmemory: 2GB\njobs: 1")): "needs sbatch on the PATH",
        (*config(tmp_path, "cores: 1\nmemory: 2GB\njobs: 1"), "--workers", 2): "WORKERS is for a local cluster",
    }
    monkeypatch.setenv("PATH", str(tmp_path))
    for more, says in calls.items():
        assert main(arguments(slides, tmp_path / "out", *more)) == 2
        assert says in capsys.readouterr().err


LEFT_BEHIND = """
import asyncio, gc, sys
from distributed.client import AllExit
from wsi_prep.compute.cluster.options import ClusterOptions
from wsi_prep.compute.jobs import cluster

async def fail(error):
    raise error

async def left_behind():
    for error in (AllExit(), RuntimeError("of ours")):
        asyncio.ensure_future(fail(error))
    await asyncio.sleep(0)
    gc.collect()

with cluster(ClusterOptions(scheduler=sys.argv[1])):
    asyncio.run(left_behind())
"""


def test_a_task_of_dask_that_ctrl_c_left_behind_says_nothing(tmp_path):
    """Dask ends its waiting for results by an exception that nobody takes where the call is ended meanwhile."""
    with DaskProcesses(tmp_path) as running:
        words = [sys.executable, "-c", LEFT_BEHIND, running.address]
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    assert "RuntimeError: of ours" in done.stderr
    assert "AllExit" not in done.stderr
