"""An S3 server whose answers go wrong as it is told: `python -m tests.soak.store SEED` prints its URL, then serves.

POST /_soak sets the share of requests that each fault meets, as JSON; GET /_soak says how often each was met.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import urllib.request
from collections import Counter, deque
from typing import Any

from tests.soak.plan import FAULTS
from tests.support.object_server import Fault, ObjectServer

_HOW: dict[str, int | str] = {
    "throttled": 503,
    "cut off": "cut",
    "long": "long",
    "short": "short",
    "lost": "lost",
    "slow": "slow",
}
_OF_READS = ("cut off", "long", "short")
_SOAK = "/_soak"


class Weather(ObjectServer):
    """Each request meets a fault by chance, or none."""

    def __init__(self, seed: int) -> None:
        """With no fault."""
        self._chances: dict[str, float] = {}
        self._random = random.Random(seed)
        self._met = Counter(dict.fromkeys((*FAULTS, "requests"), 0))
        self._counting = threading.Lock()
        super().__init__(requests=deque(maxlen=0))  # type: ignore[arg-type] # an hour has many

    def _fault(self, method: str, path: str) -> Fault | None:
        with self._counting:
            self._met["requests"] += 1
            drawn = self._random.random()
            for name, chance in self._chances.items():
                drawn -= chance
                if drawn < 0:
                    if name in _OF_READS and method != "GET":
                        return None
                    self._met[name] += 1
                    return Fault(method, path, _HOW[name])
        return None

    def _answer(self, environ: dict[str, Any], respond: Any) -> Any:
        if environ["PATH_INFO"] != _SOAK:
            return super()._answer(environ, respond)
        if environ["REQUEST_METHOD"] == "POST":
            self._chances = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        body = json.dumps(self._met).encode()
        respond("200 OK", [("Content-Length", str(len(body)))])
        return [body]


class Store:
    """The server in a process of its own; use as a context."""

    def __init__(self, seed: int) -> None:
        command = [sys.executable, "-m", "tests.soak.store", str(seed)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout
        self.url = self.process.stdout.readline().strip()
        if not self.url:
            raise RuntimeError("the object store did not start")
        self.environment = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def weather(self, chances: dict[str, float]) -> None:
        """From now on."""
        self._ask(json.dumps(chances).encode())

    def met(self) -> dict[str, int]:
        """How many requests there were, and how many met each fault."""
        return dict(self._ask(None))

    def _ask(self, data: bytes | None) -> Any:
        with urllib.request.urlopen(f"{self.url}{_SOAK}", data=data, timeout=60) as answer:  # noqa: S310 - ours
            return json.loads(answer.read())


if __name__ == "__main__":
    server = Weather(int(sys.argv[1]))
    print(server.url, flush=True)
    threading.Event().wait()
