"""The audit's page in a real browser: its numbers, filter, order and pictures, and that nothing hostile comes alive."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import expect

from pipelines.audit import main
from tests.support.shard_folders import add_overlay, add_row, add_slide
from wsi_prep.curation.audit.count import count, open_catalogs
from wsi_prep.curation.audit.numbers import balance
from wsi_prep.format.records import SLIDE_SCHEMA

HOSTILE = {
    "file": "</script><script>window.hacked = 'file'</script><img src=x onerror=\"window.hacked='img'\">.svs",
    "institution": "<b onmouseover=window.hacked=1>lab</b> {{ 7 * 7 }} \u202ecod.exe",
    "tissue": "\"'><svg onload=window.hacked=1>",
    "error_type": "<iframe src=javascript:parent.hacked=1>",
    "error": "<!--<script>&lt;/td&gt; ' \" \u2028 ]]>",
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Two folders: six slides with tiles in four strata, one that failed, one excluded."""
    a, b = (tmp_path_factory.mktemp("shards") / name for name in "ab")
    made = [
        (a, add_slide(a, 1, {"40x": 30, "20x": 8, "5x": 2}, file="s10.svs", tissue_mm2=4.0, tissue="skin", mpp_x=0.25)),
        (a, add_slide(a, 2, {"40x": 10, "20x": 3}, file="s9.svs", tissue_mm2=1.5, tissue="skin", mpp_x=0.2527)),
        (a, add_slide(a, 3, {"20x": 4, "5x": 1}, file="ihc.svs", tissue_mm2=2.0, stain="IHC", institution="A")),
        (b, add_slide(b, 4, {"40x": 5}, file="s100.svs", tissue_mm2=0.5, tissue="colon", institution="B")),
        (b, add_slide(b, 5, {"40x": 9, "10x": 6}, file="x.svs", tissue_mm2=9.0, tissue="colon", institution="B")),
        (b, add_slide(b, 6, {"40x": 1}, file="w.svs", tissue="colon", institution="B", warning="mpp 0.25 against 0.5")),
    ]
    for number, (out, slide_id) in enumerate(made[:5]):
        add_overlay(out, slide_id, (40 * number, 90, 150))
    add_row(b, "gone-1", file="gone.svs", stain="HE", status="excluded", error_type="MissingMpp", error="no scale")
    add_row(b, "torn-1", file="torn.svs", stain="HE", status="failed", error_type="DamagedSlide", error="no JPEG")
    return a, b


@pytest.fixture(scope="module")
def html(shards, tmp_path_factory):
    file = tmp_path_factory.mktemp("page") / "audit.html"
    assert main(["--shards", *map(str, shards), "--to", str(file)]) == 3  # w.svs has no overlay
    return file


def cells(page, table):
    return [
        [cell.strip() for cell in row]
        for row in page.eval_on_selector_all(
            f"#{table} tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.innerText))"
        )
    ]


def heads(page, table):
    return [text.rstrip(" ↕↑↓") for text in page.locator(f"#{table} thead th").all_inner_texts()]


def files(page):
    return [row[0].splitlines()[0] for row in cells(page, "slides")]


def card(page, name):
    return page.locator(f"#card-{name} strong").inner_text()


def visible(page, selector):
    return page.locator(f"{selector}:visible").count()


