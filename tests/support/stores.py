"""The three kinds of object store, each over HTTP and with one bucket: what a test sees of one is its own interface."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit
from xml.sax.saxutils import unescape

from tests.support.emulators import azurite, fake_gcs_server
from tests.support.google_door import GoogleDoor
from tests.support.object_server import BUCKET, Fault, ObjectServer, Request
from tests.support.store_door import Door


class Store(ABC):
    """A bucket. `environment` leads commands to it, with `secret` in it; with `wrong` in its place it refuses them."""

    kind: str
    environment: dict[str, str]
    wrong: dict[str, str]
    secret: str

    @property
    def url(self) -> str:
        return f"{self.kind}://{BUCKET}"

    @abstractmethod
    def keys(self, prefix: str = "") -> list[str]:
        """Names of all objects that begin so."""

    @abstractmethod
    def get(self, key: str) -> bytes: ...

    @abstractmethod
    def put(self, key: str, data: bytes) -> None: ...

    @abstractmethod
    def delete(self, key: str) -> None: ...

    @property
    @abstractmethod
    def server(self) -> Door | ObjectServer: ...

    @property
    def requests(self) -> list[Request]:
        return self.server.requests

    def sent(self, text: str) -> str:
        """A part of an object's name as clients send it in a path."""
        return quote(text)

    def refuse(self, method: str, part: str, status: int = 403, times: int = 10**9, after: int = 0) -> None:
        """Answer so to requests by this method ("PUT|POST") whose path, as it was sent, has this part."""
        self.server.faults.append(Fault(method, part, status, times, after))

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """Every object whose name begins so, by the rest of its name."""
        return {key.removeprefix(prefix): self.get(key) for key in self.keys(prefix)}

    def upload(self, folder: Path, prefix: str) -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{prefix}{path.relative_to(folder)}", path.read_bytes())

    def clear(self) -> None:
        self.server.faults.clear()
        for key in self.keys():
            self.delete(key)
        self.requests.clear()


class Amazon(Store):
    """moto, in this process."""

    kind = "s3"

    def __init__(self, server: ObjectServer) -> None:
        self._server = server
        self.secret = server.environment["AWS_SECRET_ACCESS_KEY"]
        self.environment = server.environment
        self.wrong = {}

    @property
    def server(self) -> ObjectServer:
        return self._server

    def sent(self, text: str) -> str:
        return text  # which this server decodes

    def keys(self, prefix: str = "") -> list[str]:
        pages = self._server.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", [])]

    def get(self, key: str) -> bytes:
        return bytes(self._server.client.get_object(Bucket=BUCKET, Key=key)["Body"].read())

    def put(self, key: str, data: bytes) -> None:
        self._server.client.put_object(Bucket=BUCKET, Key=key, Body=data)

    def delete(self, key: str) -> None:
        self._server.client.delete_object(Bucket=BUCKET, Key=key)


