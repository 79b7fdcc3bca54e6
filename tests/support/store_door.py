"""An HTTP server in front of an emulator of a store: it passes requests on, writes them down, and refuses some."""

from __future__ import annotations

import contextlib
import http.client
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.object_server import Fault, Request

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""

_OF_ONE_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length")


@dataclass
class Door:
    """Passes on to the emulator at `port` of 127.0.0.1. `faults` and `requests` are as an ObjectServer's."""

    port: int
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"door": self}))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        """What a client gets; `path` is as it came, with its query."""
        return self.ask(method, path, headers, body)

    def ask(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> Answer:
        """The emulator's own answer."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as emulator:
            emulator.request(method, path, body or None, {**headers, "Content-Length": str(len(body))})
            answer = emulator.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def meet(self, method: str, path: str) -> int | None:
        """The status with which this request is to be refused."""
        with self._lock:
            for fault in self.faults:
                if method not in fault.method.split("|") or fault.part not in path:
                    continue
                if fault.after > 0:
                    fault.after -= 1
                elif fault.met < fault.times:
                    fault.met += 1
                    return int(fault.how)
        return None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: Any) -> None:
        """A client that is killed lets go in the middle."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    door: Door

    def log_message(self, *_: Any) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _OF_ONE_HOP}
        status = self.door.meet(self.command, self.path)
        if status is not None:
            self._send(status, {}, b"")
            return
        status, headers, said = self.door.answer(self.command, self.path, headers, body)
        self.door.requests.append(Request(self.command, self.path, len(said)))
        self._send(status, headers, said)

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        size = next((value for name, value in headers.items() if name.lower() == "content-length"), "0")
        for name, value in headers.items():
            if name.lower() not in (*_OF_ONE_HOP, "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", size if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 - http.server looks for these names
