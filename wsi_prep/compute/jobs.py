"""Work on a Dask cluster: a local one by default, a running one when its scheduler is named."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import dask
from distributed import CancelledError, Client, Future, Security, SpecCluster, as_completed, get_worker
from distributed.scheduler import KilledWorker
from distributed.versions import VersionMismatchWarning

from wsi_prep.compute.cluster.closed import Closed, local_cluster
from wsi_prep.compute.cluster.options import ClusterOptions, SlurmConfig, TlsFiles
from wsi_prep.compute.versions import difference, own_versions
from wsi_prep.errors import BadOption, ClusterLost, SlideError, WrongVersions

Task = TypeVar("Task")
Result = TypeVar("Result")

_IN_FLIGHT_PER_WORKER = 4
_DEATHS_ALLOWED = 1
_CONNECT_SECONDS = 20
_VERSIONS_SECONDS = 30.0
_KEPT_BYTES = 2**28
_STARTED = "task-started"
_WINDOW_SECONDS = 1.0
_PAUSE_SECONDS = 0.1  # as as_completed waits
_ROLES = ("client", "scheduler", "worker")
_GONE_REASONS = ("scheduler-connection-lost", "scheduler-restart")
_LOST = "the scheduler was lost; finished slides are kept: repeat the command to resume"


class WorkerDied(SlideError, RuntimeError):
    """The worker process died on this slide each time that it was tried."""


class TaskLost(SlideError, RuntimeError):
    """Somebody cancelled the task on the cluster."""


class WrongWorker(RuntimeError):
    """A worker that joined late has other versions; (its address, what differs)."""


@contextlib.contextmanager
def cluster(options: ClusterOptions, say: Callable[[str], None] = lambda line: None) -> Iterator[Client]:
    """A client of the named scheduler, of SLURM's jobs, or of a local cluster of one single-threaded process a core.

    What is started here lets nobody else in (cluster/closed.py); a named scheduler is for its operator to close.
    `say` is told, in a thread, what holds SLURM's jobs up; and that a worker does not answer.
    Raises BadOption where no scheduler answers or SLURM takes no job, WrongVersions where a machine has other versions.
    """
    settings = {
        "distributed.scheduler.allowed-failures": _DEATHS_ALLOWED,
        "distributed.worker.multiprocessing-method": "spawn",
        "distributed.logging.distributed": "error",
        # Dask's workers give freed memory back at once, and blocks of pixels fault in anew each time: a quarter slower
        "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": _KEPT_BYTES,
        "distributed.nanny.pre-spawn-environ.MALLOC_MMAP_THRESHOLD_": _KEPT_BYTES,
    }
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # what it says, our errors say in one line
    logging.getLogger("asyncio").addFilter(_not_of_dask)
    with dask.config.set(settings), contextlib.ExitStack() as stack:
        address: Any = options.scheduler
        security = _security(options.tls)
        if address is None:
            address, security = stack.enter_context(_started(options, say))
        client = stack.enter_context(_connected(address, security))
        _require_same_versions(client, say)
        yield client


def _not_of_dask(record: logging.LogRecord) -> bool:
    """False for tracebacks of Dask's own tasks that nobody waits for any more, as after Ctrl-C while results come."""
    error = record.exc_info[1] if record.exc_info else None
    return not type(error).__module__.startswith("distributed.")


def dashboard_link(client: Client) -> str:
    """Where the cluster's dashboard is, or an empty text."""
    return str(client.dashboard_link or "")


