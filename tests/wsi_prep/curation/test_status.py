"""How far an output is, as its files tell: while a run works, after it was stopped, and at its end."""

import contextlib
import json
import time
from datetime import datetime

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.shards import main as make_shards
from pipelines.status import main
from tests.support.shard_folders import add_row, add_slide
from wsi_prep.compute.time_limit import HUNG, time_limit
from wsi_prep.curation.status import read_status
from wsi_prep.output.catalog import Catalog
from wsi_prep.output.folder import WORKING, read_run, say_working, write_run
from wsi_prep.storage.select import open_storage


@pytest.fixture
def out(tmp_path):
    """Two slides that were there before."""
    for number in (1, 2):
        add_slide(tmp_path / "out", number, {"20x": 3})
    (tmp_path / "out/.staging").mkdir()
    return tmp_path / "out"


@contextlib.contextmanager
def at_work(out, slides):
    """A run that holds the output and has so many slides to do."""
    storage = open_storage(str(out))
    (out / ".lock").touch()
    with storage.locked("token", take_over=False):
        say_working(Catalog(storage), slides, times=True)
        yield storage


def told(capsys, out, *words):
    assert main(["--shards", str(out), *words]) == 0
    return capsys.readouterr().out


def test_a_run_at_work_is_told_with_what_it_does_now(out, capsys):
    staging = out / ".staging"
    with at_work(out, slides=10), time_limit(staging / f"slow-one-abcdef01{HUNG}", 1000):
        (staging / "slow-one-0123abcd/store.zarr").mkdir(parents=True)
        (staging / f"dead-one-abcdef01{HUNG}").touch()  # its worker was killed: nobody holds it locked
        add_slide(out, 3, {"20x": 3}, bytes=3_000_000)
        add_row(out, "broken-1", status="failed", error_type="DamagedSlide", error="the file is truncated")
        add_row(out, "broken-2", status="failed", error_type="DamagedSlide", error="the file is truncated")
        add_row(out, "excluded", status="excluded")
        since = datetime.fromisoformat(read_run(open_storage(str(out)))[WORKING]["since"] + "+00:00").timestamp()
        status = read_status(str(out), now=since + 360)
        said = told(capsys, out)
    assert status.at_work
    assert status.statuses == {"ok": 3, "failed": 2, "excluded": 1}
    assert (status.to_do, status.left) == (10, 6)  # 4 of the rows are new
    assert status.slides_per_hour == pytest.approx(40)
    assert status.seconds_left == pytest.approx(6 * 90)
    assert [(each.slide_id, each.stage) for each in status.running] == [("slow-one", "tiles")]
    assert status.running[0].seconds == pytest.approx(360, abs=5)
    (failure,) = status.failures
    assert (failure.error_type, failure.slides, failure.slide_id) == ("DamagedSlide", 2, "broken-1")
    assert status.bytes_made == 3_000_000
    assert status.bytes_to_come == pytest.approx(3_000_000)  # half a megabyte for each slide of 6
    assert "a run is at work" in said
    assert "6 of 10 slides left" in said
    assert "in tiles: slow-one" in said
    assert "2 DamagedSlide, as broken-1: the file is truncated" in said


def test_a_run_that_was_stopped_is_told_from_one_that_has_ended(out, capsys):
    with at_work(out, slides=5):
        pass
    status = read_status(str(out))
    assert (status.at_work, status.to_do, status.left, status.slides_per_hour) == (False, 5, 5, None)
    assert "the last run was stopped; repeat its command to continue" in told(capsys, out)


@pytest.mark.usefixtures("shared_dask")
def test_the_end_of_a_run_leaves_nothing_of_it(nompp_slide, tmp_path, capsys):
    call = ["--slides", str(nompp_slide), "--out", str(tmp_path / "out"), "--assume-mpp", "0.5", "--workers", "1"]
    assert make_shards(call) == 0
    assert WORKING not in json.loads((tmp_path / "out/run.json").read_text())
    capsys.readouterr()
    found = json.loads(told(capsys, tmp_path / "out", "--json"))
    assert (found["at_work"], found["statuses"], found["to_do"], found["running"]) == (False, {"ok": 1}, None, None)
    assert found["slowest"][0]["seconds"] > 0
    assert found["bytes_free"] > 0


@pytest.mark.parametrize(
    "working", [3, {}, {"slides": "1", "known": 2}, {"slides": 1, "known": True}, {"slides": 1, "known": 1, "since": 7}]
)
def test_what_run_json_says_of_a_call_may_be_anything(out, working):
    storage = open_storage(str(out))
    write_run(storage, {**read_run(storage), WORKING: working})
    began = time.time()
    assert read_status(str(out), now=began).slides_per_hour is None


def test_a_lock_that_cannot_be_opened_is_no_run_at_work(out, capsys):
    with at_work(out, slides=1):
        pass
    (out / ".lock").unlink()
    (out / ".lock").mkdir()
    assert main(["--shards", str(out)]) == 2
    said = capsys.readouterr().err
    assert ".lock" in said
    assert "at work" not in said


def test_what_is_no_output_is_refused_in_a_line(tmp_path, capsys):
    assert main(["--shards", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "no output of make shards" in said
    assert said.count("\n") == 1


def test_prometheus_reads_the_same_from_a_file(out, tmp_path):
    add_row(out, "slide9-00000009", status="failed", error_type="DamagedSlide", error="cut off")
    write_run(open_storage(str(out)), {"format": 3})
    with at_work(out, 5):
        assert main(["--shards", str(out), "--metrics", str(tmp_path / "mixmag.prom")]) == 0
        status = read_status(str(out))
    families = text_string_to_metric_families((tmp_path / "mixmag.prom").read_text())
    found = {(each.name, *sorted(each.labels.values())): each.value for one in families for each in one.samples}
    where = str(out)
    assert found["mixmag_slides", *sorted([where, "ok"])] == 2
    assert found["mixmag_failed", *sorted([where, "DamagedSlide"])] == 1
    assert found["mixmag_at_work", where] == 1
    assert found["mixmag_to_do", where] == status.to_do == 5
    assert found["mixmag_left", where] == status.left
    assert found["mixmag_bytes_made", where] == status.bytes_made
    assert ("mixmag_seconds_left", where) not in found or status.seconds_left is not None
    assert main(["--shards", str(out), "--metrics", str(out / "catalog/m.prom")]) == 2


def test_a_slide_counts_once_while_a_merge_has_it_in_two_files(out):
    write_run(open_storage(str(out)), {"settings": {}})
    before = read_status(str(out))
    file = next((out / "catalog/slides").glob("*.parquet"))
    kept = file.read_bytes()
    Catalog(open_storage(str(out))).merge()
    file.write_bytes(kept)
    after = read_status(str(out))
    assert (after.statuses, after.tiles, after.slowest) == (before.statuses, before.tiles, before.slowest)
    assert (after.statuses, after.tiles["20x"]) == ({"ok": 2}, 6)
