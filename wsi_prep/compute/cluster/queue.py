"""What SLURM's queue says of a cluster's jobs: who waits, who has ended, and when it is no use to start more."""

from __future__ import annotations

import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

Say = Callable[[str], None]

LOOK_SECONDS = 10.0
_ASK_SECONDS = 60
_LOOKS_TO_WAIT = 3
_ROUNDS_IN_VAIN = 3
_ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
)
_PURGED = "Invalid job id"
_KEPT = "finished slides are kept: repeat the command to resume"


@dataclass(frozen=True)
class JobState:
    """One job as squeue has it: `state` in its words, and why it is in that state."""

    state: str
    reason: str = ""

    @property
    def ended(self) -> bool:
        """Whether it will not work any more."""
        return self.state in _ENDED

    def __str__(self) -> str:
        return f"{self.state} ({self.reason})" if self.reason not in ("", "None") else self.state


def queue_of(jobs: Iterable[str]) -> dict[str, JobState] | None:
    """The state of each of these jobs that SLURM still knows; None where it does not answer."""
    command = ["squeue", "--noheader", "--states=all", f"--jobs={','.join(jobs)}", "--format=%i|%T|%r"]
    try:
        said = subprocess.run(  # noqa: S603 - the user's own SLURM
            command, capture_output=True, text=True, check=False, timeout=_ASK_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if said.returncode and _PURGED not in said.stderr:
        return None
    lines = [line.split("|", 2) for line in said.stdout.splitlines() if line.count("|") > 1]
    return {number: JobState(state, reason) for number, state, reason in lines}


class Jobs(Protocol):
    """What a watch must know of a cluster of jobs."""

    workers: dict[str, Any]
    """By name: each has `job_id`, `refused` (why SLURM did not take it) and `submitted` (or not yet)."""

    arrivals: int
    """How often a worker has come."""

    gave_up: str
    """Why it is no use to wait for workers, in a line for the user; else empty."""

    @property
    def observed(self) -> set[str]:
        """Names of the workers that are there; a job's begin with its own."""
        ...

    def replace_job(self, name: str, job: Any) -> None:
        """Forget this job, so that another is started in its place."""
        ...


class QueueWatch:
    """Looks at the queue every ten seconds, has ended jobs replaced, and says what holds the work up.

    Where jobs end again and again before a worker comes of them, or SLURM takes none, it gives them up. `output` is
    where a job's output is, with %j for its number.
    """

    def __init__(self, jobs: Jobs, wanted: int, output: Path, say: Say) -> None:
        self._jobs, self._wanted, self._output, self._say = jobs, wanted, output, say
        self._said: set[str] = set()
        self._arrivals = 0
        self._in_vain = self._refusals = self._idle = 0
        self._last = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="slurm-queue", daemon=True)

    def __enter__(self) -> QueueWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while not self._stop.wait(LOOK_SECONDS) and not self._jobs.gave_up:
            self.look()

    def look(self) -> None:
        """Once."""
        held = {name: job for name, job in list(self._jobs.workers.items()) if job.submitted}
        numbers = [job.job_id for job in held.values() if job.job_id]
        states = queue_of(numbers) if numbers else {}
        if states is None or self._stop.is_set():
            return
        if self._jobs.arrivals != self._arrivals:
            self._arrivals, self._in_vain = self._jobs.arrivals, 0
        try:
            at_work = self._jobs.observed
        except RuntimeError:  # a worker came while they were counted
            return
        alive = []
        for name, job in held.items():
            found = states.get(job.job_id or "", JobState("no longer in the queue"))
            if job.refused:
                self._once(f"SLURM does not take a job ({job.refused}); it is asked again every {LOOK_SECONDS:g} s")
            elif not found.ended and job.job_id in states:
                alive.append(found)
                continue
            elif any(worker == name or worker.startswith(f"{name}-") for worker in at_work):
                continue  # its worker takes leave
            else:
                self._ended(job, found)
            self._jobs.replace_job(name, job)
        self._judge([job for job in held.values() if job.refused], alive, idle=not at_work)

    def _ended(self, job: Any, found: JobState) -> None:
        if not job.worked:
            self._in_vain += 1
            self._last = f"job {job.job_id}: {found}; see {self._told_output(job.job_id)}"
            self._once(f"a job ended before a worker came of it ({self._last}); another takes its place", "vain")
        elif found.state != "COMPLETED":
            self._once(f"job {job.job_id} was ended: {found}; another takes its place", found.state)

    def _judge(self, refused: list[Any], alive: list[JobState], *, idle: bool) -> None:
        """Give up where nothing works and nothing will; say what is waited for where nothing works yet."""
        self._refusals = self._refusals + 1 if refused and idle and not alive else 0
        self._idle = self._idle + 1 if idle else 0
        if self._refusals >= _ROUNDS_IN_VAIN:
            self._jobs.gave_up = f"SLURM takes no job ({refused[-1].refused}); {_KEPT}"
        elif idle and self._in_vain >= _ROUNDS_IN_VAIN * self._wanted:
            self._jobs.gave_up = (
                f"{self._in_vain} jobs ended before a worker came of any, the last {self._last}; {_KEPT}"
            )
        elif self._idle >= _LOOKS_TO_WAIT and alive:
            counts = Counter(map(str, alive))
            what = ", ".join(f"{count:,} {state}" for state, count in sorted(counts.items()))
            self._once(f"no worker at the moment; SLURM's jobs: {what}", " ".join(sorted(counts)))

    def _told_output(self, number: str) -> Path:
        return self._output.with_name(self._output.name.replace("%j", number))

    def _once(self, line: str, key: str = "") -> None:
        if (key or line) not in self._said:
            self._said.add(key or line)
            self._say(line)
