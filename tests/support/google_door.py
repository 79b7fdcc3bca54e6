"""Google's XML interface, which obstore speaks, in front of an emulator that has most of it by JSON alone.

Reads and listings are passed on as they are. Writes, copies, deletions and their conditions become requests to the JSON
interface, whose answers decide. Parts of an upload are held here until it is completed.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from tests.support.store_door import Answer, Door

_CONDITION = "x-goog-if-generation-match"
_JSON = "application/json"
_SOURCE = "x-goog-copy-source"


_REFUSED = b"<Error><Code>AuthenticationRequired</Code><Message>Authentication required.</Message></Error>"


@dataclass
class GoogleDoor(Door):
    """See Door. Who does not bring the token is refused."""

    token: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._uploads: dict[str, dict[int, bytes]] = {}

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        asked = urlsplit(path)
        bucket, _, name = asked.path.lstrip("/").partition("/")
        query = {key: values[0] for key, values in parse_qs(asked.query, keep_blank_values=True).items()}
        lower = {key.lower(): value for key, value in headers.items()}
        if lower.get("authorization") != f"Bearer {self.token}":
            return 401, {"Content-Type": "application/xml"}, _REFUSED
        if method in ("GET", "HEAD"):
            return self._read(method, path, headers)
        condition = f"&ifGenerationMatch={lower[_CONDITION]}" if _CONDITION in lower else ""
        if "uploads" in query or "uploadId" in query:
            return self._upload(method, (bucket, name, condition), query, body)
        if method == "DELETE":
            return self._json("DELETE", f"/storage/v1/b/{bucket}/o/{name}", done=204)
        if _SOURCE in lower:
            source, _, old = lower[_SOURCE].lstrip("/").partition("/")
            copied = f"/storage/v1/b/{source}/o/{old.replace('/', '%2F')}/rewriteTo/b/{bucket}/o/{name}"
            return self._json("POST", f"{copied}?{condition.lstrip('&')}", b"{}")
        return self._write(bucket, name, condition, body)

    def _read(self, method: str, path: str, headers: dict[str, str]) -> Answer:
        status, headers, said = self.ask(method, path, headers)
        if b"no bucket named" in said:  # where Google says so, the emulator excuses itself with 500
            return 404, {"Content-Type": "application/xml"}, b"<Error><Code>NoSuchBucket</Code></Error>"
        return status, headers, said

    def _upload(self, method: str, to: tuple[str, str, str], query: dict[str, str], body: bytes) -> Answer:
        """In parts: begun, a part, given up, completed."""
        if "uploads" in query:
            return self._begin(*to[:2])
        if method == "PUT":
            return self._take_part(query["uploadId"], int(query["partNumber"]), body)
        if method == "DELETE":
            self._uploads.pop(query["uploadId"], None)
            return 204, {}, b""
        return self._complete(*to, query["uploadId"], body)

    def _write(self, bucket: str, name: str, condition: str, data: bytes) -> Answer:
        """By the one kind of upload for which this emulator heeds conditions."""
        to = f"/upload/storage/v1/b/{bucket}/o?uploadType=multipart{condition}"
        about = json.dumps({"name": unquote(name)}).encode()
        parts = [b"Content-Type: application/json\r\n\r\n" + about]
        parts += [b"Content-Type: application/octet-stream\r\n\r\n" + data]
        border = uuid.uuid4().hex
        body = b"".join(b"--%s\r\n%s\r\n" % (border.encode(), part) for part in parts)
        body += b"--%s--\r\n" % border.encode()
        return self._json("POST", to, body, f"multipart/related; boundary={border}")

    def _json(
        self, method: str, path: str, body: bytes = b"", kind: str = "application/json", done: int = 200
    ) -> Answer:
        status, _, said = self.ask(method, path, {"Content-Type": kind}, body)
        if status >= 300:
            return status, {}, said
        told = json.loads(said or b"{}") or {}
        told = told.get("resource", told)  # what a copy says of its object
        facts = {"x-goog-generation": told.get("generation"), "ETag": told.get("etag") and f'"{told["etag"]}"'}
        return done, {key: value for key, value in facts.items() if value}, b""

    def _begin(self, bucket: str, name: str) -> Answer:
        upload = uuid.uuid4().hex
        self._uploads[upload] = {}
        told = f"<Bucket>{bucket}</Bucket><Key>{name}</Key><UploadId>{upload}</UploadId>"
        return 200, {}, f"<InitiateMultipartUploadResult>{told}</InitiateMultipartUploadResult>".encode()

    def _take_part(self, upload: str, number: int, data: bytes) -> Answer:
        self._uploads[upload][number] = data
        return 200, {"ETag": f'"part-{number}"'}, b""

    def _complete(self, bucket: str, name: str, condition: str, upload: str, body: bytes) -> Answer:
        parts = self._uploads[upload]
        numbers = [int(found) for found in re.findall(r"<PartNumber>(\d+)</PartNumber>", body.decode())]
        status, headers, said = self._write(bucket, name, condition, b"".join(parts[number] for number in numbers))
        if status != 200:
            return status, headers, said
        del self._uploads[upload]
        told = f"<Bucket>{bucket}</Bucket><Key>{unquote(name)}</Key><ETag>{headers['ETag'].strip(chr(34))}</ETag>"
        return 200, headers, f"<CompleteMultipartUploadResult>{told}</CompleteMultipartUploadResult>".encode()
