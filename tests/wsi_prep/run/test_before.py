"""CHECK=1 tells before a run what the run will meet, and leaves nothing behind."""

import json
import os
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.shards import main
from tests.support.fuse_mount import harmful_disk
from tests.support.shard_folders import add_slide
from wsi_prep.errors import UsageError
from wsi_prep.format.records import SLIDE_SCHEMA, tile_counts
from wsi_prep.output.tombstone import Tombstone, write_tombstone
from wsi_prep.run.before import TILE_BYTES, look_before
from wsi_prep.run.call import terms_of
from wsi_prep.run.request import RunRequest
from wsi_prep.slides.find.sources import find_slides
from wsi_prep.storage.select import open_storage

pytestmark = pytest.mark.slow


@pytest.fixture
def slides(he_slide, nompp_slide, tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    shutil.copy(he_slide, folder / "good.svs")
    shutil.copy(nompp_slide, folder / "scaleless.tiff")
    (folder / "cut.svs").write_bytes(he_slide.read_bytes()[:200_000])
    return folder


def test_it_tells_what_the_run_then_makes_and_how_slides_fail(slides, tmp_path, capsys):
    out = tmp_path / "new/out"
    words = ["--slides", str(slides), "--out", str(out), "--workers", "1"]
    assert main([*words, "--check"]) == 0
    said = capsys.readouterr()
    assert "keep the run from ending; of 3 slides opened, 2 will have no tiles; nothing was made" in said.out
    assert not (tmp_path / "new").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["slides"]
    assert main(words) == 3
    rows = {row["file"]: row for row in pq.read_table(out / "catalog/slides").to_pylist()}
    tiles = sum(tile_counts(rows["good.svs"]).values())
    assert tiles > 20
    assert f"opens     good.svs  aperio, 0.25 um/px, {tiles} tiles to make" in said.out
    for name in ("scaleless.tiff", "cut.svs"):
        assert f"{name} makes no tiles: {rows[name]['error']}" in " ".join((said.out + said.err).split())
    before = look_before(RunRequest(str(slides), str(out)))  # cut.svs is tried again
    assert (before.found, before.to_do, [each.name for each in before.tried if not each.error]) == (3, 1, [])
    assert before.read_bytes == (slides / "cut.svs").stat().st_size
    assert before.faults == ["1 slide was opened, and none of them makes tiles"]


def test_room_is_that_of_the_planned_tiles_as_large_as_those_of_before(slides, tmp_path):
    fresh = look_before(RunRequest(str(slides), str(tmp_path / "fresh")))
    (good,) = (each for each in fresh.tried if not each.error)
    assert fresh.needed == good.tiles * 3 * TILE_BYTES
    assert fresh.free == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.05)
    assert fresh.faults == []
    out = tmp_path / "out"
    add_slide(out, 1, {"20x": 2})
    for file in (out / "catalog/slides").glob("*.parquet"):
        rows = [row | {"bytes": 2 * 10**15} for row in pq.read_table(file).to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, SLIDE_SCHEMA), file)
    request = RunRequest(str(slides), str(out))
    (out / "run.json").write_text(json.dumps({"settings": terms_of(request).settings}))
    full = look_before(request)
    assert full.needed == good.tiles * 3 * 10**15
    assert "the shards need about" in full.faults[0]


def test_a_place_that_cannot_be_written_to_and_a_slide_that_hangs(slides, tmp_path):
    (tmp_path / "file").write_text("")
    before = look_before(RunRequest(str(slides), str(tmp_path / "file/out")), seconds=1e-4)
    assert before.faults[0].startswith(f"{tmp_path}/file cannot be written to: ")
    assert [each.error for each in before.tried] == ["it is not open after 0 s"]


def test_other_settings_than_the_output_has_are_refused_as_by_the_run(slides, tmp_path):
    add_slide(tmp_path / "out", 1, {"20x": 2})
    request = RunRequest(str(slides), str(tmp_path / "out"))
    (tmp_path / "out/run.json").write_text(json.dumps({"settings": terms_of(request).settings | {"reader": "tiff"}}))
    with pytest.raises(UsageError, match="reader was tiff, now auto"):
        look_before(request)


def test_a_forgotten_slide_is_neither_opened_nor_named(slides, tmp_path):
    out = tmp_path / "out"
    request = RunRequest(str(slides), str(out))
    add_slide(out, 1, {"20x": 2})
    (out / "run.json").write_text(json.dumps({"settings": terms_of(request).settings}))
    gone = next(source for source in find_slides(str(slides)) if source.name == "good.svs")
    write_tombstone(open_storage(out), Tombstone(frozenset(), frozenset()).with_more([], [gone.slide_id]))
    before = look_before(request)
    assert (before.found, before.to_do) == (2, 2)
    assert "good.svs" not in repr(before)
    assert any(note.startswith("1 slide in SLIDES is forgotten") for note in before.notes)


def test_an_object_store_is_written_to_and_left_as_it_was(slides, object_server):
    assert look_before(RunRequest(str(slides), "s3://slides/out")).faults == []
    assert object_server.objects() == {}


def test_of_very_many_slides_on_a_slow_disk_few_are_asked_after(tmp_path):
    with harmful_disk(tmp_path / "far", remembered=3) as disk:
        for number in range(10):
            folder = disk.behind / "slides" / str(number)
            folder.mkdir(parents=True)
            first = folder / "a.svs"
            first.write_bytes(b"no slide")
            for other in range(499):
                os.link(first, folder / f"{other}.svs")
        calls = ("lookup", "getattr", "open", "read")
        disk.does(*({"call": call} for call in calls))
        before = look_before(RunRequest(str(disk.path / "slides"), str(tmp_path / "out")))
        asked = sum(disk.does())
    assert (before.found, before.read_bytes) == (5000, 40_000)
    assert 200 <= asked < 2500
