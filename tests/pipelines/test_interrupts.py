"""Ctrl-C from the first moment on, and output that nobody reads any more: real processes, signals, pipes and disks."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from pipelines.recipe import main as recipe
from pipelines.shards import main as shards
from tests.support.dask_processes import wait_until
from tests.support.paths import ROOT
from tests.support.undisturbed import copies, tables


def begun(module, *arguments, **environment):
    """`python -m module` in a process group of its own, as a shell begins it; both outputs are one pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509 - it may be ignored
    )


def interrupted(process, when):
    """What it says and its exit code, when Ctrl-C comes once a file is there."""
    wait_until(when.exists, process)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate()  # ends when no process holds the pipe any more
    return said, process.returncode


@pytest.mark.parametrize("words", [["pipelines.shards"], ["pipelines.mixmag", "shards"], ["pipelines.train"]])
@pytest.mark.slow
def test_ctrl_c_while_a_command_is_loaded_is_one_line(tmp_path, words):
    for library in ("dask", "torch"):  # which take seconds to load; here they take until the signal comes
        code = f"import pathlib, signal\npathlib.Path({str(tmp_path / 'loading')!r}).touch()\nsignal.pause()\n"
        (tmp_path / f"{library}.py").write_text(code)
    process = begun(*words, PYTHONPATH=str(tmp_path))
    assert interrupted(process, tmp_path / "loading") == ("interrupted\n", 130)


@pytest.mark.cluster
@pytest.mark.slow
def test_ctrl_c_while_workers_start_ends_the_run_and_them(tmp_path):
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides/a.svs").write_text("no slide")
    os.mkfifo(tmp_path / "never")
    code = f"open({str(tmp_path / 'starting')!r}, 'w').close()\nopen({str(tmp_path / 'never')!r}).read()\n"
    (tmp_path / "wait.py").write_text(code)
    preload = {"DASK_DISTRIBUTED__WORKER__PRELOAD": str(tmp_path / "wait.py")}
    out = tmp_path / "out"
    process = begun("pipelines.shards", "--slides", tmp_path / "slides", "--out", out, "--workers", 2, **preload)
    said, code = interrupted(process, tmp_path / "starting")
    assert said == "shards: interrupted; finished slides are kept: repeat the command to resume\n"
    assert code == 130


@contextmanager
def nobody_reads(monkeypatch, *names):
    """These streams of this process are pipes whose readers have left."""
    with monkeypatch.context() as patched:
        for name in names:
            reading, writing = os.pipe()
            os.close(reading)
            patched.setattr(sys, name, os.fdopen(writing, "w"))
        yield
        for name in names:
            getattr(sys, name).close()  # says nothing of what could not be written


@pytest.mark.cluster
@pytest.mark.usefixtures("shared_dask")
def test_slides_are_finished_where_nobody_reads_the_output(nompp_slide, tmp_path, monkeypatch):
    slides, out = copies(nompp_slide, tmp_path / "slides", "a"), tmp_path / "out"
    (slides / "c.svs").write_text("no slide")
    with nobody_reads(monkeypatch, "stdout", "stderr"):
        assert shards(["--slides", str(slides), "--out", str(out), "--assume-mpp", "0.5"]) == 3
    assert sorted(row["status"] for row in tables(out)[0]) == ["failed", "ok"]
    assert '"ok":1' in (out / "run.json").read_text().replace(" ", "")
    with nobody_reads(monkeypatch, "stdout"):
        assert shards(["--slides", str(slides / "a.tiff"), "--out", str(out), "--assume-mpp", "0.5"]) == 0


def test_lines_that_a_full_disk_takes_are_missed(monkeypatch, capsys):
    with open("/dev/full", "w") as full, monkeypatch.context() as patched:  # noqa: PTH123
        patched.setattr(sys, "stdout", full)
        assert recipe([]) == 3
    said = capsys.readouterr().err
    assert said == "recipe: standard output cannot be written (No space left on device); some lines are not shown\n"
