"""Folders of Parquet tables as shards: the same tiles as the shards that they were made of, whoever wrote them."""

import json
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.interchange import main
from pretrain.data.columns import TileNumbers, slide_texts
from pretrain.data.index import open_index
from pretrain.data.loader import Loader, read_tile
from pretrain.data.sampler import Sampler, SamplingSettings
from pretrain.data.sources import open_source
from pretrain.errors import BadShards
from tests.support.shard_folders import MPP, add_slide, grey
from wsi_prep.format.jpeg import JpegSettings, encode_tile

pytestmark = pytest.mark.slow

COUNTS = {1: {"20x": 70, "5x": 2}, 2: {"20x": 4, "10x": 3}}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    out = tmp_path_factory.mktemp("tables") / "out"
    add_slide(out, 1, COUNTS[1], institution="north", patient_key="p1", scanner="S360")
    add_slide(out, 2, COUNTS[2], stain="IHC")
    return out


@pytest.fixture(scope="module")
def tables(shards):
    to = shards.parent / "to"
    assert main(["--shards", str(shards), "--kind", "parquet", "--to", str(to), "--shuffle", "3"]) == 0
    return to


def rows_of(folder):
    return [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


def tiles_of(index):
    """Each tile: slide, magnification, um/px, and the grey value that it is of."""
    found = []
    for cell in index.cells:
        for tile in range(int(cell["start"]), int(cell["start"] + cell["count"])):
            pixels = read_tile(index.address(tile))
            assert np.ptp(pixels) == 0
            found.append(
                (index.slide_id(int(cell["slide"])), list(MPP)[cell["magnification"]], cell["mpp"], pixels[0, 0, 0])
            )
    return sorted(found)


def expected(counts=COUNTS):
    return sorted(
        (f"slide{number}-{number:08x}", name, MPP[name], grey(number, name, index))
        for number, of in counts.items()
        for name, count in of.items()
        for index in range(count)
    )


def foreign(file, change=lambda row: row, **options):
    """A table as others write it, of the tiles that are expected."""
    rows = []
    for number, of in COUNTS.items():
        for name, count in of.items():
            for index in range(count):
                tile = np.full((392, 392, 3), grey(number, name, index), np.uint8)
                row = {"slide": f"slide{number}-{number:08x}", "magnification": int(name[:-1])}
                rows.append(change(row | {"jpeg": encode_tile(tile, JpegSettings())}))
    file.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.Table.from_pylist(rows), file, **options)


def test_tables_hold_the_stored_bytes_and_the_rows_of_all_slides_mixed(shards, tables):
    rows = rows_of(tables)
    assert len(rows) == 79
    catalog = {
        (r["slide_id"], r["magnification"], r["index"]): r for r in pq.read_table(shards / "catalog/tiles").to_pylist()
    }
    for row in rows:
        jpeg = row["image"]["bytes"]
        tile = catalog[row["slide_id"], row["magnification"], row["index"]]
        assert (zlib.crc32(jpeg), len(jpeg)) == (tile["crc32"], tile["nbytes"])
        assert {name: row[name] for name in ("x0", "row", "col", "focus", "mpp")} == {
            name: tile[name] for name in ("x0", "row", "col", "focus", "mpp")
        }
    assert {(r["institution"], r["stain"], r["scanner"]) for r in rows} == {
        ("north", "HE", "S360"),
        ("unknown", "IHC", None),
    }
    slides = [row["slide_id"] for row in rows]
    assert slides != sorted(slides)
    file = pq.ParquetFile(tables / "tiles-00000.parquet")
    assert [file.metadata.row_group(n).num_rows for n in range(file.metadata.num_row_groups)] == [64, 15]
    assert json.loads(file.schema_arrow.metadata[b"huggingface"])["info"]["features"] == {"image": {"_type": "Image"}}


