"""A patient forgotten in an object store, over HTTP: every object of theirs goes, and none of others."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest

from pipelines.forget import main
from pipelines.shards import main as make_shards
from pipelines.verify import main as verify
from tests.support.object_server import BUCKET
from tests.support.paths import ROOT
from wsi_prep.output.tombstone import read_tombstone
from wsi_prep.storage.base import LOCK
from wsi_prep.storage.locking.holder import ProcessMark
from wsi_prep.storage.select import open_storage

AT = f"s3://{BUCKET}/study/out"
PREFIX = "study/out/"


def remake(folder, scheduler):
    slides = folder / "slides"
    call = ["--slides", slides, "--out", AT, "--manifest", slides / "m.csv", "--id-root", slides, "--mags", "20x 5x"]
    key = ["--patient-key", folder / "key"]
    return make_shards([str(word) for word in (*call, *key, "--scheduler", scheduler)])


@pytest.fixture(scope="module")
def made(object_server, scheduler, nompp_slide, tmp_path_factory):
    """Slides of two patients, and every object of their shards: (folder of slides and key, objects)."""
    folder = tmp_path_factory.mktemp("forget")
    (folder / "slides").mkdir()
    (folder / "key").write_bytes(b"a secret that is long enough")
    for name in ("S19-0044721", "S19-0044722", "kept"):
        shutil.copy(nompp_slide, folder / f"slides/{name}.tiff")
    (folder / "slides/m.csv").write_text(
        "slide,mpp,patient\nS19-0044721.tiff,0.5,p7\nS19-0044722.tiff,0.5,p7\nkept.tiff,0.5,p8\n"
    )
    object_server.clear()
    assert remake(folder, scheduler) == 0
    return folder, object_server.objects(PREFIX)


@pytest.fixture
def server(object_server, made):
    """The bucket with these objects, and with a neighbour's beside them."""
    object_server.clear()
    for key, data in made[1].items():
        object_server.client.put_object(Bucket=BUCKET, Key=PREFIX + key, Body=data)
    object_server.client.put_object(Bucket=BUCKET, Key="study/out2/S19-0044721", Body=b"another's")
    object_server.requests.clear()
    return object_server


def call(folder, *more):
    return ["--patient-key", str(folder / "key"), "--patient", "p7", "--shards", AT, "--yes", *more]


def rows(objects, table="slides"):
    parts = [data for key, data in objects.items() if key.startswith(f"catalog/{table}/")]
    return [row for part in parts for row in pq.read_table(io.BytesIO(part)).to_pylist()]


def of_slides(objects):
    return {k: v for k, v in objects.items() if k.startswith(("stores/", "tissue/", "overlays/"))}


def assert_forgotten(server, before):
    """Of the patient nothing is left, and of the other slide all."""
    now = server.objects(PREFIX)
    assert not [key for key, data in now.items() if b"S19-004472" in key.encode() + data]
    (kept,) = [row for row in rows(before) if row["file"] == "kept.tiff"]
    assert rows(now) == [kept]
    assert {row["slide_id"] for row in rows(now, "tiles")} == {kept["slide_id"]}
    assert of_slides(now) == {k: v for k, v in of_slides(before).items() if kept["slide_id"] in k}
    assert json.loads(now["run.json"])["slides"] == {"ok": 1}
    assert server.objects("study/out2/") == {"S19-0044721": b"another's"}


def test_every_object_of_a_patient_goes_and_stays_away(server, made, scheduler, capsys):
    folder, before = made
    theirs = {k: v for k, v in of_slides(before).items() if "S19-" in k}
    assert main(call(folder, "--dry")) == 0
    printed = capsys.readouterr().out
    assert f"{AT}: 2 slides" in printed
    assert f"{len(theirs)} files, {sum(map(len, theirs.values())) / 1e6:,.1f} MB" in printed
    assert server.objects(PREFIX) == before

    assert main(call(folder)) == 0
    assert_forgotten(server, before)
    assert b"p7" not in server.objects(PREFIX)["forgotten.json"]
    changes = [request.path for request in server.requests if request.method in ("PUT", "POST", "DELETE")]
    changes = [path for path in changes if not path.endswith(LOCK)]
    assert [path.rpartition("/")[2] for path in changes[:2]] == [".forgotten.json", "forgotten.json"]

    assert remake(folder, scheduler) == 0
    verdicts = {row["file"]: row["error_type"] for row in rows(server.objects(PREFIX))}
    assert verdicts == {"kept.tiff": None}
    assert verify(["--shards", AT, "--workers", "1"]) == 0


@pytest.mark.long
@pytest.mark.parametrize(("method", "part", "after"), [("PUT", ".journal.json", 0), ("POST", "delete", 2)])
def test_a_call_that_is_killed_is_completed_by_the_same_call(server, made, method, part, after):
    folder, before = made
    fault = server.fail(method, part, "slow", after=after)
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.forget", *call(folder)], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    while not fault.met:
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert read_tombstone(open_storage(AT)).patients
    server.faults.clear()
    assert main(call(folder)) == 0
    assert_forgotten(server, before)


def test_a_run_at_work_is_let_finish_and_one_that_is_gone_for_good_is_passed_by(server, made, capsys):
    folder, before = made
    with open_storage(AT).locked("somebody", take_over=False):
        assert main(call(folder)) == 2
        assert f"another run (process {os.getpid()} on " in capsys.readouterr().err
        assert of_slides(server.objects(PREFIX)) == of_slides(before)
    elsewhere = json.dumps({"token": "old", **ProcessMark.own().as_dict(), "boot": "another machine"})
    server.client.put_object(Bucket=BUCKET, Key=PREFIX + LOCK, Body=elsewhere.encode())
    assert main(call(folder)) == 2
    assert "TAKE_OVER=1" in capsys.readouterr().err
    assert main(call(folder, "--take-over")) == 0
    assert_forgotten(server, before)


def test_places_that_hold_no_shards_are_one_line(server, made, capsys):
    for where, said in ((f"s3://{BUCKET}/none", "holds no catalog/slides"), ("s3://none/x", "there is no such bucket")):
        assert main(["--slide", "x", "--shards", where]) == 2
        assert said in capsys.readouterr().err
