"""With PRIVATE=1, neither the order of anything in the output, nor a time, tells which id has which name."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile

from pipelines.shards import main
from wsi_prep.slides.find.sources import find_slides

pytestmark = pytest.mark.usefixtures("shared_dask")

KEY = b"a secret that is long enough"
SLIDES = 7


@pytest.fixture(scope="module")
def private_run(tmp_path_factory):
    """A private output of small slides, its log, and ids in the order of names; made by two calls."""
    base = tmp_path_factory.mktemp("order")
    (base / "slides").mkdir()
    (base / "key").write_bytes(KEY)
    rng = np.random.default_rng(0)
    for number in range(SLIDES):
        pixels = np.full((420, 800, 3), 244, np.uint8)
        pixels[10:400, 10:390] = rng.integers((150, 60, 110), (220, 130, 180), (390, 380, 3))
        scale = {"resolution": (5_000, 5_000), "resolutionunit": "CENTIMETER"}
        name = base / f"slides/S19-{number:05d}.tiff"
        tifffile.imwrite(name, pixels, tile=(256, 256), photometric="rgb", metadata=None, **scale)
    (base / "slides/S19-00003.tiff").write_bytes(b"no slide")
    call = ["--slides", str(base / "slides"), "--out", str(base / "out"), "--private", "--id-key", str(base / "key")]
    assert main([*call, "--workers", "1", "--log", str(base / "log"), "--names", str(base / "names.csv")]) == 3
    ids = [source.slide_id for source in find_slides(str(base / "slides"), id_key=KEY)]
    return base, ids


def test_slides_are_done_and_logged_in_the_order_of_ids(private_run):
    base, ids = private_run
    assert ids != sorted(ids)
    events = [json.loads(line) for line in (base / "log").read_text().splitlines()]
    for kinds in (("slide_started",), ("slide_finished", "slide_failed")):
        assert [event["slide_id"] for event in events if event["event"] in kinds] == sorted(ids)


def test_rows_stand_in_the_order_of_ids(private_run):
    base, _ = private_run
    for table in ("slides", "tiles"):
        rows = [i for part in sorted((base / "out/catalog" / table).glob("*.parquet")) for i in _ids(part)]
        assert rows == sorted(rows)
        assert len(set(rows)) == (SLIDES if table == "slides" else SLIDES - 1)


def _ids(part):
    return pq.read_table(part, columns=["slide_id"])["slide_id"].to_pylist()


def test_every_file_and_folder_has_the_time_at_which_the_run_began(private_run):
    base, _ = private_run
    began = {path.stat().st_mtime for path in [base / "out", *(base / "out").rglob("*")]}
    assert len(began) == 1
    events = [json.loads(line)["time"] for line in (base / "log").read_text().splitlines()]
    assert np.datetime64(int(began.pop()), "s") <= np.datetime64(events[0].removesuffix("+00:00"))


def test_the_names_file_leads_from_ids_to_names_all_the_same(private_run):
    base, ids = private_run
    with (base / "names.csv").open(newline="") as file:
        found = {row["slide_id"]: Path(row["path"]).name for row in csv.DictReader(file)}
    assert [found[slide_id] for slide_id in ids] == [f"S19-{number:05d}.tiff" for number in range(SLIDES)]
