"""Several processes of one training, under torchrun."""

from __future__ import annotations

import os
import signal
import tempfile
import uuid
from pathlib import Path

from pipelines.calls.training import PretrainCall
from pipelines.command import EXIT_INTERRUPTED
from pipelines.spoken import said_again
from pretrain.compute.distributed import of_torchrun
from pretrain.compute.torchrun import run_processes
from wsi_prep.errors import BadOption
from wsi_prep.untrusted.own_folder import own_folder

EXIT_SAVED = 75


def wants_processes(call: PretrainCall) -> bool:
    """Whether this process is to start those that train; they get the same call."""
    return not of_torchrun() and (call.gpus, call.nodes, call.head) != (None, None, None)


def torchrun_words(call: PretrainCall, run: Path, module: str, words: list[str]) -> list[str]:
    """What torchrun is told to start the processes of a call, each as `python -m MODULE WORDS`; raises BadOption.

    On one machine they meet in a file of the user's, and not on a port, because each runs what it is told there.
    """
    for option, count in (("--gpus", call.gpus), ("--nodes", call.nodes)):
        if count is not None and count < 1:
            raise BadOption(f"{option} {count} is no whole number of at least 1")
    if call.head is None and call.nodes is not None:
        raise BadOption("--nodes needs --head host:port, the machine where the others meet")
    if call.head is None:
        name = uuid.uuid4().hex
        file = own_folder(Path(tempfile.gettempdir())) / f"torchrun-{name}"
        meeting = ["--rdzv-conf=store_type=file", f"--rdzv-endpoint={file}"]
    else:
        name = os.environ.get("SLURM_JOB_ID") or str(run)
        meeting = [f"--nnodes={call.nodes or 1}", f"--rdzv-endpoint={call.head}"]
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # as under nohup, which torchrun would undo
        meeting.append("--signals-to-handle=SIGTERM,SIGINT,SIGQUIT")
    start = [f"--nproc-per-node={call.gpus or 1}", "--rdzv-backend=c10d", *meeting, f"--rdzv-id={name}", "-m"]
    # the dashes: torchrun would look for options of its own in the words, and find that --run may be its --run-path
    return [*start, "--", *said_again(module, words)]


def run_together(words: list[str]) -> int:
    """Start the processes and wait for them; returns their exit code. Raises what torchrun.run_processes does."""
    code, caught = run_processes(words)
    if not caught:
        return code
    return EXIT_INTERRUPTED if caught == signal.SIGINT else EXIT_SAVED
