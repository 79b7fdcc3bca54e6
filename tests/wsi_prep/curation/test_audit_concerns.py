"""Which slides the audit names first: by a plain rule over the rows, the worst first, few, in words."""

import math
from collections import Counter

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.audit import main
from tests.support.disc_slides import add_disc
from tests.support.shard_folders import add_overlay, add_row, add_slide
from wsi_prep.curation.audit import pictures as audit_pictures
from wsi_prep.curation.audit.concerns import MOST, OF_A_KIND, concerns
from wsi_prep.curation.audit.count import count, open_catalogs
from wsi_prep.curation.audit.pictures import overlays
from wsi_prep.curation.audit.slides import Slides
from wsi_prep.format.records import SLIDE_SCHEMA, TILE_SCHEMA

MAGNIFICATIONS = ("40x", "20x", "10x", "5x")
odd = st.sampled_from([None, math.nan, math.inf, -math.inf])
slides = st.fixed_dictionaries(
    {
        "status": st.sampled_from(["ok", "ok", "ok", "empty", "excluded", "failed", None]),
        "warning": st.sampled_from([None, "", "mpp 0.25 against 0.5"]),
        "stain": st.sampled_from(["HE", "SPECIAL", "IHC", "UNKNOWN", None]),
        "stain_confidence": st.floats(0, 1, width=32) | odd,
        "tissue_certainty": st.floats(0, 1, width=32) | odd,
        "tissue_mm2": st.floats(0, 500) | odd,
        "width": st.sampled_from([None, 0, 9_000, 60_000]),
        "height": st.sampled_from([9_000, 60_000]),
        "mpp_x": st.sampled_from([0.25, math.nan, None]),
        "mpp_y": st.just(0.25),
    }
)
measure = st.sampled_from([0.0, 0.01, 0.025, 0.1, 0.19, 0.24, 0.25, 0.3, 0.5, None, math.nan])
tile = st.fixed_dictionaries(
    {"magnification": st.sampled_from(MAGNIFICATIONS), "saturation": measure, "pen": measure, "focus": measure}
)


