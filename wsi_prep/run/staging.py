"""A slide that is being made: the folder that it is made in, and the digests of what is written there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from wsi_prep.storage.digests import sha256


@dataclass
class StagedSlide:
    """The folder, and `digests` of its files by their names within the slide."""

    folder: Path
    digests: dict[str, str] = field(default_factory=dict)

    def write(self, name: str, data: bytes) -> None:
        """Write one file whole."""
        (self.folder / name).write_bytes(data)
        self.digests[name] = sha256(data)
