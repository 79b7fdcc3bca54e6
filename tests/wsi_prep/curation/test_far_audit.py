"""Shards in an object store, over HTTP, audited: the page is that of the same shards in a folder."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipelines.audit import main
from tests.support.object_server import BUCKET
from tests.support.shard_folders import add_overlay, add_row, add_slide
from tests.support.textures import texture
from wsi_prep.output.catalog import Catalog

AT = f"s3://{BUCKET}/study/out"
PREFIX = "study/out/"


@pytest.fixture
def shards(object_server, tmp_path):
    """The same shards in a folder and in the bucket, merged and not merged rows: the folder."""
    out = tmp_path / "out"
    for number, stain in enumerate(("HE", "IHC")):
        add_overlay(out, add_slide(out, number, {"20x": 9, "5x": 2}, stain=stain, file=f"{number}.svs"))
    Catalog(out).merge()
    add_overlay(out, add_slide(out, 2, {"10x": 3}, file="2.svs"))
    add_row(out, "bad-00000003", status="failed", file="bad.svs", error_type="UnreadableSlide", error="cannot be read")
    object_server.clear()
    object_server.upload(out, PREFIX)
    return out


def audit(tmp_path, where, capsys):
    """Exit code, page, and what was printed but for the page's name."""
    page = tmp_path / "audit.html"
    page.unlink(missing_ok=True)
    code = main(["--shards", str(where), "--to", str(page)])
    printed = capsys.readouterr()
    return code, page.read_text() if page.exists() else "", printed.out, printed.err


def test_the_page_is_that_of_the_same_shards_in_a_folder(shards, tmp_path, capsys):
    code, page, out, err = audit(tmp_path, AT, capsys)
    assert (code, page, out, err) == audit(tmp_path, shards, capsys)
    assert code == 0
    assert "25 tiles" in out


def test_pictures_that_are_lost_have_placeholders(object_server, shards, tmp_path, capsys):
    (shards / "overlays/slide0-00000000.jpg").unlink()
    object_server.client.delete_object(Bucket=BUCKET, Key=f"{PREFIX}overlays/slide0-00000000.jpg")
    shard = shards / "stores/slide1-00000001.zarr/20x/c.0.0.0.0"
    shard.write_bytes(shard.read_bytes()[:100])
    object_server.upload(shard.parent, f"{PREFIX}{shard.parent.relative_to(shards)}/")
    code, page, out, err = audit(tmp_path, AT, capsys)
    assert (code, page, out, err) == audit(tmp_path, shards, capsys)
    assert code == 3
    assert "the overlay is missing" in err
    assert "the tile's bytes are gone" in err


@pytest.mark.parametrize("part", ["catalog/slides", "overlays/", "/20x/c."])
def test_a_store_that_does_not_answer_is_one_line(object_server, shards, tmp_path, capsys, part):
    object_server.fail("GET", part, 403)
    code, page, out, err = audit(tmp_path, AT, capsys)
    assert (code, page, out) == (2, "", "")
    assert err.startswith(f"audit: {AT}")
    assert err.count("\n") == 1


def test_tiles_in_a_store_are_compared_as_those_in_a_folder(object_server, shards, tmp_path, capsys):
    add_slide(shards, 5, {"20x": 3}, picture=lambda slide, _, index: texture(index), file="5.svs")
    shard = shards / "stores/slide1-00000001.zarr/20x/c.0.0.0.0"
    shard.write_bytes(shard.read_bytes()[:100])
    object_server.upload(shards, PREFIX)
    png = io.BytesIO()
    Image.fromarray(texture(1)[::-1]).save(png, "PNG")
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [png.getvalue()], "slide_id": ["5.svs"]}), table)
    words = ["--to", str(tmp_path / "a.html"), "--tasks", str(table), "--near"]
    said = []
    for where in (AT, shards):
        assert main(["--shards", str(where), *words]) == 3
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert "1 of 1 tile looks like tiles in SHARDS, of 1 slide" in said[0]
    assert "0 plain of it, 16 in SHARDS, 0 unreadable of it, 9 in SHARDS" in said[0]
    object_server.fail("GET", "/20x/c.", 403)
    assert main(["--shards", AT, *words]) == 2
    err = capsys.readouterr().err
    assert (err.count("\n"), "403" in err or "denied" in err.lower() or "refuse" in err.lower()) == (1, True), err
