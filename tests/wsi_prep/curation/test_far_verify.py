"""Shards in an object store, over HTTP: what is broken there is found where it is, mended, and made again."""

import io
import json
import os
import shutil
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from pipelines.shards import main as make_shards
from pipelines.verify import main as verify
from tests.support.object_server import BUCKET
from tests.support.undisturbed import TIMINGS
from wsi_prep.curation.verify.catalog import SLIDE_COLUMNS, check_catalog_file
from wsi_prep.curation.verify.slide import SlideCheck, check_slide
from wsi_prep.errors import BadOutput, StoreFailed
from wsi_prep.storage.base import LOCK
from wsi_prep.storage.locking.holder import ProcessMark
from wsi_prep.storage.select import open_storage

AT = f"s3://{BUCKET}/study/out"
PREFIX = "study/out/"
PART = "part-00000.parquet"
SHARD = "20x/c.0.0.0.0"


def remake(slides, scheduler):
    call = ["--slides", str(slides), "--out", AT, "--assume-mpp", "0.5", "--mags", "20x 5x"]
    return make_shards([*call, "--scheduler", scheduler])


@pytest.fixture(scope="module")
def made(object_server, scheduler, nompp_slide, tmp_path_factory):
    """Four slides, and every object of their shards in the bucket: (slides folder, objects)."""
    slides = tmp_path_factory.mktemp("slides")
    for name in "abcd":
        shutil.copy(nompp_slide, slides / f"{name}.tiff")
    object_server.clear()
    assert remake(slides, scheduler) == 0
    return slides, object_server.objects(PREFIX)


@pytest.fixture
def server(object_server, made):
    """The bucket with these objects and no others."""
    now = object_server.objects(PREFIX)
    for key in now.keys() - made[1].keys():
        delete(object_server, key)
    for key, data in made[1].items():
        if now.get(key) != data:
            put(object_server, key, data)
    object_server.faults.clear()
    object_server.requests.clear()
    return object_server


def put(server, key, data):
    server.client.put_object(Bucket=BUCKET, Key=PREFIX + key, Body=data)


def delete(server, key):
    server.client.delete_object(Bucket=BUCKET, Key=PREFIX + key)


def flip(server, key, at):
    data = bytearray(server.objects(PREFIX)[key])
    data[at] ^= 1
    put(server, key, bytes(data))


def rows(objects, table="slides"):
    """A table's rows, sorted, without timings."""
    parts = [data for key, data in objects.items() if key.startswith(f"catalog/{table}/")]
    found = [row for part in parts for row in pq.read_table(io.BytesIO(part)).to_pylist()]
    kept = [{k: v for k, v in row.items() if not k.startswith(TIMINGS)} for row in found]
    return sorted(kept, key=lambda row: (row["slide_id"], row.get("array", ""), row.get("index", 0)))


def row_of(made, stem):
    (row,) = [row for row in rows(made[1]) if row["file"] == f"{stem}.tiff"]
    return row


def store_of(made, stem):
    return f"stores/{row_of(made, stem)['slide_id']}.zarr"


def looked_at(made, stem):
    row = {name: value for name, value in row_of(made, stem).items() if name in SLIDE_COLUMNS}
    return check_slide(SlideCheck(AT, row, PART))


def without_lock(objects):
    return {key: data for key, data in objects.items() if key != LOCK}


