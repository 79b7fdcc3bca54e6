"""A Dask cluster of real processes, started as an operator would start them, to be killed, joined and left."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SABOTEUR = Path(__file__).with_name("saboteur.py")


class Sabotage:
    """What tests/support/saboteur.py does in workers, said by files in a folder."""

    def __init__(self, folder):
        self.folder, self._sabotage = folder, folder / "sabotage.json"

    @property
    def environment(self):
        """For a call whose cluster starts its workers by itself."""
        return {"SABOTAGE": str(self._sabotage), "DASK_DISTRIBUTED__WORKER__PRELOAD": json.dumps([str(SABOTEUR)])}

    def sabotage(self, slide, at, do, times=1):
        """What tests/support/saboteur.py does from now on, in every worker."""
        for trace in self.folder.glob("sabotage.*"):
            trace.unlink()
        aside = self._sabotage.with_suffix(".new")
        aside.write_text(json.dumps({"slide": slide, "at": at, "do": do, "times": times}))
        aside.rename(self._sabotage)

    def sabotaged(self):
        """How often that has happened."""
        return len([p for p in self.folder.glob("sabotage.*") if p.suffix[1:].isdecimal()])

    def go(self):
        """Let those go on who hold."""
        self._sabotage.with_suffix(".go").touch()


class DaskProcesses(Sabotage):
    """One scheduler and its workers; use as a context, which ends whatever still runs."""

    def __init__(self, folder, *, tls=(), port=0, memory="2GB"):
        super().__init__(folder)
        self.tls, self.memory = list(tls), memory
        self._running = []
        place = folder / f"scheduler-{time.monotonic_ns()}.json"
        where = ["--host", f"{'tls' if tls else 'tcp'}://127.0.0.1:{port}", "--dashboard-address", "127.0.0.1:0"]
        self.scheduler = self.start("distributed.cli.dask_scheduler", *where, "--scheduler-file", str(place))
        wait_until(lambda: place.exists() and place.read_text().strip().endswith("}"), self.scheduler)
        found = json.loads(place.read_text())
        self.address, self.dashboard = found["address"], f"http://127.0.0.1:{found['services']['dashboard']}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self._running):
            kill(process)

    def worker(self, *arguments, paths=(), **environment):
        """Start a worker under a nanny that starts it again when it dies; `paths` come first on its Python path."""
        memory = ["--memory-limit", self.memory, "--local-directory", str(self.folder), "--no-dashboard"]
        single = ["--nthreads", "1", "--nworkers", "1", "--preload", str(SABOTEUR)]
        command = ("distributed.cli.dask_worker", self.address, *single, *memory, *arguments)
        return self.start(*command, paths=paths, **environment)

    def start(self, module, *arguments, paths=(), **environment):
        """`python -m module` in a process group of its own."""
        environment = {
            **os.environ,
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
            "PYTHONPATH": os.pathsep.join(map(str, [*paths, ROOT])),
            "SABOTAGE": str(self._sabotage),
            **environment,
        }
        log = (self.folder / f"{module.rpartition('.')[2]}-{len(self._running)}.log").open("w")
        process = subprocess.Popen(
            [sys.executable, "-m", module, *self.tls, *arguments],
            cwd=self.folder,
            env=environment,
            start_new_session=True,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        self._running.append(process)
        return process


def wait_until(condition, *processes, seconds=120, every=0.02):
    """Look again and again until it holds; fails when one of the processes ends meanwhile."""
    end = time.monotonic() + seconds
    while not condition():
        assert all(process.poll() is None for process in processes), "a process ended"
        assert time.monotonic() < end, "it never came"
        time.sleep(every)


def kill(process, number=signal.SIGKILL):
    """Send a signal to the process and to all that it started, and wait for its end."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    process.wait()


def make_certificates(folder):
    """ca.pem, node.pem and node.key, which it signed, and other.pem, an authority that nobody trusts."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    for name in ("ca", "other"):
        files = ["-keyout", f"{name}.key", "-out", f"{name}.pem"]
        subprocess.run([*made, "-subj", f"/CN={name}", *files], cwd=folder, check=True, capture_output=True)
    signed = [*made, "-subj", "/CN=node", "-CA", "ca.pem", "-CAkey", "ca.key"]
    signed += ["-keyout", "node.key", "-out", "node.pem"]
    subprocess.run(signed, cwd=folder, check=True, capture_output=True)
    return folder
