"""Text on contact sheets: in its script where the font has it, escaped where not, and never cut off."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.peek import main
from pretrain.pictures.canvas import LINE, MARGIN, drawable, font, line
from tests.support.shard_folders import add_slide


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("Größe Łódź Ελλάδα Кожа", "Größe Łódź Ελλάδα Кожа"),
        ("Gro\u0308ße", "Größe"),
        ("组 tissue", r"\u7ec4 tissue"),
        ("스", r"\uc2a4"),
        ("a\nb\x1b[2J", r"a\nb\x1b[2J"),
        ("\U00020000", r"\U00020000"),
        ("\udcff", r"\udcff"),
    ],
)
def test_what_the_font_lacks_is_escaped(text, drawn):
    assert drawable(text) == drawn


def test_each_letter_has_its_own_picture():
    letters = "aäöüßéłşğΩλЖя"
    pictures = {bytes(font(14).getmask(letter)) for letter in letters}
    assert len(pictures) == len(letters)
    assert bytes(font(14).getmask("\uffff")) not in pictures  # what stands for a letter that is not there


@settings(max_examples=25, deadline=None)
@given(st.text(max_size=80), st.integers(120, 600))
def test_a_line_is_as_high_as_it_needs_and_nothing_is_cut(text, width):
    strip = line(text, width)
    assert strip.width == width
    assert strip.height % LINE == 0
    ink = np.asarray(strip.convert("L")) < 200
    assert not ink[:, width - MARGIN + 3 :].any()
    needed = font(14).getlength(drawable(text))
    assert strip.height // LINE >= needed / (width - 2 * MARGIN)


def test_a_sheet_of_strata_in_other_scripts(tmp_path, capsys):
    out = tmp_path / "out"
    add_slide(out, 1, {"20x": 2}, tissue="Haut_皮膚" * 9, institution="Universitätsklinikum Würzburg " * 3)
    sheet = tmp_path / "sheet.png"
    assert main(["--shards", str(out), "--out", str(sheet), "--index", str(tmp_path / "index")]) == 0
    assert "2 tiles of 1 slide in 1 stratum" in capsys.readouterr().out
    narrow = tmp_path / "narrow.png"
    add_slide(tmp_path / "plain", 1, {"20x": 2}, tissue="skin", institution="A")
    assert main(["--shards", str(tmp_path / "plain"), "--out", str(narrow), "--index", str(tmp_path / "index")]) == 0
    more = Image.open(sheet).height - Image.open(narrow).height
    assert more in (LINE, 2 * LINE)  # the names take more than one line
