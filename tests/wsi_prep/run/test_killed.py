"""Workers, schedulers and clients that die, hang, take all memory or have the wrong time, each for real.

Afterwards, no half slide is there, no tile is lost or doubled, and the same call again gives what a run without any of
it gives.
"""

import shutil
import subprocess
import sys

import pytest

from pipelines.shards import main
from tests.support.dask_processes import DaskProcesses, kill, wait_until
from tests.support.undisturbed import committed, copies, files, outcome, tables
from wsi_prep.run.slide import prepare_slide
from wsi_prep.run.task import PrepareSettings, SlideTask
from wsi_prep.slides.find.manifest import EMPTY_ROW
from wsi_prep.slides.find.sources import find_slides
from wsi_prep.storage.base import LOCK, STAGING

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

NAMES = "abcd"


@pytest.fixture(scope="module")
def slides(tmp_path_factory, nompp_slide):
    return copies(nompp_slide, tmp_path_factory.mktemp("killed") / "slides", NAMES)


@pytest.fixture(scope="module")
def undisturbed(slides, shared_dask, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert main(arguments(slides, out)) == 0
    return outcome(out)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A scheduler and two workers, which their nannies start again when they die."""
    with DaskProcesses(tmp_path_factory.mktemp("dask"), memory="1GB") as cluster:
        for _ in range(2):
            cluster.worker()
        yield cluster


def arguments(slides, out, *more):
    return ["--slides", str(slides), "--out", str(out), "--assume-mpp", "0.5", *map(str, more)]


def verdicts(out):
    return {row["file"][0]: (row["status"], row["error_type"]) for row in tables(out)[0]}


def without(slide, found):
    """Both tables and the files, but for one slide."""
    (rows, tiles), kept = found
    chosen = [[row for row in table if not row["slide_id"].startswith(slide)] for table in (rows, tiles)]
    return chosen, {path: data for path, data in kept.items() if not path.parts[1].startswith(slide)}


@pytest.mark.parametrize("at", ["tile", "tiles", "row"])
def test_a_worker_killed_in_the_middle_of_a_slide_costs_nothing(slides, undisturbed, cluster, tmp_path, at):
    out = tmp_path / "out"
    cluster.sabotage("c", at, "die")
    assert main(arguments(slides, out, "--scheduler", cluster.address)) == 0
    assert cluster.sabotaged() == 1
    assert outcome(out) == undisturbed


def test_a_slide_that_kills_each_worker_fails_alone(slides, undisturbed, cluster, tmp_path):
    out = tmp_path / "out"
    cluster.sabotage("c", "tiles", "die", times=100)
    assert main(arguments(slides, out, "--scheduler", cluster.address)) == 3
    assert cluster.sabotaged() >= 2
    assert verdicts(out) == dict.fromkeys(NAMES, ("ok", None)) | {"c": ("failed", "WorkerDied")}
    assert without("c", outcome(out)) == without("c", undisturbed)
    assert not [path for path in files(out) if path.parts[1].startswith("c")]
    cluster.sabotage("c", "tiles", "die", times=0)
    assert main(arguments(slides, out, "--scheduler", cluster.address)) == 0
    assert outcome(out) == undisturbed


@pytest.mark.parametrize(("deed", "error"), [("hang", "TimedOut"), ("eat", "WorkerDied")])
def test_a_slide_that_hangs_or_takes_all_memory_fails_alone(slides, undisturbed, cluster, tmp_path, deed, error):
    out = tmp_path / "out"
    cluster.sabotage("c", "open", deed, times=100)
    limit = ["--time-limit", 5 if deed == "hang" else 600]
    assert main(arguments(slides, out, "--scheduler", cluster.address, *limit)) == 3
    assert verdicts(out)["c"] == ("failed", error)
    assert without("c", outcome(out)) == without("c", undisturbed)
    cluster.sabotage("c", "open", deed, times=0)
    assert main(arguments(slides, out, "--scheduler", cluster.address)) == 0
    assert outcome(out) == undisturbed


def test_the_client_is_killed_and_the_workers_live_on(slides, undisturbed, cluster, tmp_path):
    out = tmp_path / "out"
    cluster.sabotage("c", "tile", "hold")
    run = cluster.start("pipelines.shards", *arguments(slides, out, "--scheduler", cluster.address))
    wait_until(cluster.sabotaged, run)
    kill(run)
    again = cluster.start("pipelines.shards", *arguments(slides, out, "--scheduler", cluster.address))
    wait_until(lambda: committed(out) >= 3 or again.poll() is not None)
    cluster.go()  # the worker of the first run ends a slide that is no longer its own
    assert again.wait() == 0
    assert outcome(out) == undisturbed


@pytest.mark.long
@pytest.mark.usefixtures("shared_dask")
def test_the_scheduler_is_killed_and_the_same_call_goes_on(slides, undisturbed, tmp_path):
    out = tmp_path / "out"
    with DaskProcesses(tmp_path) as first:
        first.sabotage("c", "tile", "hold")
        first.worker()
        command = [sys.executable, "-m", "pipelines.shards", *arguments(slides, out, "--scheduler", first.address)]
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_until(first.sabotaged, run)
        kill(first.scheduler)
        printed, said = run.communicate()
    assert run.returncode == 3
    assert printed == ""
    assert said == "shards: the scheduler was lost; finished slides are kept: repeat the command to resume\n"
    assert main(arguments(slides, out)) == 0
    assert outcome(out) == undisturbed


SHIFTED_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

static long shift(void) { return atol(getenv("CLOCK_SHIFT")); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int answer = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += shift();
    return answer;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *place) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (place) *place = exact.tv_sec;
    return exact.tv_sec;
}
"""


@pytest.fixture
def shifted_clock(tmp_path):
    """A library that, loaded first, makes a process's clock wrong by CLOCK_SHIFT seconds."""
    if sys.platform != "linux" or shutil.which("cc") is None:
        pytest.skip("needs a C compiler on Linux")
    (tmp_path / "clock.c").write_text(SHIFTED_CLOCK)
    library = tmp_path / "clock.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, tmp_path / "clock.c", "-ldl"], check=True)
    return library


@pytest.mark.long
def test_workers_whose_clocks_are_days_off_make_the_same(slides, undisturbed, tmp_path, shifted_clock):
    out = tmp_path / "out"
    wrong = {"LD_PRELOAD": str(shifted_clock), "CLOCK_SHIFT": str(3 * 86_400)}
    clock = [sys.executable, "-c", "import time; print(time.time())"]
    shifted, true = (float(subprocess.check_output(clock, env=env)) for env in (wrong, {}))
    assert shifted - true > 2 * 86_400
    with DaskProcesses(tmp_path) as cluster:
        cluster.worker(**wrong)
        cluster.worker(**wrong | {"CLOCK_SHIFT": str(-3 * 86_400)})
        assert main(arguments(slides, out, "--scheduler", cluster.address)) == 0
        assert outcome(out) == undisturbed


def test_a_slide_that_fails_leaves_no_trace_in_the_staging_folder(tmp_path):
    (tmp_path / "broken.svs").write_text("no slide")
    (source,) = find_slides(str(tmp_path / "broken.svs"))
    out = tmp_path / "out"
    (out / "catalog/slides").mkdir(parents=True)
    (out / "catalog/tiles").mkdir()
    (out / LOCK).write_text("token")
    assert prepare_slide(SlideTask(source, EMPTY_ROW, None, PrepareSettings(), str(out), "token"))["status"] == "failed"
    assert list((out / STAGING).iterdir()) == []
