"""Files that appear whole: who may read them."""

import os
import stat
import subprocess
import sys

import pytest

from tests.support.paths import ROOT
from wsi_prep.storage.atomic import aside


def write(umask, mode):
    """A program of the user's with this umask, and a library that makes its file with `mode`."""
    return f"""
import os, pathlib
from wsi_prep.storage.atomic import aside
os.umask({umask})
with aside(pathlib.Path("file")) as unfinished:
    os.close(os.open(unfinished, os.O_CREAT | os.O_WRONLY, {mode}))
"""


@pytest.mark.parametrize(
    ("umask", "made", "mode"),
    [(0o027, 0o600, 0o640), (0o022, 0o600, 0o644), (0o077, 0o600, 0o600), (0o002, 0o666, 0o664), (0, 0o640, 0o640)],
    ids=oct,
)
def test_others_may_read_a_file_as_the_umask_says_whatever_made_it(tmp_path, umask, made, mode):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", write(umask, made)], cwd=tmp_path, env=environment, check=True)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_a_file_that_was_not_written_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError), aside(tmp_path / "file"):
        pass
    assert list(tmp_path.iterdir()) == []
