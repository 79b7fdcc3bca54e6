"""Shards in an object store, over HTTP, for other tools: the files are those of the same shards in a folder."""

import json

import pytest

from pipelines.interchange import KINDS, main
from tests.support.object_server import BUCKET
from tests.support.shard_folders import add_slide
from wsi_prep.output.catalog import Catalog

AT = f"s3://{BUCKET}/study/out"
PREFIX = "study/out/"
FACTS = {"width": 9000, "height": 7000, "bounds_x0": 0, "bounds_y0": 0, "reader": "tiff"}


@pytest.fixture
def shards(object_server, tmp_path):
    """The same shards in a folder and in the bucket: the folder."""
    out = tmp_path / "out"
    ring = [[0, 0], [900, 0], [900, 700], [0, 0]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    outline = {"type": "FeatureCollection", "features": [{"type": "Feature", "properties": {}, "geometry": geometry}]}
    (out / "tissue").mkdir(parents=True)
    for number in range(2):
        slide_id = add_slide(out, number, {"20x": 9, "5x": 2}, **FACTS)
        (out / f"tissue/{slide_id}.geojson").write_text(json.dumps(outline))
    Catalog(out).merge()
    object_server.clear()
    object_server.upload(out, PREFIX)
    object_server.requests.clear()
    return out


def written(where, kind, to, *more):
    """Exit code, and every file."""
    code = main(["--shards", str(where), "--kind", kind, "--to", str(to), *more])
    return code, {str(file.relative_to(to)): file.read_bytes() for file in to.rglob("*") if file.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_are_those_of_the_same_shards_in_a_folder(shards, tmp_path, kind):
    code, files = written(AT, kind, tmp_path / "far")
    assert (code, files) == written(shards, kind, tmp_path / "near")
    assert code == 0
    assert files


def test_tiles_in_a_row_come_by_one_request_and_in_random_order_one_by_one(object_server, shards, tmp_path):
    for more, requests in (((), 4), (("--shuffle", "1"), 22)):
        object_server.requests.clear()
        folder = tmp_path / "-".join(("to", *more))
        assert written(AT, "webdataset", folder / "far", *more) == written(shards, "webdataset", folder / "near", *more)
        assert 4 <= len([request for request in object_server.requests if "/c." in request.path]) <= requests


def test_what_is_lost_is_left_out_and_named(object_server, shards, tmp_path, capsys):
    store = "stores/slide1-00000001.zarr"
    (shards / store / "5x/c.0.0.0.0").unlink()
    object_server.client.delete_object(Bucket=BUCKET, Key=f"{PREFIX}{store}/5x/c.0.0.0.0")
    cut = (shards / store / "20x/c.0.0.0.0").read_bytes()[:3000]
    (shards / store / "20x/c.0.0.0.0").write_bytes(cut)
    object_server.client.put_object(Bucket=BUCKET, Key=f"{PREFIX}{store}/20x/c.0.0.0.0", Body=cut)
    code, files = written(AT, "webdataset", tmp_path / "far")
    far = capsys.readouterr().err
    assert (code, files) == written(shards, "webdataset", tmp_path / "near")
    assert far == capsys.readouterr().err
    assert code == 3
    assert f"{store}/5x[0]: No such file" in far
    assert f"{store}/20x[8]: its bytes are not those" in far


def test_a_store_that_does_not_answer_is_one_line_and_leaves_no_tar(object_server, shards, tmp_path, capsys):
    object_server.fail("GET", "/20x/c.", 403)
    assert written(AT, "webdataset", tmp_path / "to") == (2, {})
    error = capsys.readouterr().err
    assert error.startswith(f"interchange: {AT}")
    assert error.count("\n") == 1
