"""Slides and patients of labelled tiles that shards hold are found, whatever they are called, and can be left out."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.interchange import main as interchange
from pipelines.train import main
from pretrain.data.index import open_index
from pretrain.data.seen.overlap import overlap, without
from pretrain.errors import BadTask
from tests.support.shard_folders import add_slide
from tests.support.training import TINY
from wsi_prep.storage.overlap.shared import Overlap

SETTINGS = [*TINY, "sampling.mix.10x=0"]
IDS = [f"slide{number}-{number:08x}" for number in range(1, 6)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Five slides of three patients: 1 and 2, 3 and 4, 5; the last has no key."""
    out = tmp_path_factory.mktemp("overlap") / "out"
    keys = ["p", "p", "q's", "q's", None]
    for number, key in enumerate(keys, 1):
        add_slide(out, number, {"20x": 4}, file=f"TCGA-{number}.svs", patient_key=key)
    return out


def table(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("called", [IDS[0], "TCGA-1.svs", "TCGA-1"])
@pytest.mark.parametrize("column", ["slide_id", "slide", "group"])
def test_a_slide_is_found_by_its_id_and_by_its_file(shards, tmp_path, called, column):
    found = overlap(table(tmp_path / "t.parquet", **{column: [called, "other", called, None]}), shards)
    assert found == Overlap(4, 2, (IDS[0],), None, ())
    assert "2 of 4 tiles are of 1 slide in SHARDS" in found.line
    assert "whether patients of it are in SHARDS is not known: it has no column patient_key" in found.line
    assert "EXCLUDE" in found.line


def test_a_slide_is_found_by_its_content_under_another_name(tmp_path):
    add_slide(tmp_path / "out", 1, {"20x": 2}, fingerprint="f1")
    add_slide(tmp_path / "out", 2, {"20x": 2})
    judged = table(tmp_path / "t.parquet", slide=["new", IDS[1], "new", None], fingerprint=["f1", "f2", None, ""])
    assert overlap(judged, tmp_path / "out") == Overlap(4, 2, (IDS[0], IDS[1]), None, ())
    alone = table(tmp_path / "t.parquet", fingerprint=["f1", "f2", None, ""])
    assert overlap(alone, tmp_path / "out") == Overlap(4, 1, (IDS[0],), None, ())


def test_a_patient_is_found_by_its_key_and_all_its_slides_left_out(shards, tmp_path):
    judged = table(tmp_path / "t.parquet", group=[IDS[0], "x", "y"], patient_key=["q's", "q's", "nobody"])
    found = overlap(judged, [shards])
    assert found == Overlap(3, 1, (IDS[0],), 2, ("q's",))
    index = open_index(shards, tmp_path / "index", without("mpp < 1", [found]))
    assert {index.slide_id(int(slide)) for slide in index.cells["slide"]} == {IDS[1], IDS[4]}


def test_tables_of_tiles_are_compared_as_shards_are(shards, tmp_path):
    assert interchange(["--shards", str(shards), "--kind", "parquet", "--to", str(tmp_path / "tables")]) == 0
    judged = table(tmp_path / "t.parquet", slide_id=[IDS[2]], patient_key=["p"])
    found = overlap(judged, [tmp_path / "tables"])
    assert found == Overlap(1, 1, (IDS[2],), 1, ("p",))
    index = open_index(tmp_path / "tables", tmp_path / "index", without(None, [found]))
    assert {index.slide_id(int(slide)) for slide in index.cells["slide"]} == {IDS[3], IDS[4]}


def test_nothing_shared_is_said_and_changes_no_condition(shards, tmp_path):
    found = overlap(table(tmp_path / "t.parquet", slide=["other"], patient_key=["nobody"]), shards)
    assert found.line == "no tile is of a slide in SHARDS; no tile is of a patient in SHARDS"
    assert without("mpp < 1", [found]) == "mpp < 1"
    assert without(None, [found]) is None
    (tmp_path / "no.parquet").write_text("none")
    with pytest.raises(BadTask, match=r"no.parquet is no table of labelled tiles"):
        overlap(tmp_path / "no.parquet", shards)


@pytest.mark.slow
def test_training_leaves_them_out_and_goes_on_without_them(shards, tmp_path, capsys):
    judged = table(tmp_path / "t.parquet", slide_id=[IDS[4]], patient_key=["p"])
    words = ["--run", str(tmp_path / "run"), "--index", str(tmp_path / "index"), "--stop-at"]
    assert main([*words, "1", "--shards", str(shards), "--exclude", str(judged), "--set", *SETTINGS]) == 0
    assert f"1 slide and 1 patient of {judged} are in SHARDS, and are not trained on" in capsys.readouterr().out
    assert json.loads((tmp_path / "run/run.json").read_text())["tiles"] == 8
    assert main([*words, "2", "--exclude", str(judged)]) == 0
    assert "other tiles than before" not in capsys.readouterr().out
    assert json.loads((tmp_path / "run/run.json").read_text())["tiles"] == 8
    assert main([*words, "3", "--exclude", str(tmp_path)]) == 2
    assert "which is no Parquet file of labelled tiles" in capsys.readouterr().err
