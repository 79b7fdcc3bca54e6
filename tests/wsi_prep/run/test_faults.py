"""What is really killed, really full or really taken away, and what the next run then finds."""

import glob
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.shards import main
from tests.support.dask_processes import SABOTEUR
from tests.support.dicom_wsi import write_dicom_slide
from tests.support.paths import ROOT
from tests.support.undisturbed import copies, outcome, tables
from wsi_prep.compute.cluster.options import ClusterOptions
from wsi_prep.compute.jobs import WorkerDied, cluster, run_tasks
from wsi_prep.errors import RunReplaced, WriteFailed
from wsi_prep.output.sealed_json import unseal
from wsi_prep.run.slide import prepare_slide
from wsi_prep.run.task import PrepareSettings, SlideTask
from wsi_prep.slides.find.manifest import EMPTY_ROW
from wsi_prep.slides.find.sources import find_slides
from wsi_prep.storage.base import LOCK

pytestmark = [pytest.mark.usefixtures("shared_dask"), pytest.mark.cluster, pytest.mark.slow]


NAMES = "abc"


@pytest.fixture(scope="module")
def slides(tmp_path_factory, nompp_slide):
    return copies(nompp_slide, tmp_path_factory.mktemp("faults") / "slides", NAMES)


@pytest.fixture(scope="module")
def whole(slides, tmp_path_factory):
    """The output of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert main(arguments(slides, out)) == 0
    return out


@pytest.fixture
def holding(tmp_path, monkeypatch):
    """Workers of processes begun here hold the last slide, so that a signal is in time however slow the machine is."""
    plan = tmp_path / "sabotage.json"
    plan.write_text(json.dumps({"slide": NAMES[-1], "at": "tile", "do": "hold", "times": 1}))
    monkeypatch.setenv("SABOTAGE", str(plan))
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", str(SABOTEUR))


def held(tmp_path):
    """A slide is done, and another is held."""
    return lambda out: committed(1)(out) and (tmp_path / "sabotage.0").exists()


def arguments(slides, out, *more):
    return ["--slides", str(slides), "--out", str(out), "--assume-mpp", "0.5", "--workers", "1", *more]


def record(out):
    """run.json without what tells of the last call alone."""
    run = unseal((out / "run.json").read_bytes())
    assert run.pop("last_call")
    return run


def run_until(slides, out, reached, *more):
    """Start a run in a process group of its own and kill all of it once `reached` holds."""
    command = [sys.executable, "-m", "pipelines.shards", *arguments(slides, out, *more)]
    process = subprocess.Popen(
        command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None:
        if reached(out):
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.wait()
    return process.returncode


def seen(out, pattern):
    """What matches at this moment; glob's own functions, unlike Path's, bear a folder that goes away meanwhile."""
    return glob.glob(pattern, root_dir=out, recursive=True, include_hidden=True)  # noqa: PTH207


def committed(count):
    return lambda out: len(seen(out, "catalog/slides/[!.]*.parquet")) >= count


MOMENTS = {
    "while it starts": lambda out: (out / "run.json").exists(),
    "in the first slide": lambda out: bool(seen(out, ".staging/*/store.zarr")),
    "between slides": committed(2),
    "while merging": lambda out: bool(seen(out, "catalog/**/*part-*")),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_and_run_again_equals_one_that_was_not(slides, whole, tmp_path, moment):
    killed = tmp_path / "killed"
    run_until(slides, killed, MOMENTS[moment])
    assert main(arguments(slides, killed)) == 0
    assert outcome(killed) == outcome(whole)
    assert record(killed) == record(whole)


@pytest.mark.usefixtures("holding")
def test_a_killed_run_left_no_half_slide_and_remembers_that_it_had_a_manifest(slides, tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "m.csv").write_text("slide,tissue\na.tiff,lung\n")
    manifest = ("--manifest", str(tmp_path / "m.csv"))
    assert run_until(slides, out, held(tmp_path), *manifest) == -signal.SIGKILL
    require_whole_slides(out)
    assert main(arguments(slides, out)) == 2
    assert "was made with a manifest" in capsys.readouterr().err
    assert main(arguments(slides, out, *manifest)) == 0


def require_whole_slides(out):
    rows = pq.read_table(out / "catalog/slides").to_pylist()
    assert rows
    for row in rows:
        tiles = pq.read_table(out / f"catalog/tiles/{row['slide_id']}.parquet").to_pylist()
        assert len(tiles) == sum(row[f"tiles_{m}"] for m in ("5x", "10x", "20x", "40x")) > 0
        for tile in tiles:
            assert (out / tile["shard"]).stat().st_size >= tile["offset"] + tile["nbytes"]


@pytest.mark.usefixtures("holding")
def test_ctrl_c_stops_in_one_line_and_the_next_run_goes_on(slides, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "pipelines.shards", *arguments(slides, out)]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - tests in the background ignore it
    )
    while not held(tmp_path)(out):
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    printed, _ = process.communicate()
    assert process.returncode == 130
    assert printed == "shards: interrupted; finished slides are kept: repeat the command to resume\n"
    assert main(arguments(slides, out)) == 0
    assert len(tables(out)[0]) == len(NAMES)


def test_two_runs_do_not_share_a_folder(slides, tmp_path, capsys):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.shards", *arguments(slides, out)],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    while not (out / "run.json").exists():
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGSTOP)
    try:
        assert main(arguments(slides, out)) == 2
        assert "another run is writing to" in capsys.readouterr().err
    finally:
        os.killpg(process.pid, signal.SIGCONT)
    assert process.wait() == 0


def test_a_worker_that_outlives_its_run_writes_nothing(slides, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    before = outcome(out)
    (source, *_) = find_slides(str(slides))
    assert (out / LOCK).read_text() != "an older run"
    task = SlideTask(source, EMPTY_ROW, None, PrepareSettings(assume_mpp=0.5), str(out), "an older run")
    with pytest.raises(RunReplaced):
        prepare_slide(task)
    assert outcome(out) == before


def test_a_worker_that_does_not_see_the_output_says_so_and_makes_nothing(slides, tmp_path):
    (source, *_) = find_slides(str(slides))
    task = SlideTask(source, EMPTY_ROW, None, PrepareSettings(), str(tmp_path / "elsewhere"), "token")
    with pytest.raises(WriteFailed, match=r"does not see .*elsewhere; OUT must be on a disk that all share"):
        prepare_slide(task)
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.usefixtures("own_dask")
def test_a_slide_that_hangs_fails_alone(nompp_slide, tmp_path, capsys):
    slides, out = copies(nompp_slide, tmp_path / "slides", NAMES), tmp_path / "out"
    write_dicom_slide(slides / "hangs", [np.full((512, 512, 3), 200, np.uint8)], 0.25)
    os.mkfifo(slides / "hangs" / "pipe.bin")  # OpenSlide opens all that lies beside DICOM, and waits for a writer
    assert main(arguments(slides, out, "--time-limit", "15")) == 3
    assert "failed    hangs  TimedOut: took longer than 15 s; look at the slide" in capsys.readouterr().out
    rows, _ = tables(out)
    assert sorted((row["file"], row["status"]) for row in rows) == [
        *[(f"{name}.tiff", "ok") for name in NAMES],
        ("hangs", "failed"),
    ]
    assert list((out / ".staging").iterdir()) == []


def die_on_three(number):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.usefixtures("own_dask")
def test_a_task_that_kills_its_worker_fails_alone():
    with cluster(ClusterOptions(workers=2)) as client:
        outcomes = dict(run_tasks(client, die_on_three, range(12), str))
    assert isinstance(outcomes.pop(3), WorkerDied)
    assert outcomes == {n: n for n in range(12) if n != 3}


def test_only_a_few_tasks_are_with_the_scheduler_at_a_time():
    drawn = []

    def numbers():
        for number in range(200):
            drawn.append(number)
            yield number

    with cluster(ClusterOptions(workers=1)) as client:
        outcomes = run_tasks(client, abs, numbers(), str)
        next(outcomes)
        assert len(drawn) < 20
        assert sum(1 for _ in outcomes) == 199


def test_a_full_disk_is_said_and_loses_nothing(slides, small_disk, capsys):
    out = small_disk / "out"
    assert main(arguments(slides, out)) == 3
    printed = capsys.readouterr().out
    assert "WriteFailed: the disk of the output folder is full; free some space and repeat the command" in printed
    rows, tiles = tables(out)
    ok = {row["slide_id"] for row in rows if row["status"] == "ok"}
    assert 0 < len(ok) < len(NAMES)
    assert {tile["slide_id"] for tile in tiles} == ok
    assert {p.name.removesuffix(".zarr") for p in (out / "stores").iterdir()} == ok

    while True:  # not one byte left, from the start
        try:
            with (small_disk / "filler").open("ab") as file:
                file.write(bytes(4096))
        except OSError:
            break
    assert main(arguments(slides, out)) == 2
    assert "cannot be written (No space left on device); " in capsys.readouterr().err
    assert tables(out)[1] == tiles
    (small_disk / "filler").unlink()

    subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
    assert main(arguments(slides, out)) == 0
    assert len(tables(out)[0]) == len(NAMES)
