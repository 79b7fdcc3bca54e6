"""`make audit`: its numbers are those of the catalog and of the sampler, its pictures those of the shards."""

import base64
import collections
import json
import re
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats

from pipelines.audit import main
from pretrain.data.index import open_index
from pretrain.data.sampler import Sampler, SamplingSettings
from tests.support.shard_folders import add_overlay, add_row, add_slide
from wsi_prep.curation.audit import count as audit_count
from wsi_prep.curation.audit import page as audit_page
from wsi_prep.curation.audit import pictures as audit_pictures
from wsi_prep.curation.audit.count import count, open_catalogs
from wsi_prep.curation.audit.numbers import balance, effective, merged
from wsi_prep.curation.audit.pictures import overlays, tiles
from wsi_prep.format.jpeg import decode_tile
from wsi_prep.format.records import SLIDE_SCHEMA

pytestmark = pytest.mark.slow

PEOPLE = {"patient_key": "p"}


def cohort(out):
    """Four strata of unlike sizes, one of them on two slides, and slides that were left out."""
    ids = [
        add_slide(out, 1, {"40x": 30, "20x": 8, "5x": 2}, tissue_mm2=4.0, tissue="skin", institution="A", **PEOPLE),
        add_slide(out, 2, {"40x": 10, "20x": 3}, tissue_mm2=1.5, tissue="skin", institution="A", **PEOPLE),
        add_slide(out, 3, {"20x": 4, "5x": 1}, tissue_mm2=2.0, stain="IHC", tissue="skin", institution="A", **PEOPLE),
        add_slide(out, 4, {"40x": 5}, tissue_mm2=0.5, tissue="colon", institution="B", **PEOPLE),
    ]
    why = "no micron-per-pixel value in the file"
    add_row(out, "gone-1", file="gone.svs", status="excluded", error_type="MissingMpp", error=why, tissue_mm2=100.0)
    add_row(out, "torn-1", file="torn.svs", status="failed", error_type="DamagedSlide", error="tile 7 is no JPEG")
    return ids


def audited(*folders, alpha=0.5):
    folders = [str(folder) for folder in folders]
    with open_catalogs(folders) as connection:
        return count(connection, folders, alpha)


def embedded(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html.read_text())[1])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_what_is_drawn_is_what_the_sampler_says(tmp_path, alpha):
    cohort(tmp_path / "out")
    sampler = Sampler(open_index([str(tmp_path / "out")], tmp_path / "index"), SamplingSettings(batch=1, alpha=alpha))
    assert "10x" in sampler.warnings[0]  # a magnification without tiles is part of the rule
    names = ("magnification", "stain", "institution", "tissue")
    expected = {tuple(row[n] for n in names): (row["slides"], row["tiles"], row["target"]) for row in sampler.strata}
    found = {
        (s.magnification, *s.name): (s.slides, s.tiles, s.drawn) for s in audited(tmp_path / "out", alpha=alpha).strata
    }
    assert found.keys() == expected.keys()
    for key, numbers in expected.items():
        assert found[key] == pytest.approx(numbers), key


def test_a_slides_share_is_how_often_the_sampler_draws_it(tmp_path):
    ids = cohort(tmp_path / "out")
    index = open_index([str(tmp_path / "out")], tmp_path / "index")
    sampler = Sampler(index, SamplingSettings(batch=1, seed=3))
    drawn = collections.Counter(index.slide_id(int(sampler.draw(step).slide[0])) for step in range(4000))
    html = tmp_path / "audit.html"
    main(["--shards", str(tmp_path / "out"), "--to", str(html)])
    shares = {slide["id"]: sum(slide["drawn"]) for slide in embedded(html)["slides"]}
    assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    expected = np.array([shares[slide_id] for slide_id in ids])
    assert stats.chisquare([drawn[slide_id] for slide_id in ids], 4000 * expected / expected.sum()).pvalue > 1e-3