def test_numbers_are_those_of_the_catalog(show, html, shards):
    page = show(html)
    parts = [[f"{out}/catalog/{table}/*.parquet" for out in shards] for table in ("slides", "tiles")]
    strata = duckdb.execute(
        """
        SELECT magnification, stain, institution, tissue, count(DISTINCT slide_id)::VARCHAR, count(*)::VARCHAR
        FROM read_parquet($1) s JOIN read_parquet($2) t USING (slide_id) GROUP BY ALL
        """,
        parts,
    ).fetchall()
    assert {tuple(row[:6]) for row in cells(page, "strata")} == set(strata)
    slides, tissue = duckdb.execute(
        "SELECT count(*), sum(tissue_mm2) FILTER (status = 'ok') FROM read_parquet($1)", parts[:1]
    ).fetchone()
    (tiles,) = duckdb.execute("SELECT count(*) FROM read_parquet($1)", parts[1:]).fetchone()
    assert (card(page, "slides"), card(page, "tiles"), card(page, "mm2")) == (f"{slides}", f"{tiles}", f"{tissue:.1f}")
    foot = dict(zip(heads(page, "strata"), page.locator("#strata tfoot td").all_inner_texts(), strict=True))
    once = duckdb.execute(
        """
        SELECT count(*)::VARCHAR, sum(tissue_mm2) FROM (FROM read_parquet($1))
        WHERE slide_id IN (SELECT slide_id FROM read_parquet($2))
        """,
        parts,
    ).fetchone()
    assert (foot["Slides"], foot["Tissue mm²"], foot["Tiles"]) == (once[0], f"{once[1]:.1f}", f"{tiles}")
    assert (card(page, "strata"), card(page, "drawn"), card(page, "not-ok")) == ("3", "100 %", "2")
    folders = [str(out) for out in shards]
    with open_catalogs(folders) as connection:
        balanced = balance(count(connection, folders))
    for level, rows in balanced.items():
        shown = page.locator(f"#by-{level} tbody tr").all_inner_texts()
        assert len(shown) == len(rows)
        for text, (name, there, drawn) in zip(shown, rows, strict=True):
            words = text.split()
            assert words[0] == name
            assert [float(words[1]), float(words[3])] == pytest.approx([100 * there, 100 * drawn], rel=0.01)


def test_the_filter_narrows_tables_sums_and_pictures_alike(show, html):
    page = show(html)
    assert (len(files(page)), visible(page, ".gallery figure"), visible(page, "#out [data-slide]")) == (8, 8, 3)
    tiles = visible(page, ".strip figure")
    page.get_by_label("Institution").select_option("=B")
    assert sorted(files(page)) == ["s100.svs", "w.svs", "x.svs"]
    assert (card(page, "slides"), card(page, "tiles"), card(page, "mm2")) == ("3", "21", "9.50")
    assert [row[:6] for row in cells(page, "strata")] == [
        ["40x", "HE", "B", "colon", "3", "15"],
        ["10x", "HE", "B", "colon", "1", "6"],
    ]
    assert page.locator("#slides tfoot").inner_text().split()[:2] == ["3", "rows"]
    assert visible(page, ".gallery figure") == 3
    assert visible(page, ".strip") == 2
    page.get_by_label("Magnification").select_option("=10x")
    assert (files(page), card(page, "tiles"), visible(page, ".strip")) == (["x.svs"], "6", 1)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#slides tbody tr")).to_have_count(8)
    assert visible(page, ".strip figure") == tiles
    page.get_by_label("Status").select_option("=failed")
    assert (files(page), card(page, "tiles"), visible(page, "#out [data-slide]")) == (["torn.svs"], "0", 1)
    assert page.locator(".reason:visible summary").all_inner_texts() == ["failed DamagedSlide 1"]
    page.get_by_label("Status").select_option("")
    page.get_by_label("Find").fill("AGAINST")
    assert files(page) == ["w.svs"]
    assert "1 of 8 slides" in page.locator("#shown").inner_text()
    page.get_by_label("Find").fill("nowhere")
    assert (files(page), card(page, "drawn"), visible(page, ".strip")) == ([], "0 %", 0)


def test_columns_sort_both_ways_by_click_and_key(show, html):
    page = show(html)
    head = page.locator("#slides thead")
    assert files(page) == ["gone.svs", "ihc.svs", "s9.svs", "s10.svs", "s100.svs", "torn.svs", "w.svs", "x.svs"]
    head.get_by_role("button", name="40x").click()
    column = [int(row[9]) for row in cells(page, "slides")]
    assert column == sorted(column, reverse=True)
    assert head.locator("th[aria-sort=descending]").inner_text().startswith("40x")
    head.get_by_role("button", name="40x").press("Enter")
    assert [int(row[9]) for row in cells(page, "slides")] == column[::-1]
    assert head.locator("th[aria-sort=ascending]").count() == 1
    sizes = ["9.00", "4.00", "2.00", "1.50", "0.500"]
    for ordered in (sizes, sizes[::-1]):  # what has none comes last both ways
        head.get_by_role("button", name="mm²").click()
        assert [row[8] for row in cells(page, "slides")] == [*ordered, "–", "–", "–"]
    page.get_by_label("Find").fill(".svs")  # the order stays
    assert [row[8] for row in cells(page, "slides")] == [*sizes[::-1], "–", "–", "–"]


