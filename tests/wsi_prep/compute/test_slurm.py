"""A real SLURM on this machine alone: what happens to its jobs, and what a run makes of it."""

import os
import signal
import subprocess
import sys

import pytest

from tests.support.dask_processes import Sabotage, kill, wait_until
from tests.support.paths import ROOT
from tests.support.slurm import ALIVE, NODES
from tests.support.undisturbed import copies, outcome

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module")
def slides(tmp_path_factory, nompp_slide):
    return copies(nompp_slide, tmp_path_factory.mktemp("slurm") / "slides", "abc")


@pytest.fixture(scope="module")
def undisturbed(slides, shared_dask, tmp_path_factory):
    from pipelines.shards import main

    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert main(["--slides", str(slides), "--out", str(out), "--assume-mpp", "0.5"]) == 0
    return outcome(out)


class Run(Sabotage):
    """`make shards` with CLUSTER=slurm as a process of its own, and the jobs that it has started."""

    def __init__(self, slurm, slides, folder, config):
        super().__init__(folder)
        self._slurm, self._before = slurm, set(slurm.jobs())
        self.out, self._log = folder / "out", folder / "said"
        (folder / "slurm.yaml").write_text(config + f"\nshared_directory: {folder}\ninterface: lo\n")
        self._words = [sys.executable, "-m", "pipelines.shards", "--slides", slides, "--out", self.out]
        self._words += ["--assume-mpp", "0.5", "--cluster", "slurm", "--cluster-config", folder / "slurm.yaml"]

    def __enter__(self):
        environment = {**os.environ, **self._slurm.environment, **self.environment, "PYTHONPATH": str(ROOT)}
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                list(map(str, self._words)),
                cwd=self.folder,
                env=environment,
                start_new_session=True,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        return self

    def __exit__(self, *_):
        kill(self.process)

    def jobs(self, *states):
        """{id: (state, nodes)} of its jobs, all or those in these states."""
        return {number: job for number, job in self._slurm.jobs(*states).items() if number not in self._before}

    def until(self, condition):
        wait_until(condition, self.process, every=0.2)

    def said(self):
        return self._log.read_text()

    def ended(self):
        """Its exit code and what it said."""
        return self.process.wait(timeout=200), self.said()


ONE_EACH = "cores: 1\nmemory: 2GB\njobs: 2\nwalltime: '01:00:00'"


def test_jobs_make_a_cohort_and_leave_nothing_in_the_queue(slurm, slides, undisturbed, tmp_path):
    with Run(slurm, slides, tmp_path, ONE_EACH) as run:
        code, said = run.ended()
        assert (code, "3 ok" in said) == (0, True), said
        assert outcome(run.out) == undisturbed
        assert len(run.jobs()) == 2
        wait_until(lambda: not run.jobs(*ALIVE), every=0.2)
    assert not list(tmp_path.glob(".wsi-prep-*"))  # the certificates
    assert "note:" not in said


@pytest.mark.long
@pytest.mark.parametrize("cores", [1, 2])
def test_jobs_that_are_cancelled_in_a_slide_are_replaced(slurm, slides, undisturbed, tmp_path, cores):
    config = f"cores: {cores}\nmemory: {2 * cores}GB\njobs: 1"
    with Run(slurm, slides, tmp_path, config) as run:
        run.sabotage("b", "tile", "hold")
        run.until(run.sabotaged)
        (first,) = run.jobs("RUNNING")
        slurm.ask("scancel", first)
        run.until(lambda: set(run.jobs("RUNNING")) - {first})
        run.go()
        code, said = run.ended()
        assert code == 0, said
        assert outcome(run.out) == undisturbed
    assert f"note: job {first} was ended: CANCELLED" in said


@pytest.mark.long
def test_workers_leave_before_their_walltime_and_others_come(slurm, slides, undisturbed, tmp_path):
    with Run(slurm, slides, tmp_path, "cores: 1\nmemory: 2GB\njobs: 1\nwalltime: '00:01:00'") as run:
        run.sabotage("b", "tile", "hold")
        run.until(run.sabotaged)
        (first,) = run.jobs("RUNNING")
        output = tmp_path / f"slurm-{first}.out"
        run.until(lambda: "worker-lifetime-reached" in output.read_text())
        run.go()
        run.until(lambda: run.jobs()[first][0] == "COMPLETED")  # and not TIMEOUT
        run.until(lambda: set(run.jobs(*ALIVE)) - {first})
        code, said = run.ended()
        assert code == 0, said
        assert outcome(run.out) == undisturbed