DAMAGES = {
    "a byte of a tile": (lambda server, s, store: flip(server, f"{store}/{SHARD}", 5000), "tiles", "20x[0] has"),
    "a byte of the index": (lambda server, s, store: flip(server, f"{store}/{SHARD}", -9), "index", f"{SHARD} has an"),
    "a shard cut off": (
        lambda server, s, store: put(server, f"{store}/{SHARD}", server.objects(PREFIX)[f"{store}/{SHARD}"][:-700]),
        "index",
        f"{SHARD} has an index",
    ),
    "an empty shard": (lambda server, s, store: put(server, f"{store}/{SHARD}", b""), "index", f"{SHARD} has 0 bytes"),
    "no shard": (lambda server, s, store: delete(server, f"{store}/{SHARD}"), "index", f"{SHARD} is missing"),
    "no metadata": (lambda server, s, store: delete(server, f"{store}/5x/zarr.json"), "metadata", "5x/zarr.json is"),
    "no sense": (lambda server, s, store: put(server, f"{store}/zarr.json", b"[]"), "metadata", "group: zarr.json"),
    "no overlay": (lambda server, s, store: delete(server, f"overlays/{s}.jpg"), "pictures", "No such file"),
    "half an outline": (lambda server, s, store: put(server, f"tissue/{s}.geojson", b"{"), "pictures", "is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_broken_of_a_slide_is_found_and_named(server, made, damage):
    do, kind, said = DAMAGES[damage]
    slide_id, store = row_of(made, "a")["slide_id"], store_of(made, "a")
    do(server, slide_id, store)
    report = looked_at(made, "a")
    assert [(fault.kind, fault.where) for fault in report.faults] == [(kind, slide_id)]
    assert said in report.faults[0].what
    assert report.strays == ()


def test_a_sound_slide_costs_few_requests_and_marks_of_folders_are_no_strays(server, made):
    store = store_of(made, "a")
    for folder in (store, f"{store}/20x"):
        put(server, f"{folder}/", b"")
    server.requests.clear()
    report = looked_at(made, "a")
    assert (report.faults, report.strays, report.tiles) == (
        (),
        (),
        sum(row_of(made, "a")[f"tiles_{m}"] for m in ("20x", "5x")),
    )
    of_shards = [request for request in server.requests if "/c." in request.path]
    assert [request.method for request in of_shards] == ["GET"] * 4  # an index and its tiles, of two shards
    assert len(server.requests) - len(of_shards) <= 9


def test_a_store_that_does_not_answer_is_no_broken_slide(server, made, capsys):
    server.fail("GET", SHARD, 503, times=2)
    assert looked_at(made, "a").faults == ()
    for part in (SHARD, "20x/zarr.json", "overlays/", "list-type=2"):
        server.faults.clear()
        server.fail("GET", part, 403)
        with pytest.raises(StoreFailed, match="cannot be used"):
            looked_at(made, "b")
    for part in ("slides", "tiles"):
        server.faults.clear()
        server.fail("GET", f"catalog/{part}/", 403)
        with pytest.raises(StoreFailed, match="cannot be used"):
            check_catalog_file((AT, PART))
    server.faults.clear()
    server.fail("GET", SHARD, 403)
    assert verify(["--shards", AT, "--workers", "1", "--repair", "--yes"]) == 2
    assert "cannot be used" in capsys.readouterr().err
    server.faults.clear()
    assert without_lock(server.objects(PREFIX)) == without_lock(made[1])


@pytest.mark.long
def test_damage_is_told_repaired_and_made_again(server, made, scheduler, capsys):
    stores = {stem: store_of(made, stem) for stem in "abcd"}
    ids = {stem: row_of(made, stem)["slide_id"] for stem in "abcd"}
    flip(server, f"{stores['a']}/{SHARD}", 5000)
    for key in made[1]:
        if key.startswith(stores["b"]):
            delete(server, key)
    put(server, f"overlays/{ids['c']}.jpg", b"\xff\xd8\xff")
    strays = [f"{stores['d']}/20x/c.1.0.0.0", "stores/gone-0123456789.zarr/zarr.json", "tissue/notes.txt"]
    strays += ["overlays/gone-0123456789.jpg", "catalog/slides/.x.parquet.17", "catalog/old.csv"]
    for key in strays:
        put(server, key, b"x")
    broken = server.objects(PREFIX)

    assert verify(["--shards", AT, "--workers", "1"]) == 3
    printed = capsys.readouterr().out
    for told in (
        f"{ids['a']}: 20x[0] has another checksum",
        f"{ids['b']}: its store is missing",
        f"{ids['c']}: overlays/{ids['c']}.jpg is damaged",
        f"{strays[0]}: a file that is not its store's",
        "tissue/notes.txt: no row is of it",
        "REPAIR=1",
    ):
        assert told in printed
    assert server.objects(PREFIX) == broken  # not even the lock is touched

    assert verify(["--shards", AT + "/", "--workers", "1", "--repair", "--yes"]) == 3
    assert "repaired: 3 slides and 5 stray files removed" in capsys.readouterr().out
    mended = server.objects(PREFIX)
    assert not mended.keys() & {*strays}
    assert [row["file"] for row in rows(mended)] == ["d.tiff"]
    assert json.loads(mended["run.json"])["slides"] == {"ok": 1}

    assert remake(made[0], scheduler) == 0
    again = server.objects(PREFIX)
    assert {k: v for k, v in again.items() if k.startswith(("stores/", "tissue/", "overlays/"))} == {
        k: v for k, v in made[1].items() if k.startswith(("stores/", "tissue/", "overlays/"))
    }
    assert [rows(again, table) for table in ("slides", "tiles")] == [rows(made[1], t) for t in ("slides", "tiles")]
    assert verify(["--shards", AT, "--workers", "1"]) == 0
    assert capsys.readouterr().out.strip().endswith("sound")


@pytest.mark.parametrize("table", ["slides", "tiles"])
def test_a_damaged_part_of_the_catalog_undoes_its_slides(server, made, table, capsys):
    key = f"catalog/{table}/{PART}"
    whole = made[1][key]
    put(server, key, whole[:4] + bytes(1000) + whole[1004:] if table == "slides" else whole[:-100])
    put(server, "catalog/.journal.json", json.dumps({"part": PART, "singles": []}).encode())
    assert verify(["--shards", AT, "--workers", "1", "--repair", "--yes"]) == 3
    printed = capsys.readouterr().out
    assert key in printed
    assert "it has rows of 4 slides" in printed
    assert sorted(server.objects(PREFIX)) == [LOCK, ".run.json", "call.sh", "run.json"]


def test_while_a_run_is_at_work_nothing_is_looked_at(server, capsys):
    with open_storage(AT).locked("somebody", take_over=False):
        assert verify(["--shards", AT]) == 2
        assert f"a run (process {os.getpid()} on " in capsys.readouterr().err
        assert verify(["--shards", AT, "--repair", "--yes"]) == 2
        assert "another run" in capsys.readouterr().err


def test_a_run_that_begins_meanwhile_is_told_at_the_end_and_one_that_is_gone_is_none(server, made):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    put(server, LOCK, json.dumps({"token": "old", **ProcessMark.own().as_dict(), "pid": gone.pid}).encode())
    storage = open_storage(AT)
    with storage.undisturbed(take_over=False):
        pass
    elsewhere = {"token": "old", **ProcessMark.own().as_dict(), "boot": "another machine"}
    put(server, LOCK, json.dumps(elsewhere).encode())
    with storage.undisturbed(take_over=True):
        pass
    put(server, LOCK, made[1][LOCK])
    with (
        pytest.raises(BadOutput, match=f"a run began to write to {AT} meanwhile"),
        storage.undisturbed(take_over=False),
        open_storage(AT).locked("quicker", take_over=False),
    ):
        pass


def test_places_that_hold_no_shards_are_one_line(server, capsys):
    assert verify(["--shards", f"s3://{BUCKET}/none"]) == 2
    assert f"s3://{BUCKET}/none holds no catalog/slides" in capsys.readouterr().err
    assert verify(["--shards", "s3://no-such-bucket/out"]) == 2
    assert "there is no such bucket" in capsys.readouterr().err
