"""Clusters that a call starts, closed to everybody else on the machine and on its network.

Whoever may talk to a scheduler or a worker of Dask has code run with the rights of the one who started it. So all of
them talk TLS, and each shows the others a certificate. Their web servers are bound to this machine and have no pages;
where the dashboard is asked for, the scheduler's are below a path that nobody can guess. What they put on disk lies in
a folder of this user alone, because Dask imports and unpickles what it finds there.
"""

from __future__ import annotations

import hmac
import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
from distributed import Nanny, Scheduler, Security, SpecCluster
from tornado.httputil import HTTPMessageDelegate, HTTPServerRequest
from tornado.routing import Router

from wsi_prep.errors import BadOption
from wsi_prep.own_folder import own_folder

LOOPBACK = "127.0.0.1"


def throw_away_certificates() -> Security:
    """A key that lives as long as this call, and its certificate, which every part of one cluster shows and trusts."""
    try:
        return Security.temporary()
    except ImportError as error:
        raise BadOption("a cluster's certificates need the package cryptography; install the extra [shards]") from error


@dataclass(frozen=True)
class Closed:
    """What keeps one cluster closed: its certificates, and the `path` below which the `dashboard` is."""

    security: Security = field(default_factory=throw_away_certificates)
    dashboard: bool = False
    path: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    @property
    def settings(self) -> Mapping[str, Any]:
        """Dask's configuration while this process has the cluster's scheduler."""
        pages: dict[str, Any] = {} if self.dashboard else {"distributed.scheduler.http.routes": []}
        link = f"http://{LOOPBACK}:{{port}}/{self.path}/status" if self.dashboard else ""
        return {
            "temporary-directory": _scratch(),
            "distributed.worker.http.routes": [],
            "distributed.dashboard.link": link,
            **pages,
        }

    @property
    def scheduler_options(self) -> dict[str, Any]:
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


def local_cluster(workers: int, closed: Closed) -> SpecCluster:
    """So many processes of one thread, each under a nanny that starts it again, with equal shares of the memory."""
    shared = {"host": LOOPBACK, "protocol": "tls://", "security": closed.security}
    worker = {
        "cls": Nanny,
        "options": {**shared, "nthreads": 1, "memory_limit": 1.0 / workers, "silence_logs": "CRITICAL"},
    }
    return SpecCluster(
        workers=dict.fromkeys(range(workers), worker),
        scheduler={"cls": ClosedScheduler, "options": {**shared, **closed.scheduler_options}},
        security=closed.security,
        silence_logs="CRITICAL",
    )


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
