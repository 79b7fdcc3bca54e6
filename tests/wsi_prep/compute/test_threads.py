"""Threads that share the work on a slide change nothing of what comes of it."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.undisturbed import outcome
from wsi_prep.compute.cluster.options import ClusterOptions
from wsi_prep.compute.jobs import threads_a_task
from wsi_prep.compute.threads import ThreadPool
from wsi_prep.errors import DamagedSlide
from wsi_prep.run.slide import prepare_slide
from wsi_prep.run.task import PrepareSettings, SlideTask
from wsi_prep.slides.find.manifest import EMPTY_ROW
from wsi_prep.slides.find.sources import find_slides
from wsi_prep.slides.readers.select import open_slide
from wsi_prep.storage.base import LOCK


@given(st.integers(1, 5), st.lists(st.integers(), max_size=40))
def test_a_crew_gives_what_one_gives_in_order(threads, items):
    with ThreadPool(threads) as pool:
        assert pool.share(lambda some: [(item, 2 * item) for item in some if item % 3], items) == [
            (item, 2 * item) for item in items if item % 3
        ]


def test_a_crew_works_side_by_side():
    meeting = threading.Barrier(3, timeout=60)  # nobody passes alone
    with ThreadPool(3) as pool:
        assert sorted(pool.share(lambda some: [meeting.wait() for _ in some], range(3))) == [0, 1, 2]


def test_an_error_reaches_who_asked():
    def fail(some):
        raise DamagedSlide("the tile is no JPEG")

    for threads in (1, 3):
        with ThreadPool(threads) as pool, pytest.raises(DamagedSlide, match="no JPEG"):
            pool.share(fail, range(6))


def test_a_slide_is_the_same_whoever_shares_its_work(he_slide, tmp_path):
    (source,) = find_slides(str(he_slide))
    outs = {count: tmp_path / str(count) for count in (1, 2, 5)}
    for count, out in outs.items():
        for table in ("slides", "tiles"):
            (out / "catalog" / table).mkdir(parents=True)
        (out / LOCK).write_text("run")
        row = prepare_slide(SlideTask(source, EMPTY_ROW, None, PrepareSettings(), str(out), "run", threads=count))
        assert row["status"] == "ok"
    assert outcome(outs[1]) == outcome(outs[2]) == outcome(outs[5])


def test_rectangles_are_the_same_whoever_decodes_them(he_slide):
    alone = open_slide(str(he_slide), "tiff")
    with ThreadPool(3) as pool:
        shared = open_slide(str(he_slide), "tiff", pool)
        for x, y, width, height in [(0, 0, 700, 500), (700, 0, 600, 500), (-40, 480, 900, 333), (0, 0, 1300, 900)]:
            assert np.array_equal(alone.read(0, x, y, width, height), shared.read(0, x, y, width, height))
        assert alone.cached_bytes == shared.cached_bytes


@pytest.mark.parametrize(
    ("options", "tasks", "threads"),
    [
        (ClusterOptions(workers=8), 1, 8),
        (ClusterOptions(workers=8), 3, 2),
        (ClusterOptions(workers=8), 9, 1),
        (ClusterOptions(scheduler="tcp://127.0.0.1:8786"), 1, 1),
    ],
)
def test_only_cores_without_a_slide_of_their_own_are_shared(options, tasks, threads):
    assert threads_a_task(options, tasks) == threads
