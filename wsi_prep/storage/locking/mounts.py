"""Which file systems keep locks to the machine that asks: there, another machine's run goes unnoticed."""

from __future__ import annotations

import os
from pathlib import Path

_BY_OPTION = {
    "nfs": ("nolock", "local_lock=flock", "local_lock=all"),
    "nfs4": ("nolock", "local_lock=flock", "local_lock=all"),
    "lustre": ("localflock",),
    "cifs": ("nobrl",),
    "smb3": ("nobrl",),
}
_ALWAYS = ("beegfs", "fuse.sshfs", "fuse.s3fs", "fuse.rclone", "fuse.gcsfuse", "fuse.mount-s3", "fuse.goofys")
"""BeeGFS may be told otherwise (tuneUseGlobalFileLocks), but its mount does not say so."""


def locks_here_alone(folder: Path) -> bool:
    """Whether the kernel says that a lock in the folder holds against this machine's processes alone."""
    try:
        about = os.stat(folder)  # noqa: PTH116 - of what a link leads to
        device = f"{os.major(about.st_dev)}:{os.minor(about.st_dev)}"
        return any(is_of_one_machine(line) for line in _lines() if line.split()[2] == device)
    except (OSError, IndexError):  # another system than Linux
        return False


def is_of_one_machine(line: str) -> bool:
    """The same, by a line of /proc/self/mountinfo (see proc_pid_mountinfo(5))."""
    kind, _, options = line.partition(" - ")[2].split(maxsplit=2)
    told = {*options.strip().split(","), *line.split()[5].split(",")}
    return kind in _ALWAYS or not told.isdisjoint(_BY_OPTION.get(kind, ()))


def _lines() -> list[str]:
    return Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
