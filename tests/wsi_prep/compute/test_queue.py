"""What is made of squeue's answers, without a SLURM; test_slurm.py has a real one."""

import os
from types import SimpleNamespace

import pytest

from wsi_prep.compute.cluster.queue import QueueWatch


def job(number, **more):
    return SimpleNamespace(**{"job_id": number, "refused": "", "submitted": True, "worked": False, **more})


class Cluster:
    """Jobs of two workers each, which are replaced by nothing."""

    def __init__(self, jobs, observed=()):
        self.workers, self.observed = jobs, set(observed)
        self.arrivals, self.gave_up = 0, ""

    def replace_job(self, name, job):
        assert self.workers.pop(name) is job


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """Says what it is to print, and its exit code."""

    def says(text, code=0):
        (tmp_path / "squeue").write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {code}\n")
        (tmp_path / "squeue").chmod(0o755)

    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return says


def watching(cluster, tmp_path, wanted=2):
    said = []
    return QueueWatch(cluster, wanted, tmp_path / "slurm-%j.out", said.append), said


def test_jobs_that_ended_are_replaced_and_others_are_not(squeue, tmp_path):
    names = ("waits", "works", "ended", "leaves", "purged", "submitting")
    jobs = {name: job(str(number), worked=name != "waits") for number, name in enumerate(names)}
    jobs["submitting"] = job(None, submitted=False)
    cluster = Cluster(dict(jobs), observed=("works-0", "works-1", "leaves-1", "ended2-0"))
    squeue("0|PENDING|Resources\n1|RUNNING|None\n2|CANCELLED|None\n3|COMPLETED|None")
    watch, said = watching(cluster, tmp_path)
    watch.look()
    assert set(cluster.workers) == {"waits", "works", "leaves", "submitting"}
    assert said == [
        "job 2 was ended: CANCELLED; another takes its place",
        "job 4 was ended: no longer in the queue; another takes its place",
    ]


@pytest.mark.parametrize("code", [0, 1])
def test_where_slurm_does_not_answer_nothing_is_concluded(squeue, tmp_path, code):
    cluster = Cluster({"a": job("1")})
    squeue("1|RUNNING|None" if code == 0 else "", code)
    watch, said = watching(cluster, tmp_path)
    watch.look()
    assert (set(cluster.workers), said) == ({"a"}, [])


def test_jobs_that_come_to_nothing_are_given_up_after_three_rounds_without_a_worker(squeue, tmp_path):
    cluster = Cluster({})
    watch, said = watching(cluster, tmp_path, wanted=1)
    for number in (1, 2, 3, 4):
        assert not cluster.gave_up
        cluster.workers["a"] = job(str(number))
        squeue(f"{number}|FAILED|NonZeroExitCode")
        cluster.arrivals = min(number - 1, 1)  # a worker comes between the first and the second
        watch.look()
    last = f"the last job 4: FAILED (NonZeroExitCode); see {tmp_path}/slurm-4.out"
    assert cluster.gave_up.startswith(f"3 jobs ended before a worker came of any, {last}; ")
    assert len(said) == 1


def test_a_queue_that_takes_nothing_is_given_up_where_nothing_is_left(tmp_path):
    for observed, gives_up in (((), True), (("b-0",), False)):
        cluster = Cluster({}, observed)
        watch, said = watching(cluster, tmp_path)
        for _ in range(3):
            cluster.workers["a"] = job(None, refused="sbatch: error: no more")
            watch.look()
        assert (cluster.gave_up != "") == gives_up
        assert said == ["SLURM does not take a job (sbatch: error: no more); it is asked again every 10 s"]
