"""torchrun, in this process: what it starts, how that ends, and in whose words."""

from __future__ import annotations

import logging
import signal

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError

from pretrain.errors import ProcessDied
from wsi_prep.errors import BadOption, first_line

_TO_SAVE_S = 300
"""How long the processes may take for their last step and its checkpoint, once they are told to end."""


_CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
"""Signals that torchrun takes for itself, and does not give back."""


def run_processes(words: list[str]) -> tuple[int, int]:
    """Start processes as torchrun's `words` say, and wait; returns the exit code of the first that failed, or 0, and
    the signal that ended them, or 0. Raises ProcessDied, BadOption.

    A first signal ends them after their step, saved; by a second one they end at once, and this raises
    KeyboardInterrupt.
    """
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):  # the processes say what there is to know
            logging.getLogger(name).setLevel(logging.CRITICAL)
    before = {number: signal.getsignal(number) for number in _CAUGHT}
    given = torchrun.parse_args(words)  # type: ignore[no-untyped-call]
    if hasattr(given, "shutdown_timeout"):
        given.shutdown_timeout = _TO_SAVE_S
    try:
        torchrun.run(given)  # type: ignore[no-untyped-call]
    except SignalException as caught:
        if isinstance(caught.__context__, SignalException):  # while it waited, and passed the first one on
            raise KeyboardInterrupt from None
        return 0, caught.sigval
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        if failure.exitcode > 0:
            return failure.exitcode, 0
        name = signal.Signals(-failure.exitcode).name
        why = "; its machine may be out of memory" if name == "SIGKILL" else ""
        raise ProcessDied(
            f"process {number} was ended by {name}{why}; repeat the command to continue from the last checkpoint"
        ) from None
    except RendezvousError as error:
        raise BadOption(f"the machines do not meet at --head {given.rdzv_endpoint} ({first_line(error)})") from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0, 0
