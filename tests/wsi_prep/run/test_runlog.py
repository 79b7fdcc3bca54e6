"""The log for machines, and where a slide's time goes."""

import json
from datetime import datetime

import pyarrow.parquet as pq
import pytest

from pipelines.shards import main
from tests.support.undisturbed import copies
from wsi_prep.run.stages import STAGES, StageClock

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def logged(tmp_path_factory, nompp_slide):
    """A run of two sound slides and a broken one: (events of its log, slides' rows, the log's text)."""
    folder = tmp_path_factory.mktemp("log")
    slides = copies(nompp_slide, folder / "slides of Jane Doe", "ab")
    (slides / "broken.tiff").write_text("no slide")
    given = ["--slides", slides, "--out", folder / "out", "--assume-mpp", 0.5, "--workers", 2]
    assert main([*map(str, given), "--log", str(folder / "run.jsonl")]) == 3
    text = (folder / "run.jsonl").read_text()
    rows = pq.read_table(folder / "out/catalog/slides").to_pylist()
    return [json.loads(line) for line in text.splitlines()], {row["slide_id"]: row for row in rows}, text


def test_each_slide_begins_and_ends_in_the_log(logged):
    events, rows, _ = logged
    names = [event["event"] for event in events]
    assert (names[0], names[-1]) == ("run_started", "run_ended")
    assert events[0]["slides_to_do"] == 3
    assert events[-1]["slides"] == {"ok": 2, "failed": 1}
    for slide_id, row in rows.items():
        began, ended = [event for event in events if event.get("slide_id") == slide_id]
        assert began["event"] == "slide_started"
        assert began["worker"].startswith("tls://127.0.0.1:")
        assert ended["event"] == ("slide_failed" if row["status"] == "failed" else "slide_finished")
        assert ended["tiles"] == row["tiles_5x"] + row["tiles_10x"] + row["tiles_20x"]
        assert datetime.fromisoformat(ended["time"]).utcoffset().total_seconds() == 0
    (failed,) = [event for event in events if event["event"] == "slide_failed"]
    assert failed["error_type"] == "UnreadableSlide"
    assert len({event["run"] for event in events}) == 1


def test_the_log_names_no_file(logged):
    assert "Jane" not in logged[2]
    assert ".tiff" not in logged[2]


def test_the_stages_of_a_slide_make_up_its_time(logged):
    events, rows, _ = logged
    for event in events:
        if event["event"] == "slide_finished":
            row = rows[event["slide_id"]]
            stages = [row[f"seconds_{stage}"] for stage in STAGES]
            assert all(seconds > 0 for seconds in stages)
            assert sum(stages) <= row["seconds"] + 1e-3
            assert [event[f"seconds_{stage}"] for stage in STAGES] == pytest.approx(stages, abs=1e-4)
    (failed,) = [row for row in rows.values() if row["status"] == "failed"]
    assert failed["seconds_open"] > 0
    assert failed["seconds_tiles"] is None


def test_a_stage_ends_where_the_next_begins():
    clock = StageClock()
    clock.enter("open")
    clock.enter("tissue")
    clock.stop()
    clock.stop()
    assert {name for name, seconds in clock.columns().items() if seconds is not None} == {
        "seconds_open",
        "seconds_tissue",
    }


def test_a_log_that_cannot_be_written_is_refused(tmp_path, nompp_slide, capsys):
    given = ["--slides", str(nompp_slide), "--out", str(tmp_path / "out"), "--log", str(tmp_path / "none/run.jsonl")]
    assert main(given) == 2
    assert "run.jsonl cannot be written (No such file or directory)" in capsys.readouterr().err


def test_a_log_on_a_full_disk_stops_no_run(tmp_path, nompp_slide):
    given = ["--slides", str(nompp_slide), "--out", str(tmp_path / "out"), "--assume-mpp", "0.5", "--workers", "1"]
    assert main([*given, "--log", "/dev/full"]) == 0
