"""Servers for the object-store part, each in a process of its own; prints its port, then serves until it is killed.

`moto`: moto's S3 API. `plain FOLDER`: an S3 API of GET with a range and LIST alone, as quick as Python's asyncio.
Both wait MILLISECONDS before they answer a GET.
"""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


def start(*words: str) -> tuple[subprocess.Popen[str], str]:
    """A server's process and its URL."""
    command = [sys.executable, "-m", "tests.benchmarks.servers", *words]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout
    return server, f"http://127.0.0.1:{int(server.stdout.readline())}"


def _moto(delay: float) -> None:
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application = DomainDispatcherApplication(create_backend_app)

    def delayed(environ: dict[str, Any], respond: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "GET":
            time.sleep(delay)
        answer: Iterable[bytes] = application(environ, respond)
        return answer

    server = make_server("127.0.0.1", 0, delayed, threaded=True)
    print(server.port, flush=True)
    server.serve_forever()


async def _plain(folder: Path, delay: float) -> None:
    opened = functools.cache(lambda path: os.open(folder / path, os.O_RDONLY))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                url = urlsplit(head.split(" ", 2)[1])
                await asyncio.sleep(delay)
                if "list-type" in url.query:
                    answer = _listing(folder, parse_qs(url.query)["prefix"][0])
                else:
                    key = unquote(url.path).split("/", 2)[2]  # behind the bucket
                    answer = _object(opened(key), head)
                writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def _object(descriptor: int, head: str) -> bytes:
    size = os.fstat(descriptor).st_size
    lines = {name.lower(): value for name, _, value in (line.partition(": ") for line in head.split("\r\n"))}
    first, last = 0, size - 1
    if "range" in lines:
        first, last = (int(word) for word in lines["range"].removeprefix("bytes=").split("-"))
        last = min(last, size - 1)
    data = os.pread(descriptor, last - first + 1, first)
    status = f"206 Partial Content\r\nContent-Range: bytes {first}-{last}/{size}" if "range" in lines else "200 OK"
    return (
        f'HTTP/1.1 {status}\r\nContent-Length: {len(data)}\r\nETag: "{size}"\r\n'
        "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n\r\n"
    ).encode() + data


def _listing(folder: Path, prefix: str) -> bytes:
    found = [path for path in sorted((folder / prefix).iterdir()) if path.is_file()]
    rows = "".join(
        f"<Contents><Key>{prefix.rstrip('/')}/{path.name}</Key><Size>{path.stat().st_size}</Size>"
        "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>e</ETag></Contents>"
        for path in found
    )
    body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>".encode()
    return f"HTTP/1.1 200 OK\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def main() -> None:
    """moto MILLISECONDS, or plain MILLISECONDS FOLDER."""
    delay = float(sys.argv[2]) / 1000
    if sys.argv[1] == "moto":
        _moto(delay)
    else:
        asyncio.run(_plain(Path(sys.argv[3]), delay))


if __name__ == "__main__":
    main()
