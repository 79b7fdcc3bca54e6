"""Room on a worker's disk: bounded over all that share it, and left by no one, however they ended."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from wsi_prep.errors import BadOption, NoRoom
from wsi_prep.slides.fetch.cache import CacheSettings, Lease


@pytest.fixture
def settings(tmp_path):
    return CacheSettings(str(tmp_path / "cache"), gigabytes=1e-6)  # 1000 bytes


def left(settings):
    """What lies in the cache, but for the file that its users lock."""
    return {path.name for path in settings.root().iterdir()} - {"admission.lock"}


def test_a_room_is_empty_private_and_gone_afterwards(settings):
    with Lease(settings) as lease:
        assert list(lease.folder.iterdir()) == []
        assert settings.root().stat().st_mode & 0o77 == 0
        (lease.folder / "slide").mkdir()
        (lease.folder / "slide" / "a.ndpi").write_bytes(b"pixels")
    assert left(settings) == set()


def test_a_room_that_nobody_asks_for_makes_nothing(settings, tmp_path):
    with Lease(settings):
        pass
    assert not (tmp_path / "cache").exists()


def test_it_is_gone_after_an_error_too(settings):
    def fail():
        with Lease(settings) as lease:
            (lease.folder / "a.ndpi").write_bytes(b"pixels")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert left(settings) == set()


HOLDER = """
import sys
from wsi_prep.slides.fetch.cache import CacheSettings, Lease
with Lease(CacheSettings(sys.argv[1], 1e-6)) as lease:
    lease.reserve(800)
    (lease.folder / "a.ndpi").write_bytes(b"pixels")
    print(lease.folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(settings):
    """Another process that holds 800 of the 1000 bytes until its input ends, or it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, settings.folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline().strip()
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def test_what_a_killed_process_left_is_removed_by_the_next(settings, holder):
    assert len(left(settings)) == 2
    with Lease(settings) as lease:
        assert lease.folder.exists()
        assert len(left(settings)) == 4  # the other is alive
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with Lease(settings) as lease:
        assert lease.folder.exists()
        lease.reserve(1000)
        assert len(left(settings)) == 2
    assert left(settings) == set()


def test_where_a_slide_hung_stays_until_it_is_asked_for(settings):
    root = settings.root()
    (root / "of-a-killed-try.hung").write_text("")
    (root / "of-a-slide.hung").write_text("in read_region")
    (root / "of-days-ago.hung").write_text("in read_region")
    os.utime(root / "of-days-ago.hung", (1e9, 1e9))
    with Lease(settings) as lease:
        assert lease.folder.exists()
    assert left(settings) == {"of-a-slide.hung"}


def test_what_does_not_fit_beside_the_others_waits_for_them(settings, holder):
    waited = threading.Event()

    def waiting():
        if not waited.is_set():
            waited.set()
            holder.stdin.close()  # now the other lets go

    with Lease(settings, waiting) as lease:
        lease.reserve(200)  # fits
        assert not waited.is_set()
        lease.reserve(201)
        assert waited.is_set()


def test_what_never_fits_says_so(settings):
    with (
        Lease(settings) as lease,
        pytest.raises(NoRoom, match=r"takes 0\.00 GB and the cache may hold .*raise CACHE_GB"),
    ):
        lease.reserve(1001)


def test_a_cache_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NoRoom, match="cannot be made"), Lease(CacheSettings(str(tmp_path / "file"))) as lease:
        assert lease.folder
    with pytest.raises(BadOption, match="not a size above 0"):
        CacheSettings(gigabytes=0)
