"""Slides that are well formed and mislead, compared with what was painted; and whether the judge sees it."""

from dataclasses import replace

import numpy as np
import pytest

from tests.fuzz.__main__ import main
from tests.fuzz.harness import prepare
from tests.fuzz.honest.judge import Bounds, judge
from tests.fuzz.honest.make import make_case
from tests.fuzz.honest.painting import BASES
from wsi_prep.storage.base import LOCK

pytestmark = pytest.mark.slow

ONE = BASES[:1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A sound slide, its row and its output."""
    folder = tmp_path_factory.mktemp("honest")
    case, out = make_case(5, folder / "slide", ONE, plain=True), folder / "out"
    for name in ("catalog/slides", "catalog/tiles"):
        (out / name).mkdir(parents=True)
    (out / LOCK).write_text("fuzz")
    told = {"statuses": [], "kinds": [], "said": [], "faults": []}
    (row,) = prepare(case.given, out, 120, told, case.settings)
    assert told == {"statuses": ["ok"], "kinds": [""], "said": [], "faults": []}
    return case, row, out


def test_a_sound_slide_has_no_fault(made):
    assert judge(*made) == []


def moved(picture):
    return replace(picture, pixels=np.roll(picture.pixels, 6, axis=1))


def swapped(picture):
    return replace(picture, pixels=picture.pixels[..., ::-1])


def darker(picture):
    return replace(picture, pixels=picture.pixels - (picture.pixels > 8) * np.uint8(5))


def other_tissue(picture):
    return replace(picture, tissue=np.roll(picture.tissue, 24, axis=0))


def other_scale(picture):
    return replace(picture, mpp_y=picture.mpp_y * 1.03)


def larger(picture):
    return replace(picture, pixels=np.pad(picture.pixels, ((0, 9), (0, 0), (0, 0))))


def grey(picture):
    return replace(picture, coloured=False)


@pytest.mark.parametrize(
    ("otherwise", "said"),
    [
        (moved, "pixels of the"),
        (swapped, "mean colour of the"),
        (darker, "mean colour of the"),
        (other_tissue, "the outline"),
        (other_scale, "mpp_y 0.5, painted 0.515"),
        (larger, "3500 x 2600 px, painted 3500 x 2609"),
        (grey, "of a slide without colour"),
    ],
)
def test_what_was_painted_otherwise_is_seen(made, otherwise, said):
    case, row, out = made
    found = judge(replace(case, truth=otherwise(case.truth)), row, out)
    assert any(fault.startswith("wrong: ") and said in fault for fault in found), found


def test_what_a_row_says_is_weighed(made):
    case, row, out = made
    failed = row | {"status": "failed", "error_type": "UnreadableSlide", "error": "its first image is a label"}
    assert judge(case, failed, out) == ["refused: failed UnreadableSlide: its first image is a label"]
    assert judge(replace(case, refusals=["label"]), failed, out) == []
    assert judge(case, failed | {"error": "KeyError: 'x'"}, out)[0].startswith("untrue: the reason is a programmer's")
    assert judge(replace(case, must_refuse=True), row, out) == ["wrong: ok, where it must be refused"]
    assert judge(replace(case, mpp_known=False), row, out)[0].startswith("wrong: ok at 0.5 um/px")
    assert judge(case, row | {"warning": "the level lies"}, out) == [
        "untrue: warning of what is not so: the level lies"
    ]
    assert judge(replace(case, warnings=["level"]), row | {"warning": "the level lies"}, out) == []


def test_bounds_enclose_the_painted_tissue(made):
    tissue = made[0].truth.tissue
    bounds = Bounds.of(made[0].truth)
    assert (bounds.inner <= tissue).all()
    assert (tissue <= bounds.outer).all()
    assert bounds.inner.sum() / tissue.sum() > 0.8
    assert bounds.outer.sum() / tissue.sum() < 1.35


def test_a_seed_gives_the_same_slide_again(tmp_path):
    files = []
    for name in "ab":
        case = make_case(46, tmp_path / name, ONE)
        files.append((case.words, case.path.read_bytes()))
    assert files[0] == files[1]


def test_sound_slides_of_every_format_have_no_fault(capsys):
    call = ["--class", "honest", "--plain", "--verbose", "--bases", "1", "--limit-seconds", "120"]
    for seed in (3, 16):  # an OME-TIFF, a DICOM series
        assert main([*call, "--seed", str(seed), "--cases", "1"]) == 0, capsys.readouterr().out


def test_honest_files_are_not_misread(capsys, tmp_path):
    call = ["--class", "honest", "--bases", "1", "--seed", "7002", "--cases", "8", "--limit-seconds", "120"]
    assert main([*call, "--keep", str(tmp_path / "found")]) == 0, capsys.readouterr().out
    assert "8 honest cases (seeds 7002 to 7009), 0 at fault" in capsys.readouterr().out
