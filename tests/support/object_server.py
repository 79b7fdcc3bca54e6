"""An S3 API over HTTP for tests: moto's, which writes down what is asked of it and fails as it is told to."""

from __future__ import annotations

import functools
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "slides"
_LIES = ("long", "short")


@dataclass
class Fault:
    """How requests of one kind fail: those of `method` (or "PUT|POST") whose path has `part`, `times` after `after`.

    `how` is a status code, "cut" (half of the answer, then nothing), "long" (it states more bytes than come), "short"
    (half of the answer, which states that it is all), "lost" (done, but the answer never comes), or "slow" (a second
    late).
    """

    method: str
    part: str
    how: int | str
    times: int = 10**9
    after: int = 0
    met: int = 0


@dataclass
class Request:
    method: str
    path: str
    sent: int  # bytes of the answer's body


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: Any) -> None:
        pass

    def log_request(self, *_: Any) -> None:
        pass


@dataclass
class ObjectServer:
    """moto with one bucket, the same one for all servers of a process.

    `faults` are tried in order for each request, `requests` are those that were answered.
    """

    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._one_by_one = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True, request_handler=_Quiet)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.port}"
        self.environment = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
        }
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        self.client = boto3.client("s3", endpoint_url=self.url, **keys)
        self.client.create_bucket(Bucket=BUCKET)

    def stop(self) -> None:
        self._server.shutdown()

    def fail(self, method: str, part: str, how: int | str, times: int = 10**9, after: int = 0) -> Fault:
        self.faults.append(Fault(method, part, how, times, after))
        return self.faults[-1]

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """Every object below a prefix, by its key after the prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
        return {key.removeprefix(prefix): self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}

    def upload(self, folder: Any, prefix: str) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                self.client.upload_file(str(path), BUCKET, f"{prefix}{path.relative_to(folder)}")

    def clear(self) -> None:
        self.faults.clear()
        for key in self.objects():
            self.client.delete_object(Bucket=BUCKET, Key=key)
        self.requests.clear()

    def _fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if method in fault.method.split("|") and fault.part in path:
                    if fault.after > 0:
                        fault.after -= 1
                    elif fault.met < fault.times:
                        fault.met += 1
                        return fault
        return None

    def _answer(self, environ: dict[str, Any], respond: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"].encode("latin-1").decode()
        query = environ["QUERY_STRING"]
        fault = self._fault(method, f"{path}?{query}" if query else path)
        if fault is not None and isinstance(fault.how, int):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            respond(f"{fault.how} Trouble", [("Content-Length", "0"), ("Connection", "close")])
            return [b""]
        how = None if fault is None else fault.how
        if how == "slow":
            time.sleep(1)
        says = _nobody if how == "lost" else functools.partial(_lie, respond, how) if how in _LIES else respond
        with self._one_by_one:  # moto looks and then writes, where a store that promises conditions does both at once
            body = b"".join(self._moto(environ, says))
        if how == "lost":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionAbortedError
        with self._lock:
            self.requests.append(Request(method, path, len(body)))
        if how == "short":
            return [body[: len(body) // 2]]
        sent = len(body) // 2 if how == "cut" else len(body)
        return _then_closed(body[:sent], environ["werkzeug.socket"]) if how in ("cut", "long") else [body]


def _lie(respond: Callable[..., Any], how: str, status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
    lengths = {"long": lambda length: length + 1000, "short": lambda length: length // 2}
    stated = [
        (name, str(lengths[how](int(value))) if name.lower() == "content-length" else value) for name, value in headers
    ]
    return respond(status, stated, *more)


def _then_closed(body: bytes, connection: socket.socket) -> Iterator[bytes]:
    yield body
    connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionAbortedError


def _nobody(*_: Any) -> Callable[[bytes], None]:
    return lambda _: None
