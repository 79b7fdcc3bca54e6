"""What is written for other tools, read as they read it: attributes, coordinates, bytes and names."""

import io
import json
import re
import tarfile

import h5py
import numpy as np
import openslide
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.interchange import main
from tests.support.masked import prepared
from tests.support.shard_folders import MPP, add_slide, grey
from wsi_prep.curation.exchange.stored import Wanted
from wsi_prep.curation.exchange.tars import write_tars
from wsi_prep.format.jpeg import decode_tile
from wsi_prep.format.records import SLIDE_SCHEMA, TILE_SCHEMA
from wsi_prep.output.catalog import Catalog

pytestmark = pytest.mark.slow

FACTS = {"width": 9000, "height": 7000, "bounds_x0": 0, "bounds_y0": 0, "reader": "tiff"}


@pytest.fixture
def shards(tmp_path):
    """Two slides of grey tiles that say which one they are, one with a dot in its id; and one that failed."""
    out = tmp_path / "out"
    add_slide(out, 1, {"20x": 9, "5x": 2}, **FACTS, institution="north", patient_key="p1")
    add_slide(out, 2, {"20x": 4}, **FACTS, stain="IHC")
    add_slide(out, 3, {"40x": 3}, **FACTS, status="failed")
    return out


def call(out, kind, to, *more):
    return main(["--shards", str(out), "--kind", kind, "--to", str(to), *more])


def tiles(out):
    return [row for row in pq.read_table(out / "catalog/tiles").to_pylist() if "slide3" not in row["slide_id"]]


def change(out, table, **columns):
    """Overwrite columns of every row of a catalog's table."""
    for file in (out / "catalog" / table).glob("*.parquet"):
        rows = [row | columns for row in pq.read_table(file).to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, {"slides": SLIDE_SCHEMA, "tiles": TILE_SCHEMA}[table]), file)


def samples(folder):
    """Every sample of every tar, in order: key, and parts by ending; grouped as webdataset groups."""
    found = {}
    for file in sorted(folder.glob("*.tar")):
        with tarfile.open(file) as tar:
            for entry in tar:
                key, ending = re.fullmatch(r"([^.]+)\.([^/]*)", entry.name).groups()
                assert (entry.mtime, entry.uid, entry.uname) == (0, 0, "")
                found.setdefault(key, {})[ending] = tar.extractfile(entry).read()
    return found


def test_tars_hold_the_stored_bytes_and_the_rows(shards, tmp_path, capsys):
    assert call(shards, "webdataset", tmp_path / "to") == 0
    assert "1 file, 15 tiles" in capsys.readouterr().out
    found = samples(tmp_path / "to")
    assert len(found) == 15
    in_order = sorted(tiles(shards), key=lambda row: (row["slide_id"], row["magnification"], row["index"]))
    for row, parts in zip(in_order, found.values(), strict=True):
        told = json.loads(parts["json"])
        assert {name: told[name] for name in ("slide_id", "magnification", "index", "x0", "focus")} == {
            name: row[name] for name in ("slide_id", "magnification", "index", "x0", "focus")
        }
        assert told["stain"] == ("HE" if "slide1" in row["slide_id"] else "IHC")
        with (shards / row["shard"]).open("rb") as file:
            file.seek(row["offset"])
            assert file.read(row["nbytes"]) == parts["jpg"]
        expected = grey(int(row["slide_id"][5]), row["magnification"], row["index"])
        assert abs(int(decode_tile(parts["jpg"])[100, 100, 0]) - expected) <= 2


