"""A short soak; and whether the judge of soaks sees what it is there to see."""

import json
import os
import shutil
from unittest.mock import patch

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pipelines.shards import main as shards
from tests.soak.__main__ import main
from tests.soak.judge import judge
from tests.soak.memory import Watched
from tests.soak.plan import FAULTS, LOCAL, WEATHERS, moments
from tests.soak.slides import BROKEN, MAGS, Slide
from tests.soak.worlds import World

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

KINDS = ("svs", "deflate", *BROKEN)


@pytest.fixture(scope="module")
def made(tmp_path_factory, shared_dask):
    """Slides of most kinds, and the output of a call that nothing disturbed."""
    world = World(LOCAL, tmp_path_factory.mktemp("soak") / "world", [Slide.of(n, k, 3) for n, k in enumerate(KINDS)])
    call = ["--slides", world.slides, "--out", world.out, "--manifest", str(world.manifest), "--mags", MAGS]
    with patch.dict("os.environ", WSI_PREP_PATIENT_KEY="a secret of this test"):
        assert shards([*call, "--workers", "1"]) == 3
    return world


@pytest.fixture
def out(made, tmp_path):
    return shutil.copytree(made.out, tmp_path / "out")


def found(world, out):
    return judge(world, out, poisoned=False)


def change(out, table, work):
    """The rows of a table as `work` gives them back."""
    (path,) = (out / "catalog" / table).glob("part-*.parquet")
    rows = pq.read_table(path)
    pq.write_table(pa.Table.from_pylist(work(rows.to_pylist()), rows.schema), path)


def row_of(out, kind):
    (row,) = [row for row in pq.read_table(out / "catalog/slides").to_pylist() if f"-{kind}." in row["file"]]
    return row


def said_of(kind, **columns):
    return lambda rows: [{**row, **columns} if f"-{kind}." in row["file"] else row for row in rows]


def test_a_sound_output_has_no_fault(made, out):
    assert found(made, out) == []


PLANTED = {
    "a tile is lost": ("tiles", lambda rows: rows[1:], r"lost: .* the tile .* is missing"),
    "a tile is doubled": ("tiles", lambda rows: [*rows, rows[0]], r"doubled: .* the tile .* is there twice"),
    "two tiles are one": (
        "tiles",
        lambda rows: [{**rows[0], "index": rows[1]["index"]}, *rows[1:]],
        r"doubled: .* two tiles are",
    ),
    "a tile is put elsewhere": ("tiles", lambda rows: [{**rows[0], "row": 9}, *rows[1:]], r"unknown: .* is none"),
    "tiles of nobody": (
        "tiles",
        lambda rows: [*rows, {**rows[0], "slide_id": "x"}],
        "orphan: tiles of x without a row",
    ),
    "a slide is lost": ("slides", lambda rows: rows[1:], r"lost: 000-svs\.svs has no row"),
    "a slide is doubled": ("slides", lambda rows: [*rows, rows[0]], r"doubled: 2 rows of 000-svs\.svs"),
    "a sound slide failed": (
        "slides",
        said_of("svs", status="failed", error_type="DamagedSlide", error="no"),
        r"untrue: 000-svs\.svs: it says 'failed DamagedSlide no', true is ok",
    ),
    "a broken slide is ok": ("slides", said_of("cut", status="ok"), r"silent: .*-cut\.tiff: it says 'ok"),
    "another reason": ("slides", said_of("text", error_type="WorkerDied"), r"untrue: .*-text\.svs: it says"),
    "no reason": ("slides", said_of("text", error=None), r"silent: .*-text\.svs: failed without a reason"),
    "another tissue": ("slides", said_of("svs", tissue="liver"), r"described: .* tissue is 'liver'"),
    "another patient": ("slides", said_of("svs", patient_key="x"), r"described: slides of patient 0 have the keys"),
}


@pytest.mark.parametrize("what", PLANTED)
def test_what_is_planted_in_the_catalog_is_seen(made, out, what):
    table, work, said = PLANTED[what]
    change(out, table, work)
    assert any(pc.match_substring_regex(pa.array([fault]), said)[0].as_py() for fault in found(made, out)), found(
        made, out
    )


def test_tiles_of_an_older_version_are_seen(made, out):
    made.versions["000-svs.svs"] += 1
    try:
        (fault,) = found(made, out)
    finally:
        made.versions["000-svs.svs"] -= 1
    assert fault.startswith("wrong: 000-svs.svs: 10 of 10 tiles are not version 2")
    assert fault.endswith("they are those of version 1")


def test_one_bit_of_a_tile_is_seen(made, out):
    tile = next(iter(pq.read_table(out / "catalog/tiles").to_pylist()))
    with (out / tile["shard"]).open("r+b") as file:
        file.seek(tile["offset"] + tile["nbytes"] // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    (fault,) = found(made, out)
    assert "1 of 10 tiles are not version 1" in fault
    assert "has another checksum" in fault


@pytest.mark.parametrize(
    "name", ["stores/x.zarr/zarr.json", "catalog/slides/x.parquet", ".staging/x/overlay.jpg", "tmp"]
)
def test_a_file_of_nobody_is_seen(made, out, name):
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".parquet"):  # with the rows of a part, which are then there twice
        (part,) = (out / "catalog/slides").glob("part-*.parquet")
        shutil.copy(part, out / name)
    else:
        (out / name).write_text("x")
    assert f"left over: {name}" in found(made, out)


def test_a_file_that_is_gone_is_seen(made, out):
    row = row_of(out, "svs")
    (out / "overlays" / f"{row['slide_id']}.jpg").unlink()
    assert found(made, out) == [f"files: {row['slide_id']} has {row['files'] - 1} files, its row says {row['files']}"]


def test_memory_that_grows_is_told_from_memory_that_does_not():
    at = [float(second) for second in range(0, 3600, 10)]
    wavy = [200.0 + second % 70 for second in range(0, 3600, 10)]
    assert not Watched("worker", at, wavy).grows()
    assert Watched("worker", at, [200 + second / 36 for second in range(0, 3600, 10)]).grows()
    assert Watched("worker", at, [200 + second / 36 for second in range(0, 3600, 10)]).told()["mb_an_hour"] == 100


def test_the_plan_is_that_of_its_seed_and_has_all_of_it():
    assert moments(5, 1, 300) == moments(5, 1, 300) != moments(6, 1, 300)
    made = [moment for number in range(5) for moment in moments(0, number, 300)]
    deeds = {"call", "end call", "weather", "replace", "sabotage"}
    deeds |= {"kill worker", "kill machine", "stop worker", "leave", "join for a time"}
    assert {moment.deed for moment in made} == deeds
    assert {name for weather in WEATHERS.values() for name in weather} == set(FAULTS)
    assert {int(moment.number) for moment in made if moment.deed == "end call"} == {0, 2, 9, 15}


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_three_minutes_of_trouble_end_right(tmp_path, capfd):
    out = tmp_path / "soak"
    with patch.dict(os.environ):
        assert main(["--hours", "0.05", "--round-seconds", "60", "--slides", "40", "24", "--out", str(out)]) == 0
    told = json.loads((out / "report.json").read_text())
    assert told["faults"] == []
    assert {ended["world"] for ended in told["judged"]} == {"local", "far"}
    assert told["done"]["calls"] > len(told["judged"])
    assert "0 faults" in capfd.readouterr().out
    assert not (out / "local").exists()
