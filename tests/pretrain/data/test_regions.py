"""Regions: every tile under a 5x tile, in its place, by one read a magnification; features by region."""

import itertools
from dataclasses import dataclass, field

import cv2
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from pipelines.embed import main as embed
from pretrain.data.index import TileAddress
from pretrain.data.regions import LEVELS, open_slide_tiles, places_of, read_region, spans_of
from pretrain.data.sources import LocalFolder
from tests.support.prepared import prepare
from tests.support.shard_folders import add_slide
from wsi_prep.errors import BadOption

SIDES = {"5x": 1, "10x": 2, "20x": 4, "40x": 8}


@pytest.fixture(scope="module")
def made(he_slide, tmp_path_factory):
    """A slide of two regions, at four magnifications."""
    return prepare(he_slide, tmp_path_factory.mktemp("regions") / "out", " ".join(SIDES))


@dataclass
class Counted(LocalFolder):
    """A folder that tells what it was asked for."""

    where: str
    asked: list = field(default_factory=list)

    def __post_init__(self):
        super().__init__(self.where)

    def read(self, path, offset, nbytes):
        self.asked.append((path, nbytes))
        return super().read(path, offset, nbytes)


def mosaic(region, level):
    """The level's tiles as one picture."""
    side = SIDES[level]
    return region.pixels[level].transpose(0, 2, 1, 3, 4).reshape(side * 392, side * 392, 3)


def test_a_region_shows_one_place_at_every_magnification(made):
    slide = open_slide_tiles(made.out, made.row["slide_id"])
    assert slide.regions.tolist() == [[0, 0], [0, 1]]
    for row, col in slide.regions.tolist():
        region = read_region(slide, row, col)
        assert {name: shape.shape for name, shape in region.there.items()} == {n: (s, s) for n, s in SIDES.items()}
        for finer in ("10x", "20x", "40x"):
            there = np.kron(region.there[finer], np.ones((392, 392))) > 0
            shrunk = cv2.resize(mosaic(region, finer), (392, 392), interpolation=cv2.INTER_AREA)
            seen = cv2.resize(there.astype(np.uint8), (392, 392), interpolation=cv2.INTER_NEAREST) > 0
            assert seen.mean() > 0.5
            both = np.stack([shrunk[seen].ravel(), region.pixels["5x"][0, 0][seen].ravel()]).astype(float)
            assert np.corrcoef(both)[0, 1] > 0.95, (finer, row, col)