def threads_a_task(options: ClusterOptions, tasks: int) -> int:
    """How many threads each of so many tasks may use: a local cluster's cores that would have no task of their own.

    Workers of a named scheduler, or of SLURM, have one core each, so there it is one.
    """
    if options.scheduler is not None or options.slurm is not None:
        return 1
    return max(1, (options.workers or _cores()) // max(1, tasks))


def run_tasks(
    client: Client,
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    key: Callable[[Task], str],
    started: Callable[[str, str], None] | None = None,
) -> Iterator[tuple[Task, Result | BaseException]]:
    """Run `function` on each task and yield the pairs as they finish: the task, and its result or its exception.

    Only a few tasks a worker are with the scheduler at any time, so memory does not grow with their number. When a
    worker dies, every task that it held is suspect; suspects are run again one by one at the end, so that only the one
    that kills workers fails. Raises ClusterLost when the scheduler is gone.

    `started` is told the key of each task that a worker begins, and the worker's address, in a thread of the client.
    """
    work = _Work(function, own_versions(), key if started is not None else None)
    if started is not None:
        client.subscribe_topic(_STARTED, lambda event: started(event[1]["key"], event[1]["worker"]))
    suspects = []
    for task, outcome in _run_together(client, work, tasks, key):
        if isinstance(outcome, WorkerDied):
            suspects.append(task)
        else:
            yield task, outcome
    for suspect in suspects:
        yield from _run_together(client, work, [suspect], lambda task: f"{key(task)}-alone")


@dataclass(frozen=True)
class _Work(Generic[Task, Result]):
    """What a worker calls: `function`, unless its versions are others than the client's."""

    function: Callable[[Task], Result]
    versions: Mapping[str, str]
    announced_as: Callable[[Task], str] | None = None

    def __call__(self, task: Task) -> Result:
        worker = get_worker()
        if differs := difference(self.versions, own_versions()):
            raise WrongWorker(worker.address, differs)
        if self.announced_as is not None:
            worker.log_event(_STARTED, {"key": self.announced_as(task), "worker": worker.address})
        return self.function(task)


def _run_together(
    client: Client, function: Callable[[Task], Result], tasks: Iterable[Task], key: Callable[[Task], str]
) -> Iterator[tuple[Task, Result | BaseException]]:
    waiting = iter(tasks)
    running: dict[str, Task] = {}
    finished = as_completed(loop=client.loop)
    window = _Window(client)

    def submit(some: Iterable[Task]) -> None:
        named = {f"slide-{key(task)}": task for task in some}
        if not named:
            return
        with _lost_if_gone(client):  # without a time to wait for more, later tasks come after all earlier ones
            finished.update(client.map(function, list(named.values()), key=list(named), pure=False, fifo_timeout=0))
        running.update(named)

    def top_up() -> None:
        if gave_up := getattr(client.cluster, "gave_up", ""):
            raise ClusterLost(gave_up)
        submit(islice(waiting, max(0, window.size() - len(running))))

    submit(islice(waiting, window.size()))
    for batch in _batches(finished, top_up):
        submit(islice(waiting, max(0, window.size() - len(running) + len(batch))))  # fewer than none: workers have left
        for future, outcome in zip(batch, _outcomes(client, batch), strict=True):
            task = running.pop(future.key)
            future.release()
            if isinstance(outcome, WrongWorker):
                _send_away(client, outcome)
                submit([task])
            else:
                yield task, outcome


def _batches(finished: as_completed, meanwhile: Callable[[], None]) -> Iterator[list[Future]]:
    """Futures as they finish. `meanwhile` is called while none does: workers may come before the first task is done."""
    while not finished.is_empty():
        if ready := finished.next_batch(block=False):
            yield ready
            continue
        meanwhile()
        with finished.thread_condition:
            finished.thread_condition.wait(_PAUSE_SECONDS)


def _send_away(client: Client, wrong: WrongWorker) -> None:
    """End a worker of other versions; raises WrongVersions where it was the last one."""
    address, differs = wrong.args
    with _lost_if_gone(client):
        client.retire_workers([address], close_workers=True)
        others = client.nthreads()
    if not others:
        raise WrongVersions(f"worker {address} has {differs}, and no other is left; install the same versions there")


class _Window:
    """How many tasks may be with the scheduler; what it says of its workers is asked for once a second at most."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._size, self._asked = 0, float("-inf")

    def size(self) -> int:
        """A few a thread, and a few where no worker has come yet."""
        if time.monotonic() - self._asked > _WINDOW_SECONDS:
            with _lost_if_gone(self._client):
                threads = sum(self._client.nthreads().values())
            self._size, self._asked = max(1, threads) * _IN_FLIGHT_PER_WORKER, time.monotonic()
        return self._size


@contextlib.contextmanager
def _lost_if_gone(client: Client) -> Iterator[None]:
    """Around calls of a client: what fails because its scheduler is gone becomes ClusterLost."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) or client.status != "running":
            raise ClusterLost(_LOST) from error
        raise


def _outcomes(client: Client, futures: list[Future]) -> list[Any]:
    """Each finished task's result or exception; all results are fetched at once, which costs what one costs."""
    results: dict[str, Any] = {}
    fine = [future for future in futures if future.status == "finished"]
    if len(fine) > 1:
        with contextlib.suppress(Exception):  # one that is lost by now; each by itself then
            results = {future.key: result for future, result in zip(fine, client.gather(fine), strict=True)}
    return [results[future.key] if future.key in results else _outcome(future) for future in futures]


def _outcome(future: Future) -> object:
    """A task's result or exception; waits again where the worker that held a finished result died with it."""
    try:
        error = future.exception()
        if error is None:
            return future.result()
    except CancelledError as cancelled:
        error = cancelled
    except Exception as late:  # the second try of a task whose result was lost
        error = late
    if isinstance(error, CancelledError):
        if getattr(error, "reason", "") in _GONE_REASONS:
            raise ClusterLost(_LOST) from error
        return TaskLost("the cluster cancelled this slide; run again")
    if isinstance(error, KilledWorker):
        return WorkerDied(
            "its worker died each time (killed, or out of memory); "
            "look at the slide, or give each worker more memory with fewer WORKERS"
        )
    return error


def _require_same_versions(client: Client, say: Callable[[str], None]) -> None:
    """Raises WrongVersions where the scheduler or a worker has other versions than this process, or not the package."""
    here = own_versions()
    there = {"the scheduler": _scheduler_versions(client)}
    there.update({f"worker {address}": versions for address, versions in _workers_versions(client, say).items()})
    for machine, versions in there.items():
        if isinstance(versions, BaseException):
            reason = " ".join(str(versions).split()) or type(versions).__name__
            raise WrongVersions(f"{machine} cannot load wsi_prep ({reason[:200]}); install this package there")
        if differs := difference(here, versions):
            raise WrongVersions(f"{machine} has {differs}; install the same versions there, as of constraints.txt")


def _workers_versions(client: Client, say: Callable[[str], None]) -> dict[str, Mapping[str, str] | BaseException]:
    """Of each worker that answers. One that leaves or dies meanwhile says nothing, and where one hangs, none does, for
    Dask waits for all answers: each task asks for versions again.
    """
    found: dict[str, Mapping[str, str] | BaseException] = {}
    failed: list[Exception] = []

    def ask() -> None:
        try:
            found.update(client.run(own_versions, on_error="return"))
        except Exception as error:
            failed.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_VERSIONS_SECONDS)
    if asking.is_alive():
        say(f"a worker has not answered for {_VERSIONS_SECONDS:g} s; versions are compared when a worker gets a slide")
        return {}
    if failed:
        raise failed[0]
    # Dask's errors of a connection have no number; those of the system, as of a library that is not there, have
    return {address: told for address, told in found.items() if not isinstance(told, OSError) or told.errno}