def kinds_of(slide, tiles):
    """What is held against a slide, as a person would go through its rows."""
    found = set()
    status = slide["status"]
    if status in ("failed", "empty"):
        found.add(status)
    sure = slide["stain_confidence"]
    if status == "ok" and sure is not None and math.isfinite(sure) and sure < 0.8:
        found.add("stain")
    outline = slide["tissue_certainty"]
    if status in ("ok", "empty") and outline is not None and math.isfinite(outline) and outline < 0.8:
        found.add("outline")
    sides = [slide[name] for name in ("width", "height", "mpp_x", "mpp_y")]
    if status in ("ok", "empty") and None not in sides and math.isfinite(slide["tissue_mm2"] or 0):
        scanned = math.prod(sides) / 1e6
        if slide["tissue_mm2"] is not None and scanned >= 100 and slide["tissue_mm2"] / scanned < 0.01:
            found.add("tissue")
    if slide["warning"] and status != "excluded":
        found.add("warning")
    names = [name for name in MAGNIFICATIONS if any(t["magnification"] == name for t in tiles)]
    finest = [t for t in tiles if t["magnification"] == names[0]] if names else []
    limits = {"grey": ("saturation", 0.03, 0.25), "ink": ("pen", 0.02, 0.1), "blur": ("focus", None, 0.5)}
    for kind, (name, limit, much) in limits.items():
        if kind == "ink":
            of_each = [[t["pen"] for t in tiles if t["magnification"] == mag] for mag in names]
            inked = [sum(pen is not None and pen > limit for pen in pens) / len(pens) for pens in of_each]
            found |= {"ink"} if max(inked, default=0) >= much else set()
            continue
        sharp20 = 0.35 if slide["stain"] in ("HE", "SPECIAL") else 0.25
        bound = {"40x": 0.18, "20x": sharp20}.get(names[0] if names else "", -1) if limit is None else limit
        values = [t[name] for t in finest if t[name] is not None and math.isfinite(t[name])]
        bad = sum(value < bound for value in values)
        if finest and bad / len(finest) >= much:
            found.add(kind)
    return found


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(slides, st.lists(tile, max_size=4)), min_size=1, max_size=12))
@pytest.mark.slow
def test_what_is_held_against_a_slide_is_what_its_rows_say(cohort):
    ids = [f"s{number:03}" for number in range(len(cohort))]
    rows = [
        dict.fromkeys(SLIDE_SCHEMA.names) | slide | {"slide_id": i} for i, (slide, _) in zip(ids, cohort, strict=True)
    ]
    shown = [
        dict.fromkeys(TILE_SCHEMA.names) | t | {"slide_id": i}
        for i, (slide, of) in zip(ids, cohort, strict=True)
        if slide["status"] == "ok"  # as the audit's own view has it
        for t in of
    ]
    kinds = [kinds_of(slide, of if slide["status"] == "ok" else []) for slide, of in cohort]
    named = pa.table({"slide_id": ids})
    with duckdb.connect() as connection:
        connection.register("slides", pa.Table.from_pylist(rows, SLIDE_SCHEMA))
        connection.register("tiles", pa.Table.from_pylist(shown, TILE_SCHEMA))
        found = concerns(Slides(named.to_batches(), named.schema), connection)
    assert found.counts == Counter(kind for of in kinds for kind in of)
    assert found.slides == sum(map(bool, kinds))
    assert [len(concern.reasons) for concern in found.shown] == [len(kinds[concern.slide]) for concern in found.shown]
    assert len({concern.slide for concern in found.shown}) == len(found.shown) <= MOST
    failed = [concern.slide for concern in found.shown if "failed" in kinds[concern.slide]]
    assert len(failed) == min(OF_A_KIND, found.counts.get("failed", 0))
    assert failed == [concern.slide for concern in found.shown][: len(failed)]  # nothing is worse
    if found.slides <= OF_A_KIND:
        assert len(found.shown) == found.slides


def looked(out):
    with open_catalogs([str(out)]) as connection:
        audited = count(connection, [str(out)])
        return audited, concerns(audited.slides, connection)


@pytest.mark.slow
def test_reasons_are_words_with_their_numbers(tmp_path):
    scanned = {"width": 100_000, "height": 80_000, "mpp_x": 0.25, "mpp_y": 0.25}
    add_slide(tmp_path, 1, {"40x": 4}, file="few.svs", tissue_mm2=2.0, **scanned)  # these tiles have no focus
    add_slide(tmp_path, 2, {"10x": 1}, file="unsure.svs", stain="IHC", stain_confidence=0.55)
    add_slide(tmp_path, 3, {"10x": 1}, file="pale.svs", tissue_certainty=0.7)
    add_slide(tmp_path, 4, {"10x": 1}, file="odd.svs", stain="UNKNOWN", stain_confidence=0.0)
    add_row(tmp_path, "torn", file="torn.svs", status="failed", error_type="DamagedSlide", error="no JPEG")
    add_row(tmp_path, "glass", file="glass.svs", status="empty", error="no tissue was found", warning="odd glass")
    audited, found = looked(tmp_path)
    assert {audited.slides[c.slide].file: c.reasons for c in found.shown} == {
        "torn.svs": ("failed: DamagedSlide: no JPEG",),
        "glass.svs": ("no tile: no tissue was found", "odd glass"),
        "few.svs": ("100 % of its 40x tiles are blurred", "only 0.400 % of 500 mm² is tissue"),
        "unsure.svs": ("the stain may not be IHC: confidence 0.550",),
        "odd.svs": ("its stain cannot be told from the pixels",),
        "pale.svs": ("the outline of its tissue may be wrong: certainty 0.700",),
    }
    assert audited.slides[found.shown[0].slide].file == "torn.svs"


