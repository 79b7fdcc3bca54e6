"""The three kinds of object store keep one contract: slides come from there, and all is done to their shards there."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
import pytest
import tifffile
import torch

from pipelines.audit import main as audit
from pipelines.forget import main as forget
from pipelines.interchange import main as interchange
from pipelines.query import main as query
from pipelines.shards import main as make_shards
from pipelines.verify import main as verify
from pretrain.data.index import open_index
from pretrain.data.loader import Loader, LoaderSettings
from pretrain.data.sampler import Sampler, SamplingSettings
from tests.support.mrxs_wsi import write_mrxs
from tests.support.paths import ROOT
from tests.support.stores import Azure
from tests.support.training import losses, run
from tests.support.undisturbed import TIMINGS
from wsi_prep.errors import BadOutput
from wsi_prep.slides.fetch.object_files import _kind_of_files
from wsi_prep.slides.fetch.ranges import open_ranges
from wsi_prep.storage.base import LOCK
from wsi_prep.storage.locking.holder import ProcessMark
from wsi_prep.storage.select import open_storage

PREFIX = "study/out/"
ODD = "Größe 100% +1.tiff"
NAMES = (f"site a/{ODD}", "kept.tiff")
MANIFEST = f"slide,mpp,patient\n{NAMES[0]},0.5,p7\n{NAMES[1]},0.5,p8\n"


def at(store):
    return f"{store.url}/study/out"


@pytest.fixture(scope="module")
def cohort(nompp_slide, tmp_path_factory):
    """A slide of each of two patients, one with an odd name, an empty file, a manifest and a key: the folder."""
    folder = tmp_path_factory.mktemp("cohort")
    for name in NAMES:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(nompp_slide, folder / name)
    (folder / "empty.svs").write_bytes(b"")
    (folder / "m.csv").write_text(MANIFEST)
    (folder / "key").write_bytes(b"a secret that is long enough")
    return folder


def shards(slides, out, cohort, worker, *more):
    """The command, with what does not depend on where slides and shards lie."""
    words = ["--slides", slides, "--out", out, "--manifest", f"{slides}/m.csv", "--mags", "10x 5x"]
    words += ["--patient-key", cohort / "key", *(["--scheduler", worker] if worker else ["--workers", "1"])]
    return make_shards([*map(str, words), *more])


@pytest.fixture(scope="module")
def local(cohort, worker, tmp_path_factory):
    """What a run on a disk leaves, by file."""
    out = tmp_path_factory.mktemp("local") / "out"
    assert shards(cohort, out, cohort, worker) == 3
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def made(store_of_kind, cohort, worker):
    """Every object after a run whose slides and shards lie in the store."""
    store_of_kind.clear()
    store_of_kind.upload(cohort, "cohort/")
    assert shards(f"{store_of_kind.url}/cohort", at(store_of_kind), cohort, worker) == 3
    return store_of_kind.objects()


@pytest.fixture
def there(store_of_kind, made):
    """The store with these objects and no others."""
    store_of_kind.server.faults.clear()
    now = store_of_kind.objects()
    for key in now.keys() - made.keys():
        store_of_kind.delete(key)
    for key, data in made.items():
        if now.get(key) != data:
            store_of_kind.put(key, data)
    store_of_kind.requests.clear()
    return store_of_kind


@pytest.fixture
def copy(made, tmp_path):
    """The same shards in a folder of the same name."""
    for key, data in below(made).items():
        file = tmp_path / "out" / key
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return tmp_path / "out"


def below(objects):
    return {key.removeprefix(PREFIX): data for key, data in objects.items() if key.startswith(PREFIX)}


def rows(objects, table="slides"):
    parts = [data for key, data in objects.items() if key.startswith(f"catalog/{table}/") and "/." not in key]
    return [row for part in parts for row in pq.read_table(io.BytesIO(part)).to_pylist()]


def of_slides(objects):
    return {k: v for k, v in objects.items() if k.startswith(("stores/", "tissue/", "overlays/"))}


def tiles_of(objects):
    """Each tile by its slide's name, with the checksum of its bytes."""
    file_of = {row["slide_id"]: row["file"] for row in rows(objects)}
    kept = ("magnification", "index", "crc32", "nbytes", "x0", "y0")
    return {(file_of[tile["slide_id"]], *(tile[name] for name in kept)) for tile in rows(objects, "tiles")}