def test_sums_are_those_of_the_catalog(tmp_path):
    out = tmp_path / "out"
    cohort(out)
    found = audited(out)
    slides = {row["slide_id"]: row for row in pq.read_table(out / "catalog/slides").to_pylist()}
    of = collections.defaultdict(list)
    for row in pq.read_table(out / "catalog/tiles").to_pylist():
        slide = slides[row["slide_id"]]
        of[row["magnification"], slide["stain"], slide["institution"], slide["tissue"]].append(row["slide_id"])
    expected = {k: (len(set(ids)), len(ids), sum(slides[i]["tissue_mm2"] for i in set(ids))) for k, ids in of.items()}
    assert {(s.magnification, *s.name): (s.slides, s.tiles, s.tissue_mm2) for s in found.strata} == expected
    assert found.tiles == {"40x": 45, "20x": 15, "10x": 0, "5x": 3}
    assert found.tissue_mm2 == 8.0  # not that of the excluded slide
    assert found.statuses == {"ok": 4, "empty": 0, "excluded": 1, "failed": 1}
    assert [
        (status, kind, [s.file for s in found.slides.some(numbers)]) for status, kind, numbers in found.reasons
    ] == [
        ("excluded", "MissingMpp", ["gone.svs"]),
        ("failed", "DamagedSlide", ["torn.svs"]),
    ]
    assert balance(found)["stain"][1][:2] == ("IHC", pytest.approx(5 / 63))
    assert found.notes == ()


def test_effective_numbers():
    assert effective([7, 7, 7]).shannon == pytest.approx(3)
    assert effective([7, 7, 7]).simpson == pytest.approx(3)
    amounts = np.array([50, 20, 5, 1, 0.25])
    assert effective(list(amounts)).shannon == pytest.approx(np.exp(stats.entropy(amounts)))
    assert effective(list(amounts)).simpson == pytest.approx(1 / ((amounts / amounts.sum()) ** 2).sum())
    assert effective([3, 0, 0]).shannon == 1
    assert effective([]).simpson == effective([0.0]).shannon == 0


def test_diversity_is_by_slides_tiles_tissue_and_draws(tmp_path):
    cohort(tmp_path / "out")
    found = {(row.what, row.magnification): row for row in audited(tmp_path / "out").diversity}
    strata = found["stratum", "all"]
    assert strata.groups == 3
    assert strata.slides.shannon == pytest.approx(np.exp(stats.entropy([2, 1, 1])))
    assert strata.tiles.shannon == pytest.approx(np.exp(stats.entropy([53, 5, 5])))
    assert strata.tissue_mm2.shannon == pytest.approx(np.exp(stats.entropy([5.5, 2, 0.5])))
    assert found["stain", "all"].tiles.simpson == pytest.approx(1 / ((58 / 63) ** 2 + (5 / 63) ** 2))
    assert found["stratum", "40x"].groups == 2
    assert found["stratum", "40x"].drawn.shannon == pytest.approx(np.exp(stats.entropy([40**0.5, 5**0.5])))
    assert ("stratum", "10x") not in found


def test_distributions_are_those_of_numpy(tmp_path):
    out = tmp_path / "out"
    add_slide(out, 1, {"20x": 70, "5x": 4}, stain_confidence=0.7, **PEOPLE)
    add_slide(out, 2, {"20x": 40}, stain_confidence=0.31, **PEOPLE)
    found = {(d.quantity, d.magnification): d for d in audited(out).distributions}
    focus = np.concatenate([np.arange(70), np.arange(40)]).astype(np.float32) / np.float32(100)
    counts, _ = np.histogram(focus.astype(float), 24, (0, float(focus.max())))
    assert found["focus", "20x"].counts == tuple(counts)
    step = float(focus.max()) / 2400
    assert found["focus", "20x"].median == pytest.approx(np.quantile(focus, 0.5, method="inverted_cdf"), abs=step)
    assert found["focus", "20x"].upper == pytest.approx(np.quantile(focus, 0.95, method="inverted_cdf"), abs=step)
    assert found["focus", "20x"].most == pytest.approx(0.69)
    assert np.flatnonzero(found["stain_confidence", "20x"].counts).tolist() == [7, 16]
    assert sum(found["stain_confidence", "5x"].counts) == 1
    assert ("pen", "20x") not in found  # these tiles say nothing of it


def test_scales_fall_into_bins_around_the_magnifications(tmp_path):
    for number, mpp in enumerate([0.25, 0.2527, 0.2425, 0.227, 0.5, None, float("nan"), float("inf"), -1.0, 1e-9]):
        add_row(tmp_path, f"slide-{number}", file="a.svs", status="empty", mpp_x=mpp, vendor="aperio", scanner="GT450")
    found = audited(tmp_path)
    assert found.mpp == {0: 3, -1: 1, 8: 1, -24: 1}
    assert found.scanners == {"aperio GT450": 10}


