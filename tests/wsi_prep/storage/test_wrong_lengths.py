"""An object store, or a proxy before it, that states lengths which are not so: asked again, and never believed."""

import numpy as np
import pytest

from tests.support.object_server import BUCKET
from wsi_prep.errors import StoreFailed
from wsi_prep.slides.fetch.object_files import file_system
from wsi_prep.storage.select import open_storage

AT = f"s3://{BUCKET}/lengths"
DATA = np.random.default_rng(0).bytes(10_000)
SIZE = len(DATA)


@pytest.fixture
def server(object_server):
    object_server.clear()
    object_server.client.put_object(Bucket=BUCKET, Key="lengths/file", Body=DATA)
    return object_server


def spans(*wanted):
    return b"".join(open_storage(AT).spans("file", wanted))


def part(start, end):
    files, inner = file_system(f"{AT}/file")
    return files.cat_file(inner, start, end)


READS = {
    "a whole object": (lambda: open_storage(AT).read("file"), DATA),
    "a span": (lambda: spans((100, 500)), DATA[100:600]),
    "a span that ends with the object": (lambda: spans((SIZE - 100, 100)), DATA[-100:]),
    "a span that ends behind it": (lambda: spans((SIZE - 100, 300)), DATA[-100:]),
    "a span behind it": (lambda: spans((SIZE + 100, 300)), b""),
    "names": (lambda: open_storage(AT).names(""), ["file"]),
    "a part of a slide": (lambda: part(100, 600), DATA[100:600]),
    "the end of a slide": (lambda: part(SIZE - 100, SIZE), DATA[-100:]),
}


@pytest.mark.parametrize("how", ["short", "long", "cut"])
@pytest.mark.parametrize("what", READS)
def test_it_is_asked_again(server, what, how):
    read, wanted = READS[what]
    for times in (1, 2):
        fault = server.fail("GET", "", how, times=times)
        assert read() == wanted
        assert 0 < fault.met <= times
        server.faults.clear()


@pytest.mark.parametrize("what", ["a whole object", "a span", "a part of a slide"])
def test_where_it_goes_on_it_is_said_and_nothing_is_read(server, what, monkeypatch):
    monkeypatch.setattr("wsi_prep.storage.object_client.PAUSES", (0.01,))
    monkeypatch.setattr("wsi_prep.slides.fetch.object_files.PAUSES", (0.01,))
    server.fail("GET", "", "short")
    with pytest.raises(StoreFailed, match=r"the answer's body has [\d,]+ bytes in place of [\d,]+"):
        READS[what][0]()


def test_an_empty_object_is_read_as_it_is(server):
    server.client.put_object(Bucket=BUCKET, Key="lengths/file", Body=b"")
    assert open_storage(AT).read("file") == b""
