"""Locks on files: held by another process, or not to be had at all. File systems here have them, so flock stands in.

What it raises is what file systems without locks do: NFS without its lock service (ENOLCK), Lustre without the option
flock (ENOSYS, EOPNOTSUPP).
"""

import contextlib
import errno
import fcntl
import os

import pytest

from pipelines.shards import main
from wsi_prep.compute.time_limit import time_limit
from wsi_prep.errors import BadOutput, NoRoom
from wsi_prep.slides.fetch.cache import CacheSettings, Lease
from wsi_prep.storage.select import open_storage
from wsi_prep.untrusted.locks import CannotLock, try_lock, wait_for_lock

WITHOUT = [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS]
BROKEN = [errno.EIO, errno.ESTALE, errno.EBADF]


@pytest.fixture(params=[*WITHOUT, *BROKEN])
def number(request, monkeypatch):
    """The number of the error that every lock gets."""

    def flock(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)
    return request.param


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES], indirect=True)
def test_held_by_another(number, tmp_path):
    storage = open_storage(tmp_path)
    with pytest.raises(BadOutput, match="another run is writing to"), storage.locked("t", take_over=False):
        pass
    with pytest.raises(BadOutput, match="a run is writing to"), storage.undisturbed(take_over=False):
        pass


def test_a_lock_is_seen_through_another_file_and_shared_by_those_who_look(tmp_path):
    with contextlib.ExitStack() as stack:
        first, second, third = (stack.enter_context((tmp_path / "f").open("a+")) for _ in range(3))
        assert try_lock(first)
        assert not try_lock(second)
        assert not try_lock(second, shared=True)
        first.close()
        assert try_lock(second, shared=True)
        assert try_lock(third, shared=True)
        assert not try_lock(third)


def test_what_the_system_itself_refuses_is_no_lock_of_another(tmp_path):
    with (tmp_path / "f").open("w") as file:
        number = os.open(tmp_path / "f", os.O_PATH)  # names a file, and is not open for anything
        os.dup2(number, file.fileno())
        os.close(number)
        for lock in (try_lock, wait_for_lock):
            with pytest.raises(CannotLock, match="Bad file descriptor"):
                lock(file)


@pytest.mark.parametrize("number", BROKEN, indirect=True)
def test_an_output_that_cannot_be_locked_says_why_and_what_helps(number, tmp_path, nompp_slide, capsys):
    assert main(["--slides", str(nompp_slide), "--out", str(tmp_path / "out"), "--workers", "1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert os.strerror(number) in error
    assert "another run" not in error
    assert "name a folder on another disk" in error
    storage = open_storage(tmp_path / "out")
    (tmp_path / "out/.lock").touch()
    with pytest.raises(BadOutput, match="cannot be locked"), storage.undisturbed(take_over=False):
        pass


def test_a_cache_that_cannot_be_locked_is_no_room(number, tmp_path):
    with Lease(CacheSettings(str(tmp_path))) as lease, pytest.raises(NoRoom, match="name another with CACHE") as raised:
        _ = lease.folder
    assert os.strerror(number) in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_a_time_limit_needs_no_lock(number, tmp_path):
    with time_limit(tmp_path / "slide.hung", 60):
        assert (tmp_path / "slide.hung").exists()
    assert not list(tmp_path.iterdir())


def test_a_lock_file_that_cannot_be_opened_says_so(tmp_path):
    (tmp_path / ".lock").mkdir()
    for held in (
        open_storage(tmp_path).locked("t", take_over=False),
        open_storage(tmp_path).undisturbed(take_over=False),
    ):
        with pytest.raises(BadOutput, match=r"\.lock is no file but a folder"), held:
            pass
