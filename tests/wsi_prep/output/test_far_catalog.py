"""Catalogs by every kind of URL that `make shards` writes to: all commands that read one read each."""

import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.audit import main as audit
from pipelines.interchange import main as interchange
from pipelines.plan import main as plan
from pipelines.query import main as query
from pretrain.data.index import open_index
from tests.support.azure_server import AzureServer
from tests.support.object_server import BUCKET
from tests.support.shard_folders import add_overlay, add_slide
from wsi_prep.format.records import SLIDE_SCHEMA
from wsi_prep.output.catalog import Catalog
from wsi_prep.storage.select import OBJECT_STORES

pytestmark = pytest.mark.network

FACTS = {"width": 9000, "height": 7000, "seconds": 10.0, "bytes": 9, "files": 4, "patient_key": "p", "file": "a.svs"}


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Shards of four slides, some merged and some not."""
    out = tmp_path_factory.mktemp("near") / "out"
    for number in range(4):
        if number == 2:
            Catalog(out).merge()
        add_overlay(out, add_slide(out, number, {"20x": 3 + number, "5x": 1}, **FACTS))
    return out


@pytest.fixture(scope="module")
def azure(out, tmp_path_factory):
    """The same shards as blobs of the container `blobs`, below study/out."""
    folder = tmp_path_factory.mktemp("azure")
    shutil.copytree(out, folder / "blobs/study/out")
    server = AzureServer(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server
    server.stop()


@pytest.fixture(params=["s3", "s3a", "az", "abfs", "file"])
def where(request, out):
    """The URL of these shards, of each kind."""
    if request.param == "file":
        return f"file://{out}"
    if request.param.startswith("s3"):
        server = request.getfixturevalue("object_server")
        server.clear()
        server.upload(out, "study/out/")
        return f"{request.param}://{BUCKET}/study/out"
    request.getfixturevalue("azure")
    return f"{request.param}://blobs/study/out"


def answers(where, to):
    """What each command writes of these shards, their place aside: exit codes, and files."""
    calls = {
        query: ["--sql", "SELECT * FROM slides JOIN tiles USING (slide_id) ORDER BY ALL", "--to", to / "rows.csv"],
        plan: ["--slides", "1000", "--to", to / "plan.json"],
        interchange: ["--kind", "clam", "--to", to / "clam"],
        audit: ["--to", to / "audit.html"],
    }
    to.mkdir()
    given = {command: ["--sample" if command is plan else "--shards", where] for command in calls}
    codes = [command([str(text) for text in (*given[command], *more)]) for command, more in calls.items()]
    files = {str(p.relative_to(to)): p.read_bytes() for p in to.rglob("*") if p.is_file()}
    place = str(where).removeprefix("file://").encode()
    return codes, {name: data.replace(place, b"WHERE") for name, data in files.items()}


@pytest.fixture(scope="module")
def near(out, tmp_path_factory):
    """The answers of the folder."""
    return answers(out, tmp_path_factory.mktemp("answers") / "near")


def test_every_command_says_of_a_url_what_it_says_of_the_folder(out, near, where, tmp_path, capsys):
    codes, files = answers(where, tmp_path / "far")
    assert capsys.readouterr().err == ""
    assert codes == near[0] == [0, 0, 0, 0]
    assert files.keys() == near[1].keys()
    assert sum(name.endswith(".h5") for name in files) == 8
    assert sum("/" not in name for name in files) == 3
    for name, data in files.items():
        assert data == near[1][name], name
    assert open_index([str(where)], tmp_path / "index").tiles == 22


def test_a_question_fetches_the_columns_that_it_needs(object_server, tmp_path, capsys):
    out = tmp_path / "out"
    add_slide(out, 1, {"20x": 1})
    (row,) = Catalog(out).slides()
    rows = [
        row | {"slide_id": f"s{n}-{n:08x}", "status": "failed", "error": os.urandom(200).hex()} for n in range(3000)
    ]
    pq.write_table(pa.Table.from_pylist(rows, SLIDE_SCHEMA), out / "catalog/slides/part-00000.parquet")
    object_server.clear()
    object_server.upload(out, "wide/")
    object_server.requests.clear()
    assert query(["--shards", f"s3://{BUCKET}/wide", "--sql", "SELECT count(*) AS n FROM slides"]) == 0
    assert "3001" in capsys.readouterr().out
    size = (out / "catalog/slides/part-00000.parquet").stat().st_size
    assert sum(request.sent for request in object_server.requests if "/part-00000" in request.path) < size / 2


@pytest.mark.parametrize("part", ["catalog/slides", "catalog/tiles"])
def test_a_store_that_does_not_answer_is_one_line_and_no_fault_of_the_question(object_server, out, capsys, part):
    object_server.clear()
    object_server.upload(out, "study/out/")
    object_server.fail("GET", part, 403)
    assert query(["--shards", f"s3a://{BUCKET}/study/out", "--sql", "SELECT sum(nbytes) FROM tiles"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"query: s3a://{BUCKET}/study/out")
    assert "cannot be used" in error
    assert error.count("\n") == 1


def test_every_kind_of_url_is_tried_here_or_of_a_kind_that_is():
    assert set(OBJECT_STORES) == {"s3://", "s3a://", "gs://", "az://", "abfs://", "abfss://"}