def test_webdataset_reads_the_tars(shards, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    assert call(shards, "webdataset", tmp_path / "to", "--tar-mb", "1") == 0
    urls = sorted(map(str, (tmp_path / "to").glob("*.tar")))
    read = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert len(read) == 15
    for sample in read:
        told = sample["json"]
        assert sample["jpg"].shape == (392, 392, 3)
        assert (
            abs(int(sample["jpg"].mean()) - grey(int(told["slide_id"][5]), told["magnification"], told["index"])) <= 2
        )


def test_tars_are_bounded_and_whole(shards, tmp_path):
    to, bound = tmp_path / "to", 4 * max(row["nbytes"] for row in tiles(shards)) + 30_000
    written = write_tars(Wanted(shards, "true", None), to, bound)
    files = sorted(to.iterdir())
    assert [file.name for file in files] == [f"tiles-{n:05d}.tar" for n in range(written.files)]
    assert len(files) > 2
    assert all(file.stat().st_size <= bound for file in files)
    assert len(samples(to)) == 15


def test_a_condition_chooses_and_may_ask_the_whole_catalog(shards, tmp_path):
    assert call(shards, "webdataset", tmp_path / "a", "--where", "stain = 'IHC' AND index > 1") == 0
    assert len(samples(tmp_path / "a")) == 2
    two_a_slide = """(slide_id, magnification, index) IN (SELECT (slide_id, magnification, index) FROM tiles
        QUALIFY row_number() OVER (PARTITION BY slide_id ORDER BY focus DESC) <= 2)"""
    assert call(shards, "webdataset", tmp_path / "b", "--where", two_a_slide) == 0
    assert len(samples(tmp_path / "b")) == 4


def test_a_random_order_is_the_same_again_and_loses_nothing(shards, tmp_path):
    for name, more in (("plain", []), ("a", ["--shuffle", "1"]), ("b", ["--shuffle", "1"]), ("c", ["--shuffle", "2"])):
        assert call(shards, "webdataset", tmp_path / name, *more) == 0
    plain, a, b, c = (list(samples(tmp_path / name)) for name in ("plain", "a", "b", "c"))
    assert a == b
    assert len({tuple(order) for order in (plain, a, c)}) == 3
    assert sorted(plain) == sorted(a) == sorted(c)


def test_a_tile_that_is_not_what_the_catalog_says_is_left_out_and_named(shards, tmp_path, capsys):
    row = tiles(shards)[3]
    with (shards / row["shard"]).open("r+b") as file:
        file.seek(row["offset"] + 40)
        file.write(b"\0\1\2")
    assert call(shards, "webdataset", tmp_path / "to") == 3
    assert f"{row['array']}[{row['index']}]" in capsys.readouterr().err
    assert len(samples(tmp_path / "to")) == 14


def test_tars_of_two_calls_are_not_mixed(shards, tmp_path, capsys):
    assert call(shards, "webdataset", tmp_path / "to") == 0
    before = [(p.name, p.stat().st_mtime_ns) for p in (tmp_path / "to").iterdir()]
    capsys.readouterr()
    assert call(shards, "webdataset", tmp_path / "to", "--where", "stain = 'HE'") == 2
    assert "holds tars already" in capsys.readouterr().err
    assert [(p.name, p.stat().st_mtime_ns) for p in (tmp_path / "to").iterdir()] == before


def test_trident_reads_the_tiles_that_ours_are(shards, tmp_path):
    """As TRIDENT does: coords, patch_size * level0_magnification / target_magnification level-0 px wide."""
    assert call(shards, "trident", tmp_path / "to") == 0
    files = sorted(p.relative_to(tmp_path / "to").as_posix() for p in (tmp_path / "to").rglob("*.h5"))
    assert files == [
        "20x_392px_0px_overlap/patches/slide1-00000001_patches.h5",
        "20x_392px_0px_overlap/patches/slide2-00000002_patches.h5",
        "5x_392px_0px_overlap/patches/slide1-00000001_patches.h5",
    ]
    for file in files:
        magnification = file.split("_")[0]
        with h5py.File(tmp_path / "to" / file) as h5:
            coords, attributes = h5["coords"][:], dict(h5["coords"].attrs)
        ours = [t for t in tiles(shards) if t["slide_id"] in file and t["magnification"] == magnification]
        assert coords.dtype == np.int64
        assert coords.tolist() == [[t["x0"], t["y0"]] for t in ours]
        wide = attributes["patch_size"] * attributes["level0_magnification"] / attributes["target_magnification"]
        assert wide == attributes["patch_size_level0"] == 392 * MPP[magnification] / 0.25
        assert (attributes["level0_width"], attributes["level0_height"], attributes["overlap"]) == (9000, 7000, 0)
        assert attributes["name"] in file


def test_an_odd_scale_keeps_its_true_width_for_trident_and_clam(shards, tmp_path):
    change(shards, "tiles", span0=859.2723, magnification="20x")
    assert call(shards, "trident", tmp_path / "t") == call(shards, "clam", tmp_path / "c") == 0
    with h5py.File(tmp_path / "t/20x_392px_0px_overlap/patches/slide2-00000002_patches.h5") as h5:
        trident = dict(h5["coords"].attrs)
    with h5py.File(tmp_path / "c/20x/patches/slide2-00000002.h5") as h5:
        clam = dict(h5["coords"].attrs)
    assert trident["level0_magnification"] == pytest.approx(43.8404, abs=1e-4)
    assert trident["patch_size_level0"] == clam["patch_size"] == 859
    assert clam["patch_level"] == 0


def test_clam_reads_the_pixels_that_ours_were_made_of(he_slide, tmp_path):
    """As CLAM does: read_region at each coordinate, patch_size px of patch_level, then resized."""
    _, made = prepared(he_slide, tmp_path / "out")
    assert call(tmp_path / "out", "clam", tmp_path / "to", "--where", "magnification = '20x'") == 0
    (file,) = (tmp_path / "to/20x/patches").iterdir()
    ours = [tile for (name, _, _), tile in made.items() if name == "20x"]
    with h5py.File(file) as h5, openslide.OpenSlide(he_slide) as slide:
        coords, attributes = h5["coords"], h5["coords"].attrs
        assert len(coords) == len(ours) > 3
        for xy, tile in list(zip(coords[:], ours, strict=True))[:3]:
            side = (int(attributes["patch_size"]),) * 2
            region = slide.read_region(tuple(map(int, xy)), int(attributes["patch_level"]), side).convert("RGB")
            with (tmp_path / "out" / tile["shard"]).open("rb") as shard:
                shard.seek(tile["offset"])
                stored = decode_tile(shard.read(tile["nbytes"]))
            assert np.abs(np.asarray(region.resize((392, 392), 4)).astype(int) - stored).mean() < 4


def test_qupath_gets_every_slide_with_an_outline_even_an_empty_one(he_slide, tmp_path):
    row, _ = prepared(he_slide, tmp_path / "out")
    change(tmp_path / "out", "slides", status="empty")
    assert call(tmp_path / "out", "qupath", tmp_path / "to") == 0
    document = json.loads((tmp_path / "to" / f"{row['slide_id']}.geojson").read_text())
    assert document["frame"] == "qupath"
    assert document["features"][0]["properties"]["objectType"] == "annotation"
    assert call(tmp_path / "out", "qupath", tmp_path / "none", "--where", "stain = 'IHC'") == 0
    assert list((tmp_path / "none").iterdir()) == []


def test_an_outline_that_is_gone_or_broken_is_left_out_and_named(he_slide, tmp_path, capsys):
    row, _ = prepared(he_slide, tmp_path / "out")
    (file,) = (tmp_path / "out/tissue").iterdir()
    for change_it, said in ((lambda: file.write_text("{"), "not JSON"), (file.unlink, "missing")):
        change_it()
        assert call(tmp_path / "out", "qupath", tmp_path / "to") == 3
        error = capsys.readouterr().err
        assert row["slide_id"] in error
        assert said in error
    assert list((tmp_path / "to").iterdir()) == []


def test_a_row_that_does_not_know_its_bounds_gives_no_outline(he_slide, tmp_path, capsys):
    """A shifted outline is worse than none; rows of the tiled-TIFF reader need no bounds."""
    row, _ = prepared(he_slide, tmp_path / "out")
    change(tmp_path / "out", "slides", bounds_x0=None, bounds_y0=None)
    assert call(tmp_path / "out", "qupath", tmp_path / "to") == 0
    change(tmp_path / "out", "slides", reader="openslide")
    assert call(tmp_path / "out", "qupath", tmp_path / "none") == 3
    error = capsys.readouterr().err
    assert row["slide_id"] in error
    assert "bounds" in error
    assert list((tmp_path / "none").iterdir()) == []


@pytest.mark.parametrize("kind", ["qupath", "trident", "clam", "webdataset"])
def test_a_catalog_cannot_name_files_outside_the_folder(shards, tmp_path, capsys, kind):
    for table in ("slides", "tiles"):
        change(shards, table, slide_id="../../escaped")
    before = sorted(tmp_path.rglob("*"))
    assert call(shards, kind, tmp_path / "to") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no slide id" in error
    assert [p for p in sorted(tmp_path.rglob("*")) if p not in before and p.is_file()] == []


def test_a_catalog_cannot_have_other_files_packed(shards, tmp_path):
    """The shard's path in a row is never opened: where a tile lies follows from its slide, magnification and index."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 10_000)
    expected = samples_of(shards, tmp_path / "a")
    change(shards, "tiles", shard="../secret", array="..")
    found = samples_of(shards, tmp_path / "b")
    assert {key: parts["jpg"] for key, parts in found.items()} == {key: parts["jpg"] for key, parts in expected.items()}


def samples_of(shards, to):
    assert call(shards, "webdataset", to) == 0
    return samples(to)


@pytest.mark.parametrize(
    ("columns", "said"),
    [({"magnification": "../5x"}, "no magnification"), ({"nbytes": 2**31 - 1}, "place"), ({"offset": -5}, "place")],
)
def test_rows_that_are_not_of_the_format_end_the_call(shards, tmp_path, capsys, columns, said):
    change(shards, "tiles", **columns)
    assert call(shards, "webdataset", tmp_path / "to") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error
    assert list((tmp_path / "to").iterdir()) == []


@pytest.mark.parametrize(
    "columns",
    [{"span0": float("nan")}, {"span0": -1.0}, {"x0": None}, {"span0": None}],
    ids=["nan", "negative", "x0", "none"],
)
@pytest.mark.parametrize("kind", ["trident", "clam"])
def test_tiles_without_a_place_end_the_call(shards, tmp_path, capsys, kind, columns):
    change(shards, "tiles", **columns)
    assert call(shards, kind, tmp_path / "to") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "where the tiles of slide1-00000001 are" in error


def test_an_id_too_long_for_a_tar_is_refused(shards, tmp_path, capsys):
    for table in ("slides", "tiles"):
        change(shards, table, slide_id="x" * 81)
    assert call(shards, "webdataset", tmp_path / "to") == 2
    assert "no slide id" in capsys.readouterr().err


def test_columns_of_other_types_are_one_line(shards, tmp_path, capsys):
    for file in (shards / "catalog/tiles").glob("*.parquet"):
        table = pq.read_table(file)
        texts = pa.array([f"tile {n}" for n in table["index"].to_pylist()])
        pq.write_table(table.set_column(table.column_names.index("index"), "index", texts), file)
    assert call(shards, "webdataset", tmp_path / "to") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "its column index is string, not int32" in error


def test_wrong_calls_are_one_line(shards, tmp_path, capsys):
    (tmp_path / "file").write_text("no folder")
    for arguments, said in [
        ((shards, "trident", tmp_path / "to", "--where", "nosuch > 1"), "nosuch"),
        ((shards, "trident", tmp_path / "to", "--where", "true); DROP VIEW tiles; SELECT (1"), "one SELECT"),
        ((tmp_path, "clam", tmp_path / "to"), "make shards has filled"),
        (("https://bucket/out", "clam", tmp_path / "to"), "of no object store that is known"),
        ((shards, "clam", tmp_path / "file/to"), "Not a directory"),
        ((shards, "webdataset", tmp_path / "to", "--tar-mb", "0"), "hold nothing"),
    ]:
        assert call(*arguments) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1, error
        assert said in error
    assert not (tmp_path / "to").exists()


def test_ids_with_dots_stay_one_sample(tmp_path):
    out = tmp_path / "out"
    add_slide(out, 1, {"20x": 2}, **FACTS)
    old, new = "slide1-00000001", "S12.345-00000001"
    (out / f"stores/{old}.zarr").rename(out / f"stores/{new}.zarr")
    for table in ("slides", "tiles"):
        change(out, table, slide_id=new)
    found = samples_of(out, tmp_path / "to")
    assert sorted(found) == ["S12_345-00000001_20x_000000", "S12_345-00000001_20x_000001"]
    assert all(sorted(parts) == ["jpg", "json"] for parts in found.values())
    assert json.load(io.BytesIO(found["S12_345-00000001_20x_000000"]["json"]))["slide_id"] == new


def test_a_slide_without_a_row_is_not_there(shards, tmp_path):
    Catalog(shards).drop(["slide1-00000001"])
    assert {json.loads(p["json"])["slide_id"] for p in samples_of(shards, tmp_path / "to").values()} == {
        "slide2-00000002"
    }