def _scheduler_versions(client: Client) -> Mapping[str, str] | BaseException:
    try:
        versions: Mapping[str, str] = client.run_on_scheduler(own_versions)
    except Exception as error:
        return error
    return versions


@contextlib.contextmanager
def _connected(address: str | SpecCluster, security: Security | None) -> Iterator[Client]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VersionMismatchWarning)  # WrongVersions says it in one line
            client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False, security=security)
    except (OSError, ValueError, TypeError) as error:
        encrypted = isinstance(address, str) and address.startswith(("tls", "wss"))
        also = ", and were both sides' certificates made by TLS_CA?" if encrypted else "?"
        raise BadOption(
            f"no Dask scheduler answers at {address}; is it running, and is the address right{also}"
        ) from error
    with client:
        yield client


def _security(tls: TlsFiles | None) -> Security | None:
    """For Dask; None leaves it to Dask's own configuration."""
    if tls is None:
        return None
    ca, cert, key = str(tls.ca), str(tls.cert), str(tls.key)
    roles = {f"tls_{role}_{what}": path for role in _ROLES for what, path in (("cert", cert), ("key", key))}
    return Security(tls_ca_file=ca, require_encryption=True, **roles)


@contextlib.contextmanager
def _started(options: ClusterOptions, say: Callable[[str], None]) -> Iterator[tuple[SpecCluster, Security]]:
    """A cluster of this call's own, and what a client must show it; Dask is configured for it as long as it runs."""
    own = _security(options.tls)
    closed = Closed(dashboard=options.dashboard) if own is None else Closed(own, options.dashboard)
    with dask.config.set(closed.settings):
        slurm, workers = options.slurm, options.workers or _cores()
        with local_cluster(workers, closed) if slurm is None else _slurm(slurm, closed, say) as running:
            yield running, closed.security


def _slurm(
    config: SlurmConfig, closed: Closed, say: Callable[[str], None]
) -> contextlib.AbstractContextManager[SpecCluster]:
    before = signal.getsignal(signal.SIGINT)
    try:
        from wsi_prep.compute.cluster.slurm import slurm_cluster  # noqa: PLC0415 - only where SLURM is asked for
    except ImportError as error:
        raise BadOption("CLUSTER=slurm needs the package dask-jobqueue; install the extra [shards]") from error
    finally:
        # dask-jobqueue, when it is imported, has Ctrl-C end the process with 0
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
    return slurm_cluster(config, closed, say)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
