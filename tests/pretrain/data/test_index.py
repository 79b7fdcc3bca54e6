"""The trainer's index over shard folders: what it holds, what it refuses, what it makes anew."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretrain.data.index import open_index
from pretrain.errors import BadFilter, BadShards
from tests.support.shard_folders import add_slide
from wsi_prep.format.jpeg import decode_tile
from wsi_prep.output.catalog import Catalog


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    add_slide(folder, 1, {"20x": 5, "10x": 2}, stain="HE", patient_key="p1")
    add_slide(folder, 2, {"20x": 3}, stain="IHC", patient_key="p1")
    add_slide(folder, 3, {"40x": 4}, stain="HE", institution="A")
    return folder


def pixels(index, tile: int) -> int:
    at = index.address(tile)
    return int(decode_tile(at.source.read(at.path, at.offset, at.nbytes))[0, 0, 0])


def test_every_tile_of_the_catalog_is_there_once(out, tmp_path):
    index = open_index([str(out)], tmp_path / "index")
    rows = np.concatenate([np.arange(c["start"], c["start"] + c["count"]) for c in index.cells]).astype(int)
    found = {(a.path, a.index, a.offset, a.nbytes, a.crc32) for a in map(index.address, rows)}
    names = ("shard", "index", "offset", "nbytes", "crc32")
    tiles = [t for file in (out / "catalog" / "tiles").iterdir() for t in pq.read_table(file).to_pylist()]
    assert found == {tuple(t[name] for name in names) for t in tiles}
    assert index.tiles == len(rows) == len(found) == 14


def test_merging_the_catalog_changes_no_tile(out, tmp_path):
    before = open_index([str(out)], tmp_path / "index")
    Catalog(out).merge()
    after = open_index([str(out)], tmp_path / "index")
    assert sorted(before.slide_id(n) for n in range(3)) == sorted(after.slide_id(n) for n in range(3))
    assert [pixels(before, t) for t in range(14)] == [pixels(after, t) for t in range(14)]


def test_only_what_changed_is_made_anew(out, tmp_path):
    folder = tmp_path / "index"
    open_index([str(out)], folder)
    made = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    add_slide(out, 4, {"5x": 2})
    index = open_index([str(out)], folder)
    now = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert index.tiles == 16
    assert len(now) == len(made) + 1
    assert made.items() <= now.items()


def test_several_folders_make_one_index(out, tmp_path):
    other = tmp_path / "other"
    add_slide(other, 9, {"20x": 6}, stain="SPECIAL")
    index = open_index([str(out), str(other)], tmp_path / "index")
    assert index.tiles == 20
    assert index.names["stain"] == ["HE", "IHC", "SPECIAL"]
    stains = {index.slide_id(n).split("-")[0]: index.names["stain"][s] for n, s in enumerate(index.slides["stain"])}
    assert stains == {"slide1": "HE", "slide2": "IHC", "slide3": "HE", "slide9": "SPECIAL"}


def test_a_slide_in_two_folders_counts_once(out, tmp_path):
    shutil.copytree(out, tmp_path / "copy")
    index = open_index([str(out), str(tmp_path / "copy")], tmp_path / "index")
    assert (index.tiles, index.copies.doubled) == (14, 3)


@pytest.mark.parametrize(
    ("where", "tiles"),
    [
        ("stain = 'HE'", 11),
        ("stain = 'HE' AND magnification = '20x'", 5),
        ("focus >= 0.02", 6),
        ("institution = 'A' or stain = 'IHC'", 7),
        ("stain = 'HE' -- a remark", 11),
    ],
)
def test_filter_speaks_the_catalogs_words(out, tmp_path, where, tiles):
    assert open_index([str(out)], tmp_path / "index", where).tiles == tiles


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("stian = 'HE'", "stian"),
        ("stain =", "not understood"),
        ("stain = 'GOLD'", "leaves no tile"),
        ("focus > (SELECT count(*) FROM read_csv('/etc/passwd'))", "not understood"),
        ("1=1); CREATE TABLE x (y INT", "not understood"),
    ],
)
def test_bad_filter_is_one_clear_line(out, tmp_path, where, says):
    with pytest.raises(BadFilter, match=says) as caught:
        open_index([str(out)], tmp_path / "index", where)
    assert "\n" not in str(caught.value)


def test_filtered_and_unfiltered_indices_share_a_folder(out, tmp_path):
    assert open_index([str(out)], tmp_path / "index", "stain = 'IHC'").tiles == 3
    assert open_index([str(out)], tmp_path / "index").tiles == 14


@pytest.mark.parametrize("where", ["nowhere", "empty"])
def test_a_folder_without_catalog_is_refused(tmp_path, where):
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadShards, match="make shards"):
        open_index([str(tmp_path / where)], tmp_path / "index")


def test_shards_of_failed_slides_alone_are_refused(tmp_path):
    add_slide(tmp_path / "out", 1, {}, status="failed")
    with pytest.raises(BadShards, match="no tile"):
        open_index([str(tmp_path / "out")], tmp_path / "index")


def edit(file, **columns):
    rows = pq.read_table(file)
    for name, value in columns.items():
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, rows.schema.field(at), pa.array([value] * len(rows), rows.schema.field(at).type))
    pq.write_table(rows, file)


@pytest.mark.parametrize(
    "wrong",
    [{"shard": "../../secret"}, {"nbytes": 0}, {"index": 4096}, {"mpp": float("nan")}, {"offset": 1 << 62}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_catalog_that_breaks_the_format_is_refused(out, tmp_path, wrong):
    edit(next((out / "catalog" / "tiles").glob("slide1*")), **wrong)
    with pytest.raises(BadShards, match=r"the tile .* is not of this format"):
        open_index([str(out)], tmp_path / "index")


def test_a_slide_id_that_leaves_the_folder_is_refused(out, tmp_path):
    for table in ("slides", "tiles"):
        edit(next((out / "catalog" / table).glob("slide1*")), slide_id="../../secret")
    with pytest.raises(BadShards, match="no slide id"):
        open_index([str(out)], tmp_path / "index")


def test_lost_tiles_are_noticed(out, tmp_path):
    next((out / "catalog" / "tiles").glob("slide1*")).unlink()
    with pytest.raises(BadShards, match="0 tiles, its slides say 7"):
        open_index([str(out)], tmp_path / "index")


@pytest.mark.slow
def test_split_is_by_patient_and_stays_when_slides_are_added(out, tmp_path):
    def splits():
        index = open_index([str(out)], tmp_path / "index")
        return {index.slide_id(n): s["split"] for n, s in enumerate(index.slides)}

    before = splits()
    for number in range(4, 40):
        add_slide(out, number, {"5x": 1}, patient_key=f"p{number}")
    after = splits()
    assert {slide: after[slide] for slide in before} == before
    assert before["slide1-00000001"] == before["slide2-00000002"] != before["slide3-00000003"]
    assert len(set(after.values())) == 38