class Azure(Store):
    """Azurite, asked directly with requests that are signed by its own account's key."""

    kind = "az"
    account = "hospital"

    def __init__(self, door: Door, key: str) -> None:
        self._door, self._key = door, base64.b64decode(key)
        self.secret = key
        self.environment = {
            "AZURE_STORAGE_ACCOUNT_NAME": self.account,
            "AZURE_STORAGE_ACCOUNT_KEY": key,
            "AZURE_STORAGE_ENDPOINT": f"{door.url}/{self.account}",
        }
        self.wrong = {"AZURE_STORAGE_ACCOUNT_KEY": base64.b64encode(secrets.token_bytes(64)).decode()}
        self._ask("PUT", "?restype=container")

    def signature(self) -> str:
        """A shared access signature of the account, with all rights for some years."""
        said = {"sv": "2021-12-02", "ss": "b", "srt": "sco", "sp": "rwdlac", "se": "2036-01-01T00:00:00Z"}
        signed = [self.account, said["sp"], said["ss"], said["srt"], "", said["se"], "", "", said["sv"], "", ""]
        return urlencode({**said, "sig": self._seal("\n".join(signed))})

    @property
    def server(self) -> Door:
        return self._door

    def keys(self, prefix: str = "") -> list[str]:
        listed = self._ask("GET", f"?restype=container&comp=list&prefix={quote(prefix)}").decode()
        return [unescape(name) for name in re.findall(r"<Name>(.*?)</Name>", listed)]

    def get(self, key: str) -> bytes:
        return self._ask("GET", f"/{quote(key)}")

    def put(self, key: str, data: bytes) -> None:
        self._ask("PUT", f"/{quote(key)}", data, {"x-ms-blob-type": "BlockBlob"})

    def delete(self, key: str) -> None:
        self._ask("DELETE", f"/{quote(key)}")

    def _ask(self, method: str, rest: str, data: bytes = b"", headers: dict[str, str] | None = None) -> bytes:
        path = f"/{self.account}/{BUCKET}{rest}"
        told = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-12-02", **(headers or {})}
        signed = [method, "", "", str(len(data) or ""), *[""] * 8, *(f"{key}:{told[key]}" for key in sorted(told))]
        asked = urlsplit(path)
        query = sorted(parse_qsl(asked.query, keep_blank_values=True))
        signed += [f"/{self.account}{asked.path}", *(f"{name}:{value}" for name, value in query)]
        told["Authorization"] = f"SharedKey {self.account}:{self._seal(chr(10).join(signed))}"
        status, _, body = self._door.ask(method, path, told, data)
        assert status < 300, (method, path, status, body)
        return body

    def _seal(self, text: str) -> str:
        return base64.b64encode(hmac.new(self._key, text.encode(), hashlib.sha256).digest()).decode()


class Google(Store):
    """fake-gcs-server, asked directly through its JSON interface."""

    kind = "gs"

    def __init__(self, door: GoogleDoor) -> None:
        self._door = door
        self.secret = door.token
        self.environment = {"GOOGLE_BASE_URL": door.url, "GOOGLE_BEARER_TOKEN": door.token}
        self.wrong = {"GOOGLE_BEARER_TOKEN": secrets.token_hex(16)}
        self._ask("POST", "/storage/v1/b?project=study", json.dumps({"name": BUCKET}).encode())

    @property
    def server(self) -> Door:
        return self._door

    def sent(self, text: str) -> str:
        return "".join(chr(byte) if chr(byte).isalnum() and byte < 128 else f"%{byte:02X}" for byte in text.encode())

    def keys(self, prefix: str = "") -> list[str]:
        listed = json.loads(self._ask("GET", f"/storage/v1/b/{BUCKET}/o?prefix={quote(prefix)}&maxResults=100000"))
        return [found["name"] for found in listed.get("items", [])]

    def get(self, key: str) -> bytes:
        return self._ask("GET", f"/storage/v1/b/{BUCKET}/o/{quote(key, safe='')}?alt=media")

    def put(self, key: str, data: bytes) -> None:
        self._ask("POST", f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={quote(key, safe='')}", data)

    def delete(self, key: str) -> None:
        self._ask("DELETE", f"/storage/v1/b/{BUCKET}/o/{quote(key, safe='')}")

    def _ask(self, method: str, path: str, data: bytes = b"") -> bytes:
        status, _, body = self._door.ask(method, path, {}, data)
        assert status < 300, (method, path, status, body)
        return body


@contextlib.contextmanager
def azure(folder: Path) -> Iterator[Azure]:
    """A container in an account of its own, whose key nobody knows."""
    key = base64.b64encode(secrets.token_bytes(64)).decode()
    with azurite(folder, Azure.account, key) as port:
        door = Door(port)
        yield Azure(door, key)
        door.stop()


@contextlib.contextmanager
def google(folder: Path) -> Iterator[Google]:
    """A bucket for those who have the token."""
    with fake_gcs_server(folder) as port:
        door = GoogleDoor(port, token=secrets.token_hex(16))
        yield Google(door)
        door.stop()