@pytest.mark.long
def test_a_walltime_that_ends_in_a_slide_is_said_and_the_slide_made_by_another_job(
    slurm, slides, undisturbed, tmp_path
):
    """As where a partition allows less than CLUSTER_CONFIG says."""
    with Run(slurm, slides, tmp_path, "cores: 1\nmemory: 2GB\njobs: 1\ndirectives: ['--time=00:01:00']") as run:
        run.sabotage("b", "tile", "hold")
        run.until(run.sabotaged)
        (first,) = run.jobs("RUNNING")
        wait_until(lambda: set(run.jobs("RUNNING")) - {first}, run.process, seconds=200, every=0.5)
        assert run.jobs()[first][0] == "TIMEOUT"
        run.go()
        code, said = run.ended()
        assert code == 0, said
        assert outcome(run.out) == undisturbed
    assert f"note: job {first} was ended: TIMEOUT (TimeLimit); another takes its place" in said


@pytest.mark.long
def test_jobs_that_wait_in_the_queue_are_said_and_waited_for(slurm, slides, undisturbed, tmp_path):
    others = slurm.submit_line("sleep infinity", tmp_path, "--nodes=2", "--exclusive")
    wait_until(lambda: slurm.state(others) == "RUNNING", every=0.2)
    with Run(slurm, slides, tmp_path, ONE_EACH) as run:
        run.until(lambda: "note: no worker at the moment; SLURM's jobs: " in run.said())
        assert run.said().count("PENDING (") == 2  # one each for Resources and Priority
        slurm.ask("scancel", others)
        code, said = run.ended()
        assert code == 0, said
        assert outcome(run.out) == undisturbed


@pytest.mark.long
def test_a_drained_node_gets_no_job_and_one_that_fails_costs_no_slide(slurm, slides, undisturbed, tmp_path):
    slurm.update("nodename=n1", "state=DRAIN", "reason=test")
    with Run(slurm, slides, tmp_path, ONE_EACH) as run:
        run.sabotage("b", "tile", "hold")
        run.until(run.sabotaged)
        assert {nodes for _, nodes in run.jobs("RUNNING").values()} == {"n2"}
        slurm.update("nodename=n1", "state=RESUME")
        slurm.update("nodename=n2", "state=DOWN", "reason=test")
        run.until(lambda: {nodes for _, nodes in run.jobs("RUNNING").values()} == {"n1"})
        run.go()
        code, said = run.ended()
        assert code == 0, said
        assert outcome(run.out) == undisturbed


def test_where_all_nodes_are_drained_the_run_says_so_and_begins_nothing(slurm, slides, tmp_path):
    for node in NODES:
        slurm.update(f"nodename={node}", "state=DRAIN", "reason=test")
    with Run(slurm, slides, tmp_path, ONE_EACH) as run:
        code, said = run.ended()
    assert code == 2
    assert "(allocation failure: Requested node configuration is not available)" in said
    assert "see by sinfo whether its nodes are up" in said


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("queue: nowhere", "invalid partition specified: nowhere"),
        ("queue: short\nwalltime: '01:00:00'", "Requested time limit is invalid (missing or exceeds some limit)"),
        ("directives: ['--nodelist=n9']", "Invalid node name specified"),
    ],
)
def test_what_slurm_refuses_is_one_line_with_its_own_reason(slurm, slides, tmp_path, config, says):
    with Run(slurm, slides, tmp_path, f"cores: 1\nmemory: 2GB\njobs: 1\n{config}") as run:
        code, said = run.ended()
        assert code == 2
        assert says in said
        assert said.count("\n") == 1
        assert not run.jobs()


