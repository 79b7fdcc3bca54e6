"""Room on a worker's own disk for one slide at a time: copies of slides that cannot be read where they are.

Each user of the folder has a file there that it holds locked. The system lets go of it when the process ends, however
that ends; so what belongs to no live process is told without clocks, and removed by whoever comes next.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO
from uuid import uuid4

from wsi_prep.compute.time_limit import HUNG
from wsi_prep.errors import BadOption, NoRoom
from wsi_prep.storage.atomic import remove_tree
from wsi_prep.untrusted.locks import CannotLock, try_lock, wait_for_lock
from wsi_prep.untrusted.own_folder import own_folder

_MARK = ".mark"
_LOOK_AGAIN_SECONDS = 0.2
_ASKED_SECONDS = 86_400.0


@dataclass(frozen=True)
class CacheSettings:
    """Where copies go (None: a folder of this user in the system's temporary one), and how much all of them may take.

    Workers that share the folder share `gigabytes` too (10^9 bytes each).
    """

    folder: str | None = None
    gigabytes: float = 20.0

    def __post_init__(self) -> None:
        if not self.gigabytes > 0:
            raise BadOption(f"cache of {self.gigabytes:g} GB is not a size above 0")

    def root(self) -> Path:
        """The folder, made if missing; nobody else may look into it. Raises NoRoom where it cannot be had."""
        if not self.folder:
            try:
                return own_folder(Path(tempfile.gettempdir()))
            except BadOption as error:
                raise NoRoom(f"{error}, or name another with CACHE") from error
        root = Path(self.folder).absolute()
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise NoRoom(f"the cache {root} cannot be made ({error.strerror}); name another with CACHE") from error
        return root


class Lease:
    """A folder for one slide, made when it is first asked for and removed at the end; use as a context manager."""

    def __init__(self, settings: CacheSettings, waiting: Callable[[], None] = lambda: None) -> None:
        """`waiting` is called again and again while others take all the lease."""
        self._settings, self._waiting = settings, waiting
        self._stack = contextlib.ExitStack()
        self._mark: IO[str] | None = None
        self._folder: Path | None = None

    @property
    def folder(self) -> Path:
        """The folder, empty at first."""
        if self._folder is None:
            root = self._settings.root()
            _sweep(root)
            try:
                self._mark, self._folder = self._stack.enter_context(_claimed(root))
            except CannotLock as error:
                raise NoRoom(f"the cache {root} cannot be locked: {error}, or name another with CACHE") from error
        return self._folder

    def reserve(self, nbytes: int) -> None:
        """Wait until `nbytes` more fit beside what others hold; NoRoom where they never will."""
        most = int(self._settings.gigabytes * 1e9)
        if nbytes > most:
            raise NoRoom(
                f"a copy of it takes {nbytes / 1e9:.2f} GB and the cache may hold {most / 1e9:.2f}; raise CACHE_GB"
            )
        root = self.folder.parent
        while True:
            with _locked(root / "admission.lock"):
                _sweep(root)
                others = [mark for mark in _marks(root) if mark.stem != self.folder.name]
                if sum(map(_reserved, others)) + nbytes <= most:
                    self._write_mark(nbytes)
                    return
            self._waiting()
            time.sleep(_LOOK_AGAIN_SECONDS)

    def _write_mark(self, nbytes: int) -> None:
        assert self._mark is not None
        self._mark.seek(0)
        self._mark.truncate()
        self._mark.write(str(nbytes))
        self._mark.flush()

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


@contextlib.contextmanager
def _claimed(root: Path) -> Iterator[tuple[IO[str], Path]]:
    """A mark that is held locked, and the folder that it stands for."""
    while True:
        mark = root / f"{uuid4().hex}{_MARK}"
        file = mark.open("a+")
        try:
            wait_for_lock(file)
        except CannotLock:
            mark.unlink()
            file.close()
            raise
        if mark.exists():  # nobody swept it between the two
            break
        file.close()
    folder = mark.with_suffix("")
    try:
        folder.mkdir(mode=0o700)
        yield file, folder
    finally:
        remove_tree(folder)
        mark.unlink(missing_ok=True)
        file.close()


def _marks(root: Path) -> list[Path]:
    return list(root.glob(f"*{_MARK}"))


def _sweep(root: Path) -> None:
    """Remove what belongs to no live process, but for what says where a slide hung: the next try of it asks, or nobody
    does within a day.
    """
    for mark in (*_marks(root), *root.glob(f"*{HUNG}")):
        with contextlib.suppress(FileNotFoundError, CannotLock), mark.open("r+") as file:
            if not try_lock(file):
                continue
            about = os.fstat(file.fileno())
            if mark.suffix == HUNG and about.st_size and time.time() - about.st_mtime < _ASKED_SECONDS:
                continue
            remove_tree(mark.with_suffix(""))
            mark.unlink(missing_ok=True)


def _reserved(mark: Path) -> int:
    """Bytes that its process has reserved."""
    with contextlib.suppress(FileNotFoundError):
        return int(mark.read_text() or 0)
    return 0


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        wait_for_lock(file)
        yield
