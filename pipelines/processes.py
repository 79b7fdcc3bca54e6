"""Several processes of one training, under torchrun."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

from pipelines.calls.training import PretrainCall
from pipelines.command import EXIT_INTERRUPTED, EXIT_OK
from pipelines.spoken import said_again
from pretrain.compute.distributed import of_torchrun
from pretrain.compute.torchrun import run_processes
from wsi_prep.errors import BadOption
from wsi_prep.untrusted.own_folder import own_folder

EXIT_SAVED = 75
_ENDS = "MIXED_MAGNIFICATION_ENDS"


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


def run_together(words: list[str], processes: int) -> int:
    """Start the processes, so many on this machine, and wait; returns their exit code. Raises ProcessDied, BadOption,
    and KeyboardInterrupt where Ctrl-C or a second signal ended them before they could save.

    torchrun does not tell how they ended where it caught a signal: they leave that behind themselves. 128 + the signal
    is of one that left nothing, as it was ended before it could save.
    """
    with tempfile.TemporaryDirectory(prefix="ends-", dir=own_folder(Path(tempfile.gettempdir()))) as folder:
        os.environ[_ENDS] = folder
        try:
            code, caught = run_processes(words)
        finally:
            del os.environ[_ENDS]
        if not caught:
            return code
        codes = [int(file.read_text()) for file in sorted(Path(folder).glob("end-*"))]
    if bad := [each for each in codes if each not in (EXIT_OK, EXIT_SAVED, EXIT_INTERRUPTED)]:
        return bad[0]
    if len(codes) < processes:
        if caught == signal.SIGINT:
            raise KeyboardInterrupt
        return 128 + caught
    if not any(codes):  # they were done when it came
        return EXIT_OK
    return EXIT_INTERRUPTED if caught == signal.SIGINT else EXIT_SAVED


def noted(work: Callable[[], int]) -> int:
    """Do the work of one of several processes; how it ends, its exit code or an error, is left for who started them."""
    code = 1
    try:
        code = work()
    finally:
        if folder := _ends():
            (folder / f"end-{os.environ['RANK']}").write_text(str(code))
    return code


def said_by_another(line: str) -> bool:
    """Whether another process of this machine has said this line: what all of them meet is to be said once."""
    folder = _ends()
    if folder is None:
        return False
    said = folder / f"said-{hashlib.sha256(line.encode()).hexdigest()}"
    own = os.environ["RANK"]
    with contextlib.suppress(FileExistsError):
        said.symlink_to(own)  # at once with what it says, or not at all
    return str(said.readlink()) != own


def _ends() -> Path | None:
    """Where processes that torchrun started leave what they say and how they end."""
    folder = os.environ.get(_ENDS)
    return Path(folder) if folder and of_torchrun() else None
