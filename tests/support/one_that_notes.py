"""A process of several that leaves how it ended: words are a folder, and a word for each process.

When all are there, one of them sends torchrun SIGTERM. Each waits for what torchrun passes on, says a line that all
have in common and one of its own, and ends with the exit code that its word is. "-" is killed, and leaves nothing.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path

from pipelines.command import Terminal
from pipelines.processes import noted, said_by_another


def work(code):
    terminal = Terminal("pretrain")
    terminal.said_elsewhere = said_by_another
    for line in ("the disk is full", f"process {os.environ['RANK']} is here", "the disk is full"):
        terminal.warn(line)
    if code == "-":
        os.kill(os.getpid(), signal.SIGKILL)
    return int(code)


if __name__ == "__main__":
    folder, *codes = sys.argv[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    (Path(folder) / os.environ["RANK"]).touch()
    if len(list(Path(folder).glob("[0-9]"))) == len(codes):
        with contextlib.suppress(FileExistsError):
            (Path(folder) / "sent").mkdir()
            os.kill(os.getppid(), signal.SIGTERM)
    signal.sigwait({signal.SIGTERM})
    sys.exit(noted(lambda: work(codes[int(os.environ["RANK"])])))
