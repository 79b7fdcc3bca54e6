"""Every kind of damage that a store can take is found, and a repair followed by `make shards` gives the store back."""

import fcntl
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.shards import main as make_shards
from pipelines.verify import main
from tests.support.undisturbed import TIMINGS
from wsi_prep.curation.verify.catalog import SLIDE_COLUMNS, check_catalog_file
from wsi_prep.curation.verify.slide import SlideCheck, check_slide
from wsi_prep.format.jpeg import decode_tile, first_frame
from wsi_prep.format.records import SLIDE_SCHEMA, TILE_SCHEMA
from wsi_prep.output.catalog import Catalog
from wsi_prep.output.tombstone import Tombstone, write_tombstone
from wsi_prep.storage.select import open_storage

pytestmark = pytest.mark.usefixtures("shared_dask")

PART = "part-00000.parquet"


def remake(slides, out):
    return make_shards(["--slides", str(slides), "--out", str(out), "--assume-mpp", "0.5", "--workers", "2"])


@pytest.fixture(scope="module")
def made(tmp_path_factory, nompp_slide):
    """Four slides and their shards: (slides folder, out folder)."""
    slides, out = tmp_path_factory.mktemp("slides"), tmp_path_factory.mktemp("made") / "out"
    for name in "abcd":
        shutil.copy(nompp_slide, slides / f"{name}.tiff")
    assert remake(slides, out) == 0
    return slides, out


@pytest.fixture
def store(made, tmp_path):
    """A copy to break."""
    return shutil.copytree(made[1], tmp_path / "out")


def rows(out, table="slides"):
    return pq.read_table(out / "catalog" / table).to_pylist()


def row_of(out, stem):
    (row,) = [row for row in rows(out) if row["file"] == f"{stem}.tiff"]
    return row


def looked_at(out, stem):
    """The kinds of fault of one slide, and its strays."""
    row = {name: value for name, value in row_of(out, stem).items() if name in SLIDE_COLUMNS}
    report = check_slide(SlideCheck(str(out), row, PART))
    return {fault.kind for fault in report.faults}, list(report.strays)


def files(out):
    kept = [p for name in ("stores", "tissue", "overlays") for p in (out / name).rglob("*") if p.is_file()]
    return {p.relative_to(out): p.read_bytes() for p in kept}


def catalog(out):
    def plain(row):
        return {k: v for k, v in row.items() if not k.startswith(TIMINGS)}

    slides = sorted(map(plain, rows(out)), key=lambda row: row["slide_id"])
    return slides, sorted(rows(out, "tiles"), key=lambda row: (row["array"], row["index"]))


def flip(path, at, bit=1):
    data = bytearray(path.read_bytes())
    data[at] ^= bit
    path.write_bytes(data)


def change_tiles(out, change):
    """Write the tiles' part anew with `change` done to its rows."""
    path = out / "catalog/tiles" / PART
    table = pa.Table.from_pylist([change(dict(row)) for row in pq.read_table(path).to_pylist()], TILE_SCHEMA)
    pq.write_table(table, path)