def plain_rows(objects):
    """Slides by name, without times and what depends on where a slide lies."""
    here = ("slide_id", "fingerprint", "bytes", "digests")
    return {
        row["file"]: {k: v for k, v in row.items() if k not in here and not k.startswith(TIMINGS)}
        for row in rows(objects)
    }


def test_slides_in_a_store_give_there_the_tiles_that_a_disk_gives(made, local):
    far = below(made)
    assert tiles_of(far) == tiles_of(local)
    assert plain_rows(far) == plain_rows(local)
    assert {row["file"]: row["status"] for row in rows(far)} == {
        **{name.rpartition("/")[2]: "ok" for name in NAMES},
        "empty.svs": "failed",
    }


@pytest.mark.slow
def test_a_slide_of_several_files_is_copied_from_the_store(store, nompp_slide, worker, tmp_path):
    pixels = tifffile.imread(nompp_slide, key=0)[: 6 * 256, : 6 * 256]
    (tmp_path / "slides").mkdir()
    write_mrxs(tmp_path / "slides/Müller 1%.mrxs", pixels, 0.5, 1, 1, 8, 8)
    store.upload(tmp_path / "slides", "cohort/")
    found = []
    for name, slides in (("near", tmp_path / "slides"), ("far", f"{store.url}/cohort")):
        words = ["--slides", slides, "--out", tmp_path / name, "--mags", "10x", "--cache", tmp_path / "cache"]
        assert make_shards([*map(str, words), "--scheduler", worker]) == 0
        files = (path for path in (tmp_path / name).rglob("*.parquet"))
        found.append(tiles_of({str(path.relative_to(tmp_path / name)): path.read_bytes() for path in files}))
    assert found[0] == found[1] != set()
    assert {path.name for path in (tmp_path / "cache").iterdir()} <= {"admission.lock"}


def test_a_second_call_makes_no_slide_again(there, made, cohort, worker):
    assert shards(f"{there.url}/cohort", at(there), cohort, worker) == 3  # slides may have been uploaded again, which
    there.requests.clear()  # Azure's and Google's stores take for a change
    assert shards(f"{there.url}/cohort", at(there), cohort, worker) == 3
    assert not [request for request in there.requests if request.method == "PUT" and "stores" in request.path]
    assert of_slides(there.objects(PREFIX)) == of_slides(below(made))


@pytest.mark.slow
def test_what_is_damaged_is_found_mended_and_made_again(there, made, cohort, worker, capsys):
    assert verify(["--shards", at(there), "--workers", "1"]) == 0
    (kept,) = [row["slide_id"] for row in rows(below(made)) if row["file"] == "kept.tiff"]
    damaged = f"{PREFIX}stores/{kept}.zarr/10x/c.0.0.0.0"
    there.put(damaged, made[damaged][:5000] + b"?" + made[damaged][5001:])
    there.put(f"{PREFIX}tissue/of nobody 1%.geojson", b"{}")
    capsys.readouterr()
    assert verify(["--shards", at(there), "--workers", "1"]) == 3
    said = capsys.readouterr().out
    assert f"{kept}" in said
    assert "of nobody 1%.geojson" in said
    assert verify(["--shards", at(there), "--workers", "1", "--repair", "--yes"]) == 3
    now = there.objects(PREFIX)
    assert not [key for key in of_slides(now) if kept in key or "nobody" in key]
    assert shards(f"{there.url}/cohort", at(there), cohort, worker) == 3
    assert verify(["--shards", at(there), "--workers", "1"]) == 0
    assert of_slides(there.objects(PREFIX)) == of_slides(below(made))


