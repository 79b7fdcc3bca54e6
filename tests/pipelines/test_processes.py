"""How several processes of one call end together after a signal, and what they say."""

import signal

import pytest

from pipelines.processes import run_together

pytestmark = pytest.mark.long


@pytest.mark.parametrize(
    ("codes", "together"),
    [
        (("75", "75"), 75),
        (("0", "0"), 0),  # done when the signal came
        (("75", "3"), 3),  # one could not save
        (("75", "-"), 128 + signal.SIGTERM),  # one was killed before it could
    ],
)
def test_after_sigterm_the_exit_code_is_true_and_a_line_is_said_once(codes, together, tmp_path, capfd):
    ready = tmp_path / "ready"
    ready.mkdir()
    meeting = ["--rdzv-backend=c10d", "--rdzv-conf=store_type=file", f"--rdzv-endpoint={tmp_path / 'meeting'}"]
    program = ["-m", "--", "tests.support.one_that_notes", str(ready), *codes]
    assert run_together(["--nproc-per-node=2", *meeting, "--rdzv-id=test", *program], 2) == together
    said = capfd.readouterr().err.splitlines()
    assert said.count("pretrain: the disk is full") == 2  # of the one process that said it twice
    assert {line for line in said if "is here" in line} == {f"pretrain: process {rank} is here" for rank in (0, 1)}
