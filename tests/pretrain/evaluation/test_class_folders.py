"""Folders of labelled tiles: no slide is on both sides where it is known, and what is not known or left out is said."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pretrain.errors import BadTask
from pretrain.evaluation.class_folders import GroupPattern, read_classes
from pretrain.evaluation.tasks import load_tasks
from tests.support.datasets import named, numbers, picture, sides
from wsi_prep.errors import BadOption

PATTERN = r"/(?P<group>[^/]+)_\d+\.png$"


def put(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)


def flat(folder, rows):
    """`rows`: class and slide of each tile."""
    put(*(folder / label / f"{slide}_{n}.png" for n, (label, slide) in enumerate(rows)))


def nested(folder, rows):
    put(*(folder / label / slide / f"{n}.png" for n, (label, slide) in enumerate(rows)))


ROWS = [("ab"[n % 2], f"s{n // 4}") for n in range(24)]


def load(folder, pattern=None):
    (task,) = load_tasks(str(folder), pattern=GroupPattern(pattern) if pattern else None)
    return task


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["x", "y 1", "z-2", "w.3"])), min_size=1, max_size=12)
)
def test_a_tiles_slide_is_what_its_folder_or_the_pattern_says(rows):
    with tempfile.TemporaryDirectory() as folder:
        flat(Path(folder) / "flat", rows)
        nested(Path(folder) / "nested", rows)
        by_pattern = read_classes(Path(folder) / "flat", GroupPattern(PATTERN))
        by_folder = read_classes(Path(folder) / "nested")
    for found in (by_pattern, by_folder):
        assert found.split is None
        assert sorted(zip(found.labels, found.groups, strict=True)) == sorted(rows)


@pytest.mark.parametrize("split", [True, False])
def test_a_folder_of_classes(tmp_path, split):
    for n in range(24):
        side = ("train", "val", "test")[n // 8] if split else ""
        picture(tmp_path / "mine" / side / ("a", "b")[n % 2] / f"{n:02d}.png", n)
    task = load(tmp_path / "mine")
    assert (task.name, task.classes) == ("mine", ("a", "b"))
    assert named(task) == [("a", "b")[n % 2] for n in numbers(task)]
    if split:
        assert dict(zip(numbers(task), sides(task), strict=True)) == {
            n: ("train", "valid", "test")[n // 8] for n in range(24)
        }


@pytest.mark.parametrize(("make", "pattern"), [(nested, None), (flat, PATTERN)])
def test_no_slide_is_on_both_sides_where_slides_are_known(tmp_path, make, pattern):
    make(tmp_path / "mine", ROWS)
    task = load(tmp_path / "mine", pattern)
    assert task.grouped
    assert len(np.unique(task.groups)) == 6
    assert not set(task.groups[task.train]) & set(task.groups[task.test])
    assert any("slides are" in note and ": 6, as s0" in note for note in task.notes)


def test_that_slides_are_not_known_is_said(tmp_path):
    flat(tmp_path / "mine", ROWS)
    task = load(tmp_path / "mine")
    assert not task.grouped
    assert len(np.unique(task.groups)) == 24
    assert any("is not known" in note and "CLASS/SLIDE/" in note for note in task.notes)


def test_splits_are_read_in_any_case_and_may_share_no_slide(tmp_path):
    for side, slide in (("Train", "s1"), ("VAL", "s2"), ("test", "s3")):
        nested(tmp_path / "mine" / side, [("a", slide), ("b", slide)])
    task = load(tmp_path / "mine")
    assert task.train.sum() == task.valid.sum() == task.test.sum() == 2
    nested(tmp_path / "mine/test", [("a", "s1")])
    with pytest.raises(BadTask, match="train and test in 1 groups"):
        load(tmp_path / "mine")


@pytest.mark.parametrize(
    ("files", "word"),
    [
        (["a/1.png", "a/s/2.png", "b/s/3.png"], "several depths"),
        (["a/s/t/1.png", "b/s/t/2.png"], "deeper than CLASS/SLIDE/"),
        (["train/a/1.png", "train/b/2.png", "fold3/a/4.png"], "holds train beside fold3"),
        (["Training/a/1.png", "Testing/b/2.png"], "splits or classes"),
    ],
)
def test_what_can_be_read_in_two_ways_is_refused_in_one_line(tmp_path, files, word):
    put(*(tmp_path / "mine" / name for name in files))
    with pytest.raises(BadTask, match=word) as caught:
        load(tmp_path / "mine")
    assert len(str(caught.value).splitlines()) == 1


def test_with_a_pattern_tiles_may_lie_at_any_depth(tmp_path):
    put(*(tmp_path / "mine" / name for name in ("a/s1_1.png", "a/x/s2_2.png", "b/x/y/s1_3.png", "b/s2_4.png")))
    found = read_classes(tmp_path / "mine", GroupPattern(PATTERN))
    assert sorted(zip(found.labels, found.groups, strict=True)) == [("a", "s1"), ("a", "s2"), ("b", "s1"), ("b", "s2")]


def test_what_is_left_out_is_said_and_what_systems_leave_is_not(tmp_path):
    folder = tmp_path / "mine"
    flat(folder, ROWS)
    put(folder / "loose.png", folder / ".thumbs/x/1.png", folder / "a/._1.png")
    (folder / "a/tile.bmp").write_bytes(b"")
    (folder / "b/.DS_Store").write_bytes(b"")
    (folder / "b/link.png").symlink_to(folder / "loose.png")
    assert read_classes(folder).notes == (
        "1 image in no class's folder skipped, as loose.png",
        "1 link skipped, as link.png; copy what they lead to",
        "1 file skipped, not .png, .jpg or .tif, as tile.bmp",
    )
    assert len(read_classes(folder).files) == 24


def test_a_folder_of_links_alone_is_refused_with_the_reason(tmp_path):
    put(tmp_path / "1.png")
    for kind in "ab":
        (tmp_path / "mine" / kind).mkdir(parents=True)
        (tmp_path / "mine" / kind / "1.png").symlink_to(tmp_path / "1.png")
    with pytest.raises(BadTask, match="2 links skipped"):
        load(tmp_path / "mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(?P<group>[a-z", "is no regular expression"),
        ("([a-z]+)_", "names the groups none; it needs"),
        ("(?P<slide>[a-z]+)_", "names the groups slide; it needs"),
        ("(?P<group>" + "a" * 600 + ")", "500 are the most"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_one_line(text, message):
    with pytest.raises(BadOption, match=message) as caught:
        GroupPattern(text)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_pattern_that_would_never_end_is_stopped():
    with pytest.raises(BadOption, match=r"takes more than 1 s on .*; do not repeat what repeats"):
        GroupPattern(r"^(?P<group>(a|aa)+)$").search("a" * 900 + "b")


def test_a_tile_in_whose_path_the_pattern_finds_nothing_is_named(tmp_path):
    flat(tmp_path / "mine", ROWS)
    put(tmp_path / "mine/a/plain.png")
    with pytest.raises(BadTask, match=r"finds nothing in 1 of 25 paths, as in a/plain\.png"):
        load(tmp_path / "mine", PATTERN)


def test_an_empty_folder_is_one_clear_line(tmp_path):
    with pytest.raises(BadTask, match="CLASS"):
        load(tmp_path)