def test_a_picture_opens_large_and_closes(show, html):
    page = show(html)
    large = page.locator("#large")
    thumb = page.get_by_role("button", name="Enlarge s10.svs")
    thumb.click()
    assert large.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 240
    assert "s10.svs" in large.locator("p").inner_text()
    page.keyboard.press("ArrowRight")
    assert "s10.svs" not in large.locator("p").inner_text()
    page.keyboard.press("Escape")
    assert not large.is_visible()
    thumb.press("Enter")
    assert large.is_visible()
    large.locator("img").click()
    assert not large.is_visible()
    assert thumb.evaluate("thumb => thumb === document.activeElement")
    page.locator(".strip .thumb").first.click()
    assert large.locator("img").evaluate("image => image.decode().then(() => image.naturalWidth)") == 392


def test_what_is_missing_has_a_placeholder(show, html):
    page = show(html)
    assert page.locator(".gallery .gone").all_inner_texts() == [
        "excluded before an overlay was made",
        "failed before an overlay was made",
        "the overlay is missing",
    ]


def test_hostile_names_are_text(show, tmp_path):
    out = tmp_path / "<img src=x onerror=window.hacked=1>"
    given = {key: HOSTILE[key] for key in ("file", "institution", "tissue")}
    add_overlay(out, add_slide(out, 1, {"20x": 2}, warning=HOSTILE["error"], stain=HOSTILE["tissue"], **given))
    add_row(out, "bad-1", status="failed", stain=HOSTILE["error_type"], vendor=HOSTILE["tissue"], **HOSTILE)
    file = tmp_path / "audit.html"
    assert main(["--shards", str(out), "--to", str(file)]) == 0
    page = show(file)
    assert set(files(page)) == {HOSTILE["file"]}
    assert page.locator("#slides tbody tr td:nth-child(5)").all_text_contents() == [HOSTILE["institution"]] * 2
    assert HOSTILE["error_type"] in page.locator("#out").text_content()
    page.get_by_label("Institution").select_option(f"={HOSTILE['institution']}")
    page.locator("#slides tbody tr").first.hover()
    page.locator(".thumb").first.click()
    assert HOSTILE["file"] in page.locator("#large p").text_content()
    assert page.evaluate("window.hacked") is None
    assert page.locator("script").count() == 2
    assert page.locator("iframe, svg[onload], img[onerror], b[onmouseover]").count() == 0


@pytest.fixture
def server():
    """A server on this machine, and the paths that were asked of it."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_the_pages_own_policy_stops_what_an_escape_would_miss(browser, html, tmp_path, server):
    where, asked = server
    file = tmp_path / "audit.html"
    planted = f"<script>window.hacked = 1</script><img src='{where}/a.png' onerror='window.hacked = 2'>"
    for text, expected in ((html.read_text(), []), ("<main>", ["/a.png"])):  # a page without a policy would ask
        file.write_text(text.replace("<main>", f"<main>{planted}"))
        page = browser.new_page()
        page.goto(file.as_uri())  # waits for pictures
        assert asked == expected
        assert page.evaluate("window.hacked") == (2 if expected else None)
        page.close()


def test_a_long_table_is_shown_a_page_at_a_time(show, tmp_path):
    (tmp_path / "catalog" / "slides").mkdir(parents=True)
    row = dict.fromkeys(SLIDE_SCHEMA.names) | {"status": "empty", "stain": "HE", "institution": "A", "tissue": "skin"}
    rows = [row | {"slide_id": f"s{number}", "file": f"{number}.svs"} for number in range(3000)]
    pq.write_table(pa.Table.from_pylist(rows, SLIDE_SCHEMA), tmp_path / "catalog" / "slides" / "part-00000.parquet")
    file = tmp_path / "audit.html"
    main(["--shards", str(tmp_path), "--to", str(file), "--gallery", "2"])
    page = show(file)
    assert files(page) == [f"{number}.svs" for number in range(25)]
    assert "25 of 3,000 rows" in page.locator("#slides-at .more").inner_text()
    page.get_by_role("button", name="Show 200 more").click()
    assert len(files(page)) == 225
    page.get_by_label("Find").fill("2999.svs")
    assert files(page) == ["2999.svs"]
    assert page.locator("#slides-at .more button").count() == 0
    assert page.locator("#out li:visible").count() == 1
    assert "0 of 3,000 overlays" in page.locator("#notes").inner_text()
