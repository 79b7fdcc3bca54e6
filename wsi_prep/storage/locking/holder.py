"""Which process it is that holds something, and whether it is gone: told without any clock."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ProcessMark:
    """A process, told from every other one.

    `boot` and `namespace` say on which start of which machine, and in which container, `pid` counts; `start` is when
    the process began, in ticks since then. They are empty on systems without /proc, where nothing is known to be gone.
    """

    host: str = ""
    boot: str = ""
    namespace: str = ""
    pid: int = 0
    start: str = ""

    @classmethod
    def own(cls) -> ProcessMark:
        """The process that asks."""
        return cls(socket.gethostname(), *_here(), os.getpid(), _start(os.getpid()))

    @classmethod
    def of(cls, written: Mapping[str, Any]) -> ProcessMark:
        """The mark that `as_dict` was written into this; what is missing, or of another type, is unknown."""
        unknown = asdict(cls())
        return cls(**{n: written[n] for n, value in unknown.items() if type(written.get(n)) is type(value)})

    def as_dict(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)

    def is_gone(self) -> bool:
        """True where the process is known to have ended; False where it runs, or counts on another machine."""
        return (
            bool(self.boot and self.start) and (self.boot, self.namespace) == _here() and _start(self.pid) != self.start
        )

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def _here() -> tuple[str, str]:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return boot, os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - it is no path that it gives
    except OSError:
        return "", ""


def _start(pid: int) -> str:
    """Ticks after boot at which a process began; empty where it ended, even if its parent has not asked yet."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    state, start = after_name[0], after_name[19]
    return "" if state in "ZX" else start
