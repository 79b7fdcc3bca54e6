"""The types of rows in the code are those of the tables' columns, and of the rows that a slide's work gives."""

from typing import get_args, get_type_hints

import pyarrow as pa
import pytest

from tests.support.real_tiles import prepared
from wsi_prep.format.records import SLIDE_SCHEMA, TILE_SCHEMA, SlideRow, TileRow, tile_counts, told
from wsi_prep.run.task import PrepareSettings
from wsi_prep.tiles.plan import PlanSettings

KNOWN_OF_EVERY_SLIDE = {"slide_id", "status"}


def python_type(column):
    if pa.types.is_string(column.type):
        return str
    if pa.types.is_floating(column.type):
        return float
    assert pa.types.is_integer(column.type), column
    return int


def test_a_slides_row_has_the_columns_of_its_table():
    types = {c.name: python_type(c) if c.name in KNOWN_OF_EVERY_SLIDE else python_type(c) | None for c in SLIDE_SCHEMA}
    assert get_type_hints(SlideRow) == types
    assert list(SlideRow.__annotations__) == SLIDE_SCHEMA.names


def test_a_tiles_row_has_the_columns_of_its_table():
    assert get_type_hints(TileRow) == {c.name: python_type(c) for c in TILE_SCHEMA}
    assert list(TileRow.__annotations__) == TILE_SCHEMA.names


@pytest.mark.parametrize(("assume_mpp", "status"), [(0.5, "ok"), (None, "excluded")])
@pytest.mark.slow
def test_rows_of_a_slides_work_are_of_these_types(nompp_slide, tmp_path, assume_mpp, status):
    row, tiles = prepared(nompp_slide, tmp_path, PrepareSettings(assume_mpp=assume_mpp))
    assert row["status"] == status
    assert list(row) == SLIDE_SCHEMA.names
    assert row["source_bytes"] == nompp_slide.stat().st_size
    for kind, rows in ((SlideRow, [row]), (TileRow, tiles)):
        for name, hint in get_type_hints(kind).items():
            assert {type(each[name]) for each in rows} <= set(get_args(hint) or (hint,)), name
    made = {name: sum(tile["magnification"] == name for tile in tiles) for name in ("40x", "20x", "10x", "5x")}
    assert tile_counts(row) == made


def test_what_a_row_does_not_count_is_no_tile():
    assert tile_counts({"slide_id": "a", "tiles_20x": 3, "tiles_5x": None}) == {"40x": 0, "20x": 3, "10x": 0, "5x": 0}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("40x", "10x", "5x"), "40x cannot be made: the slide's finest is 20x"),
        (("20x", "5x"), None),
        (("40x", "20x", "10x", "5x"), None),  # the default, which means all that the slide has
    ],
)
def test_a_magnification_that_was_asked_for_and_is_missing_is_told(nompp_slide, tmp_path, asked, said):
    row, _ = prepared(nompp_slide, tmp_path, PrepareSettings(plan=PlanSettings(asked), assume_mpp=0.5))
    assert row["status"] == "ok"
    assert {f"tiles_{name}": row[f"tiles_{name}"] > 0 for name in asked} == {
        f"tiles_{name}": name != "40x" for name in asked
    }
    about = [text for text in told(row["warning"]) if "made" in text]
    assert about == ([said] if said else [])
