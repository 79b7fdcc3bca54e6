"""Clusters that a call starts, closed to everybody else on the machine and on its network.

Whoever may talk to a scheduler or a worker of Dask has code run with the rights of the one who started it. So all of
them talk TLS, and each shows the others a certificate. Their web servers are bound to this machine and have no pages;
where the dashboard is asked for, the scheduler's are below a path that nobody can guess. What they put on disk lies in
a folder of this user alone, because Dask imports and unpickles what it finds there.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import secrets
import signal
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import dask
from distributed import Nanny, Scheduler, Security, SpecCluster
from distributed.utils import LoopRunner
from tornado.httputil import HTTPMessageDelegate, HTTPServerRequest
from tornado.ioloop import IOLoop
from tornado.routing import Router

from wsi_prep.errors import BadOption
from wsi_prep.untrusted.own_folder import own_folder

LOOPBACK = "127.0.0.1"
UNWATCHED: Mapping[str, object] = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "5s",
}
"""Dask's settings where nobody asked for its dashboard. Without them scheduler, nannies and workers look at themselves
150 times a second each, which is half of what the client costs."""

_ALWAYS = (datetime(1970, 1, 1), datetime(9999, 12, 31))  # UTC, as X.509 has it


def throw_away_certificates() -> Security:
    """A key that lives as long as this call, and its certificate, which every part of one cluster shows and trusts.

    As Security.temporary(), but valid whatever the clocks of a cluster's machines say.
    """
    try:
        from cryptography import x509  # noqa: PLC0415 - only where a cluster is started
        from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    except ImportError as error:
        raise BadOption("a cluster's certificates need the package cryptography; install the extra [shards]") from error
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "one call of make shards")])
    unsigned = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), *_ALWAYS)
    shown = unsigned.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    kept = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    roles = ("client", "scheduler", "worker")
    pairs = {f"tls_{role}_{what}": text for role in roles for what, text in (("cert", shown), ("key", kept))}
    return Security(require_encryption=True, tls_ca_file=shown, **pairs)


@dataclass(frozen=True)
class Closed:
    """What keeps one cluster closed: its certificates, and the `path` below which the `dashboard` is."""

    security: Security = field(default_factory=throw_away_certificates)
    dashboard: bool = False
    path: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    @property
    def settings(self) -> Mapping[str, object]:
        """Dask's configuration while this process has the cluster's scheduler."""
        pages = {} if self.dashboard else {"distributed.scheduler.http.routes": [], **UNWATCHED}
        link = f"http://{LOOPBACK}:{{port}}/{self.path}/status" if self.dashboard else ""
        return {
            "temporary-directory": _scratch(),
            "distributed.worker.http.routes": [],
            "distributed.dashboard.link": link,
            **pages,
        }

    @property
    def scheduler_options(self) -> dict[str, object]:
        """For ClosedScheduler."""
        return {"dashboard": self.dashboard, "dashboard_address": f"{LOOPBACK}:0", "http_prefix": self.path}


class ClosedScheduler(Scheduler):  # type: ignore[misc]
    """A scheduler whose web server knows nothing outside of its `http_prefix`, not even where that is."""

    def __init__(self, *, http_prefix: str, **options: Any) -> None:
        self._path = f"/{http_prefix}/"
        super().__init__(http_prefix=http_prefix, **options)

    def start_http_server(self, *arguments: Any, **options: Any) -> None:
        """As Dask does, which calls it before anything can be answered."""
        super().start_http_server(*arguments, **options)
        self.http_server.request_callback = _Below(self._path, self.http_application)


class _Below(Router):
    def __init__(self, path: str, pages: Router) -> None:
        self._path, self._pages = path.encode(), pages

    def find_handler(self, request: HTTPServerRequest, **options: Any) -> HTTPMessageDelegate | None:
        asked = request.path.encode()[: len(self._path)]
        return self._pages.find_handler(request, **options) if hmac.compare_digest(asked, self._path) else None


@contextlib.contextmanager
def local_cluster(workers: int, closed: Closed) -> Iterator[SpecCluster]:
    """So many processes of one thread, each under a nanny that starts it again, with equal shares of the memory.

    They ignore Ctrl-C: the caller alone answers it, at any moment, and ends them.
    """
    shared = {"host": LOOPBACK, "protocol": "tls://", "security": closed.security}
    worker = {
        "cls": Nanny,
        "options": {**shared, "nthreads": 1, "memory_limit": 1.0 / workers, "silence_logs": "CRITICAL"},
    }
    with (
        _loop_without_interrupts() as loop,
        _Cluster(
            workers=dict.fromkeys(range(workers), worker),
            scheduler={"cls": ClosedScheduler, "options": {**shared, **closed.scheduler_options}},
            security=closed.security,
            silence_logs="CRITICAL",
            loop=loop,
        ) as cluster,
    ):
        yield cluster


class _Cluster(SpecCluster):  # type: ignore[misc]
    """One that is gone at once where Ctrl-C comes while it starts."""

    def __init__(self, **options: Any) -> None:
        try:
            super().__init__(**options)
        except KeyboardInterrupt:
            self.shutdown_on_close = False  # or Dask tries it again at exit
            with contextlib.suppress(Exception):  # half started; what is left ends with this process
                self.sync(self._end_workers)
                self.close()
            raise

    async def _end_workers(self) -> None:
        """Kill them: one that is not up yet hears nothing else. Nobody needs to read that they did not come up."""
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        for nanny in self._created:
            if nanny.pid:
                os.kill(nanny.pid, signal.SIGKILL)
        await asyncio.gather(*(nanny.close() for nanny in self._created), return_exceptions=True)


@contextlib.contextmanager
def _loop_without_interrupts() -> Iterator[IOLoop]:
    """Dask's loop in a thread that blocks SIGINT, as all threads and processes do that are started from it."""
    resource_tracker.ensure_running()  # it unblocks SIGINT in the thread that starts it
    runner = LoopRunner()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        runner.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield runner.loop
    finally:
        runner.stop()


def _scratch() -> str:
    """Where Dask may put what it later imports and unpickles: a folder of this user alone."""
    parent = Path(dask.config.get("temporary-directory") or tempfile.gettempdir())
    try:
        return str(own_folder(parent))
    except BadOption as taken:
        try:
            return tempfile.mkdtemp(prefix="wsi-prep-", dir=parent)
        except OSError:
            raise taken from None
