"""How the audit's page looks in a real browser, wide and narrow: outlines in the cards, large pictures by keyboard."""

import io

import numpy as np
import pytest
from PIL import Image

from pipelines.audit import main
from tests.support.disc_slides import add_disc, disc, disc_overlay, greenish
from tests.support.shard_folders import add_row

WIDE, NARROW = 1400, 420
SIZE = (360, 300)  # of the slides, in px of 8 um
NAMES = ("Dünndarm_Größe_组织切片_스캔_Łódź.svs", "b " + "very_long_name_" * 20 + ".svs")


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """Two slides with tiles; one that has none, drawn bare and with its outline; one without an overlay."""
    out = tmp_path_factory.mktemp("looks") / "out"
    for number, name in enumerate(NAMES):
        add_disc(out, number, SIZE, file=name, institution="Universitätsklinikum " * 4, warning="mpp 0.25 against 0.5")
    add_row(out, "coarse-1", file="coarse.svs", status="excluded", error_type="TooCoarse", error="too coarse " * 30)
    (out / "overlays" / "coarse-1.jpg").write_bytes(disc_overlay(*SIZE, ())[0])
    add_row(out, "torn-1", file="torn.svs", status="failed", error_type="DamagedSlide", error="tile_" * 60)
    page = out.parent / "audit.html"
    assert main(["--shards", str(out), "--to", str(page)]) == 0
    return page


@pytest.fixture(params=[WIDE, NARROW])
def page(show, html, request):
    shown = show(html)
    shown.set_viewport_size({"width": request.param, "height": 1000})
    return shown


def seen(locator):
    """(h, w, 3) pixels of what the browser shows of it, once its pictures are decoded."""
    locator.evaluate("found => Promise.all([...found.querySelectorAll('img')].map(image => image.decode()))")
    return np.asarray(Image.open(io.BytesIO(locator.screenshot())).convert("RGB"))


def test_every_outline_is_there_before_anybody_scrolls(page):
    """As for a print, or a picture of the whole page."""
    sizes = page.evaluate("[...document.querySelectorAll('.gallery img, .strips img')].map(i => i.naturalWidth)")
    assert len(sizes) > 3
    assert min(sizes) > 0
    assert page.evaluate("document.querySelector('.gallery').getBoundingClientRect().top > innerHeight")


def test_the_page_counts_the_overlays_that_are_there(page):
    assert "the page shows 3 of 3 overlays" in page.locator("#notes").inner_text()  # the failed slide has none


def test_nothing_is_wider_than_the_window(page):
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.locator(".thumb").first.press("Enter")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    large = page.locator("#large").bounding_box()
    assert large["x"] >= 0
    assert large["x"] + large["width"] <= width
    assert page.locator("#large").evaluate("found => found.scrollWidth <= found.clientWidth")


def test_every_card_shows_the_outline_of_the_whole_slide(page):
    cards = page.locator(".gallery .thumb")
    assert cards.count() == 3
    for card in cards.all():
        card.scroll_into_view_if_needed()
        pixels = seen(card)
        scale = min(pixels.shape[1] / SIZE[0], pixels.shape[0] / SIZE[1])
        around = 2 * np.pi / 3 * min(SIZE) * scale
        assert greenish(pixels) > around / 2
        rows, columns = np.nonzero((np.abs(pixels[..., :3].astype(int) - (200, 110, 160)).sum(2)) < 40)
        area = disc(*SIZE).sum() * scale**2
        assert len(rows) == pytest.approx(area, rel=0.1)  # no part of the disc is cut off
        assert abs(columns.mean() - pixels.shape[1] / 2) < 4


def test_a_card_opens_by_keyboard_shows_bare_and_outline_and_closes(page):
    card = page.locator(".gallery .thumb").first
    card.focus()
    page.keyboard.press("Enter")
    large, frame = page.locator("#large"), page.locator("#large .frame")
    assert large.is_visible()
    chosen = large.locator("button[aria-pressed=true]")
    assert chosen.inner_text() == "Outline, 5x tiles"
    assert frame.bounding_box()["width"] > 0.85 * min(page.viewport_size["width"], 980)
    outlined = seen(frame)
    assert greenish(outlined) > 2 * np.pi / 3 * outlined.shape[0]
    page.keyboard.press("ArrowUp")
    assert chosen.inner_text() == "Bare slide"
    assert greenish(seen(frame)) == 0
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert chosen.inner_text() == "Outline, 10x tiles"
    page.keyboard.press("ArrowDown")  # the last one
    assert chosen.inner_text() == "Outline, 10x tiles"
    name = large.locator("p").inner_text()
    page.keyboard.press("ArrowRight")
    assert large.locator("p").inner_text() != name
    page.keyboard.press("ArrowLeft")
    assert large.locator("p").inner_text() == name
    large.get_by_role("button", name="Bare slide").press("Enter")
    assert large.is_visible()
    assert greenish(seen(frame)) == 0
    page.keyboard.press("Escape")
    assert not large.is_visible()
    assert card.evaluate("card => card === document.activeElement")


def test_what_is_to_be_looked_at_first_leads_to_its_card(page):
    first = page.locator("ol.first > li")
    assert [text.splitlines()[0] for text in first.all_inner_texts()] == ["torn.svs", *NAMES]
    assert "mpp 0.25 against 0.5" in first.nth(1).inner_text()
    link = first.get_by_role("link", name=NAMES[0])
    link.press("Enter")
    card = page.locator(link.get_attribute("href"))
    assert NAMES[0] in card.inner_text()
    assert "mpp 0.25 against 0.5" in card.inner_text()
    top = card.bounding_box()["y"]
    assert 0 <= top < 1000
    page.get_by_label("Find").fill("torn")
    assert page.locator("ol.first > li:visible").count() == 1
    page.get_by_label("Find").fill("coarse")
    assert page.locator("ol.first > li:visible").count() == 0
