"""A terminal that a test can read: what a person would see."""

import contextlib
import os
import re
import sys
import threading


@contextlib.contextmanager
def terminal(monkeypatch):
    """A pseudo-terminal of 200 columns as standard output; yields what has been written to it, whole at the end."""
    ours, theirs = os.openpty()
    seen = []

    def read():
        with contextlib.suppress(OSError):  # which is how the end of a terminal is said
            while data := os.read(ours, 1 << 16):
                seen.append(data)

    reader = threading.Thread(target=read)
    reader.start()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with os.fdopen(theirs, "w") as out, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", out)
        yield seen
    reader.join()
    os.close(ours)


def shown(written):
    """Lines without what steers the terminal, in the order in which they were drawn."""
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", b"".join(written).decode())
    return [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]
