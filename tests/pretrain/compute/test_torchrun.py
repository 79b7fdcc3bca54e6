"""How processes that torchrun started end, as their caller learns it."""

import signal

import pytest

from pretrain.compute.torchrun import run_processes
from pretrain.errors import ProcessDied


def words(folder, *of_each):
    meeting = ["--rdzv-backend=c10d", "--rdzv-conf=store_type=file", f"--rdzv-endpoint={folder / 'meeting'}"]
    return ["--nproc-per-node=2", *meeting, "--rdzv-id=test", "-m", "--", "tests.support.one_of_several", *of_each]


@pytest.mark.slow
def test_the_exit_code_is_that_of_the_process_that_failed_first(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    assert run_processes(words(tmp_path, "1", "75")) == (75, 0)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_a_process_that_is_killed_is_named_with_what_to_do(tmp_path):
    why = "process 1 was ended by SIGKILL; its machine may be out of memory; repeat the command to continue"
    with pytest.raises(ProcessDied, match=why):
        run_processes(words(tmp_path, "1", "killed"))
