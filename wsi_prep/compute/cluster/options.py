"""Which cluster does the work: processes of this machine, a running Dask scheduler, or jobs that SLURM starts."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from wsi_prep.errors import BadOption, one_line

_SCHEMES = ("tcp", "tls", "ucx", "ws", "wss", "inproc")
_ENCRYPTED = ("tls", "wss")
_WALLTIME = re.compile(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)")
_LEAVE_EARLY_SECONDS = 300


@dataclass(frozen=True)
class TlsFiles:
    """PEM files for an encrypted cluster: the authority that both sides trust, and this side's certificate and key."""

    ca: Path
    cert: Path
    key: Path

    def __post_init__(self) -> None:
        for name, path in (("TLS_CA", self.ca), ("TLS_CERT", self.cert), ("TLS_KEY", self.key)):
            try:
                text = path.read_text(errors="replace")
            except OSError as error:
                raise BadOption(f"{name}={path} cannot be read ({error.strerror})") from error
            if "-----BEGIN" not in text:
                raise BadOption(f"{name}={path} is no PEM file")


@dataclass(frozen=True)
class SlurmConfig:
    """One job's resources and how many jobs: as many one-threaded workers a job as it has cores.

    Between `minimum_jobs` (all of `jobs` where it is not given) and `jobs` run, as there is work. `walltime` is
    [days-]hours:minutes:seconds; a worker takes no new slide in the last five minutes of it. `prologue` are shell
    lines before the worker starts, `directives` are further #SBATCH options. While the call runs, its certificates
    lie in `shared_directory`, which this machine and the nodes share.
    """

    cores: int
    memory: str
    jobs: int
    minimum_jobs: int | None = None
    queue: str | None = None
    account: str | None = None
    walltime: str = "24:00:00"
    interface: str | None = None
    python: str | None = None
    local_directory: str | None = None
    log_directory: str | None = None
    prologue: tuple[str, ...] = ()
    directives: tuple[str, ...] = ()
    shared_directory: str = "~"

    def __post_init__(self) -> None:
        for name in ("cores", "jobs"):
            if getattr(self, name) < 1:
                raise BadOption(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.minimum_jobs is not None and not 0 <= self.minimum_jobs <= self.jobs:
            raise BadOption(f"minimum_jobs is {self.minimum_jobs}; it must be from 0 to jobs, which is {self.jobs}")
        if not re.fullmatch(r"\d+(\.\d+)? ?[KMGT]i?B", self.memory):
            raise BadOption(f"memory {self.memory!r} is not understood; write a number and a unit, as in 32GB")
        if not _WALLTIME.fullmatch(self.walltime):
            raise BadOption(f"walltime {self.walltime!r} is not understood; write it in quotes, as in '24:00:00'")

    @property
    def lifetime_seconds(self) -> int:
        """How long a worker takes slides: its walltime without the last five minutes, or half of a short one."""
        found = _WALLTIME.fullmatch(self.walltime)
        assert found
        days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
        whole = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
        return max(whole - _LEAVE_EARLY_SECONDS, whole // 2)


@dataclass(frozen=True)
class ClusterOptions:
    """The `scheduler`'s address, or `slurm`, or else a local cluster of so many `workers` (None: one a core).

    `dashboard` asks for the pages of a cluster that the call starts.
    """

    workers: int | None = None
    scheduler: str | None = None
    tls: TlsFiles | None = None
    slurm: SlurmConfig | None = None
    dashboard: bool = False

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise BadOption(f"workers is {self.workers}; it must be at least 1")
        if self.scheduler is not None:
            self._check_address(self.scheduler)
            if self.slurm is not None:
                raise BadOption("SCHEDULER names a cluster that runs, and CLUSTER one to start; omit one of them")
            if self.dashboard:
                raise BadOption("DASHBOARD is for a cluster that this call starts; omit it with SCHEDULER")
        elif self.tls is not None and self.slurm is None:
            raise BadOption("TLS_CA, TLS_CERT and TLS_KEY are for SCHEDULER=tls://... and CLUSTER=slurm")

    def _check_address(self, scheduler: str) -> None:
        scheme, separator, rest = scheduler.partition("://")
        if not separator:
            scheme, rest = "tcp", scheduler
        if scheme not in _SCHEMES or not rest:
            raise BadOption(f"SCHEDULER {scheduler!r} is no address; write it as tcp://host:8786 or tls://host:8786")
        if self.tls is not None and scheme not in _ENCRYPTED:
            raise BadOption(f"SCHEDULER {scheduler} is not encrypted; omit TLS_*, or write it as tls://{rest}")


def tls_files(ca: Path | None, cert: Path | None, key: Path | None) -> TlsFiles | None:
    """The three files, or None for none of them; BadOption for a part of them."""
    if ca is None and cert is None and key is None:
        return None
    if ca is None or cert is None or key is None:
        given = {"TLS_CA": ca, "TLS_CERT": cert, "TLS_KEY": key}
        missing = " and ".join(name for name, path in given.items() if path is None)
        raise BadOption(f"an encrypted cluster needs TLS_CA, TLS_CERT and TLS_KEY; {missing} is missing")
    return TlsFiles(ca, cert, key)


def read_slurm_config(path: Path) -> SlurmConfig:
    """The YAML file's keys, which are SlurmConfig's fields; BadOption names the key that is wrong, and the file."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadOption(f"CLUSTER_CONFIG={path} cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeError) as error:
        raise BadOption(f"CLUSTER_CONFIG={path} is no YAML ({one_line(error, 200)})") from error
    if not isinstance(found, Mapping):
        raise BadOption(f"CLUSTER_CONFIG={path} holds no keys; it needs at least cores, memory and jobs")
    try:
        return SlurmConfig(**_checked(found))
    except BadOption as error:
        raise BadOption(f"CLUSTER_CONFIG={path}: {error}") from error


def _checked(found: Mapping[Any, Any]) -> dict[str, Any]:
    kinds = {field.name: str(field.type) for field in fields(SlurmConfig)}
    for name in found:
        if name not in kinds:
            near = difflib.get_close_matches(str(name), kinds, 1) or [", ".join(kinds)]
            raise BadOption(f"{name!r} is not known; did you mean {near[0]}?")
    needed = [field.name for field in fields(SlurmConfig) if field.default is MISSING]
    if missing := [name for name in needed if name not in found]:
        raise BadOption(f"{', '.join(missing)} must be given")
    return {name: _value(name, kinds[name], value) for name, value in found.items() if value is not None}


def _value(name: str, kind: str, value: Any) -> Any:
    if kind.startswith("tuple"):
        if isinstance(value, list) and all(isinstance(line, str) for line in value):
            return tuple(value)
        raise BadOption(f"{name} is {value!r}; it must be a list of texts")
    wanted, word = (int, "a whole number") if kind.startswith("int") else (str, "a text, in quotes if need be")
    if not isinstance(value, wanted) or isinstance(value, bool):
        raise BadOption(f"{name} is {value!r}; it must be {word}")
    return value
