"""The overlay: where its panels are, and that the outline is on all but the bare one."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.disc_slides import GLASS, TISSUE, disc, disc_overlay, greenish
from wsi_prep.format.jpeg import decode_tile
from wsi_prep.format.magnifications import MAGNIFICATIONS
from wsi_prep.slides.pyramid.thumbnail import Thumbnail
from wsi_prep.tiles.overlay import _can_draw, draw_overlay, panels_of

NAMES = tuple(m.name for m in MAGNIFICATIONS)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(st.integers(60, 500), st.integers(60, 500), st.sets(st.sampled_from(NAMES)))
def test_panels_are_where_the_slide_lies(width, height, magnifications):
    jpeg, counts = disc_overlay(width, height, tuple(n for n in NAMES if n in magnifications))
    pixels = decode_tile(jpeg)
    panels = panels_of(pixels, [counts.get(name, 0) for name in NAMES])
    assert [p.name for p in panels] == ["slide", *([n for n in NAMES[::-1] if n in counts] or ["tissue"])]
    assert len({(p.y, p.width, p.height) for p in panels}) == 1
    cut = [pixels[p.y : p.y + p.height, p.x : p.x + p.width] for p in panels]
    mask = disc(width, height)
    rows, columns = (np.arange(n) * m // n for n, m in zip(cut[0].shape, mask.shape, strict=False))
    expected = np.where(mask[rows][:, columns][..., None], TISSUE, GLASS)
    assert np.abs(cut[0].astype(int) - expected).mean() < 3
    assert greenish(cut[0]) == 0
    around = np.pi * 2 / 3 * min(panels[0].width, panels[0].height)
    assert all(greenish(panel) > around for panel in cut[1:])  # the outline is 2 px wide


def test_a_picture_of_another_layout_is_one_panel():
    plain = np.full((90, 240, 3), (200, 90, 150), np.uint8)
    (panel,) = panels_of(plain, [3, 1, 0, 0])
    assert panel == ("", 0, 0, 240, 90)
    (panel,) = panels_of(plain[:, :241], [0, 0, 0, 0])
    assert panel == ("", 0, 0, 240, 90)
    jpeg, counts = disc_overlay(360, 300, ("10x", "5x"))
    assert set(counts) == {"10x", "5x"}
    (panel,) = panels_of(decode_tile(jpeg), [0, 0, 1, 0])  # the catalog says another number of panels
    assert panel.name == ""


def caption(title):
    """The pixels of the first panel's caption, darkest where ink is."""
    jpeg, _ = disc_overlay(300, 200, (), title)
    return decode_tile(jpeg)[:24, :700].astype(int).mean(2)


def test_a_title_is_drawn_in_its_script_or_as_escapes():
    same = np.abs(caption("e\u0301t\u00e9") - caption("\u00e9t\u00e9")).max()
    assert same == 0  # one letter, however it is written
    titles = ["Größe", "Grüße", "组织", "皮膚", "스캔", "Łódź", "नमूना", "\ue000", "a\nb", "\udcff"]
    drawn = [caption(title) for title in titles]
    for number, picture in enumerate(drawn):
        assert (picture < 120).any()
        assert all(np.abs(picture - other).max() > 60 for other in drawn[:number])  # each is seen to be another
    for title, escaped in [("\ue000", r"\ue000"), ("a\nb", r"a\nb"), ("\udcff", r"\udcff")]:
        assert np.abs(caption(title) - caption(escaped)).max() == 0


def test_without_a_font_for_it_a_title_is_escaped(monkeypatch):
    expected = caption(r"Gr\xf6\xdfe_\u7ec4")
    monkeypatch.delattr(cv2, "FontFace", raising=False)
    _can_draw.cache_clear()
    assert np.abs(caption("Größe_组") - expected).max() == 0
    _can_draw.cache_clear()


@pytest.mark.parametrize(("width", "um"), [(400, 500), (9000, 10_000), (30, 50)])
def test_the_bar_is_as_long_as_it_says(width, um):
    picture = np.full((width, width, 3), 245, np.uint8)
    thumbnail = Thumbnail(picture, 8.0, 32.0, 32.0)
    overlay = decode_tile(draw_overlay(thumbnail, np.zeros(picture.shape[:2], bool), None, "slide.svs"))
    panel = overlay[28:, :720]
    dark = (panel.max(axis=2) < 120).sum(axis=1)
    assert dark[-14:].max() * 8.0 * width / 720 == pytest.approx(um, rel=0.02)


def test_a_slide_too_narrow_for_a_bar_has_none():
    picture = np.full((400, 12, 3), 245, np.uint8)
    overlay = decode_tile(draw_overlay(Thumbnail(picture, 8.0, 32.0, 32.0), np.zeros((400, 12), bool), None, ""))
    assert overlay[28:, :21].min() > 200
