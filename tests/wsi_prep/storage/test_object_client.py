"""Shards in an object store, over HTTP from moto's S3 API: the same index and batches as from the disk."""

import socket

import boto3
import pytest
import torch
from moto.server import ThreadedMotoServer

from pretrain.data.index import open_index
from pretrain.data.loader import Loader, LoaderSettings
from pretrain.data.sampler import Sampler, SamplingSettings
from pretrain.errors import BadShards
from tests.support.shard_folders import add_slide
from wsi_prep.errors import BadCatalog, BadQuery, StoreFailed
from wsi_prep.output.query import open_catalog

pytestmark = pytest.mark.network

MIX = {"20x": 0.5, "10x": 0.5}
AT = "s3://slides/study/out"


@pytest.fixture(scope="module")
def endpoint():
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def store(endpoint, monkeypatch):
    """A bucket without objects, named by the environment as a user would."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1")
    client.create_bucket(Bucket="slides")
    yield client
    for found in client.list_objects_v2(Bucket="slides").get("Contents", []):
        client.delete_object(Bucket="slides", Key=found["Key"])


@pytest.fixture
def out(tmp_path):
    for number in (1, 2, 3):
        add_slide(tmp_path / "out", number, {"20x": 10, "10x": 5}, stain="HE" if number < 3 else "IHC")
    return tmp_path / "out"


def upload(client, out, only=""):
    for path in out.rglob("*"):
        if path.is_file() and only in str(path):
            client.upload_file(str(path), "slides", f"study/out/{path.relative_to(out)}")


def sampler(index):
    return Sampler(index, SamplingSettings(batch=6, mix=MIX))


def pixels(index, steps=4):
    with Loader(sampler(index), LoaderSettings(threads=2, requests=8)) as loader:
        return [batch.pixels.clone() for batch in loader.batches(0, steps)]


@pytest.mark.parametrize("where", [None, "stain = 'HE' and focus < 0.08"])
def test_batches_are_those_of_the_local_folder(store, out, tmp_path, where):
    upload(store, out)
    local = open_index([str(out)], tmp_path / "local", where)
    remote = open_index([AT + "/"], tmp_path / "remote", where)
    assert remote.tiles == local.tiles
    assert all(torch.equal(a, b) for a, b in zip(pixels(remote), pixels(local), strict=True))


def test_questions_are_answered_as_of_the_local_folder(store, out):
    upload(store, out)
    question = """SELECT stain, magnification, count(*) AS tiles, sum(nbytes) AS bytes, max(crc32) AS highest
        FROM tiles JOIN slides USING (slide_id) GROUP BY ALL ORDER BY ALL"""
    with open_catalog([AT]) as far, open_catalog([str(out)]) as near, open_catalog([AT, str(out)]) as both:
        assert far.ask(question).read_all() == near.ask(question).read_all()
        assert both.ask("SELECT count(*) AS n FROM tiles").read_all().to_pylist() == [{"n": 45}]
        assert both.ask("SELECT count(*) AS n FROM slides").read_all().to_pylist() == [{"n": 3}]
        with pytest.raises(BadQuery, match="disabled"):
            far.ask("SELECT * FROM read_parquet('s3://slides/study/out/catalog/tiles/*.parquet')")


def test_a_bucket_without_a_catalog_is_said(store):
    with pytest.raises(BadCatalog, match="no catalog/slides"):
        open_catalog(["s3://slides/elsewhere"])
    with pytest.raises(StoreFailed, match="no such bucket"):
        open_catalog(["s3://no-such-bucket/out"])


def test_a_new_slide_makes_one_new_part(store, out, tmp_path):
    upload(store, out)
    open_index([AT], tmp_path / "parts")
    before = set((tmp_path / "parts").iterdir())
    upload(store, out, only=add_slide(out, 4, {"20x": 10}))
    index = open_index([AT], tmp_path / "parts")
    assert len(index.slides) == 4
    assert len(set((tmp_path / "parts").iterdir()) - before) == 1


def test_an_object_that_is_gone_is_replaced_and_named(store, out, tmp_path):
    upload(store, out)
    draws = sampler(open_index([AT], tmp_path / "parts"))
    gone = draws.index.address(int(draws.draw(0).tile[0]))
    store.delete_object(Bucket="slides", Key=f"study/out/{gone.path}")
    with Loader(draws, LoaderSettings(bad_allowed=100)) as loader:
        batch = next(loader.batches(0, 1))
        assert not any(draws.index.address(int(tile)).path == gone.path for tile in batch.draw.tile)
        assert gone.name in loader.bad.named


@pytest.mark.parametrize("where", ["s3://slides/elsewhere", "s3://no-such-bucket/out"])
def test_nothing_there_is_one_clear_line(store, out, tmp_path, where):
    with pytest.raises(BadShards, match=where) as caught:
        open_index([where], tmp_path / "parts")
    assert "\n" not in str(caught.value)


def test_no_server_is_one_clear_line(store, tmp_path, monkeypatch):
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(BadShards, match="s3://slides/out cannot be listed") as caught:
            open_index(["s3://slides/out"], tmp_path / "parts")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
