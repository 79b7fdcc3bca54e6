"""Workers as jobs of SLURM: the only file that knows dask-jobqueue. The scheduler is in the calling process."""

from __future__ import annotations

import contextlib
import copy
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
from dask_jobqueue import SLURMCluster
from dask_jobqueue.slurm import SLURMJob
from distributed import Security, SpecCluster
from distributed.core import Status

from wsi_prep.compute.cluster.closed import LOOPBACK, UNWATCHED, Closed, ClosedScheduler
from wsi_prep.compute.cluster.options import SlurmConfig
from wsi_prep.compute.cluster.queue import QueueWatch, Say
from wsi_prep.errors import BadOption

_STAGGER_SECONDS = 60
_REPLACED = "--no-requeue"  # SLURM would wait two minutes before it starts a job of a failed node again

_CLOSED_WORKER = (
    "export DASK_DISTRIBUTED__WORKER__HTTP__ROUTES='[]'",
    "scratch=$(mkdir -p {parent} && mktemp -d {parent}/wsi-prep-XXXXXXXXXX) || exit 1",
    "trap 'rm -rf \"$scratch\"' EXIT",
)
"""Shell lines before a worker starts: no pages, and a folder of this user alone for what Dask puts on disk."""

_UNWATCHED = tuple(
    f"export DASK_{name.upper().replace('.', '__').replace('-', '_')}={value}" for name, value in UNWATCHED.items()
)


@contextlib.contextmanager
def slurm_cluster(config: SlurmConfig, closed: Closed, say: Say) -> Iterator[SLURMCluster]:
    """Each ended job is replaced by another while there is work; `say` is told what holds it up.

    Raises BadOption where SLURM is not here, or would not take such a job.
    """
    if shutil.which("sbatch") is None:
        raise BadOption("CLUSTER=slurm needs sbatch on the PATH; run this on a machine that may submit jobs")
    with (
        _sigterm_as_ctrl_c(),
        _security_of_jobs(closed.security, config) as security,
        _jobs(config, security, closed) as jobs,
    ):
        with _script(jobs.job_script()) as script:
            tried = subprocess.run(  # noqa: S603 - the user's own SLURM
                ["sbatch", "--test-only", script],  # noqa: S607
                capture_output=True,
                text=True,
                check=False,
            )
        if tried.returncode:
            raise BadOption(
                f"SLURM takes no such job ({_reason(tried.stderr)}); correct CLUSTER_CONFIG, or see by sinfo whether "
                "its nodes are up"
            )
        least = config.jobs if config.minimum_jobs is None else config.minimum_jobs
        jobs.adapt(minimum_jobs=least, maximum_jobs=config.jobs)
        output = f"{jobs.job_name}-%j.err" if config.log_directory else "slurm-%j.out"
        with QueueWatch(jobs, config.jobs, Path(config.log_directory or "").absolute() / output, say):
            yield jobs


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Where the call is a job itself, SLURM ends it by SIGTERM: its workers' jobs and its certificates go with it."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _security_of_jobs(security: Security, config: SlurmConfig) -> Iterator[Security]:
    """The same certificates as files that jobs can read, and nobody else; gone when the call ends."""
    parent = Path(config.shared_directory).expanduser().absolute()
    made, folder = copy.copy(security), contextlib.ExitStack()
    with folder:
        try:
            place = folder.enter_context(tempfile.TemporaryDirectory(prefix=".wsi-prep-", dir=parent))
            for name in ("tls_ca_file", "tls_worker_cert", "tls_worker_key"):
                text = getattr(security, name)
                if "\n" in text:
                    setattr(made, name, _written(Path(place, f"{name}.pem"), text))
        except OSError as error:
            raise BadOption(
                f"no certificates can be kept in {parent} ({error.strerror}); "
                "name a folder that the nodes see as shared_directory in CLUSTER_CONFIG"
            ) from error
        given = (made.tls_ca_file, made.tls_worker_cert, made.tls_worker_key)
        if unfit := [path for path in given if path != shlex.quote(path)]:
            raise BadOption(f"a job's script cannot name {unfit[0]}; choose a path of letters, digits, /, ., - and _")
        yield made


