"""Which files belong to the repository, by git."""

import subprocess

import pytest

from tests.support.paths import ROOT


def tracked_files() -> set[str]:
    """Paths, relative to the root, of all that git knows or would add; skips the test where there is no repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a clone: git says which files belong to the project")
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split("\0")
    return {name for name in names if (ROOT / name).is_file()}  # no name at the end, and what is deleted is not there
