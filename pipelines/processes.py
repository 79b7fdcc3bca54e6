"""Several processes of one training, under torchrun."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import uuid
from pathlib import Path

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError

from pipelines.calls.training import PretrainCall
from pipelines.command import EXIT_INTERRUPTED
from pipelines.spoken import said_again
from pretrain.errors import ProcessDied
from wsi_prep.errors import BadOption, first_line
from wsi_prep.untrusted.own_folder import own_folder

EXIT_SAVED = 75
_TO_SAVE_S = 300
"""How long the processes may take for their last step and its checkpoint, once they are told to end."""


def wants_processes(call: PretrainCall) -> bool:
    """Whether this process is to start those that train; they get the same call."""
    return "TORCHELASTIC_RUN_ID" not in os.environ and (call.gpus, call.nodes, call.head) != (None, None, None)


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
    """Start the processes and wait for them; returns their exit code. Raises ProcessDied, BadOption.

    A first signal ends them after their step, saved; by a second one they end at once, and this raises
    KeyboardInterrupt.
    """
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):  # the processes say what there is to know
            logging.getLogger(name).setLevel(logging.CRITICAL)
    given = torchrun.parse_args(words)  # type: ignore[no-untyped-call]
    if hasattr(given, "shutdown_timeout"):
        given.shutdown_timeout = _TO_SAVE_S
    try:
        torchrun.run(given)  # type: ignore[no-untyped-call]
    except SignalException as caught:
        if _end_children(caught.sigval):
            raise KeyboardInterrupt from None
        return EXIT_INTERRUPTED if caught.sigval == signal.SIGINT else EXIT_SAVED
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode
        name = signal.Signals(-failure.exitcode).name
        why = "; its machine may be out of memory" if name == "SIGKILL" else ""
        raise ProcessDied(
            f"process {number} was ended by {name}{why}; repeat the command to continue from the last checkpoint"
        ) from None
    except RendezvousError as error:
        raise BadOption(f"the machines do not meet at --head {given.rdzv_endpoint} ({first_line(error)})") from error
    return 0


def _end_children(number: signal.Signals) -> bool:
    """Pass a second signal on, and wait: torchrun leaves its processes then, which are in sessions of their own.

    Returns whether there were any.
    """
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    left = False
    with contextlib.suppress(FileNotFoundError):  # this is no Linux
        for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(int(child), number)
                os.waitpid(int(child), 0)
                left = True
    return left
