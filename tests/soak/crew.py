"""The scheduler, the workers and the calls, as real processes; and what is done to them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil

from tests.soak.slides import MAGS
from tests.soak.worlds import World
from tests.support.dask_processes import DaskProcesses, kill
from tests.support.paths import ROOT

TIME_LIMIT_S = 25
_MEMORY = "1GB"
_KEY = "a secret of this soak alone"
_LIFETIME_S = 20


class Crew:
    """One scheduler and about so many workers.

    `done` counts what was done to them. With `spared`, the oldest worker is left alone.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        folder.mkdir()
        os.environ["DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL"] = "20s"
        self.done: Counter[str] = Counter()
        self.dask = DaskProcesses(folder, memory=_MEMORY)
        self.wanted = workers
        self.spared = False
        self._nannies: list[subprocess.Popen] = []
        self._later: list[tuple[float, object]] = []
        for _ in range(workers):
            self.join()

    def close(self) -> None:
        self.dask.__exit__()

    def join(self, *arguments: str) -> None:
        self._nannies.append(self.dask.worker(*arguments))

    def alive(self) -> list[subprocess.Popen]:
        self._nannies = [nanny for nanny in self._nannies if nanny.poll() is None]
        return self._nannies

    def tick(self) -> None:
        """Do what has become due, and let workers join in the place of those that left."""
        due = [work for at, work in self._later if at <= time.monotonic()]
        self._later = [(at, work) for at, work in self._later if at > time.monotonic()]
        for work in due:
            work()

    def settle(self) -> None:
        """End all trouble: nobody is stopped, and all workers are there."""
        for _, work in self._later:
            work()
        self._later = []
        while len(self.alive()) < self.wanted:
            self.join()

    def worker_processes(self) -> list[psutil.Process]:
        """The processes that do the work, oldest first."""
        found = [process for nanny in self.alive() if (process := _working(nanny)) is not None]
        return sorted(found, key=lambda process: process.create_time())

    def do(self, deed: str, number: float, share: float, more: float) -> str:
        """One of the deeds of plan.py to a worker; returns words on it, or "" where there was nobody."""
        if deed == "join for a time":
            self.join("--lifetime", f"{_LIFETIME_S} seconds")
            return self._done("workers joined for a time", f"a worker joins for {_LIFETIME_S} s")
        nannies = self._victims()
        nanny = nannies[int(share * len(nannies))] if nannies else None
        process = _working(nanny) if nanny is not None else None
        if process is None:
            return ""
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if deed in ("leave", "kill machine"):
                nanny.send_signal(signal.SIGTERM) if deed == "leave" else kill(nanny)
                self._join_later(more)
                left = deed == "leave"
                return self._done("workers left" if left else "workers killed with their nanny", deed)
            if deed == "kill worker":
                process.kill()
                return self._done("workers killed", deed)
            process.suspend()
            self._later.append((time.monotonic() + number, lambda: _resume(process)))
            return self._done("workers stopped for a time", f"{deed} for {number:g} s")
        return ""

    def _done(self, what: str, text: str) -> str:
        self.done[what] += 1
        return text

    def _victims(self) -> list[subprocess.Popen]:
        nannies = self.alive()
        if not self.spared:
            return nannies
        oldest = next(iter(self.worker_processes()), None)
        return [nanny for nanny in nannies if oldest is None or _working(nanny) != oldest]

    def _join_later(self, seconds: float) -> None:
        def join() -> None:
            if len(self.alive()) < self.wanted:
                self.join()

        self._later.append((time.monotonic() + seconds, join))

    def sabotage(self, plans: list[dict]) -> None:
        """What tests/support/saboteur.py does in workers from now on."""
        aside = self.dask.folder / "sabotage.new"
        aside.write_text(json.dumps(plans))
        aside.rename(self.dask.folder / "sabotage.json")

    def sabotaged(self) -> int:
        """How often it has happened."""
        return len([p for p in self.dask.folder.glob("sabotage-*.*") if p.suffix[1:].isdecimal()])


class Call:
    """`python -m pipelines.shards` for a world, in a process group of its own."""

    def __init__(self, world: World, crew: Crew, log: Path, *, again: bool) -> None:
        """`again`: all slides, with another JPEG quality."""
        if again:
            world.quality = 175 - world.quality
        self.world, self.log, self.began = world, log, time.monotonic()
        words = ["--slides", world.slides, "--out", world.out, "--manifest", str(world.manifest), "--mags", MAGS]
        words += ["--scheduler", crew.dask.address, "--time-limit", str(TIME_LIMIT_S), "--log", f"{log}.jsonl"]
        words += ["--cache", str(world.folder / "cache"), "--quality", str(world.quality), "--redo"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "WSI_PREP_PATIENT_KEY": _KEY}
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.shards", *words],
                cwd=world.folder,
                env=environment,
                start_new_session=True,
                stdout=file,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
            )

    def end(self, number: int) -> None:
        """Send it a signal, and wait for its end; SIGKILL where it does not go."""
        if self.process.poll() is None and number:
            self.process.send_signal(number)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                kill(self.process)
                raise

    def said(self) -> str:
        return self.log.read_text(errors="replace")


def _working(nanny: subprocess.Popen) -> psutil.Process | None:
    """The process that a nanny watches over, if it is there now."""
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(nanny.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any("spawn_main" in word for word in process.cmdline()):
                    return process
    return None


def _resume(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.resume()