def test_its_tiles_are_those_of_the_store(made):
    slide = open_slide_tiles(str(made.out), made.row["slide_id"])
    region = read_region(slide, 0, 1)
    mine = [tile for tile in made.tiles if tile["col"] // SIDES[tile["magnification"]] == 1]
    for tile in mine:
        side = SIDES[tile["magnification"]]
        at = tile["row"] % side, tile["col"] % side
        stored = zarr.open(made.out / tile["array"], mode="r")[tile["index"]]
        np.testing.assert_array_equal(region.pixels[tile["magnification"]][at], stored)
    assert sum(int(there.sum()) for there in region.there.values()) == len(mine)
    absent = [region.pixels[name][~region.there[name]] for name in SIDES]
    assert not any(pixels.any() for pixels in absent)
    assert region.mpp == {"5x": 2.0, "10x": 1.0, "20x": 0.5, "40x": 0.25}


def test_it_takes_one_read_a_magnification(made):
    slide = open_slide_tiles(made.out, made.row["slide_id"])
    counted = Counted(str(made.out))
    read_region(type(slide)(counted, slide.slide_id, slide.tiles), 0, 0)
    assert len(counted.asked) == 4
    mine = [tile for tile in made.tiles if tile["col"] // SIDES[tile["magnification"]] == 0]
    assert len(mine) > 60
    assert sum(nbytes for _, nbytes in counted.asked) == sum(tile["nbytes"] for tile in mine)
    counted.asked.clear()
    region = read_region(type(slide)(counted, slide.slide_id, slide.tiles), 0, 0, ("20x", "5x"))
    assert (list(region.pixels), len(counted.asked)) == (["5x", "20x"], 2)


def test_a_broken_tile_is_named(he_slide, tmp_path):
    made = prepare(he_slide, tmp_path / "out", "10x")
    tile = made.tiles[1]
    with (made.out / tile["shard"]).open("r+b") as file:
        file.seek(tile["offset"] + 40)
        file.write(b"\0" * 8)
    slide = open_slide_tiles(made.out, made.row["slide_id"])
    with pytest.raises(OSError, match=r"10x\[1\]: "):
        read_region(slide, tile["row"] // 2, tile["col"] // 2)


def test_what_is_not_there_is_said(made):
    with pytest.raises(BadOption, match="no tiles of a slide 'other'"):
        open_slide_tiles(made.out, "other")
    slide = open_slide_tiles(made.out, made.row["slide_id"])
    with pytest.raises(BadOption, match="no tile in region 5, 5"):
        read_region(slide, 5, 5)
    with pytest.raises(BadOption, match="magnification '3x' is not known"):
        read_region(slide, 0, 0, ("3x",))


def test_a_slide_is_found_among_others(tmp_path):
    ids = [add_slide(tmp_path, number, {"20x": number + 1}) for number in range(4)]
    for number, slide_id in enumerate(ids):
        assert len(open_slide_tiles([tmp_path], slide_id).tiles) == number + 1


@given(st.lists(st.tuples(st.sampled_from(LEVELS), st.integers(0, 70), st.integers(0, 70)), min_size=1))
def test_places_are_counted_by_level_then_row_by_row(tiles):
    table = pa.table({name: [tile[n] for tile in tiles] for n, name in enumerate(("magnification", "row", "col"))})
    slow = {}
    for name in LEVELS:
        for row in range(SIDES[name]):
            for col in range(SIDES[name]):
                slow[name, row, col] = len(slow)
    assert len(slow) == 85
    for (name, row, col), *found in zip(tiles, *places_of(table), strict=True):
        side = SIDES[name]
        assert found == [row // side, col // side, slow[name, row % side, col % side]]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 10**7), st.integers(1, 2 * 10**6))), st.booleans())
def test_spans_are_runs_of_neighbours_in_order(places, in_order):
    source = object()
    if in_order:
        places = sorted(places)
    addresses = [TileAddress(source, path, offset, nbytes, 0, 0) for path, offset, nbytes in places]
    spans = list(spans_of(addresses))
    assert [address for span in spans for address in span] == addresses
    for span in spans:
        assert len({address.path for address in span}) == 1
        for one, other in itertools.pairwise(span):
            assert 0 <= other.offset - one.offset - one.nbytes < 65536
        assert len(span) == 1 or span[-1].offset + span[-1].nbytes - span[0].offset <= 8 * 2**20


def call(made, to, *more):
    return embed(["--shards", str(made.out), "--model", "colours", "--to", str(to), "--threads", "1", *more])


@pytest.mark.slow
def test_features_by_region_are_those_of_its_tiles(made, tmp_path, capsys):
    to, slide_id = tmp_path / "to", made.row["slide_id"]
    assert call(made, to) == 0
    assert not (to / "regions").exists()
    before = (to / f"parquet/{slide_id}.parquet").stat().st_mtime_ns
    capsys.readouterr()
    assert call(made, to, "--regions") == 0
    assert "no features to compute" in capsys.readouterr().out
    assert (to / f"parquet/{slide_id}.parquet").stat().st_mtime_ns == before
    rows = pq.read_table(to / f"parquet/{slide_id}.parquet").to_pylist()
    with h5py.File(to / f"regions/{slide_id}.h5") as file:
        assert file["features"].shape == (2, 85, len(rows[0]["features"]))
        assert int(file["there"][:].sum()) == len(rows) == len(made.tiles)
        np.testing.assert_array_equal(file["place"], [[0, 0], [0, 1]])
        levels, cells = file["magnification"].asstr()[:], file["cell"][:]
        for row in rows:
            side = SIDES[row["magnification"]]
            within = (levels == row["magnification"]) & (cells == (row["row"] % side, row["col"] % side)).all(1)
            (place,) = np.flatnonzero(within)
            np.testing.assert_array_equal(file["features"][row["col"] // side, place], row["features"])
        assert not file["features"][:][~file["there"][:]].any()
        coarsest = {row["col"]: (row["x0"], row["y0"]) for row in rows if row["magnification"] == "5x"}
        np.testing.assert_array_equal(file["coords"], [coarsest[0], coarsest[1]])
    assert call(made, to, "--regions") == 0
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.slow
def test_regions_of_a_slide_that_changed_go_or_are_made_anew(tmp_path):
    shards, to = tmp_path / "shards", tmp_path / "to"
    slide_id = add_slide(shards, 1, {"20x": 3})
    words = ["--shards", str(shards), "--model", "colours", "--to", str(to), "--threads", "1"]
    file = to / f"regions/{slide_id}.h5"
    assert embed([*words, "--regions"]) == 0
    assert file.is_file()
    for stem in ("catalog/slides", "catalog/tiles"):
        (shards / stem / f"{slide_id}.parquet").unlink()
    (shards / f"stores/{slide_id}.zarr").rename(tmp_path / "old")
    add_slide(shards, 1, {"20x": 5, "10x": 1})
    assert embed(words) == 0
    assert not file.exists()
    assert embed([*words, "--regions"]) == 0
    with h5py.File(file) as opened:
        assert opened["there"][:].sum() == 6
    (to / f"parquet/{slide_id}.parquet").unlink()
    assert embed([*words, "--redo"]) == 0
    assert not file.exists()
