"""Work on a Dask cluster: a local one by default, a running one when its scheduler is named."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import dask
from distributed import CancelledError, Client, LocalCluster, as_completed
from distributed.scheduler import KilledWorker

from wsi_prep.errors import BadOption, SlideError

Task = TypeVar("Task")
Result = TypeVar("Result")

_IN_FLIGHT_PER_WORKER = 4
_DEATHS_ALLOWED = 1
_CONNECT_SECONDS = 20
_KEPT_BYTES = 2**28


class WorkerDied(SlideError, RuntimeError):
    """The worker process died on this slide each time that it was tried."""


class TaskLost(SlideError, RuntimeError):
    """The cluster gave a task up: cancelled, or its scheduler went away."""


@contextlib.contextmanager
def cluster(scheduler: str | None, workers: int | None) -> Iterator[Client]:
    """A client of the named scheduler, or of a local cluster of one single-threaded process a core."""
    if workers is not None and workers < 1:
        raise BadOption(f"workers is {workers}; it must be at least 1")
    settings = {
        "distributed.scheduler.allowed-failures": _DEATHS_ALLOWED,
        "distributed.worker.multiprocessing-method": "spawn",
        "distributed.logging.distributed": "error",
        # Dask's workers give freed memory back at once, and blocks of pixels fault in anew each time: a quarter slower
        "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": _KEPT_BYTES,
        "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": _KEPT_BYTES,
    }
    with dask.config.set(settings), contextlib.ExitStack() as stack:
        address: Any = scheduler or stack.enter_context(_local_cluster(workers))
        try:
            client = stack.enter_context(Client(address, timeout=_CONNECT_SECONDS, set_as_default=False))
        except (OSError, ValueError) as error:
            raise BadOption(
                f"no Dask scheduler answers at {scheduler}; is it running, and is the address right?"
            ) from error
        yield client


def dashboard_link(client: Client) -> str:
    """Where the cluster's dashboard is, or an empty text."""
    return str(client.dashboard_link or "")


def run_tasks(
    client: Client, function: Callable[[Task], Result], tasks: Iterable[Task], key: Callable[[Task], str]
) -> Iterator[tuple[Task, Result | BaseException]]:
    """Run `function` on each task and yield the pairs as they finish: the task, and its result or its exception.

    Only a few tasks a worker are with the scheduler at any time, so memory does not grow with their number. When a
    worker dies, every task that it held is suspect; suspects are run again one by one at the end, so that only the one
    that kills workers fails.
    """
    suspects = []
    for task, outcome in _run_together(client, function, tasks, key):
        if isinstance(outcome, WorkerDied):
            suspects.append(task)
        else:
            yield task, outcome
    for task in suspects:
        future = client.submit(function, task, key=f"slide-{key(task)}-alone", pure=False)
        yield task, _outcome(future)


def _run_together(
    client: Client, function: Callable[[Task], Result], tasks: Iterable[Task], key: Callable[[Task], str]
) -> Iterator[tuple[Task, Result | BaseException]]:
    waiting = iter(tasks)
    running: dict[str, Task] = {}
    finished = as_completed(loop=client.loop)

    def submit(count: int) -> None:
        for task in islice(waiting, max(0, count)):  # fewer than none when workers have left
            future = client.submit(function, task, key=f"slide-{key(task)}", pure=False)
            running[future.key] = task
            finished.add(future)

    submit(_window(client))
    for future in finished:
        task = running.pop(future.key)
        outcome = _outcome(future)
        future.release()
        submit(_window(client) - len(running))
        yield task, outcome


def _window(client: Client) -> int:
    threads = sum(client.nthreads().values())
    return int(max(1, threads) * _IN_FLIGHT_PER_WORKER)


def _outcome(future: Any) -> Any:
    """A task's result or exception; waits again where the worker that held a finished result died with it."""
    try:
        error = future.exception()
        if error is None:
            return future.result()
    except CancelledError:
        error = CancelledError()
    except Exception as late:  # the second try of a task whose result was lost
        error = late
    if isinstance(error, CancelledError):
        return TaskLost("the cluster cancelled this slide; run again")
    if isinstance(error, KilledWorker):
        return WorkerDied(
            "its worker died each time (killed, or out of memory); "
            "look at the slide, or give each worker more memory with fewer WORKERS"
        )
    return error


def _local_cluster(workers: int | None) -> LocalCluster:
    with _interrupts_ignored():
        return LocalCluster(
            n_workers=workers or _cores(),
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs="CRITICAL",
        )


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes started here ignore Ctrl-C for good: the client alone answers it, and ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
