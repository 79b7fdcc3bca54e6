"""A process of several, as torchrun starts them: what it does is its second word, if its number is its first."""

import os
import signal
import sys

if __name__ == "__main__":
    number, act = sys.argv[1:]
    if os.environ["RANK"] == number:
        if act == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        sys.exit(int(act))
    signal.sigwait({signal.SIGTERM})  # as one that waits for the others