@pytest.mark.long
def test_a_queue_that_takes_no_more_ends_the_run_which_can_go_on(slurm, slides, undisturbed, tmp_path):
    with Run(slurm, slides, tmp_path, ONE_EACH) as run:
        run.sabotage("b", "tile", "hold")
        run.until(run.sabotaged)
        slurm.update("partitionname=main", "state=DRAIN")
        slurm.ask("scancel", *run.jobs(*ALIVE))
        code, said = run.ended()
        assert code == 3
        assert "shards: SLURM takes no job (" in said
        assert "Required partition not available" in said
        assert "Traceback" not in said
    slurm.update("partitionname=main", "state=UP")
    with Run(slurm, slides, tmp_path, ONE_EACH) as run:
        run.go()
        assert run.ended()[0] == 0
        assert outcome(run.out) == undisturbed


@pytest.mark.long
def test_jobs_that_end_before_a_worker_comes_end_the_run_and_their_output_is_named(slurm, slides, tmp_path):
    config = "cores: 1\nmemory: 2GB\njobs: 1\nprologue: ['echo no such module >&2', 'exit 4']"
    with Run(slurm, slides, tmp_path, config) as run:
        code, said = run.ended()
        assert code == 3
        last = max(map(int, run.jobs()))
        assert f"the last job {last}: FAILED (NonZeroExitCode); see {tmp_path}/slurm-{last}.out" in said
        assert (tmp_path / f"slurm-{last}.out").read_text() == "no such module\n"


@pytest.mark.long
def test_between_few_and_many_jobs_run_as_there_is_work(slurm, slides, undisturbed, tmp_path):
    config = "cores: 1\nmemory: 2GB\njobs: 2\nminimum_jobs: 1"
    with Run(slurm, slides, tmp_path, config) as run:
        run.sabotage("b", "tile", "hold")
        run.until(lambda: len(run.jobs("RUNNING")) == 2)
        run.until(lambda: run.sabotaged() and len(run.jobs("RUNNING")) == 1)  # the others are done
        run.go()
        code, said = run.ended()
        assert code == 0, said
        assert outcome(run.out) == undisturbed


@pytest.fixture
def as_a_job(slurm, slides, tmp_path):
    """Submits docs/slurm/shards.sbatch with docs/slurm/shards.yaml, for two small jobs; the number of its own."""
    config = (ROOT / "docs/slurm/shards.yaml").read_text() + f"\nshared_directory: {tmp_path}\ninterface: lo\n"
    for large, small in (("cores: 16", "cores: 1"), ("memory: 32GB", "memory: 2GB"), ("jobs: 20", "jobs: 2")):
        assert large in config
        config = config.replace(large, small)
    (tmp_path / "slurm.yaml").write_text(config)

    def submit(**more):
        told = {"SLIDES": slides, "OUT": tmp_path / "out", "CONFIG": "slurm.yaml", "MORE": "--assume-mpp 0.5", **more}
        return slurm.submit("shards.sbatch", tmp_path, **told)

    return submit


@pytest.mark.long
def test_the_documented_job_makes_a_cohort(slurm, as_a_job, undisturbed, tmp_path):
    number = as_a_job()
    wait_until(lambda: slurm.state(number) not in ALIVE, seconds=200, every=0.3)
    said = (tmp_path / f"slurm-{number}.out").read_text()
    assert slurm.state(number) == "COMPLETED", said
    assert outcome(tmp_path / "out") == undisturbed
    assert "3 ok" in said


@pytest.mark.long
def test_with_the_documented_job_its_workers_end(slurm, as_a_job, tmp_path):
    held = Sabotage(tmp_path)
    held.sabotage("a", "tile", "hold")
    number = as_a_job(**held.environment)
    wait_until(held.sabotaged, seconds=200, every=0.2)
    slurm.ask("scancel", number)
    wait_until(lambda: not slurm.jobs(*ALIVE), seconds=50, every=0.3)  # and not when they miss the scheduler
    assert "shards: interrupted; finished slides are kept" in (tmp_path / f"slurm-{number}.out").read_text()
    assert not list(tmp_path.glob(".wsi-prep-*"))


@pytest.mark.long
def test_ctrl_c_ends_the_jobs(slurm, slides, tmp_path):
    with Run(slurm, slides, tmp_path, ONE_EACH) as run:
        run.sabotage("a", "tile", "hold")
        run.until(run.sabotaged)
        os.killpg(run.process.pid, signal.SIGINT)
        code, said = run.ended()
        assert code == 130, said
        assert said.count("\n") == 1
        wait_until(lambda: not run.jobs(*ALIVE), every=0.2)
    assert not list(tmp_path.glob(".wsi-prep-*"))
