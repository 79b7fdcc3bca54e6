"""SIGTERM, Ctrl-C and SIGHUP, by which a person, a scheduler or a lost connection ends a run that is to be saved."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from pretrain.compute import distributed

_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PASSED_ON_SECONDS = 5.0


class Signals:
    """SIGTERM, SIGINT and SIGHUP end the run after the step; with several processes, when all know of it.

    `heard` is told the first one's number at once, in a thread, however long the step takes. A second one does what it
    always does; but of SIGHUP a lost terminal sends several. Where it is ignored, as under nohup, it stays ignored.
    Under torchrun, what comes within five seconds of the first is the same signal: where a scheduler such as SLURM
    sends it to every process of a job, torchrun passes its own on.
    """

    def __init__(self, heard: Callable[[int], None]) -> None:
        self.caught = 0
        self._heard = heard
        self._flag = distributed.Flag()
        self._before: dict[int, Any] = {}
        self._passed_on = distributed.of_torchrun()
        self._heard_at = 0.0

    def __enter__(self) -> Signals:
        self._numbers, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._woken_before = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        self._listener = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._listener.start()
        for number in _ENDING:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._woken_before)
        os.close(self._wake)
        self._listener.join()
        os.close(self._numbers)

    def agreed(self) -> bool:
        """Whether the run is to end here; every process must ask."""
        if self._flag.said(bool(self.caught)):
            self.caught = self.caught or signal.SIGTERM
            return True
        return False

    def _catch(self, number: int, _frame: FrameType | None) -> None:
        first = not self.caught
        self.caught = number
        if first:
            self._heard_at = time.monotonic()
        if number == signal.SIGHUP:
            return
        if not self._passed_on:
            signal.signal(number, self._before[number])
        elif not first and time.monotonic() - self._heard_at > _PASSED_ON_SECONDS:
            signal.signal(number, self._before[number])
            signal.raise_signal(number)

    def _listen(self) -> None:
        """Python writes each signal's number to the pipe as it comes, long before it calls `_catch`."""
        said = False
        while number := os.read(self._numbers, 1):
            if number[0] in _ENDING and not said:
                said = True
                self._heard(number[0])