def metadata(out, stem, change):
    path = out / "stores" / f"{row_of(out, stem)['slide_id']}.zarr/20x/zarr.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_a_store_that_make_shards_left_is_sound(made, capsys):
    assert main(["--shards", str(made[1]), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "4 slides" in printed
    assert printed.strip().endswith("sound")


DAMAGES = {
    "a tile's bit": (lambda out, s: flip(s / "20x/c.0.0.0.0", 5000), "tiles"),
    "the index's bit": (lambda out, s: flip(s / "20x/c.0.0.0.0", -30), "index"),
    "the checksum of the index": (lambda out, s: flip(s / "20x/c.0.0.0.0", -1), "index"),
    "a shard cut off": (
        lambda out, s: (s / "20x/c.0.0.0.0").write_bytes((s / "20x/c.0.0.0.0").read_bytes()[:-700]),
        "index",
    ),
    "a shard emptied": (lambda out, s: (s / "20x/c.0.0.0.0").write_bytes(b""), "index"),
    "a shard grown": (
        lambda out, s: (s / "20x/c.0.0.0.0").write_bytes(b"x" + (s / "20x/c.0.0.0.0").read_bytes()),
        "index",
    ),
    "a shard gone": (lambda out, s: (s / "20x/c.0.0.0.0").unlink(), "index"),
    "no metadata": (lambda out, s: (s / "20x/zarr.json").unlink(), "metadata"),
    "metadata of nonsense": (lambda out, s: (s / "zarr.json").write_text("[]"), "metadata"),
    "another shape": (
        lambda out, s: metadata(out, "a", lambda d: d.update(shape=[3, 392, 392, 3])),
        "metadata",
    ),
    "another codec": (
        lambda out, s: metadata(out, "a", lambda d: d["codecs"][0]["configuration"].update(codecs=[{"name": "bytes"}])),
        "metadata",
    ),
    "no store": (lambda out, s: shutil.rmtree(s), "metadata"),
    "no overlay": (lambda out, s: (out / f"overlays/{s.stem}.jpg").unlink(), "pictures"),
    "half an overlay": (lambda out, s: (out / f"overlays/{s.stem}.jpg").write_bytes(b"\xff\xd8\xff"), "pictures"),
    "no outline": (lambda out, s: (out / f"tissue/{s.stem}.geojson").unlink(), "pictures"),
    "half an outline": (lambda out, s: (out / f"tissue/{s.stem}.geojson").write_text('{"type": "Feat'), "pictures"),
    "another offset": (
        lambda out, s: change_tiles(out, lambda row: row | {"offset": row["offset"] + 1}),
        "index",
    ),
    "another checksum": (lambda out, s: change_tiles(out, lambda row: row | {"crc32": row["crc32"] ^ 1}), "tiles"),
    "a number twice": (
        lambda out, s: change_tiles(out, lambda row: row | {"index": max(row["index"], 1)}),
        "rows",
    ),
    "another's shard": (
        lambda out, s: change_tiles(out, lambda row: row | {"shard": row["shard"].replace("/20x/", "/10x/")}),
        "rows",
    ),
    "another place": (lambda out, s: change_tiles(out, lambda row: row | {"x0": row["x0"] + 9}), "rows"),
    "an unknown magnification": (
        lambda out, s: change_tiles(out, lambda row: row | {"magnification": "30x"}),
        "rows",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_broken_of_a_slide_is_found_and_named(store, damage):
    do, kind = DAMAGES[damage]
    assert looked_at(store, "a") == (set(), [])
    do(store, store / "stores" / f"{row_of(store, 'a')['slide_id']}.zarr")
    assert looked_at(store, "a") == ({kind}, [])


@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bit_of_a_shard_file_changes_unseen(store, share, bit):
    path = next((store / "stores").glob("a-*.zarr")) / "20x/c.0.0.0.0"
    at = int(share * path.stat().st_size)
    flip(path, at, 1 << bit)
    kinds, _ = looked_at(store, "a")
    flip(path, at, 1 << bit)
    assert kinds in ({"tiles"}, {"index"})


@pytest.mark.parametrize("subsampling", ["420", "444"])
def test_a_progressive_jpeg_is_told_from_a_baseline_one(subsampling):
    import io

    from PIL import Image

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (392, 392, 3), np.uint8))
    for progressive in (False, True):
        made = io.BytesIO()
        picture.save(made, "JPEG", progressive=progressive, subsampling={"420": 2, "444": 0}[subsampling])
        assert first_frame(made.getvalue()) == (0xC2 if progressive else 0xC0, 392, 392)
        assert decode_tile(made.getvalue()).shape == (392, 392, 3)


def break_everything(out):
    """A tile, a store and an overlay of three slides, and strays of every place; returns the strays."""
    stores = {stem: out / "stores" / f"{row_of(out, stem)['slide_id']}.zarr" for stem in "abc"}
    flip(stores["a"] / "20x/c.0.0.0.0", 5000)
    shutil.rmtree(stores["b"])
    (out / f"overlays/{stores['c'].stem}.jpg").write_bytes(b"")
    inside = next((out / "stores").glob("d-*.zarr"))
    strays = [inside / "20x/c.1.0.0.0", out / "stores/gone-0123456789.zarr/zarr.json", out / "tissue/notes.txt"]
    strays += [out / "overlays/gone-0123456789.jpg", out / "catalog/slides/.x.parquet.17", out / "catalog/old.csv"]
    for path in strays:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    return strays


def test_a_repaired_store_is_completed_by_the_next_run(made, tmp_path, capsys):
    slides, whole = made
    out = shutil.copytree(whole, tmp_path / "out")
    strays = break_everything(out)
    assert main(["--shards", str(out), "--workers", "1"]) == 3
    printed = capsys.readouterr().out
    for told in ("has another checksum", "its store is missing", "is damaged", "tissue/notes.txt: no row is of it"):
        assert told in printed
    assert all(path.exists() for path in strays)  # nothing is changed without REPAIR

    assert main(["--shards", str(out), "--workers", "1", "--repair", "--yes"]) == 3
    assert "repaired: 3 slides and 5 stray files removed" in capsys.readouterr().out
    assert not any(path.exists() for path in strays)
    assert [row["file"] for row in rows(out)] == ["d.tiff"]
    assert json.loads((out / "run.json").read_text())["slides"] == {"ok": 1}
    for tile in rows(out, "tiles")[::9]:  # what is left is whole, to others too
        pixels = zarr.open(out / tile["array"], mode="r")[tile["index"]]
        with (out / tile["shard"]).open("rb") as shard:
            shard.seek(tile["offset"])
            assert np.array_equal(pixels, decode_tile(shard.read(tile["nbytes"])))

    assert main(["--shards", str(out), "--workers", "1"]) == 0
    assert remake(slides, out) == 0
    assert catalog(out) == catalog(whole)
    assert files(out) == files(whole)


@pytest.mark.parametrize(("table", "damage"), [("slides", "cut"), ("slides", "overwritten"), ("tiles", "cut")])
def test_slides_of_a_damaged_part_are_undone(made, store, table, damage, capsys):
    path = store / "catalog" / table / PART
    data = path.read_bytes()
    path.write_bytes(data[:-100] if damage == "cut" else data[:4] + bytes(1000) + data[1004:])
    assert remake(made[0], store) == (2 if table == "slides" else 0)
    if table == "slides":
        assert "is damaged; make verify with REPAIR=1" in capsys.readouterr().err
    assert main(["--shards", str(store), "--workers", "1", "--repair", "--yes"]) == 3
    printed = capsys.readouterr().out
    assert f"catalog/{table}/{PART}" in printed
    assert "it has rows of 4 slides" in printed
    assert not list((store / "catalog").rglob("*.parquet"))
    assert not any((store / "stores").iterdir())


def in_two_parts(out, stems):
    """Bring the slides of these names, which begin with one of `stems`, into a second part of the catalog."""
    moved = [row for row in rows(out) if row["file"][0] in stems]
    tiles = pq.read_table(out / "catalog/tiles" / PART, schema=TILE_SCHEMA)
    Catalog(out).drop({row["slide_id"] for row in moved})
    for row in moved:
        Catalog(out).commit(row, tiles.filter(pc.equal(tiles["slide_id"], row["slide_id"])))
    Catalog(out).merge()


def flip_each(out, paths):
    for number, path in enumerate(paths):
        flip(out / path, 40 + 11 * number)


def test_each_kind_of_file_is_repaired_and_nothing_else_is_touched(made, store, capsys):
    slides, whole = made
    in_two_parts(store, "cd")
    write_tombstone(open_storage(store), Tombstone(frozenset({"a" * 32}), frozenset({"b" * 32})))
    before = {name: (store / name).read_bytes() for name in ("run.json", "forgotten.json")}
    a, b = (row_of(store, stem)["slide_id"] for stem in "ab")
    damaged = [f"stores/{a}.zarr/zarr.json", f"stores/{a}.zarr/20x/zarr.json", f"tissue/{a}.geojson"]
    damaged += [f"overlays/{a}.jpg", "catalog/tiles/part-00001.parquet", "run.json", "forgotten.json"]
    flip_each(store, damaged)
    untouched = [path for path in store.rglob("*") if b in str(path) and path.is_file()]
    stamps = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in untouched}

    assert main(["--shards", str(store), "--workers", "1", "--repair", "--yes"]) == 3
    printed = capsys.readouterr().out
    for told in (
        "run.json: it was changed",
        "forgotten.json: it was changed",
        "catalog/tiles/part-00001.parquet: it was changed, by its SHA-256; it has rows of 2 slides",
        f"{a}: group: zarr.json ",
        f"tissue/{a}.geojson is damaged",
        "repaired: 3 slides and 0 stray files removed, run.json is restored from its copy, "
        "forgotten.json is restored from its copy; make shards, with the settings of this folder, makes them again",
    ):
        assert told in printed
    assert (store / "forgotten.json").read_bytes() == before["forgotten.json"]
    run = json.loads((store / "run.json").read_text())
    assert run["settings"] == json.loads(before["run.json"])["settings"]
    assert run["slides"] == {"ok": 1}

    assert remake(slides, store) == 0
    assert main(["--shards", str(store), "--workers", "1"]) == 0
    assert capsys.readouterr().out.endswith("sound\n")
    assert catalog(store) == catalog(whole)
    assert files(store) == files(whole)
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in untouched} == stamps


