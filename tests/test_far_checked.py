"""What is in an object store is verified, repaired and forgotten as in a folder, over HTTP."""

import json
import shutil

import pytest
from object_server import BUCKET
from test_far_output import catalog, pixels

from pipelines.forget import main as forget
from pipelines.shards import main as make_shards
from pipelines.verify import main as verify
from wsi_prep.errors import BadOutput
from wsi_prep.place import LOCK, open_place
from wsi_prep.process import ProcessMark

AT = f"s3://{BUCKET}/study/out"
PREFIX = "study/out/"
ONE = ("--workers", "1")


@pytest.fixture(scope="module")
def made(tmp_path_factory, nompp_slide):
    """Three slides of two patients, and their shards in a folder: (slides, out, key)."""
    folder = tmp_path_factory.mktemp("far")
    (folder / "slides").mkdir()
    for name in "abc":
        shutil.copy(nompp_slide, folder / f"slides/{name}.tiff")
    (folder / "slides/m.csv").write_text("slide,mpp,patient\na.tiff,0.5,p7\nb.tiff,0.5,p7\nc.tiff,0.5,p8\n")
    (folder / "key").write_text("a secret that is long enough")
    assert shards(folder, folder / "out") == 0
    return folder


def shards(folder, out):
    call = ("--slides", folder / "slides", "--out", out, "--manifest", folder / "slides/m.csv", "--mags", "10x 5x")
    return make_shards([str(word) for word in (*call, "--patient-key", folder / "key", *ONE)])


@pytest.fixture
def server(object_server, made):
    """The shards in the store."""
    object_server.clear()
    object_server.upload(made / "out", PREFIX)
    object_server.client.delete_object(Bucket=BUCKET, Key=f"{PREFIX}{LOCK}")
    return object_server


def put(server, name, data):
    server.client.put_object(Bucket=BUCKET, Key=PREFIX + name, Body=data)


def test_every_damage_is_found_and_repaired(server, made, capsys):
    whole = server.objects(PREFIX)
    assert verify(["--shards", AT, *ONE]) == 0
    assert f"{AT}: 3 slides" in capsys.readouterr().out
    assert server.objects(PREFIX) == whole

    shard, *_ = sorted(name for name in whole if "/10x/c." in name)
    put(server, shard, whole[shard][:5000] + bytes([whole[shard][5000] ^ 1]) + whole[shard][5001:])
    *_, cut = sorted(name for name in whole if "/5x/c." in name)
    put(server, cut, whole[cut][:-100])
    overlay = sorted(name for name in whole if name.startswith("overlays/"))[1]
    server.client.delete_object(Bucket=BUCKET, Key=PREFIX + overlay)
    put(server, "stores/nobody.zarr/zarr.json", b"{}")
    assert verify(["--shards", AT, *ONE]) == 3
    printed = capsys.readouterr().out
    for said in (
        "has another checksum than its row",
        "CRC-32C is wrong",
        "overlay",
        "stores/nobody.zarr: no row is of it",
    ):
        assert said in printed

    assert verify(["--shards", AT, *ONE, "--repair"]) == 3
    assert "repaired: 3 slides are undone and 1 strays removed" in capsys.readouterr().out
    left = server.objects(PREFIX)
    assert not pixels(left)
    assert catalog(left)[0] == []
    assert shards(made, AT) == 0
    again = server.objects(PREFIX)
    assert catalog(again) == catalog(whole)
    assert pixels(again) == pixels(whole)


def test_a_store_that_does_not_answer_is_no_fault_of_its_slides(server, capsys):
    whole = server.objects(PREFIX)
    server.fail("GET", "/10x/c.", 403)
    assert verify(["--shards", AT, *ONE, "--repair"]) == 2
    assert "cannot be used" in capsys.readouterr().err
    server.faults.clear()
    after = server.objects(PREFIX)
    after.pop(LOCK)
    assert after == whole


def test_nobody_looks_while_a_run_is_at_work(server, capsys):
    put(server, LOCK, json.dumps({"token": "x", **ProcessMark.own().as_dict()}).encode())
    assert verify(["--shards", AT, *ONE]) == 2
    assert "is writing to s3://" in capsys.readouterr().err
    server.client.delete_object(Bucket=BUCKET, Key=PREFIX + LOCK)
    place = open_place(AT)
    with pytest.raises(BadOutput, match="meanwhile"), place.watched(), open_place(AT).locked("y", take_over=False):
        pass


@pytest.mark.parametrize("step", [None, 0, 2, 5])
def test_a_patient_is_forgotten_even_in_two_calls(server, made, capsys, step):
    whole = server.objects(PREFIX)
    ids = {row["slide_id"]: row["file"] for row in catalog(whole)[0]}
    call = ["--shards", AT, "--patient", "p7", "--patient-key", str(made / "key")]
    assert forget([*call, "--dry"]) == 0
    printed = capsys.readouterr().out
    gone = {name for name in pixels(whole) if any(i in name for i, file in ids.items() if file != "c.tiff")}
    assert f"{len(gone):,} files, {sum(len(whole[name]) for name in gone) / 1e6:,.1f} MB" in printed
    assert server.objects(PREFIX) == whole

    if step is not None:  # refused from there on, as where a connection is lost for good
        server.fail("DELETE|POST", "", 403, after=step)
        assert forget(call) == 2
        server.faults.clear()
    assert forget(call) == 0
    after = server.objects(PREFIX)
    assert pixels(after) == {name: data for name, data in pixels(whole).items() if name not in gone}
    assert [row["file"] for row in catalog(after)[0]] == ["c.tiff"]
    assert {ids[tile["slide_id"]] for tile in catalog(after)[1]} == {"c.tiff"}
    assert verify(["--shards", AT, *ONE]) == 0