def test_many_of_a_kind_leave_room_for_the_others(tmp_path):
    for number in range(9):
        add_row(tmp_path, f"torn-{number}", file=f"torn{number}.svs", status="failed", error="no JPEG")
    add_slide(tmp_path, 2, {"10x": 1}, file="unsure.svs", stain_confidence=0.7)
    audited, found = looked(tmp_path)
    assert [audited.slides[c.slide].file for c in found.shown][OF_A_KIND:] == ["unsure.svs"]
    assert (found.slides, found.counts) == (10, {"failed": 9, "stain": 1})


def test_what_is_named_has_a_card_whatever_the_seed(tmp_path, capsys):
    for number in range(5):
        add_overlay(tmp_path, add_slide(tmp_path, number, {"10x": 1}, stain_confidence=0.7 if number == 3 else 0.9))
    audited, found = looked(tmp_path)
    (named,) = (concern.slide for concern in found.shown)
    for seed in range(3):
        assert [p.slide for p in overlays(audited, 1, seed, [named]).pictures] == [named]
    assert main(["--shards", str(tmp_path), "--to", str(tmp_path / "audit.html"), "--gallery", "0"]) == 0
    assert "look at these first" in capsys.readouterr().out
    assert 'href="#slide-' not in (tmp_path / "audit.html").read_text()  # no card, no link


def test_overlays_that_take_too_much_keep_the_outline(tmp_path, monkeypatch):
    for number in range(3):
        add_disc(tmp_path, number)
    with open_catalogs([str(tmp_path)]) as connection:
        audited = count(connection, [str(tmp_path)])
    whole = overlays(audited, 9, 0)
    assert [[panel.name for panel in p.panels] for p in whole.pictures] == [["slide", "5x", "10x"]] * 3
    size = sum(len(picture.jpeg) for picture in whole.pictures)
    monkeypatch.setattr(audit_pictures, "_OVERLAY_BYTES", size - 1)
    short = overlays(audited, 9, 0)
    assert [[panel.name for panel in p.panels] for p in short.pictures] == [["slide", "5x"]] * 3
    assert (short.pictures[0].size[0], short.pictures[0].panels[1]) == (1452, whole.pictures[0].panels[1])
    monkeypatch.setattr(audit_pictures, "_OVERLAY_BYTES", size // 2)
    assert len(overlays(audited, 9, 0).pictures) == 2
    assert overlays(audited, 9, 0).available == 3


SCANNERS = [
    ("generic-tiff", "", "unknown"),
    ("dicom", None, "unknown"),
    ("ome", None, "unknown"),
    ("synthetic", "", "unknown"),
    (None, None, "unknown"),
    ("", " ", "unknown"),
    ("aperio", "", "aperio, model unknown"),
    ("hamamatsu", "C9600-12", "hamamatsu C9600-12"),
    ("generic-tiff", "GT450", "GT450"),
    (None, "GT450", "GT450"),
]


def test_a_scanner_is_none_that_is_a_kind_of_file(tmp_path):
    for number, (vendor, scanner, _) in enumerate(SCANNERS):
        add_row(tmp_path, f"s{number}", file=f"{number}.svs", status="excluded", vendor=vendor, scanner=scanner)
    audited, _ = looked(tmp_path)
    assert [slide.scanner for slide in audited.slides] == [shown for _, _, shown in SCANNERS]
    assert audited.scanners == Counter(shown for _, _, shown in SCANNERS)


def test_one_file_under_two_ids_is_noted(tmp_path):
    given = {"patient_key": "p"}
    for number, mark in enumerate(["a", "a", "b", "", ""]):
        add_slide(tmp_path, number, {"10x": 1}, fingerprint=mark, **given)
    add_row(tmp_path, "s9", status="excluded", fingerprint="b")
    audited, _ = looked(tmp_path)
    assert audited.notes == ("1 slide that is ok has the content of another slide_id: each counts as a slide",)
