"""Ctrl-C as a terminal sends it, to a whole pipe line and twice; and a run that goes on with its own shards."""

import contextlib
import os
import queue
import shutil
import signal
import subprocess

import pytest

from pipelines.train import EXIT_SAVED, main
from pretrain.train.checkpoint import latest_step
from pretrain.train.watch.signals import Signals
from tests.support.dask_processes import wait_until
from tests.support.paths import ROOT
from tests.support.training import TINY, command, losses, make_shards, run

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def with_sighup():
    """As in a terminal, also where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("shards") / "out")


@contextlib.contextmanager
def begun(words):
    """In a process group of its own, both outputs one pipe, as for `2>&1 | tee`; none outlives a test that fails."""
    with subprocess.Popen(
        words,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise


def until(process, beginning):
    """The first line that begins so; the test's time limit ends what says none."""
    return next(line for line in process.stdout if line.startswith(beginning))


@pytest.mark.long
def test_ctrl_c_saves_the_step_where_tee_ends_before_the_run(shards, tmp_path):
    with begun(command(shards, tmp_path / "run", "schedule.steps=100000", "saving.every=100000")) as process:
        until(process, "step      3")
        process.stdout.close()
        wait_until(lambda: len(losses(tmp_path / "run")) > 10, process)  # it goes on where nobody reads
        os.killpg(process.pid, signal.SIGINT)
    assert process.returncode == 130
    step = latest_step(tmp_path / "run/checkpoints")
    assert step > 10
    assert [number for number, *_ in losses(tmp_path / "run")] == list(range(step))


@pytest.mark.long
def test_a_lost_terminal_saves_the_step(shards, tmp_path):
    """Whose output cannot be written any more, and which sends SIGHUP by the shell and by the kernel."""
    with begun(command(shards, tmp_path / "run", "schedule.steps=100000", "saving.every=100000")) as process:
        until(process, "step      3")
        process.stdout.close()
        for _ in range(2):
            os.killpg(process.pid, signal.SIGHUP)
    assert process.returncode == EXIT_SAVED
    assert [number for number, *_ in losses(tmp_path / "run")] == list(range(latest_step(tmp_path / "run/checkpoints")))


@pytest.mark.long
def test_ctrl_c_saves_the_step_of_several_processes_without_a_traceback(shards, tmp_path):
    """They are in sessions of their own, under torchrun, which has tracebacks of its own."""
    words = command(shards, tmp_path / "run", "schedule.steps=100000", "saving.every=100000", processes=2)
    with begun(words) as process:
        until(process, "step      3")
        os.killpg(process.pid, signal.SIGINT)
        said = process.stdout.read()
    assert process.returncode == 130
    assert "stopping after this step, then saving" in said
    assert "Traceback" not in said
    step = latest_step(tmp_path / "run/checkpoints")
    assert [number for number, *_ in losses(tmp_path / "run")] == list(range(step))


def test_sighup_is_told_once_and_left_alone_where_it_is_ignored():
    told = queue.Queue()
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with Signals(told.put) as signals:
            signal.raise_signal(signal.SIGHUP)
            signal.raise_signal(signal.SIGHUP)
            assert (signals.caught, told.get()) == (signal.SIGHUP, signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Signals(told.put) as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.caught == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert told.empty()


def test_what_torchrun_passes_on_is_no_second_signal(monkeypatch):
    """Where a scheduler sends SIGTERM to every process of a job, each hears it twice."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    ended = []
    before = signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    try:
        with Signals(lambda _: None) as signals:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)
            assert (signals.caught, ended) == (signal.SIGTERM, [])
            monkeypatch.setattr("pretrain.train.watch.signals._PASSED_ON_SECONDS", 0.0)
            signal.raise_signal(signal.SIGTERM)  # a person's, later
            assert ended == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


ENDLESS_STEP = """
import os, select, signal, sys
from pipelines.train import main
from pretrain.train.loop import Trainer

def step(*_):
    os.write(1, b"a step that does not end\\n")
    while signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        select.select([], [], [], 0.02)
    os.write(1, b"the second one ends it\\n")
    while True:
        select.select([], [], [])

signal.signal(signal.SIGINT, signal.default_int_handler)
Trainer.step = step
sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_is_answered_at_once_and_a_second_one_ends_the_run_without_saving(shards, tmp_path):
    python, _, _, *words = command(shards, tmp_path / "run")
    with begun([python, "-c", ENDLESS_STEP, *words]) as process:
        until(process, "a step that does not end")
        os.killpg(process.pid, signal.SIGINT)
        said = {next(process.stdout), next(process.stdout)}
        assert said == {
            "pretrain: stopping after this step, then saving; Ctrl-C again ends without saving\n",
            "the second one ends it\n",
        }
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.read() == "pretrain: interrupted; no step is saved: repeat the command to begin again\n"
    assert process.returncode == 130
    assert latest_step(tmp_path / "run/checkpoints") is None


@pytest.mark.long
def test_a_run_goes_on_with_its_own_shards_and_filter(shards, tmp_path, capsys):
    own = shutil.copytree(shards, tmp_path / "own")
    only = ["--where", "stain = 'HE'"]
    assert main([*command(own, tmp_path / "run", stop_at=2)[3:], *only]) == 0
    again = ["--run", str(tmp_path / "run"), "--index", str(tmp_path / "index"), "--stop-at", "3"]
    assert main(again) == 0
    said = capsys.readouterr()
    assert f"note: SHARDS is not named; the run continues with its own: {own}, where stain = 'HE'\n" in said.out
    assert "other tiles" not in said.out
    assert latest_step(tmp_path / "run/checkpoints") == 3
    own.rename(tmp_path / "elsewhere")
    assert main(again) == 2
    assert capsys.readouterr().err == (
        f"pretrain: RUN={tmp_path / 'run'} needs SHARDS: it had {own}, and {own} is no folder of shards here\n"
    )
    assert main([*again[:-1], "4", "--shards", str(tmp_path / "elsewhere"), *only]) == 0


def test_a_url_that_a_run_names_is_not_asked(shards, tmp_path, capsys):
    assert run(shards, tmp_path / "run", stop_at=1) == 0
    file = tmp_path / "run/run.json"
    file.write_text(file.read_text().replace(str(shards), "s3://bucket/shards"))
    capsys.readouterr()
    assert main(["--run", str(tmp_path / "run")]) == 2
    assert "needs SHARDS: it had s3://bucket/shards" in capsys.readouterr().err


def test_a_new_run_takes_the_folder_shards(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["--run", "run", "--set", *TINY]) == 2
    assert "shards holds no catalog/slides" in capsys.readouterr().err
