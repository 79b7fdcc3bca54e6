"""A folder behind a file system that does harm when told to, mounted while a test lasts; see fuse_server."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

SERVER = Path(__file__).with_name("fuse_server.py")


class HarmfulDisk:
    """`path` is what is mounted, `behind` the same files without harm."""

    def __init__(self, path, behind, process):
        self.path, self.behind, self._process = path, behind, process

    def does(self, *rules):
        """From here on do what these rules say, and nothing if there are none.

        Returns how often each of the rules before did harm.
        """
        self._process.stdin.write(json.dumps(rules) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@contextlib.contextmanager
def harmful_disk(folder, **options):
    """An empty one in a new folder, mounted with fuse_server's options; skips the test where none can be mounted."""
    mount, behind = folder / "disk", folder / "behind"
    mount.mkdir(parents=True)
    behind.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-S", SERVER, behind, mount, json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said = process.stdout.readline().strip()
        if said != "mounted":
            pytest.skip(said or "the file system did not start")
        yield HarmfulDisk(mount, behind, process)
    finally:
        process.stdin.close()  # which unmounts
        process.wait()
        process.stdout.close()
