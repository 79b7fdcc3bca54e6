"""The overlay: where its panels are, and that the outline is on all but the bare one."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.disc_slides import GLASS, TISSUE, disc, disc_overlay, greenish
from wsi_prep.format.jpeg import decode_tile
from wsi_prep.format.magnifications import MAGNIFICATIONS
from wsi_prep.tiles.overlay import panels_of

NAMES = tuple(m.name for m in MAGNIFICATIONS)


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
