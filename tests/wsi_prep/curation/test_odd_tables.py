"""Tables of somebody else that can be read, and are not what commands expect: a line each, and nothing half done."""

import json
import math
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.audit import main as audit
from pipelines.forget import main as forget
from pipelines.privacy import main as privacy
from pipelines.verify import main as verify
from tests.support.shard_folders import add_row, add_slide
from wsi_prep.format.records import TILE_SCHEMA
from wsi_prep.output.catalog import Catalog
from wsi_prep.output.tombstone import read_tombstone
from wsi_prep.storage.select import open_storage

KEPT, GONE = "slide1-00000001", "slide2-00000002"
PART = "part-00000.parquet"


@pytest.fixture
def out(tmp_path):
    """Two slides in one part."""
    for number in (1, 2):
        add_slide(tmp_path / "out", number, {"20x": 3}, width=4000, height=4000)
    Catalog(tmp_path / "out").merge()
    return tmp_path / "out"


def rewritten(out, table, change):
    file = out / "catalog" / table / PART
    pq.write_table(change(pq.read_table(file)), file)


def column(name, values):
    """The table with this column in place of its own, or beside the others."""

    def change(rows):
        at = rows.schema.get_field_index(name)
        made = values(len(rows))
        return rows.set_column(at, name, made) if at >= 0 else rows.append_column(name, made)

    return change


def no_parquet(out):
    (out / "catalog/tiles" / PART).write_bytes(b"x" * 200)


def no_numbers(out):
    rewritten(out, "tiles", column("offset", lambda n: pa.array([math.nan] * n)))


def no_ids(out):
    rewritten(out, "tiles", lambda rows: rows.drop_columns(["slide_id"]))


@pytest.mark.parametrize("spoil", [no_parquet, no_numbers, no_ids])
def test_a_forget_that_a_bad_part_stops_is_completed(out, capsys, spoil):
    sound = {table: (out / "catalog" / table / PART).read_bytes() for table in ("slides", "tiles")}
    spoil(out)
    call = ["--shards", str(out), "--slide", GONE, "--yes"]
    assert forget(call) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "catalog/tiles" in said
    assert "is damaged" in said
    assert read_tombstone(open_storage(out)).has(GONE)
    assert (out / "catalog/slides" / PART).read_bytes() == sound["slides"]
    (out / "catalog/tiles" / PART).write_bytes(sound["tiles"])
    assert forget(call) == 0
    assert [row["slide_id"] for row in Catalog(out).slides()] == [KEPT]
    assert set(pq.read_table(out / "catalog/tiles" / PART)["slide_id"].to_pylist()) == {KEPT}
    assert [path.name for path in (out / "stores").iterdir()] == [f"{KEPT}.zarr"]


@pytest.mark.slow
def test_a_forget_that_a_bad_part_stops_is_completed_after_a_repair(out, capsys):
    no_parquet(out)
    add_row(out, "slide3-00000003", status="excluded")
    call = ["--shards", str(out), "--slide", GONE, "--yes"]
    assert forget(call) == 2
    assert verify(["--shards", str(out), "--workers", "1", "--repair", "--yes"]) == 3
    assert forget(call) == 0
    assert not list((out / "stores").iterdir())
    assert [row["slide_id"] for row in Catalog(out).slides()] == ["slide3-00000003"]
    assert "Traceback" not in capsys.readouterr().err


ODD = {
    "a time that is none": ("slides", column("more", lambda n: pa.array([2**62] * n, pa.time64("ns"))), "'more'"),
    "bytes": ("slides", column("more", lambda n: pa.array([b"\xff\xfe"] * n)), "'more'"),
    "slides without ids": ("slides", lambda rows: rows.drop_columns(["slide_id"]), "no column slide_id"),
    "tiles without ids": ("tiles", lambda rows: rows.drop_columns(["slide_id"]), "no column slide_id"),
    "tiles without shards": ("tiles", lambda rows: rows.drop_columns(["shard"]), "no column shard"),
    "two of a name": ("slides", lambda rows: rows.append_column("file", rows["file"]), "two columns of one name"),
    "two ids": ("slides", lambda rows: rows.append_column("slide_id", rows["file"]), "two columns of one name"),
    "offsets that are none": ("tiles", column("offset", lambda n: pa.array([math.nan] * n)), "offset is double"),
    "numbers for ids": ("tiles", column("slide_id", lambda n: pa.array([1] * n)), "slide_id is int64"),
}


@pytest.mark.parametrize(("table", "change", "said"), ODD.values(), ids=ODD)
def test_privacy_tells_what_it_can_and_names_what_is_odd(out, capsys, table, change, said):
    rewritten(out, table, change)
    assert privacy(["--shards", str(out)]) == 3
    shown = capsys.readouterr()
    assert not shown.err
    assert f"catalog/{table}/{PART}" in shown.out
    assert said in shown.out
    assert "for a person to decide" in shown.out


def test_privacy_tells_dates_in_columns_of_others_as_texts(out, tmp_path):
    rewritten(out, "slides", column("day", lambda n: pa.array([0] * n, pa.date32())))
    assert privacy(["--shards", str(out), "--to", str(tmp_path / "t.csv")]) == 3
    assert f"{out},slides.day,1970-01-01,2" in (tmp_path / "t.csv").read_text()


def test_a_tile_of_no_scale_is_on_the_page_without_one(out, tmp_path, capsys):
    change = {"mpp": math.nan, "span0": math.nan, "focus": math.inf}
    for name, value in change.items():
        kind = TILE_SCHEMA.field(name).type
        rewritten(out, "tiles", column(name, lambda n, value=value, kind=kind: pa.array([value] * n, kind)))
    assert audit(["--shards", str(out), "--to", str(tmp_path / "a.html")]) == 3  # no overlays
    assert "Traceback" not in capsys.readouterr().err
    text = (tmp_path / "a.html").read_text()
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1])
    assert {tile["mpp"] for tile in data["tiles"]} == {None}


def test_a_status_steers_no_terminal(out, tmp_path, capsys):
    rewritten(out, "slides", column("status", lambda n: pa.array(["\x1b[31mok", "ok"])))
    assert audit(["--shards", str(out), "--to", str(tmp_path / "a.html")]) == 3
    said = "".join(capsys.readouterr())
    assert "\\x1b[31mok" in said
    assert "\x1b" not in said
