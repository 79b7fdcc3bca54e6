"""Several processes of one training, under torchrun."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import uuid
from pathlib import Path

from pipelines.calls.training import PretrainCall
from wsi_prep.errors import BadOption
from wsi_prep.untrusted.own_folder import own_folder


def of_torchrun() -> bool:
    """Whether torchrun has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def wants_processes(call: PretrainCall) -> bool:
    """Whether this process is to start those that train; they get the same call."""
    return not of_torchrun() and (call.gpus, call.nodes, call.head) != (None, None, None)


def torchrun(call: PretrainCall, run: Path, module: str, words: list[str]) -> list[str]:
    """The command that starts the processes of a call, each as `python -m MODULE WORDS`; raises BadOption.

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
    start = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={call.gpus or 1}"]
    return [*start, "--rdzv-backend=c10d", *meeting, f"--rdzv-id={name}", "-m", module, *words]
