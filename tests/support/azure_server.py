"""What Azure's Blob service answers to those who only read, over HTTP for tests: blobs are the files of a folder."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

ACCOUNT = "devstoreaccount1"  # of the emulator, whose public key clients know


class AzureServer:
    """Serves `folder`/<container>/<blob>, and writes down the paths that are asked for."""

    def __init__(self, folder: Path) -> None:
        self.paths: list[str] = []
        handler = type("Handler", (_Handler,), {"folder": folder, "paths": self.paths})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{self._server.server_port}"
        self.environment = {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": url}

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    paths: list[str]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        path = unquote(asked.path).removeprefix(f"/{ACCOUNT}/")
        self.paths.append(path)
        query = {name: values[0] for name, values in parse_qs(asked.query).items()}
        if query.get("comp") == "list":
            self._send(200, self._listing(self.folder / path, query.get("prefix", ""), query.get("delimiter")))
        elif not (file := self.folder / path).is_file():
            self._send(404, b"<Error><Code>BlobNotFound</Code></Error>", {"x-ms-error-code": "BlobNotFound"})
        else:
            data = file.read_bytes()
            asked_for = self.headers["x-ms-range"] or self.headers["Range"] or ""
            begin, _, end = (asked_for or "bytes=0-").removeprefix("bytes=").partition("-")
            part = data[int(begin) : int(end or len(data) - 1) + 1]
            span = f"bytes {begin}-{int(begin) + len(part) - 1}/{len(data)}"
            self._send(206, part, {"Content-Range": span}) if asked_for else self._send(200, part)

    def _listing(self, container: Path, prefix: str, delimiter: str | None) -> bytes:
        names = sorted(str(p.relative_to(container)) for p in container.rglob("*") if p.is_file())
        entries = []
        for name in (name for name in names if name.startswith(prefix)):
            head, cut, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if cut:
                entries.append(f"<BlobPrefix><Name>{escape(prefix + head + cut)}</Name></BlobPrefix>")
                continue
            size = (container / name).stat().st_size
            facts = (
                f"<Last-Modified>Sun, 27 Sep 2009 18:41:57 GMT</Last-Modified><Content-Length>{size}</Content-Length>"
            )
            facts += "<Etag>0x1</Etag><Content-Type>application/octet-stream</Content-Type>"
            entries.append(f"<Blob><Name>{escape(name)}</Name><Properties>{facts}</Properties></Blob>")
        blobs = "".join(dict.fromkeys(entries))
        return f"<EnumerationResults><Blobs>{blobs}</Blobs><NextMarker/></EnumerationResults>".encode()

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        fixed = {"Last-Modified": "Sun, 27 Sep 2009 18:41:57 GMT", "ETag": '"0x1"', "Content-Length": str(len(body))}
        for name, value in (fixed | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