def test_files_of_the_catalog_that_disagree(store):
    part = str(store), PART
    assert check_catalog_file(part).faults == []
    tiles = pq.read_table(store / "catalog/tiles" / PART)
    stranger = pa.Table.from_pylist([tiles.to_pylist()[0] | {"slide_id": "nobody-1"}], TILE_SCHEMA)
    pq.write_table(pa.concat_tables([tiles.cast(TILE_SCHEMA), stranger]), store / "catalog/tiles" / PART)
    found = check_catalog_file(part)
    assert (found.orphans, [fault.kind for fault in found.faults]) == (["nobody-1"], ["orphans"])
    Catalog(store).drop_from(PART, found.orphans)
    assert check_catalog_file(part).faults == []

    slides = rows(store)
    double = [*slides, slides[0], slides[1] | {"slide_id": "../../etc/passwd"}]
    pq.write_table(pa.Table.from_pylist(double, SLIDE_SCHEMA), store / "catalog/slides" / PART)
    found = check_catalog_file(part)
    assert (found.broken, found.orphans) == ([slides[0]["slide_id"]], ["../../etc/passwd"])

    pq.write_table(tiles.drop_columns(["offset"]), store / "catalog/tiles" / PART)
    assert "it has no column offset" in check_catalog_file(part).faults[0].what
    (store / "catalog/tiles" / PART).unlink()
    assert check_catalog_file(part).damaged