def _written(path: Path, text: str) -> str:
    path.touch(mode=0o600)
    path.write_text(text, encoding="ascii")
    return str(path)


class _Cluster(SLURMCluster):  # type: ignore[misc]
    """Jobs that end when SLURM says so; see queue.Jobs."""

    arrivals = 0
    gave_up = ""

    def replace_job(self, name: str, job: _Job) -> None:
        """See queue.Jobs; what adapts the cluster starts the other one within a second."""
        self.loop.add_callback(self._forget, name, job)

    def _forget(self, name: str, job: _Job) -> None:
        if self.workers.get(name) is job:
            job.status = Status.closed
            del self.workers[name]

    def _update_worker_status(self, op: str, msg: Any) -> None:
        """Without SpecCluster's own guess, 15 s after a worker has left, that its job has ended.

        It does not know jobs of several workers, and takes the next job of that name for the one that ended.
        """
        if op == "add":
            self.arrivals += 1
            for worker in msg["workers"].values():
                for name, job in self.workers.items():
                    job.worked = job.worked or worker["name"] == name or str(worker["name"]).startswith(f"{name}-")
        super(SpecCluster, self)._update_worker_status(op, msg)


def _jobs(config: SlurmConfig, security: Security, closed: Closed) -> _Cluster:
    parent = config.local_directory or dask.config.get("jobqueue.slurm.local-directory") or "${TMPDIR:-/tmp}"
    return _Cluster(
        job_cls=_Job,
        cores=config.cores,
        processes=config.cores,
        memory=config.memory,
        queue=config.queue,
        account=config.account,
        walltime=config.walltime,
        interface=config.interface,
        python=config.python,
        local_directory='"$scratch"',
        log_directory=config.log_directory,
        job_script_prologue=[
            *config.prologue,
            *(() if closed.dashboard else _UNWATCHED),
            *(line.replace("{parent}", parent) for line in _CLOSED_WORKER),
        ],
        job_extra_directives=[_REPLACED, *config.directives],
        worker_extra_args=[
            *("--lifetime", f"{config.lifetime_seconds}s"),
            *("--lifetime-stagger", f"{min(_STAGGER_SECONDS, config.lifetime_seconds // 5)}s"),
            *("--no-dashboard", "--dashboard-address", f"{LOOPBACK}:0"),
        ],
        security=security,
        silence_logs="CRITICAL",
        scheduler_cls=ClosedScheduler,
        scheduler_options=closed.scheduler_options,
    )


class _Job(SLURMJob):  # type: ignore[misc]
    """A job whose script nobody else can put another in place of.

    `refused`: why SLURM did not take it. `worked`: whether a worker has come of it.
    """

    refused = ""
    worked = False

    @property
    def submitted(self) -> bool:
        """Whether SLURM has answered."""
        return bool(self.job_id or self.refused)

    async def start(self) -> None:
        """Submit it. A refusal is kept, not raised: the cluster would count it as started, and wait for ever."""
        try:
            await super().start()
        except (RuntimeError, ValueError) as error:
            self.refused = _reason(str(error).partition("stderr:")[2] or str(error))
            self.status = Status.running

    async def close(self) -> None:
        """Cancel it."""
        await super().close()
        self.status = Status.closed

    @contextlib.contextmanager
    def job_file(self) -> Iterator[str]:
        """The script as a file, while it is submitted."""
        with _script(self.job_script()) as path:
            yield path


def _reason(said: str) -> str:
    """What SLURM's commands say, in one line."""
    return " ".join(said.split())[:300]


@contextlib.contextmanager
def _script(text: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "job.sh")
        path.write_text(text, encoding="utf-8")
        yield str(path)
