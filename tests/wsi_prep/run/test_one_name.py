"""Slides of one name, which a person tells apart by their folders; their ids depend on no other slide."""

import shutil

import pyarrow.parquet as pq
import pytest

from pipelines.audit import main as audit
from pipelines.shards import main
from wsi_prep.slides.find.sources import find_slides

pytestmark = [pytest.mark.usefixtures("shared_dask"), pytest.mark.slow]


@pytest.fixture
def slides(tmp_path, nompp_slide):
    """Excluded slides, which are quickly done: two of one name, and one in another script."""
    for name in ("a/slide.tiff", "b/slide.tiff", "b/病理 Ä.tiff"):
        (tmp_path / "slides" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(nompp_slide, tmp_path / "slides" / name)
    return tmp_path / "slides"


def shards(slides, out, *more):
    return main(["--slides", str(slides), "--out", str(out), "--workers", "1", *map(str, more)])


def names(out):
    columns = ["slide_id", "file_folder", "file"]
    return {
        row.pop("slide_id"): tuple(row.values())
        for row in pq.read_table(out / "catalog/slides", columns=columns).to_pylist()
    }


def test_catalog_summary_and_audit_tell_slides_of_one_name_apart(slides, tmp_path, capsys):
    out = tmp_path / "out"
    assert shards(slides, out) == 0
    said = capsys.readouterr().out
    assert [line.split()[1] for line in said.splitlines() if line.startswith("excluded")] == [
        "a/slide.tiff",
        "b/slide.tiff",
        "病理",
    ]
    by_path = {source.path.removeprefix(f"{slides}/"): source.slide_id for source in find_slides(str(slides))}
    assert names(out) == {
        by_path["a/slide.tiff"]: ("a", "slide.tiff"),
        by_path["b/slide.tiff"]: ("b", "slide.tiff"),
        by_path["b/病理 Ä.tiff"]: (None, "病理 Ä.tiff"),
    }
    assert audit(["--shards", str(out), "--to", str(tmp_path / "page.html")]) == 0
    assert "a/slide.tiff" in capsys.readouterr().out
    assert "a/slide.tiff" in (tmp_path / "page.html").read_text()


def test_ids_and_names_are_the_same_whichever_slides_are_in_the_call(slides, tmp_path, capsys):
    out = tmp_path / "out"
    assert shards(slides / "b", out) == 0
    alone = names(out)
    assert set(alone.values()) == {(None, "slide.tiff"), (None, "病理 Ä.tiff")}
    assert shards(slides, out) == 0
    both = names(out)
    assert alone.keys() < both.keys()
    assert shards(slides / "b", out) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert names(out) == both


def test_private_output_names_no_folder(slides, tmp_path):
    (tmp_path / "key").write_text("a secret of more than sixteen bytes")
    assert shards(slides, tmp_path / "out", "--private", "--id-key", tmp_path / "key") == 0
    assert {folder for folder, _ in names(tmp_path / "out").values()} == {None}
