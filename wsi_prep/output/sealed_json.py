"""The output's own JSON files, run.json and forgotten.json: each holds a digest of itself, and lies there twice.

The last field, `digest`, is the SHA-256 of the same file without it. The copy has the file's name with a dot before it,
and is written first: it is never older, and what is damaged of one is restored from the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wsi_prep.storage.base import Storage
from wsi_prep.storage.digests import sha256
from wsi_prep.untrusted.small_json import Nonsense, read_object

_FIELD = "digest"
_ALGORITHM = "sha256:"


class NotAsWritten(ValueError):
    """The bytes of such a file are not those that were written."""


def write_sealed(storage: Storage, name: str, document: Mapping[str, object]) -> None:
    """Replace the file `name`, and its copy before it."""
    data = seal(document)
    storage.write(f".{name}", data)
    storage.write(name, data)


def read_sealed(storage: Storage, name: str) -> dict[str, Any]:
    """What the file `name` says, or its copy where only that is there, without its digest.

    Raises NotAsWritten, and FileNotFoundError where there is none. A file of an earlier
    version has no digest, and is taken as it is.
    """
    try:
        data = storage.read(name)
    except (FileNotFoundError, NotADirectoryError):
        data = storage.read(f".{name}")
    return unseal(data)


def seal(document: Mapping[str, object]) -> bytes:
    """The document, which has no field `digest`, as the file's bytes."""
    return _text({**document, _FIELD: sha256(_text(document))})


def unseal(data: bytes) -> dict[str, Any]:
    """The document in a file's bytes; NotAsWritten where they are others than were written."""
    try:
        document = read_object(data)
    except Nonsense as error:
        raise NotAsWritten(str(error)) from error
    except ValueError as error:
        raise NotAsWritten("it is not JSON") from error
    bare = {name: value for name, value in document.items() if name != _FIELD}
    if not _has_seal(document):
        return bare
    if seal(bare) != data:
        raise NotAsWritten("its digest does not match its contents")
    return bare


@dataclass(frozen=True)
class SealedFile:
    """One of these files as it was found. `wrong`: what is, by path. `sound`: bytes to restore both from, if any."""

    name: str
    wrong: dict[str, str]
    sound: bytes | None

    @classmethod
    def look_at(cls, storage: Storage, name: str) -> SealedFile:
        """Both copies of the file `name`, neither of which needs to be there."""
        found = {path: _bytes(storage, path) for path in (name, f".{name}")}
        wrong: dict[str, str] = {}
        sound = None
        for path, data in found.items():
            try:
                if data is not None and unseal(data) is not None and sound is None:
                    sound = data
            except NotAsWritten as error:
                wrong[path] = f"it was changed: {error}"
        if found[name] is None and found[f".{name}"] is not None:
            wrong[name] = "it is missing, but its copy exists"
        if found[f".{name}"] is None and sound is not None and _has_seal(read_object(sound)):  # older ones had no copy
            wrong[f".{name}"] = f"the copy of {name} is missing"
        return cls(name, wrong, sound)

    @property
    def is_gone(self) -> bool:
        """Whether neither copy is there."""
        return self.sound is None and not self.wrong

    def lost(self, what: str) -> SealedFile:
        """The same where what it should say is in neither copy; `what` says why."""
        return SealedFile(self.name, {self.name: what}, None)

    def restore(self, storage: Storage) -> bool:
        """Write both anew from the one that is sound; whether there is one."""
        if self.sound is None:
            return False
        write_sealed(storage, self.name, unseal(self.sound))
        return True


def _bytes(storage: Storage, path: str) -> bytes | None:
    try:
        return storage.read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _has_seal(document: Mapping[str, object]) -> bool:
    """By the field's name or by its value: one bit that changes cannot take away both."""
    return _FIELD in document or any(
        isinstance(value, str) and value.startswith(_ALGORITHM) for value in document.values()
    )


def _text(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, indent=2).encode()
