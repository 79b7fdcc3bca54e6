"""Files that may be anywhere: which file system has them, and whole copies of slides on the worker's disk."""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem
from fsspec.registry import known_implementations

from wsi_prep.compute.ahead import ahead
from wsi_prep.errors import NoRoom, UnreadableSlide
from wsi_prep.slides.fetch.cache import Lease
from wsi_prep.slides.urls import bare_url
from wsi_prep.storage.select import OBJECT_STORES

_PIECE_BYTES = 8 * 2**20
_IN_FLIGHT = 4

_PLACES = """
file local memory http https ftp sftp ssh smb webdav hdfs arrow_hdfs webhdfs hf abfs adl az box dbfs dropbox gcs gs
gdrive lakefs oci ocilake oss root s3 s3a tos tosfs zip tar libarchive simplecache filecache blockcache cached
"""
# Of what fsspec knows, that which fetches bytes from where the URL says. Others compute: `reference` fills in templates
# that a file holds, with what this process knows.


def file_system(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system of a path or URL, and the path in it; ValueError or ImportError where there is none."""
    if _is_local_name(path):
        here = fsspec.filesystem("file")
        return here, str(here._strip_protocol(path))  # as fsspec does for other names
    _require_places(path)
    if path.startswith(OBJECT_STORES):
        from wsi_prep.slides.fetch.object_files import file_system as of_objects  # noqa: PLC0415 - its library loads for these alone

        return of_objects(path)
    files, inner = fsspec.core.url_to_fs(path)
    return files, str(inner)


def _is_local_name(path: str) -> bool:
    """Whether `::` stands in the name of a local file, where fsspec would take it for a chain of URLs."""
    if "::" not in path or "://" in path.removeprefix("file://"):
        return False
    return path.startswith("file://") or path.partition("::")[0] not in known_implementations


def _require_places(path: str) -> None:
    """Raise ValueError where a part of a URL, or of a chain of them, is no place of files."""
    for part in path.split("::"):
        protocol, is_url, _ = part.partition("://")
        if not is_url and (part == path or not part.isalpha()):  # a path
            continue
        if protocol in known_implementations and protocol not in _PLACES.split():
            raise ValueError(f"{protocol}:// is no place of files; name a disk, an object store or a server")


def local_path(path: str) -> str | None:
    """The path of a local file, which may have been named by a URL; None where it is elsewhere."""
    if path.startswith(OBJECT_STORES):
        return None
    files, inner = file_system(path)
    return inner if isinstance(files, LocalFileSystem) else None


def is_elsewhere(path: str) -> bool:
    """Whether a path names something that is not on a disk of this machine."""
    return "://" in path and local_path(path) is None


def files_in(folder: str) -> list[str]:
    """Paths, or URLs, of the files that lie in a folder, sorted; none where there is no folder, or it may not
    be looked into.
    """
    files, inner = file_system(folder)
    try:
        if isinstance(files, LocalFileSystem):
            return sorted(str(p) for p in Path(inner).iterdir() if p.is_file()) if Path(inner).is_dir() else []
        found = files.ls(inner, detail=True)
    except (FileNotFoundError, PermissionError):  # of parts that a slide lacks, its reader will say so
        return []
    return sorted(str(files.unstrip_protocol(f["name"])) for f in found if f["type"] == "file")


def copy_here(path: str, files: tuple[str, ...], lease: Lease) -> str:
    """Copy a slide with all its files into the lease, as they lie beside each other; returns the copy of `path`."""
    base = bare_url(path).rpartition("/")[0]
    sizes = {url: _size(url) for url in files}
    lease.reserve(sum(sizes.values()))
    try:
        for url, size in sizes.items():
            target = lease.folder / "slide" / _below(url, base)
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(url, size, target)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise NoRoom("the disk of the cache is full; make room there, or name another with CACHE") from error
    return str(lease.folder / "slide" / _below(path, base))


def _below(url: str, base: str) -> str:
    below = bare_url(url).removeprefix(f"{base}/")
    assert ".." not in below.split("/")  # the parts of a slide lie beside it, or in a folder there
    return below


def _size(url: str) -> int:
    files, inner = file_system(url)
    try:
        return int(files.size(inner))
    except FileNotFoundError as error:
        raise UnreadableSlide("the file does not exist") from error


def _copy(url: str, size: int, target: Path) -> None:
    files, inner = file_system(url)

    def piece(start: int) -> bytes:
        data: bytes = files.cat_file(inner, start, min(size, start + _PIECE_BYTES))
        return data

    with target.open("wb") as file, contextlib.closing(ahead(piece, range(0, size, _PIECE_BYTES), _IN_FLIGHT)) as read:
        for data in read:
            file.write(data)
        if file.tell() != size:
            raise UnreadableSlide(f"{file.tell():,} of its {size:,} bytes came; was it changed meanwhile?")