def test_folders_are_one_page_and_a_slide_in_two_counts_once(tmp_path):
    add_slide(tmp_path / "a", 1, {"20x": 3}, **PEOPLE)
    add_slide(tmp_path / "a", 2, {"20x": 2}, tissue_mm2=2.0, mpp_x=0.5, **PEOPLE)
    add_slide(tmp_path / "b's [1]", 2, {"20x": 5}, tissue_mm2=2.0, mpp_x=0.5, **PEOPLE)
    add_slide(tmp_path / "b's [1]", 3, {"20x": 6, "10x": 1}, tissue_mm2=4.0, mpp_x=0.5, **PEOPLE)
    add_row(tmp_path / "b's [1]", "slide1-00000001", status="failed")
    found = audited(tmp_path / "a", tmp_path / "b's [1]")
    index = open_index([str(tmp_path / "a"), str(tmp_path / "b's [1]")], tmp_path / "index")
    assert sum(found.tiles.values()) == index.tiles == 12
    assert [slide.folder for slide in found.slides] == [0, 0, 1]
    assert sum(found.scanners.values()) == sum(found.mpp_sources.values()) == sum(found.statuses.values()) == 3
    assert (found.tissue_mm2, found.mpp) == (6.0, {8: 2})
    (together,) = merged(found.slides, found.strata)
    assert (together.slides, together.tiles, together.tissue_mm2) == (3, 12, 6.0)
    said = "ok in several folders, or files of a catalog: the first copy of each counts, in the order of SHARDS"
    assert found.notes == (f"1 slide is {said}",)


def test_a_catalog_that_contradicts_itself_is_noted(tmp_path):
    slide_id = add_slide(tmp_path, 1, {"20x": 3})
    file = tmp_path / "catalog" / "tiles" / f"{slide_id}.parquet"
    pq.write_table(pq.read_table(file)[:2], file)
    notes = " ".join(audited(tmp_path).notes)
    assert "1 slide has another number of tiles" in notes
    assert "1 slide that is ok has no patient_key" in notes


def test_tiles_that_a_filter_left_out_are_noted(tmp_path):
    add_slide(tmp_path, 1, {"20x": 2}, patient_key="a", tiles_filtered=3)
    add_row(tmp_path, "s9", status="empty", tiles_filtered=40)
    (note,) = audited(tmp_path).notes
    assert note == "43 tiles with tissue skipped by the FILTER that the shards were made with"


def test_columns_that_an_older_catalog_lacks_are_left_out(tmp_path):
    add_slide(tmp_path, 1, {"20x": 2}, patient_key="a")
    for table, column in (("slides", "tiles_filtered"), ("tiles", "saturation")):
        (file,) = (tmp_path / "catalog" / table).iterdir()
        pq.write_table(pq.read_table(file).drop_columns(column), file)
    found = audited(tmp_path)
    assert found.tiles["20x"] == 2
    assert "saturation" not in {distribution.quantity for distribution in found.distributions}


def test_tiles_are_the_shards_own_bytes_and_follow_the_seed(tmp_path):
    out = tmp_path / "out"
    cohort(out)
    rows = {
        (r["slide_id"], r["magnification"], r["index"]): r for r in pq.read_table(out / "catalog/tiles").to_pylist()
    }
    pages = []
    for number, seed in enumerate(("1", "1", "2")):
        html = tmp_path / f"{number}.html"
        assert main(["--shards", str(out), "--to", str(html), "--tiles", "3", "--seed", seed]) == 3  # no overlays
        pages.append(html.read_bytes())
    assert pages[0] == pages[1] != pages[2]
    data = embedded(tmp_path / "0.html")
    slides = {slide["number"]: slide for slide in data["slides"]}
    strata = collections.defaultdict(list)
    for tile in data["tiles"]:
        slide = slides[tile["slide"]]
        row = rows[slide["id"], tile["magnification"], tile["index"]]
        shard = (out / row["shard"]).read_bytes()
        assert base64.b64decode(tile["jpeg"]) == shard[row["offset"] : row["offset"] + row["nbytes"]]
        strata[tile["magnification"], slide["stain"], slide["institution"]].append((slide["id"], tile["index"]))
    assert {key: len(set(found)) for key, found in strata.items()} == {
        ("40x", "HE", "A"): 3,
        ("40x", "HE", "B"): 3,
        ("20x", "HE", "A"): 3,
        ("20x", "IHC", "A"): 3,
        ("5x", "HE", "A"): 2,
        ("5x", "IHC", "A"): 1,
    }
    assert len({slide_id for slide_id, _ in strata["40x", "HE", "A"]}) == 2  # both slides of the stratum are seen