def test_hugging_faces_library_shows_the_tiles(tables, monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    found = datasets.load_dataset(str(tables), split="train", cache_dir=str(tmp_path))
    row = found[5]
    assert row["image"].size == (392, 392)
    number = int(row["slide_id"][5])
    assert row["image"].getpixel((7, 9)) == (grey(number, row["magnification"], row["index"]),) * 3


def test_files_are_bounded_and_of_one_call(shards, tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (392, 392, 3), np.uint8)
    out = tmp_path / "out"
    add_slide(out, 1, {"20x": 70}, picture=lambda *_: noise)
    call = ["--shards", str(out), "--kind", "parquet", "--to", str(tmp_path / "to"), "--file-mb"]
    assert main([*call, "9"]) == 0
    files = sorted((tmp_path / "to").glob("*"))
    assert [file.name for file in files] == [f"tiles-{n:05d}.parquet" for n in range(len(files))]
    assert len(files) > 1
    assert max(file.stat().st_size for file in files) < 9_100_000
    assert main([*call, "9"]) == 2
    assert "holds tables already" in capsys.readouterr().err
    assert main([*call[:-2], str(tmp_path / "other"), "--file-mb", "0"]) == 2


def test_the_index_finds_the_same_tiles_in_tables_as_in_shards(shards, tables, tmp_path):
    index, of_shards = open_index(tables, tmp_path / "index"), open_index(shards, tmp_path / "index")
    assert tiles_of(index) == expected() == tiles_of(of_shards)
    for name in ("names", "tiles", "slides_with_tiles", "warnings"):
        assert getattr(index, name) == getattr(of_shards, name)
    assert sorted(index.slides["split"]) == sorted(of_shards.slides["split"])  # who is held out
    direct = {index.address(tile).offset for tile in range(index.tiles)}
    assert max(direct) < (tables / "tiles-00000.parquet").stat().st_size  # each by its offset


def test_fields_that_can_guide_a_training_are_the_same(shards, tables, tmp_path):
    told = []
    for folder in (shards, tables):
        index = open_index(folder, tmp_path / "index")
        every = np.arange(index.tiles)
        slides = [index.slide_id(number) for number in range(len(index.slides))]
        pixels = [int(read_tile(index.address(tile))[0, 0, 0]) for tile in every]
        focus = TileNumbers(index, "focus")[every].tolist()
        assert np.isnan(TileNumbers(index, "od_dab")[every]).all()
        told.append(
            (sorted(zip(slides, slide_texts(index, "scanner"), strict=True)), sorted(zip(pixels, focus, strict=True)))
        )
    assert told[0] == told[1]
    assert told[0][0] == [("slide1-00000001", "S360"), ("slide2-00000002", None)]


def test_a_batch_of_tables_is_drawn_and_read_with_what_its_tiles_are(tables, tmp_path):
    index = open_index(tables, tmp_path / "index", where="focus < 0.04 AND institution = 'unknown'")
    assert tiles_of(index) == expected({2: COUNTS[2]})
    sampler = Sampler(index, SamplingSettings(batch=5, mix={"20x": 1, "10x": 1}))
    with Loader(sampler) as loader:
        (batch,) = loader.batches(0, 1)
    drawn = list(zip(batch.mpp.tolist(), batch.pixels[:, 0, 0, 0].tolist(), strict=True))
    assert len(set(drawn)) == 5
    assert set(drawn) <= {(mpp, value) for _, _, mpp, value in expected({2: COUNTS[2]})}
    assert loader.bad.bad == 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "none"},
        {"compression": "zstd", "use_dictionary": False, "row_group_size": 10},
        {"data_page_version": "2.0"},
        {"compression": "none", "use_dictionary": False, "row_group_size": 64, "data_page_size": 2**30},
    ],
    ids=["usual", "unpacked", "groups", "second", "documented"],
)
def test_tables_of_others_are_read_however_they_are_packed(tmp_path, options):
    foreign(tmp_path / "hub/data/train-00000.parquet", **options)
    index = open_index(tmp_path / "hub", tmp_path / "index")
    assert tiles_of(index) == expected()
    assert index.names["institution"] == ["unknown"]
    said = any("79 tiles of tables can be read only with the whole row group" in line for line in index.warnings)
    assert said == (options.get("row_group_size") != 64)  # as docs/interchange.md has it
    assert index.address(0).name.endswith("data/train-00000.parquet[0]")


def other(**columns):
    return lambda row: {name: value for name, value in (row | columns).items() if value is not None}


SMALL = encode_tile(np.zeros((224, 224, 3), np.uint8), JpegSettings())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other(slide=None), "no column slide_id"),
        (other(magnification=None), "no column mpp or magnification"),
        (other(magnification=63), "row 0 has magnification '63x'"),
        (other(mpp=8.0), "8.0 um/px"),
        (other(jpeg=SMALL), "a JPEG of 224 x 224 px; the trainer takes JPEGs of 392 x 392 px"),
        (other(jpeg=b"\x89PNG"), "no JPEG"),
        (other(jpeg="text"), "no bytes of images"),
        (other(jpeg=None, picture=b"x"), "no column image or jpeg of image bytes: slide, magnification, picture"),
        (other(image=b"x"), "more than one column"),
        (other(places=[1, 2]), "'places' is 'list"),
        (other(nbytes=1 << 20, crc32=1), "more than is there"),
        (other(nbytes=0, crc32=1), "an image of 0 bytes"),
    ],
)
def test_tables_that_do_not_tell_what_their_tiles_are_end_in_one_line(tmp_path, change, said):
    foreign(tmp_path / "hub/a.parquet", change, compression="none", use_dictionary=False)
    with pytest.raises(BadShards, match=said.replace("'", ".")) as refused:
        open_index(tmp_path / "hub", tmp_path / "index")
    assert "\n" not in str(refused.value)


def test_tiles_of_several_scales_under_one_name_are_refused(tmp_path):
    scales = iter(np.linspace(0.24, 0.27, 200))
    foreign(tmp_path / "hub/a.parquet", lambda row: row | {"magnification": "40x", "mpp": next(scales)})
    with pytest.raises(BadShards, match=r"40x have .* um/px and others"):
        open_index(tmp_path / "hub", tmp_path / "index")


def test_um_per_px_alone_tells_the_magnification(tmp_path):
    scale = {40: 0.2281, 20: 0.46, 10: 1.05, 5: 2.2}
    foreign(tmp_path / "hub/a.parquet", lambda row: row | {"mpp": scale[row.pop("magnification")]})
    found = tiles_of(open_index(tmp_path / "hub", tmp_path / "index"))
    assert found == [(slide, name, np.float32(scale[int(name[:-1])]), value) for slide, name, _, value in expected()]


def test_what_works_on_shards_alone_says_that_these_are_tables(tables):
    with pytest.raises(BadShards, match="Parquet tables, which only training and peek take"):
        open_source(str(tables))


def test_tables_in_an_object_store_are_read_by_ranges(object_server, tables, tmp_path):
    foreign(tmp_path / "other/data/b.parquet")
    for name, folder in (("hub", tables), ("other", tmp_path / "other")):
        object_server.upload(folder, f"{name}/")
        assert tiles_of(open_index(f"s3://slides/{name}", tmp_path / "index")) == expected()
