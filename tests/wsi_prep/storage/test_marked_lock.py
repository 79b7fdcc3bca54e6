"""Outputs on file systems without locks, or with locks that other machines do not see: a file says who holds it."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.fuse_mount import harmful_disk
from wsi_prep.errors import BadOutput, OutputInUse
from wsi_prep.storage.base import LOCK
from wsi_prep.storage.locking.holder import ProcessMark
from wsi_prep.storage.locking.marked import HOLDER, MarkedLock
from wsi_prep.storage.locking.mounts import is_of_one_machine, locks_here_alone
from wsi_prep.storage.select import open_storage

ELSEWHERE = {"host": "elsewhere", "boot": "another", "namespace": "", "pid": 7, "start": "1"}


@pytest.fixture(params=["ENOLCK", "EOPNOTSUPP", "ENOSYS"])
def disk(request, tmp_path):
    """A file system that gives this error for each lock."""
    with harmful_disk(tmp_path, locks=request.param) as mounted:
        (mounted.behind / "out").mkdir()
        yield mounted


def place(disk):
    return open_storage(disk.path / "out")


def test_one_run_holds_an_output_and_others_are_told_who(disk):
    here = f"process {os.getpid()} on "
    with place(disk).locked("first", take_over=False):
        assert place(disk).holder() == "first"
        with (
            pytest.raises(BadOutput, match=f"another run .{here}.*TAKE_OVER=1"),
            place(disk).locked("2", take_over=False),
        ):
            pass
        with pytest.raises(OutputInUse, match=f"a run .{here}"), place(disk).undisturbed(take_over=False):
            pass
        assert place(disk).holder() == "first"
    with place(disk).undisturbed(take_over=False):
        pass
    with place(disk).locked("second", take_over=False):
        assert place(disk).holder() == "second"
    with pytest.raises(OutputInUse, match="a run began"), place(disk).undisturbed(take_over=False):  # noqa: SIM117
        with place(disk).locked("third", take_over=False):
            pass
    assert {path.name for path in (disk.behind / "out").iterdir()} == {LOCK, HOLDER}


def test_a_run_that_is_gone_is_followed_and_one_of_another_machine_only_on_request(disk):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = ProcessMark.own().as_dict()
    for mark, free in (
        (here, False),  # it is this process itself
        (here | {"pid": gone.pid}, True),
        (here | {"start": "1"}, True),  # the number was given to another process since
        (ELSEWHERE, False),
        (ELSEWHERE | {"free": True}, True),
        ({}, False),
    ):
        (disk.behind / "out" / LOCK).write_text("old")
        (disk.behind / "out" / HOLDER).write_text(json.dumps({"token": "old", **mark}).ljust(1024))
        if not free:
            with pytest.raises(BadOutput, match="another run"), place(disk).locked("new", take_over=False):
                pass
            assert place(disk).holder() == "old"
        with place(disk).locked("new", take_over=not free):
            assert place(disk).holder() == "new"


def test_what_was_killed_while_it_took_the_lock_keeps_others_out_until_they_are_told_that_it_is_gone(disk):
    (disk.behind / "out" / HOLDER).write_text("")  # made, and not written
    with pytest.raises(BadOutput, match="TAKE_OVER=1"), place(disk).locked("new", take_over=False):
        pass
    with place(disk).locked("old", take_over=True):
        pass
    (disk.behind / "out" / ".lock.after-old").touch()
    with (
        pytest.raises(BadOutput, match=r"or was killed while it began.*TAKE_OVER=1"),
        place(disk).locked("new", take_over=False),
    ):
        pass
    with place(disk).locked("new", take_over=True):
        assert place(disk).holder() == "new"
    with place(disk).locked("newer", take_over=False):
        pass


def test_a_run_that_was_taken_over_does_not_let_the_other_ones_lock_go(tmp_path):
    first, second = MarkedLock(tmp_path, "OUT"), MarkedLock(tmp_path, "OUT")
    with second_held(second) as held:
        with first.hold("first", take_over=False):
            held.enter()
        assert second.read() == {**ProcessMark.own().as_dict(), "token": "second"}
        with pytest.raises(BadOutput, match="another run"), first.hold("third", take_over=False):
            pass


class second_held:  # noqa: N801 - a context
    """Takes over when told to, and lets go at the end."""

    def __init__(self, lock):
        self._held = lock.hold("second", take_over=True)

    def __enter__(self):
        return self

    def enter(self):
        self._held.__enter__()

    def __exit__(self, *_):
        self._held.__exit__(None, None, None)


def test_runs_with_and_without_locks_keep_each_other_out(disk):
    """As where one machine mounts Lustre with the option flock, and another without."""
    with_locks = open_storage(disk.behind / "out")
    with with_locks.locked("a", take_over=False):
        with (
            pytest.raises(BadOutput, match="a run on another machine is writing"),
            place(disk).locked("b", take_over=False),
        ):
            pass
        with_locks.dismiss_workers()  # as at the end of a run
    with place(disk).locked("b", take_over=False):
        with pytest.raises(BadOutput, match="another run"), with_locks.locked("c", take_over=False):
            pass
        with pytest.raises(OutputInUse), with_locks.undisturbed(take_over=False):
            pass
    with with_locks.locked("c", take_over=False):
        assert with_locks.holder() == "c"


@pytest.mark.parametrize("take_over", [False, True])
def test_who_looked_before_another_followed_does_not_follow_too(tmp_path, take_over):
    with MarkedLock(tmp_path, "OUT").hold("old", take_over=False):
        pass
    quick = MarkedLock(tmp_path, "OUT").hold("quick", take_over=False)

    class Late(MarkedLock):
        def read(self):
            found = super().read()
            if self.waits:
                self.waits = False
                quick.__enter__()
            return found

    late = Late(tmp_path, "OUT")
    late.waits = True
    with pytest.raises(BadOutput, match="another run"), late.hold("late", take_over=take_over):
        pass
    assert MarkedLock(tmp_path, "OUT").read() == {**ProcessMark.own().as_dict(), "token": "quick"}
    quick.__exit__(None, None, None)


@pytest.mark.parametrize("gone", [False, True])
def test_of_many_that_follow_at_once_one_does(tmp_path, gone):
    """The first time there is no holder, then one that is free, or that is gone."""
    turned_away = threading.Semaphore(0)

    def attempt(token):
        try:
            with MarkedLock(tmp_path, "OUT").hold(token, take_over=False):
                return all(turned_away.acquire(timeout=60) for _ in range(7))
        except BadOutput:
            turned_away.release()
            return None

    for _ in range(20):
        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(attempt, "abcdefgh"), key=str) == [None] * 7 + [True]
        if gone:
            mark = {**json.loads((tmp_path / HOLDER).read_text()), "free": False, "start": "1"}
            (tmp_path / HOLDER).write_text(json.dumps(mark).ljust(1024))
    assert [path.name for path in tmp_path.iterdir()] == [HOLDER]


def test_a_holder_that_leads_elsewhere_is_not_written_through(tmp_path):
    (tmp_path / "precious").write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    for make in (Path.symlink_to, Path.hardlink_to):
        make(out / HOLDER, tmp_path / "precious")
        with pytest.raises(BadOutput, match=r"is a (hard )?link"), MarkedLock(out, "OUT").hold("t", take_over=True):
            pass
        (out / HOLDER).unlink()
    assert (tmp_path / "precious").read_text() == "mine"


MOUNTS = {
    "36 25 0:31 / /nfs rw - nfs4 server:/x rw,vers=4.2,hard,local_lock=none,addr=1.2.3.4": False,
    "36 25 0:31 / /nfs rw - nfs server:/x rw,vers=3,nolock,local_lock=all": True,
    "36 25 0:31 / /nfs rw - nfs server:/x rw,vers=3,local_lock=flock": True,
    "36 25 0:31 / /lustre rw - lustre 10.0.0.1@o2ib:/scratch rw,flock,lazystatfs": False,
    "36 25 0:31 / /lustre rw,noatime shared:9 - lustre 10.0.0.1@o2ib:/scratch rw,localflock,lazystatfs": True,
    "36 25 0:31 / /b rw - beegfs beegfs_nodev rw,cfgFile=/etc/beegfs/beegfs-client.conf": True,
    "36 25 0:31 / /s rw - fuse.sshfs me@host:/x rw,user_id=0": True,
    "36 25 8:1 / / rw - ext4 /dev/sda1 rw,nolock": False,
}


def test_mounts_whose_locks_one_machine_alone_sees_are_known(tmp_path):
    assert {line: is_of_one_machine(line) for line in MOUNTS} == MOUNTS
    assert not locks_here_alone(tmp_path)
    assert not locks_here_alone(tmp_path / "nothing")
