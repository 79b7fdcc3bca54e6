"""Which storage a name means."""

from __future__ import annotations

import os
from pathlib import Path

from wsi_prep.errors import BadOption
from wsi_prep.storage.base import Storage
from wsi_prep.storage.local import LocalStorage

OBJECT_STORES = ("s3://", "s3a://", "gs://", "az://", "abfs://", "abfss://")


def open_storage(where: str | Path) -> Storage:
    """The folder, or object-store URL, `where`."""
    folder = local_folder(where)
    if folder is not None:
        return LocalStorage(folder)
    from wsi_prep.storage.objects import ObjectStorage  # noqa: PLC0415 - only those who name object stores load its library

    return ObjectStorage(str(where))


def local_folder(where: str | Path) -> Path | None:
    """The folder that a path or a file:// URL names; None for an object store, BadOption for another URL."""
    text = str(where)
    if text.startswith(OBJECT_STORES):
        return None
    path = text.removeprefix("file://")
    if "://" in path:
        raise BadOption(f"{text} is no folder, and of no object store that is known: {' '.join(OBJECT_STORES)}")
    return Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow the user's links