def test_many_tiles_are_made_smaller_and_what_is_left_out_is_said(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    for slide_id in cohort(out):
        add_overlay(out, slide_id)
    html = tmp_path / "audit.html"
    monkeypatch.setattr(audit_pictures, "_TILE_BYTES", 7000)
    assert main(["--shards", str(out), "--to", str(html), "--gallery", "3"]) == 0
    data = embedded(html)
    assert len(data["overlays"]) == 3
    assert {decode_tile(base64.b64decode(tile["jpeg"])).shape for tile in data["tiles"]} == {(196, 196, 3)}
    assert sum(len(base64.b64decode(tile["jpeg"])) for tile in data["tiles"]) <= 7000
    said = capsys.readouterr().out
    missing = sum(not overlay["jpeg"] for overlay in data["overlays"])  # of what was left out, and has none
    assert missing > 0
    assert f"shows {3 - missing} of {6 - missing} overlays" in said
    assert f"shows {len(data['tiles'])} of 19 tiles" in said
    assert f"shows {len(data['tiles'])} of 19 tiles" in html.read_text()


def test_a_page_too_long_lists_the_first_slides_and_those_of_pictures(tmp_path, monkeypatch, capsys):
    for number in range(9):
        add_row(tmp_path, f"s{number}", file=f"{number}.svs", status="failed")
    add_overlay(tmp_path, add_slide(tmp_path, 9, {"20x": 1}, file="9.svs"))
    monkeypatch.setattr(audit_page, "MOST_SLIDES", 3)
    assert main(["--shards", str(tmp_path), "--to", str(tmp_path / "audit.html"), "--gallery", "1"]) == 0
    listed = [(slide["number"], slide["file"]) for slide in embedded(tmp_path / "audit.html")["slides"]]
    assert listed == [(0, "0.svs"), (1, "1.svs"), (2, "2.svs"), (9, "9.svs")]
    assert "lists 3 of 10 slides" in capsys.readouterr().out


def test_the_gallery_takes_every_stratum_in_turn(tmp_path):
    for number in range(8):
        add_overlay(tmp_path, add_slide(tmp_path, number, {"20x": 1}, tissue="skin" if number < 7 else "colon"))
    found = audited(tmp_path)
    for seed in range(5):
        tissues = [found.slides[picture.slide].tissue for picture in overlays(found, 2, seed).pictures]
        assert sorted(tissues) == ["colon", "skin"]


def test_pictures_that_are_gone_have_a_placeholder(tmp_path, capsys):
    out = tmp_path / "out"
    ids = [add_slide(out, number, {"20x": 1}) for number in range(4)]
    for slide_id in ids[1:]:
        add_overlay(out, slide_id)
    (out / "overlays" / f"{ids[1]}.jpg").write_bytes(b"\xff\xd8 no picture")
    shards = [out / "stores" / f"{slide_id}.zarr" / "20x" / "c.0.0.0.0" for slide_id in ids]
    shards[0].unlink()
    shards[1].write_bytes(b"")
    shards[2].write_bytes(bytes(len(shards[2].read_bytes())))
    html = tmp_path / "audit.html"
    assert main(["--shards", str(out), "--to", str(html)]) == 3
    data = embedded(html)
    slides = {slide["number"]: slide for slide in data["slides"]}
    told = {slides[p["slide"]]["id"]: p["missing"] for p in data["overlays"]}
    assert [told[i] for i in ids] == ["the overlay is missing", "the overlay cannot be decoded", "", ""]
    told = {slides[p["slide"]]["id"]: p["missing"] for p in data["tiles"]}
    assert [told[i] for i in ids] == [
        "the tile cannot be read",
        "the tile's bytes are gone",
        "the tile's bytes are not those that were written",
        "",
    ]
    assert capsys.readouterr().err.count(f"{ids[0]}") == 2


@pytest.mark.parametrize("shard", ["../secret", "/etc/hostname", "stores/../../secret", "\0", None])
def test_a_path_of_the_catalogs_leads_nowhere_else(tmp_path, shard):
    out = tmp_path / "out"
    slide_id = add_slide(out, 1, {"20x": 1})
    secret = b"a secret that stays where it is"
    (tmp_path / "secret").write_bytes(secret)
    file = out / "catalog" / "tiles" / f"{slide_id}.parquet"
    rows = pq.read_table(file)
    changed = {"shard": [shard], "offset": [0], "nbytes": [len(secret)], "crc32": [zlib.crc32(secret)]}
    for name, value in changed.items():
        rows = rows.set_column(rows.schema.get_field_index(name), name, pa.array(value, rows.schema.field(name).type))
    pq.write_table(rows, file)
    folders = [str(out)]
    with open_catalogs(folders) as connection:
        found = tiles(count(connection, folders), connection, 4, 0)
    assert [(picture.jpeg, picture.missing) for picture in found.pictures] == [(b"", "the tile cannot be read")]


def test_an_id_that_is_a_path_leads_nowhere_else(tmp_path):
    add_row(tmp_path / "out", "a", file="a.svs", status="empty")
    add_overlay(tmp_path, "secret")
    file = tmp_path / "out" / "catalog" / "slides" / "a.parquet"
    rows = pq.read_table(file)
    pq.write_table(rows.set_column(0, "slide_id", pa.array(["../../overlays/secret"])), file)
    assert [picture.jpeg for picture in overlays(audited(tmp_path / "out"), 4, 0).pictures] == [b""]


def test_the_terminal_says_the_same(tmp_path, capsys):
    out = tmp_path / "out"
    for slide_id in cohort(out):
        add_overlay(out, slide_id)
    add_row(out, "odd-1", file="odd\x1b[2J.svs", status="ok", warning="the manifest's mpp is not the file's")
    assert main(["--shards", str(out), "--to", str(tmp_path / "new" / "audit.html")]) == 3
    said = capsys.readouterr().out
    assert "7 slides: 5 ok, 1 excluded, 1 failed" in said
    assert "63 tiles of 4 slides in 6 strata" in said
    assert "40x 45, 20x 15, 10x 0, 5x 3 tiles, 8.00 mm2 of tissue" in said
    assert re.search(r"40x +HE +A +skin +2 +40 +5\.50 ", said)
    assert "torn.svs  tile 7 is no JPEG" in said
    assert "odd\\x1b[2J.svs  the manifest's mpp is not the file's" in said
    assert (tmp_path / "new" / "audit.html").exists()


def test_a_cohort_without_a_tile_makes_a_page(tmp_path):
    add_row(tmp_path / "out", "torn-1", file="torn.svs", status="failed", error_type="DamagedSlide", error="no JPEG")
    assert main(["--shards", str(tmp_path / "out"), "--to", str(tmp_path / "audit.html")]) == 0
    assert "torn.svs" in (tmp_path / "audit.html").read_text()


def test_wrong_calls_are_one_line(tmp_path, capsys):
    add_row(tmp_path / "ours", "a", file="a.svs", status="empty")
    add_row(tmp_path / "none", "a", file="a.svs", status="empty")
    none = tmp_path / "none" / "catalog" / "slides" / "a.parquet"
    pq.write_table(SLIDE_SCHEMA.empty_table(), none)
    add_row(tmp_path / "torn", "a", file="a.svs", status="empty")
    (tmp_path / "torn" / "catalog" / "slides" / "a.parquet").write_bytes(b"PAR1 no more")
    add_row(tmp_path / "other", "a", file="a.svs", status="empty")
    pq.write_table(pa.table({"name": ["a"]}), tmp_path / "other" / "catalog" / "slides" / "a.parquet")
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    calls = [[str(tmp_path / name)] for name in ("missing", "file", "empty", "none", "torn", "other")]
    calls += [["https://bucket/out"], [str(tmp_path / "ours"), str(tmp_path / "missing")]]
    calls += [[str(tmp_path / "ours"), "--alpha", "1.5"], [str(tmp_path / "ours"), "--alpha", "nan"]]
    for call in calls:
        assert main(["--to", str(tmp_path / "audit.html"), "--shards", *call]) == 2, call
        said = capsys.readouterr()
        assert said.err.startswith("audit: "), call
        assert said.err.count("\n") == 1, said.err
        assert said.out == ""
    assert not (tmp_path / "audit.html").exists()
    assert main(["--to", str(tmp_path / "file" / "audit.html"), "--shards", str(tmp_path / "ours")]) == 2
    assert "cannot be read or written" in capsys.readouterr().err


def test_a_catalog_that_does_not_fit_is_not_called_damaged(tmp_path, monkeypatch, capsys):
    add_slide(tmp_path / "out", 1, {"20x": 1})
    monkeypatch.setattr(audit_count, "_MEMORY", "1MB")
    assert main(["--shards", str(tmp_path / "out"), "--to", str(tmp_path / "audit.html")]) == 2
    said = capsys.readouterr().err
    assert "does not fit into 1MB of memory" in said
    assert said.count("\n") == 1
