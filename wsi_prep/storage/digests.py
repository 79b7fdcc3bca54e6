"""Digests of a slide's files, as its row keeps them: by these a file is known that changed after it was written.

A shard file has its CRC-32C, and each of its tiles a CRC-32, of another polynomial, in its own row: all digests of a
slide take 0.2 to 0.4 % of its time, where SHA-256 of its shards took 1.0 to 1.5 %, on a processor that has instructions
for it. Every other file has its SHA-256.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import google_crc32c

NO_DIGESTS = "{}"
"""The column `digests` of a slide that left no files."""


def sha256(data: bytes | memoryview) -> str:
    """The digest of a file that is small."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class ShardDigest:
    """The digest of a shard file, made of its bytes as they come."""

    def __init__(self) -> None:
        self._sum = google_crc32c.Checksum()

    def update(self, data: bytes) -> None:
        """The next bytes of the file."""
        self._sum.update(data)

    @property
    def text(self) -> str:
        """The digest of all bytes so far."""
        return f"crc32c:{self._sum.hexdigest().decode()}"


def to_column(digests: Mapping[str, str]) -> str:
    """Digests by a file's name within the slide ("20x/c.0.0.0.0", "overlay.jpg") as one text, the column `digests`."""
    return json.dumps(dict(sorted(digests.items())), separators=(",", ":"))


def from_column(text: str | None) -> dict[str, str] | None:
    """The column's digests by name; None where the slide was made before any were kept. ValueError for other text."""
    if text is None:
        return None
    digests = json.loads(text)
    if not isinstance(digests, dict) or not all(isinstance(value, str) for value in digests.values()):
        raise ValueError("no digests by name")
    return digests
