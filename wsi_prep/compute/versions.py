"""Which versions a result depends on, and whether two machines have the same."""

from __future__ import annotations

import functools
import hashlib
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import wsi_prep

OUTPUT_PACKAGES = (
    "openslide-python",
    "openslide-bin",
    "tiffslide",
    "tifffile",
    "imagecodecs",
    "av",
    "simplejpeg",
    "opencv-python",
    "scikit-image",
    "numpy",
    "pyarrow",
)
"""Packages that decide of tiles, their measures or the catalog."""

CLUSTER_PACKAGES = ("dask", "distributed", "cloudpickle")
"""Packages that must be the same for tasks and results to travel."""

_TOLD_PACKAGES = ("openslide-python", "openslide-bin", "tiffslide", "tifffile", "imagecodecs", "opencv-python", "zarr")

CODE = "the code of wsi_prep"


@functools.cache
def code_mark() -> str:
    """Mark of this package's own source: two checkouts of one version number are told apart."""
    mark = hashlib.blake2b(digest_size=6)
    folder = Path(wsi_prep.__file__).parent
    for file in sorted(folder.rglob("*.py")):
        mark.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return mark.hexdigest()


@functools.cache
def own_versions() -> dict[str, str]:
    """Versions here: of Python (major and minor), the packages above, and this package's code."""
    versions = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in (*CLUSTER_PACKAGES, *OUTPUT_PACKAGES):
        versions[package] = _version(package) or _version(f"{package}-headless") or "none"
    return {**versions, CODE: code_mark()}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def difference(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    """What is not the same, of the names that both know, as "dask 2 (here 1)"; empty where all is the same."""
    names = [name for name in here if name in there and here[name] != there[name]]
    return ", ".join(f"{name} {there[name]} (here {here[name]})" for name in names)


def told_versions() -> dict[str, str]:
    """Versions of the packages that run.json tells of, as far as they are here."""
    versions = {}
    for package in _TOLD_PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
