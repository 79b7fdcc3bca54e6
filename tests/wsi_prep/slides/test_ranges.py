"""Ranges of bytes: what is asked for comes, in few requests, and little else with it."""

import io
import os
import threading
from itertools import pairwise

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_prep.errors import UnreadableSlide
from wsi_prep.slides.fetch.ranges import ExpectedRanges, RemoteRanges, joined, open_ranges, seekable

pytestmark = pytest.mark.network

SPANS = st.lists(st.tuples(st.integers(0, 100_000), st.integers(0, 5_000)), max_size=40)
DATA = bytes(range(256)) * 500


@given(SPANS)
def test_requests_cover_all_spans_and_at_most_a_fifth_more(spans):
    requests = joined(spans)
    assert all(end < start for (_, end), (start, _) in pairwise(requests))
    wanted = {byte for offset, count in spans for byte in range(offset, offset + count)}
    got = {byte for start, end in requests for byte in range(start, end)}
    assert wanted <= got
    assert sum(end - start for start, end in requests) == len(got)
    assert len(got) - len(wanted) <= 0.2 * sum(count for _, count in spans)


def test_tiles_that_lie_side_by_side_are_one_request_and_rows_apart_are_not():
    row = [(1000 + 100 * i, 100) for i in range(13)]
    assert joined([*row, *((offset + 90_000, count) for offset, count in row)]) == [(1000, 2300), (91_000, 92_300)]
    assert len(joined([(n * 2**20, 2**20) for n in range(20)])) == 3


@pytest.fixture(scope="module", params=["disk", "elsewhere"])
def ranges(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("ranges") / "file"
    path.write_bytes(DATA)
    fsspec.filesystem("memory").pipe_file("/ranges/file", DATA)
    opened = open_ranges(str(path) if request.param == "disk" else "memory://ranges/file")
    yield opened
    opened.close()


@given(spans=SPANS)
def test_the_bytes_are_the_files_own(ranges, spans):
    assert ranges.size == len(DATA)
    spans = [(offset, min(count, len(DATA) - offset)) for offset, count in spans]
    assert ranges.read_ranges(spans) == [DATA[offset : offset + count] for offset, count in spans]


@given(steps=st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.integers(-2000, 140_000), st.integers(0, 70_000))))
def test_a_seekable_file_reads_as_one_on_a_disk(ranges, steps):
    ours, theirs = seekable(ranges), io.BytesIO(DATA)
    for whence, offset, count in steps:
        base = (0, theirs.tell(), len(DATA))[whence]
        where = max(0, base + (-offset if whence == 2 else offset))
        assert ours.seek(where) == theirs.seek(where)
        assert ours.read(count) == theirs.read(count)
        assert ours.tell() == theirs.tell()


@pytest.mark.parametrize("path", ["memory://ranges/none", "/nowhere/none"])
def test_a_file_that_is_not_there_says_so(path):
    with pytest.raises(UnreadableSlide, match="cannot be opened"):
        open_ranges(path)


class Counting:
    """A file system of one file, which counts what it gives."""

    def __init__(self, data):
        self.data, self.given = data, 0

    def size(self, _):
        return len(self.data)

    def cat_ranges(self, _, starts, ends, on_error):
        assert on_error == "raise"
        self.given += sum(end - start for start, end in zip(starts, ends, strict=True))
        return [self.data[start:end] for start, end in zip(starts, ends, strict=True)]


def test_what_is_asked_for_again_comes_once_as_far_as_memory_allows(monkeypatch):
    tiles = [(n * 1000, 1000) for n in range(100)]
    for most, expected in ((200_000, 100_000), (10_000, 190_000)):  # of all bytes, and of ten tiles
        monkeypatch.setattr("wsi_prep.slides.fetch.ranges.KEPT_BYTES", most)
        files = Counting(DATA)
        ranges = RemoteRanges(files, "file")
        for _ in range(2):
            assert ranges.read_ranges(tiles) == [DATA[offset : offset + count] for offset, count in tiles]
        assert files.given == expected


@given(st.lists(st.tuples(SPANS, SPANS), max_size=6))
def test_whatever_was_expected_what_is_read_is_what_the_file_holds(steps):
    ranges = ExpectedRanges(RemoteRanges(Counting(DATA), "file"))
    for expected, spans in steps:
        ranges.expect(expected)
        assert ranges.read(spans) == [DATA[offset : offset + count] for offset, count in spans]
    ranges.close()


def test_what_was_expected_of_a_far_file_is_there_when_it_is_read():
    files = Counting(DATA)
    ranges = ExpectedRanges(RemoteRanges(files, "file"))
    ranges.expect([(0, 1000), (5000, 1000)])
    ranges.expect([(5000, 1000), (9000, 1000)])
    assert ranges.read([(9000, 1000), (5000, 1000), (0, 1000)]) == [DATA[9000:10000], DATA[5000:6000], DATA[:1000]]
    assert files.given == 3000
    ranges.close()


def test_a_slow_disk_is_asked_for_many_ranges_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(DATA)
    ranges = open_ranges(str(tmp_path / "file"))
    assert not ranges.far
    meeting = threading.Barrier(3, timeout=60)  # nobody passes alone
    read = os.pread

    def far(*arguments):
        meeting.wait()
        return read(*arguments)

    ranges.far = True
    monkeypatch.setattr(os, "pread", far)
    spans = [(0, 100), (20_000, 100), (40_000, 100)]
    assert ranges.read_ranges(spans) == [DATA[offset : offset + count] for offset, count in spans]
    ranges.close()