@pytest.mark.slow
def test_every_object_of_a_forgotten_patient_goes(there, made, cohort, worker):
    neighbour = "study/out2/Gr"
    there.put(neighbour, b"another's")
    call = ["--shards", at(there), "--patient-key", str(cohort / "key"), "--patient", "p7", "--yes"]
    assert forget(call) == 0
    now = there.objects(PREFIX)
    (kept,) = [row["slide_id"] for row in rows(below(made)) if row["file"] == "kept.tiff"]
    assert {row["file"] for row in rows(now)} == {"kept.tiff", "empty.svs"}
    assert {row["slide_id"] for row in rows(now, "tiles")} == {kept}
    assert of_slides(now) == {k: v for k, v in of_slides(below(made)).items() if kept in k}
    assert not [key for key, data in now.items() if "Gr" in key or "Größe".encode() in data]
    assert there.get(neighbour) == b"another's"
    assert shards(f"{there.url}/cohort", at(there), cohort, worker) == 3
    assert {row["file"] for row in rows(there.objects(PREFIX))} == {"kept.tiff", "empty.svs"}
    assert verify(["--shards", at(there), "--workers", "1"]) == 0


READERS = {
    "audit": (audit, ["--to", "page.html"]),
    "query": (query, ["--sql", "SELECT * FROM slides JOIN tiles USING (slide_id) ORDER BY ALL", "--to", "rows.csv"]),
    "interchange": (interchange, ["--kind", "webdataset", "--to", "tars"]),
}


@pytest.mark.parametrize("reader", READERS)
def test_what_reads_shards_says_of_the_store_what_it_says_of_the_folder(there, copy, tmp_path, monkeypatch, reader):
    command, words = READERS[reader]
    found = []
    for name, where in (("far", at(there)), ("near", copy)):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert command(["--shards", str(where), *words]) == 0
        files = {str(p.relative_to(tmp_path / name)): p for p in (tmp_path / name).rglob("*") if p.is_file()}
        found.append({key: file.read_bytes().replace(str(where).encode(), b"OUT") for key, file in files.items()})
    assert found[0] == found[1]
    assert found[0]


def test_batches_are_those_of_the_folder(there, copy, tmp_path):
    found = []
    for name, where in (("far", at(there)), ("near", str(copy))):
        draws = Sampler(open_index([where], tmp_path / name), SamplingSettings(batch=4, mix={"10x": 0.5, "5x": 0.5}))
        with Loader(draws, LoaderSettings(threads=2, requests=4)) as loader:
            found.append(torch.stack([batch.pixels.clone() for batch in loader.batches(0, 3)]))
    assert torch.equal(*found)


@pytest.mark.long
def test_training_reads_the_store_as_the_folder(there, copy, tmp_path):
    few = ("sampling.batch=4", "sampling.mix.20x=0", "sampling.mix.10x=0.5", "sampling.mix.5x=0.5", "schedule.steps=2")
    assert run(copy, tmp_path / "near", *few) == 0
    assert run(at(there), tmp_path / "far", *few) == 0
    assert losses(tmp_path / "far") == losses(tmp_path / "near") != []
    assert [request for request in there.requests if there.sent("c.0.0.0.0") in request.path]