def test_a_merge_that_was_interrupted_is_finished_not_undone(store, capsys):
    (store / "catalog/.journal.json").write_text(json.dumps({"part": PART, "singles": []}))
    assert main(["--shards", str(store), "--workers", "1"]) == 3
    assert "a merge was interrupted" in capsys.readouterr().out
    assert main(["--shards", str(store), "--workers", "1", "--repair", "--yes"]) == 0
    assert len(rows(store)) == 4


def test_wrong_calls_take_one_line(store, tmp_path, capsys):
    with (store / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["--shards", str(store)]) == 2
        assert "a run is writing to" in capsys.readouterr().err
        assert main(["--shards", str(store), "--repair", "--yes"]) == 2
        assert "another run is writing to" in capsys.readouterr().err
    for where, said in (("https://b/x", "of no object store that is known"), (tmp_path / "none", "is no folder")):
        assert main(["--shards", str(where)]) == 2
        assert said in capsys.readouterr().err
    assert main(["--shards", str(tmp_path)]) == 2
    assert "holds no catalog/slides" in capsys.readouterr().err


def test_a_bit_that_changed_within_a_column_is_noticed(tmp_path):
    """In numbers that do not compress, where every bit pattern could be right."""
    rng = np.random.default_rng(0)
    catalog = Catalog(tmp_path)
    catalog.create()
    empty = dict.fromkeys(TILE_SCHEMA.names)
    tiles = [{**empty, "slide_id": "a", "index": n, "crc32": int(rng.integers(2**32))} for n in range(2000)]
    slide = {**dict.fromkeys(SLIDE_SCHEMA.names), "slide_id": "a", "status": "ok"}
    catalog.commit(slide, pa.Table.from_pylist(tiles, TILE_SCHEMA))
    path = tmp_path / "catalog/tiles/a.parquet"
    group = pq.read_metadata(path).row_group(0)
    column = group.column(TILE_SCHEMA.get_field_index("crc32"))
    assert not check_catalog_file((str(tmp_path), "a.parquet")).faults
    for _ in range(30):
        at = column.dictionary_page_offset + int(rng.integers(100, 7000))
        bit = 1 << int(rng.integers(8))
        flip(path, at, bit)
        assert check_catalog_file((str(tmp_path), "a.parquet")).faults, at
        flip(path, at, bit)
