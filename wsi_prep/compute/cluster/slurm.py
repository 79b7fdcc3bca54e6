"""Workers as jobs of SLURM: the only file that knows dask-jobqueue. The scheduler is in the calling process."""

from __future__ import annotations

import contextlib
import copy
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dask
from dask_jobqueue import SLURMCluster
from dask_jobqueue.slurm import SLURMJob
from distributed import Security

from wsi_prep.compute.cluster.closed import LOOPBACK, Closed, ClosedScheduler
from wsi_prep.compute.cluster.options import SlurmConfig
from wsi_prep.errors import BadOption

_CLOSED_WORKER = (
    "export DASK_DISTRIBUTED__WORKER__HTTP__ROUTES='[]'",
    "scratch=$(mkdir -p {parent} && mktemp -d {parent}/wsi-prep-XXXXXXXXXX) || exit 1",
    "trap 'rm -rf \"$scratch\"' EXIT",
)
"""Shell lines before a worker starts: no pages, and a folder of this user alone for what Dask puts on disk."""


@contextlib.contextmanager
def slurm_cluster(config: SlurmConfig, closed: Closed) -> Iterator[SLURMCluster]:
    """Each ended job is replaced by another while there is work.

    Raises BadOption where SLURM is not here, or would not take such a job.
    """
    if shutil.which("sbatch") is None:
        raise BadOption("CLUSTER=slurm needs sbatch on the PATH; run this on a machine that may submit jobs")
    with _security_of_jobs(closed.security, config) as security, _jobs(config, security, closed) as jobs:
        with _script(jobs.job_script()) as script:
            tried = subprocess.run(  # noqa: S603 - the user's own SLURM
                ["sbatch", "--test-only", script],  # noqa: S607
                capture_output=True,
                text=True,
                check=False,
            )
        if tried.returncode:
            reason = " ".join(tried.stderr.split())[:300]
            raise BadOption(f"SLURM takes no such job ({reason}); correct CLUSTER_CONFIG")
        least = config.jobs if config.minimum_jobs is None else config.minimum_jobs
        jobs.adapt(minimum_jobs=least, maximum_jobs=config.jobs)
        yield jobs


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


def _jobs(config: SlurmConfig, security: Security, closed: Closed) -> SLURMCluster:
    parent = config.local_directory or dask.config.get("jobqueue.slurm.local-directory") or "${TMPDIR:-/tmp}"
    return SLURMCluster(
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
        job_script_prologue=[*config.prologue, *(line.replace("{parent}", parent) for line in _CLOSED_WORKER)],
        job_extra_directives=list(config.directives),
        worker_extra_args=[
            *("--lifetime", f"{config.lifetime_seconds}s", "--lifetime-stagger", "60s"),
            *("--no-dashboard", "--dashboard-address", f"{LOOPBACK}:0"),
        ],
        security=security,
        silence_logs="CRITICAL",
        scheduler_cls=ClosedScheduler,
        scheduler_options=closed.scheduler_options,
    )


class _Job(SLURMJob):  # type: ignore[misc]
    """A job whose script nobody else can put another in place of."""

    @contextlib.contextmanager
    def job_file(self) -> Iterator[str]:
        """The script as a file, while it is submitted."""
        with _script(self.job_script()) as path:
            yield path


@contextlib.contextmanager
def _script(text: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "job.sh")
        path.write_text(text, encoding="utf-8")
        yield str(path)
