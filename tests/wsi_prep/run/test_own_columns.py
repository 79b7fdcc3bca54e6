"""Columns of a manifest that are the user's own: kept, asked for, rewritten alone, and in no private output."""

import shutil

import pyarrow.parquet as pq
import pytest

from pipelines.privacy import main as privacy
from pipelines.query import main as query
from pipelines.shards import main
from wsi_prep.untrusted.sql import Condition

pytestmark = [pytest.mark.usefixtures("shared_dask"), pytest.mark.slow]


@pytest.fixture
def slides(tmp_path, nompp_slide):
    (tmp_path / "slides").mkdir()
    for name in ("1.tiff", "2.tiff"):
        shutil.copy(nompp_slide, tmp_path / "slides" / name)
    return tmp_path / "slides"


@pytest.fixture
def shards(slides, tmp_path):
    def call(text, out, *more):
        (tmp_path / "manifest.csv").write_text(text)
        given = ["--slides", str(slides), "--manifest", str(tmp_path / "manifest.csv"), "--out", str(tmp_path / out)]
        return main([*given, "--workers", "1", *map(str, more)])

    return call


def kept(out):
    return {row["file"]: row["manifest"] for row in pq.read_table(out / "catalog/slides").to_pylist()}


def test_they_are_kept_asked_for_and_listed_and_another_value_redoes_no_slide(shards, tmp_path, capsys):
    out = tmp_path / "out"
    assert shards("slide,Site\n1.tiff,Nord\n2.tiff,Süd\n", "out") == 0
    assert "keeps the manifest's further columns, in its column manifest: site" in capsys.readouterr().out
    asked = "SELECT file FROM slides WHERE manifest->>'site' = 'Süd'"
    assert query(["--shards", str(out), "--sql", asked, "--to", str(tmp_path / "asked.csv")]) == 0
    assert (tmp_path / "asked.csv").read_text().split() == ['"file"', '"2.tiff"']
    assert Condition("manifest->>'site' = 'Nord'").rows(pq.read_table(out / "catalog/slides").sort_by("file")) == [0]
    assert privacy(["--shards", str(out), "--to", str(tmp_path / "texts.csv")]) == 0
    assert "Nord" in (tmp_path / "texts.csv").read_text()
    capsys.readouterr()
    assert shards("slide,Site,Block\n1.tiff,Nord,7\n2.tiff,,\n", "out") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert kept(out) == {"1.tiff": '{"site": "Nord", "block": "7"}', "2.tiff": None}


def test_private_output_has_nothing_of_them(shards, tmp_path, capsys):
    (tmp_path / "key").write_text("a secret of more than sixteen bytes")
    text = "slide,zone,tissue\n1.tiff,Nordheim,lung\n2.tiff,Nordheim,lung\n"
    assert shards(text, "out", "--private", "--id-key", tmp_path / "key") == 0
    assert "PRIVATE=1 leaves out the manifest's further columns (1 of them)" in capsys.readouterr().out
    assert set(kept(tmp_path / "out").values()) == {None}
    texts = [file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert texts
    assert not any(b"Nordheim" in data or b"zone" in data for data in texts)