def test_a_run_at_work_keeps_others_out_until_it_is_taken_over(there, cohort, worker, capsys):
    before = there.objects(PREFIX)
    with open_storage(at(there)).locked("somebody", take_over=False):
        assert shards(f"{there.url}/cohort", at(there), cohort, worker) == 2
        assert verify(["--shards", at(there), "--workers", "1"]) == 2
        assert forget(["--shards", at(there), "--patient-key", str(cohort / "key"), "--patient", "p7", "--yes"]) == 2
        error = capsys.readouterr().err
        assert error.count(f"process {os.getpid()} on ") == 3
        assert error.count("TAKE_OVER=1") == 3
    assert of_slides(there.objects(PREFIX)) == of_slides(before)
    elsewhere = {"token": "old", **ProcessMark.own().as_dict(), "boot": "another machine"}
    there.put(PREFIX + LOCK, json.dumps(elsewhere).encode())
    assert shards(f"{there.url}/cohort", at(there), cohort, worker) == 2
    assert "TAKE_OVER=1" in capsys.readouterr().err
    assert shards(f"{there.url}/cohort", at(there), cohort, worker, "--take-over") == 3
    assert json.loads(there.get(PREFIX + LOCK))["free"]


def test_of_many_that_take_the_lock_at_once_one_gets_it(store):
    turned_away = threading.Semaphore(0)

    def attempt(token):
        try:
            with open_storage(at(store)).locked(token, take_over=False):
                return all(turned_away.acquire(timeout=60) for _ in range(7))
        except BadOutput:
            turned_away.release()
            return None

    for _ in range(5):  # the first time there is no lock, then one that is free
        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(attempt, "abcdefgh"), key=str) == [None] * 7 + [True]


@pytest.mark.long
def test_a_run_killed_at_work_leaves_nothing_that_the_next_one_does_not_put_right(store, cohort, worker, local):
    store.upload(cohort, "cohort/")
    store.requests.clear()
    words = ["--slides", f"{store.url}/cohort", "--out", at(store), "--manifest", f"{store.url}/cohort/m.csv"]
    words += ["--mags", "10x 5x", "--patient-key", str(cohort / "key"), "--workers", "1"]
    command = [sys.executable, "-m", "pipelines.shards", *words]
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)
    while not any(r.method == "PUT" and store.sent("c.0.0.0.0") in r.path for r in list(store.requests)):
        assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not json.loads(store.get(PREFIX + LOCK)).get("free")
    assert shards(f"{store.url}/cohort", at(store), cohort, worker) == 3
    assert tiles_of(store.objects(PREFIX)) == tiles_of(local)
    assert verify(["--shards", at(store), "--workers", "1"]) == 0


VARIABLES = {
    "s3": [["AWS_ENDPOINT_URL_S3"], ["AWS_ENDPOINT"]],
    "az": [["AZURE_ENDPOINT"], ["AZURITE_BLOB_STORAGE_URL", "AZURE_STORAGE_USE_EMULATOR"], ["AZURE_STORAGE_SAS_KEY"]],
    "gs": [],
}
"""Others than those that every test here sets."""


def test_every_variable_that_is_documented_leads_to_the_store(store, monkeypatch):
    values = {name: store.server.url for kind in VARIABLES.values() for names in kind for name in names}
    values |= {"AZURE_ENDPOINT": f"{store.server.url}/{Azure.account}", "AZURE_STORAGE_USE_EMULATOR": "true"}
    for names in [[], *VARIABLES[store.kind]]:
        with monkeypatch.context() as patch:
            if names == ["AZURE_STORAGE_SAS_KEY"]:
                patch.setenv("AZURE_STORAGE_SAS_KEY", store.signature())
                patch.delenv("AZURE_STORAGE_ACCOUNT_KEY")
            elif names:
                patch.delenv("AWS_ENDPOINT_URL" if store.kind == "s3" else "AZURE_STORAGE_ENDPOINT")
                for name in names:
                    patch.setenv(name, values[name])
            storage = open_storage(at(store))
            storage.write("file", str(names).encode())
            assert storage.read("file") == store.get(f"{PREFIX}file") == str(names).encode()
            _kind_of_files.cache_clear()
            slide = open_ranges(f"{at(store)}/file")
            assert slide.read_ranges([(0, 2)]) == [str(names).encode()[:2]]
            slide.close()
