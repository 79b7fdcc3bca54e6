"""OUT in an object store, over HTTP: what a run leaves there is what it leaves in a folder, whatever goes wrong."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys

import obstore.store
import pyarrow.parquet as pq
import pytest
import zarr

from pipelines.shards import main
from tests.support.command_words import changed_call
from tests.support.object_server import BUCKET
from tests.support.paths import ROOT
from tests.support.undisturbed import TIMINGS
from wsi_prep.errors import BadOutput, RunReplaced, StoreFailed
from wsi_prep.output.sealed_json import unseal
from wsi_prep.run.slide import prepare_slide
from wsi_prep.run.task import PrepareSettings, SlideTask
from wsi_prep.slides.find.manifest import EMPTY_ROW
from wsi_prep.slides.find.sources import find_slides
from wsi_prep.storage.base import LOCK
from wsi_prep.storage.locking.holder import ProcessMark
from wsi_prep.storage.select import open_storage

AT = f"s3://{BUCKET}/study/out"
PREFIX = "study/out/"


@pytest.fixture
def server(object_server):
    object_server.clear()
    return object_server


@pytest.fixture(scope="module")
def slides(tmp_path_factory, nompp_slide):
    folder = tmp_path_factory.mktemp("slides")
    for name in "ab":
        shutil.copy(nompp_slide, folder / f"{name}.tiff")
    (folder / "text.svs").write_text("dear colleague")
    return folder


@pytest.fixture(scope="module")
def local(slides, tmp_path_factory, scheduler):
    """What a run leaves in a folder."""
    out = tmp_path_factory.mktemp("local") / "out"
    assert shards(slides, out, scheduler) == 3
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def shards(slides, out, scheduler, *more):
    call = ["--slides", str(slides), "--out", str(out), "--assume-mpp", "0.5", "--mags", "10x 5x"]
    return main(changed_call([*call, *(["--scheduler", scheduler] if scheduler else [])], more))


def catalog(objects):
    """Both tables, sorted, without timings."""
    tables = []
    for name, keys in (("slides", ["slide_id"]), ("tiles", ["slide_id", "array", "index"])):
        parts = [data for key, data in objects.items() if key.startswith(f"catalog/{name}/") and "/." not in key]
        found = [row for part in parts for row in pq.read_table(io.BytesIO(part)).to_pylist()]
        kept = [{k: v for k, v in row.items() if not k.startswith(TIMINGS)} for row in found]
        tables.append(sorted(kept, key=lambda row: [row[k] for k in keys]))
    return tables


def pixels(objects):
    """Stores, outlines and pictures."""
    return {k: v for k, v in objects.items() if k.startswith(("stores/", "tissue/", "overlays/"))}


def record(objects):
    run = unseal(objects["run.json"])
    assert run.pop("last_call")
    return run


def assert_as_local(server, local):
    objects = server.objects(PREFIX)
    assert catalog(objects) == catalog(local)
    assert pixels(objects) == pixels(local)
    assert record(objects) == record(local)
    names = {re.sub(r"\d{5}", "#", key) for key in objects if key not in pixels(objects)}
    parts = {"catalog/slides/part-#.parquet", "catalog/tiles/part-#.parquet"}
    assert names == {LOCK, "run.json", ".run.json", "call.sh", *parts}


def test_a_run_leaves_what_it_leaves_in_a_folder(server, slides, scheduler, local, capsys):
    assert shards(slides, AT + "/", scheduler) == 3
    assert f"look at {AT}/overlays" in capsys.readouterr().out
    assert_as_local(server, local)
    (tile, *_) = catalog(server.objects(PREFIX))[1]
    far = obstore.store.from_url(AT, client_options={"allow_http": True})
    store = zarr.storage.ObjectStore(far, read_only=True)
    assert zarr.open(store, path=tile["array"], mode="r")[tile["index"]].shape == (392, 392, 3)


def test_what_is_done_is_not_done_again_and_other_settings_are_refused(server, slides, scheduler, local, capsys):
    good = slides / "*.tiff"
    assert shards(good, AT, scheduler) == 0
    before = server.objects(PREFIX)
    server.requests.clear()
    assert shards(good, AT, scheduler) == 0
    assert "nothing to do: 2 slides are already done in s3://" in capsys.readouterr().out
    assert not [r for r in server.requests if r.method == "PUT" and "/stores/" in r.path]
    assert pixels(server.objects(PREFIX)) == pixels(before)
    assert shards(good, AT, scheduler, "--quality", "80") == 2
    assert (
        "was made with other settings (jpeg.quality was 90, now 80; own_quality was True, now False)"
        in capsys.readouterr().err
    )
    assert shards(good, AT, scheduler, "--quality", "80", "--redo", "--mags", "5x") == 0
    again = server.objects(PREFIX)
    assert {row["magnification"] for row in catalog(again)[1]} == {"5x"}
    assert not [key for key in again if "/10x/" in key]


def test_a_prefix_that_holds_something_else_is_refused(server, slides, scheduler, capsys):
    server.client.put_object(Bucket=BUCKET, Key=PREFIX + "thesis.doc", Body=b"")
    assert shards(slides, AT, scheduler) == 2
    assert f"OUT {AT} holds other files and no run.json" in capsys.readouterr().err
    assert list(server.objects(PREFIX)) == ["thesis.doc"]


TROUBLE = {
    "refused": [
        ("PUT", "/.lock", 503, 2),
        ("PUT", "/stores/", 500, 3),
        ("PUT", "/catalog/", 503, 4),
        ("GET", "list-type=2", 500, 3),
        ("POST", "delete", 503, 2),
    ],
    "cut off": [
        ("GET", "/.lock", "cut", 3),
        ("GET", "/catalog/", "cut", 3),
        ("GET", "/run.json", "cut", 2),
        ("GET", "list-type=2", "cut", 2),
        ("POST", "delete", "cut", 2),
        ("PUT", "part-00000", "cut", 3),
    ],
    "done without an answer": [
        ("PUT", "/.lock", "lost", 1),
        ("PUT", "/catalog/slides/", "lost", 1),
        ("PUT", "/10x/c.", "lost", 1),
        ("POST", "delete", "lost", 1),
    ],
    "longer than stated": [
        ("GET", "/.lock", "short", 2),
        ("GET", "/catalog/", "short", 3),
        ("GET", "/run.json", "short", 2),
        ("GET", "list-type=2", "short", 3),
    ],
    "shorter than stated": [
        ("GET", "/.lock", "long", 1),
        ("GET", "/catalog/", "long", 3),
        ("GET", "/run.json", "long", 1),
        ("GET", "list-type=2", "long", 2),
    ],
    "slow": [("PUT", "/10x/c.", "slow", 1), ("GET", "/.lock", "slow", 1)],
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_a_store_in_trouble_for_a_while_makes_no_difference(server, slides, scheduler, local, trouble):
    faults = [server.fail(*fault) for fault in TROUBLE[trouble]]
    assert shards(slides, AT, scheduler) == 3
    assert [fault.met for fault in faults] == [fault.times for fault in faults]
    assert_as_local(server, local)


@pytest.mark.parametrize("part", ["/.lock", "/run.json", "list-type=2"])
def test_a_store_that_never_answers_ends_the_call_in_one_line(server, slides, scheduler, local, capsys, part, quick):
    server.fail("GET", part, 503)
    server.fail("PUT", part, 503)
    assert shards(slides, AT, scheduler) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith(f"shards: {AT}")
    assert "repeat the command" in line
    assert "\n" not in line
    assert len(line) < 500
    server.faults.clear()
    assert shards(slides, AT, scheduler) == 3
    assert_as_local(server, local)


@pytest.fixture
def quick(monkeypatch):
    """Give up after one more try: how often and how long it is tried is not what is tested."""
    monkeypatch.setattr("wsi_prep.storage.object_client._RETRIES", 1)


def test_shards_that_cannot_be_written_fail_their_slides_and_a_later_call_makes_them(
    server, slides, scheduler, local, capsys
):
    server.fail("PUT", "/stores/a-", 503)
    assert shards(slides, AT, scheduler) == 3
    assert "failed    a.tiff  StoreFailed: " in capsys.readouterr().out
    rows, tiles = catalog(server.objects(PREFIX))
    ok = {row["slide_id"] for row in rows if row["status"] == "ok"}
    assert {tile["slide_id"] for tile in tiles} == ok
    assert len(ok) == 1
    server.faults.clear()
    assert shards(slides, AT, scheduler) == 3
    objects = server.objects(PREFIX)
    assert catalog(objects) == catalog(local)
    assert pixels(objects) == pixels(local)


MOMENTS = {
    "in the first slide's shards": lambda server: asked(server, "PUT", "/10x/c."),
    "in the merge": lambda server: asked(server, "PUT", ".journal.json"),
}


def asked(server, method, part):
    return any(r.method == method and part in r.path for r in list(server.requests))


@pytest.mark.parametrize(
    "moment", ["in the first slide's shards", pytest.param("in the merge", marks=pytest.mark.long)]
)
def test_a_run_killed_and_run_again_equals_one_that_was_not(server, slides, scheduler, local, moment):
    call = ["--slides", str(slides), "--out", AT, "--assume-mpp", "0.5", "--mags", "10x 5x", "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.shards", *call],
        cwd=ROOT,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not MOMENTS[moment](server):
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert shards(slides, AT, scheduler) == 3
    assert_as_local(server, local)


def test_a_run_that_is_alive_keeps_others_out(server, slides, scheduler, capsys):
    with open_storage(AT).locked("somebody", take_over=False):
        assert shards(slides, AT, scheduler) == 2
        line = capsys.readouterr().err
        assert f"another run (process {os.getpid()} on " in line
        assert "TAKE_OVER=1" in line
    assert set(server.objects(PREFIX)) == {LOCK}
    left = json.dumps({"token": "old", "host": "elsewhere", "pid": 7, "boot": "another", "namespace": "", "start": "1"})
    server.client.put_object(Bucket=BUCKET, Key=PREFIX + LOCK, Body=left.encode())
    assert shards(slides, AT, scheduler) == 2
    assert "another run (process 7 on elsewhere)" in capsys.readouterr().err
    assert shards(slides / "a.tiff", AT, scheduler, "--take-over") == 0


def test_a_lock_of_a_process_that_is_gone_is_taken_and_one_of_another_machine_only_on_request(server):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = ProcessMark.own().as_dict()
    for mark, free in (
        (here, False),  # it is this process itself
        (here | {"pid": gone.pid}, True),
        (here | {"start": "1"}, True),  # the number was given to another process since
        (here | {"boot": "another machine", "pid": gone.pid}, False),
        (here | {"namespace": "pid:[1]", "pid": gone.pid}, False),
        ({}, False),
    ):
        server.client.put_object(Bucket=BUCKET, Key=PREFIX + LOCK, Body=json.dumps({"token": "old", **mark}).encode())
        storage = open_storage(AT)
        if free:
            with storage.locked("new", take_over=False):
                assert storage.holder() == "new"
        else:
            with pytest.raises(BadOutput, match="another run"), storage.locked("new", take_over=False):
                pass
            with storage.locked("new", take_over=True):
                assert storage.holder() == "new"


def test_a_worker_that_outlives_its_run_writes_nothing(server, slides):
    with open_storage(AT).locked("a newer run", take_over=False):
        before = server.objects(PREFIX)
        (source, *_) = find_slides(str(slides))
        task = SlideTask(source, EMPTY_ROW, None, PrepareSettings(assume_mpp=0.5), AT, "an older run")
        with pytest.raises(RunReplaced):
            prepare_slide(task)
        assert server.objects(PREFIX) == before


def test_a_bucket_that_is_not_there_is_said(server, slides, scheduler, capsys):
    assert shards(slides, "s3://no-such-bucket/out", scheduler) == 2
    assert "s3://no-such-bucket/out cannot be used (there is no such bucket); " in capsys.readouterr().err


def test_no_server_is_one_clear_line(server, monkeypatch, quick):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreFailed, match=f"{AT} cannot be used") as caught:
        open_storage(AT).names("")
    assert "\n" not in str(caught.value)
