import shutil

import pyarrow.parquet as pq
import pytest

from pipelines.shards import main
from wsi_prep.errors import BadOption
from wsi_prep.slides.find.institution import InstitutionPattern, Origin, find_origin
from wsi_prep.slides.find.sources import find_slides, paths_below
from wsi_prep.slides.private import keyed_patient

LAB = r"^(?P<institution>[^/]+)/(?P<patient>P\d+)"


@pytest.mark.parametrize(
    ("name", "institution", "patient"),
    [
        ("TCGA-A6-6780-01Z-00-DX1.2a8f5c1e.svs", "TCGA-A6", "TCGA-A6-6780"),
        ("copy_of_tcga-3c-aali-01A-01-TSA.svs", "TCGA-3C", "TCGA-3C-AALI"),
        ("GTEX-1117F-0126.svs", "GTEx", "GTEX-1117F"),
        ("GTEX-ZZPU-0626.svs", "GTEx", "GTEX-ZZPU"),
        ("C3L-00081-26.svs", "CPTAC", "C3L-00081"),
        ("C3N-01234-22_HE.svs", "CPTAC", "C3N-01234"),
    ],
)
def test_public_barcodes_name_who_and_whom(name, institution, patient):
    assert find_origin(None, None, name, name, None) == Origin(institution, "barcode", patient)


@pytest.mark.parametrize("name", ["XTCGA-A6-6780.svs", "TCGA-A6-67801.svs", "TCGA.svs", "GTEX-1117F.svs", "C3L-1.svs"])
def test_what_only_looks_like_a_barcode_is_none(name):
    assert find_origin(None, None, name, name, None) == Origin("unknown", "unknown", None)


def test_the_manifest_stands_before_barcode_and_barcode_before_pattern():
    pattern = InstitutionPattern(LAB)
    tcga, plain = "north/P17/TCGA-A6-6780-01Z.svs", "north/P17/a.svs"
    assert find_origin("MSK", "p-1", tcga, tcga, pattern) == Origin("MSK", "manifest", "p-1")
    assert find_origin("MSK", None, tcga, tcga, pattern) == Origin("MSK", "manifest", "TCGA-A6-6780")
    assert find_origin(None, "p-1", tcga, tcga, pattern) == Origin("TCGA-A6", "barcode", "p-1")
    assert find_origin(None, None, plain, plain, pattern) == Origin("north", "pattern", "P17")
    assert find_origin(None, None, "a.svs", "a.svs", pattern) == Origin("unknown", "unknown", None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("(?P<institution>[a-z", "is no regular expression"),
        ("([a-z]+)/", "names the groups none; it needs"),
        ("(?P<instituton>[a-z]+)/", "names the groups instituton; it needs"),
        ("(?P<institution>a)(?P<surname>b)", "names the groups institution, surname; it needs"),
        ("(?P<institution>" + "a" * 600 + ")", "has 617 characters; 500 are the most"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_one_line(text, message):
    with pytest.raises(BadOption, match=message) as error:
        InstitutionPattern(text)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_pattern_that_would_never_end_is_stopped():
    with pytest.raises(BadOption, match=r"takes more than 1 s on .*; do not repeat what repeats"):
        InstitutionPattern(r"^(?P<institution>(a|aa)+)$").search("a" * 900 + "b")
    assert InstitutionPattern(r"(?P<institution>a+)").search("a" * 2000) is None


def test_what_a_pattern_finds_is_one_short_printable_word_or_nothing():
    pattern = InstitutionPattern(r"(?s)^(?P<institution>[^/]*)/")
    assert pattern.search("\x1b[31mno\nrth" + "x" * 200 + "/a.svs").institution == ("[31mno rth" + "x" * 200)[:64]
    assert pattern.search(" \n/a.svs") is None


def test_paths_begin_below_what_was_named(tmp_path):
    for path in ("north/P1/a.svs", "south/b.svs"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    (tmp_path / "list.csv").write_text("slide\nnorth/P1/a.svs\n")
    ways = {
        str(tmp_path): ["north/P1/a.svs", "south/b.svs"],
        str(tmp_path / "north"): ["P1/a.svs"],
        str(tmp_path / "*/*.svs"): ["south/b.svs"],
        str(tmp_path / "list.csv"): ["north/P1/a.svs"],
        str(tmp_path / "south/b.svs"): ["b.svs"],
    }
    for slides, expected in ways.items():
        assert list(paths_below([s.path for s in find_slides(slides)], slides)) == expected
    deep = str(tmp_path / "north/P1")
    assert list(paths_below([s.path for s in find_slides(deep)], deep, str(tmp_path))) == ["north/P1/a.svs"]


def test_a_patients_key_is_what_it_was_before_slides_had_keys():
    """HMAC-SHA-256 of the id alone, by an independent implementation: openssl dgst -sha256 -hmac."""
    assert keyed_patient(b"a secret that is long enough", "p-1") == "130dcade976ccccc695ee38663d3fce2"


@pytest.mark.usefixtures("shared_dask")
def test_where_slides_come_from_is_written_anew_without_their_tiles(tmp_path, nompp_slide, capsys):
    slides, out, key = tmp_path / "slides", tmp_path / "out", tmp_path / "key"
    (slides / "north/P17").mkdir(parents=True)
    shutil.copy(nompp_slide, slides / "north/P17/a.tiff")
    (slides / "TCGA-A6-6780-01Z-00-DX1.tiff").write_bytes(nompp_slide.read_bytes())
    key.write_text("a secret that is long enough")
    common = ["--slides", str(slides), "--out", str(out), "--assume-mpp", "0.5", "--workers", "1"]

    def call(*more):
        assert main([*common, *more]) == 0
        columns = ["institution", "institution_source", "patient_key", "seconds"]
        return {
            row.pop("file"): row for row in pq.read_table(out / "catalog/slides").select(["file", *columns]).to_pylist()
        }

    before = call("--max-tiles", "20x=2 10x=1 5x=1")
    assert "patient ids are not written" in capsys.readouterr().out
    common += ["--max-tiles", "20x=2 10x=1 5x=1"]
    tcga, plain = before["TCGA-A6-6780-01Z-00-DX1.tiff"], before["a.tiff"]
    assert tcga == {
        "institution": "TCGA-A6",
        "institution_source": "barcode",
        "patient_key": None,
        "seconds": tcga["seconds"],
    }
    assert (plain["institution"], plain["institution_source"]) == ("unknown", "unknown")

    pattern = ("--institution-pattern", LAB, "--patient-key", str(key))
    after = call(*pattern)
    assert "nothing to do" in capsys.readouterr().out
    secret = key.read_bytes()
    assert after["a.tiff"] == plain | {
        "institution": "north",
        "institution_source": "pattern",
        "patient_key": keyed_patient(secret, "P17"),
    }
    assert after["TCGA-A6-6780-01Z-00-DX1.tiff"] == tcga | {"patient_key": keyed_patient(secret, "TCGA-A6-6780")}
    assert main([*common, *pattern[:2]]) == 2
    assert "was made with PATIENT_KEY; give it again" in capsys.readouterr().err
    assert call(*pattern) == after
    assert main([*common, *pattern[2:]]) == 2
    assert "was made with an institution pattern; name it again with INSTITUTION_PATTERN=" in capsys.readouterr().err
    call("--institution-pattern", "^(?P<institution>x+)/", *pattern[2:])
    assert "INSTITUTION_PATTERN does not fit 1 of 2 slides" in capsys.readouterr().out
