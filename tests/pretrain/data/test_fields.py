"""Labels of drawn tiles are those of the catalog, and shares and means those of the draws."""

import math
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest

from pretrain.data.columns import TileNumbers, slide_texts
from pretrain.data.fields import CLASSES, NUMBERS, fields
from pretrain.data.index import open_index
from pretrain.data.sampler import Sampler, SamplingSettings
from pretrain.learning.guide import GuideSettings
from tests.support.shard_folders import add_slide
from wsi_prep.errors import BadOption

SETTINGS = SamplingSettings(batch=16, mix={"20x": 0.7, "10x": 0.3})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders; slide 2 is in both; scanners, institutions and stains that are not always known."""
    one, other = (tmp_path_factory.mktemp("shards") / name for name in ("one", "other"))
    add_slide(one, 1, {"20x": 30, "10x": 8}, institution="A", scanner="S", stain="HE")
    add_slide(one, 2, {"20x": 9, "10x": 3}, institution="B", scanner=None, stain="UNKNOWN")
    add_slide(one, 3, {"20x": 4}, institution="unknown", scanner="T", stain="IHC")
    add_slide(other, 2, {"20x": 9, "10x": 3}, institution="B", scanner=None, stain="UNKNOWN")
    add_slide(other, 4, {"20x": 7, "10x": 6, "5x": 2}, institution="A", scanner="T ", stain="IHC")
    return [one, other]


@pytest.fixture(scope="module")
def sampler(folders, tmp_path_factory):
    return Sampler(open_index(folders, tmp_path_factory.mktemp("index")), SETTINGS)


def catalog(folders):
    """By tile's name: what slides and tiles say of it."""
    slides, tiles = {}, {}
    for folder in folders:
        for file in (folder / "catalog/slides").glob("*.parquet"):
            slides |= {row["slide_id"]: row for row in pq.read_table(file).to_pylist()}
        for file in (folder / "catalog/tiles").glob("*.parquet"):
            for row in pq.read_table(file).to_pylist():
                tiles[f"{folder}/{row['array']}[{row['index']}]"] = row
    return {name: {**slides[row["slide_id"]], **row} for name, row in tiles.items()}


def drawn(sampler, folders, steps=40):
    known = catalog(folders)
    for step in range(steps):
        draw = sampler.draw(step)
        yield draw, [known[sampler.index.address(tile).name] for tile in draw.tile]


@pytest.mark.parametrize("name", ["institution", "scanner", "stain", "magnification"])
def test_classes_are_those_of_the_catalog_and_absent_ones_none(sampler, folders, name):
    (field,) = fields(sampler, [name])
    for draw, rows in drawn(sampler, folders):
        told = [field.classes[n] if n >= 0 else None for n in field.labels(draw)]
        assert told == [None if row[name] in ("unknown", "UNKNOWN", None) else row[name] for row in rows]
    assert {"institution": ("A", "B"), "scanner": ("S", "T", "T "), "stain": ("HE", "IHC")}.get(
        name, ("10x", "20x")
    ) == tuple(sorted(field.classes))


@pytest.mark.parametrize("name", ["mpp", "focus"])
def test_numbers_are_those_of_the_catalog_with_mean_and_spread_of_the_draws(sampler, folders, name):
    (field,) = fields(sampler, [name])
    chances = {}  # of a tile, written from the rule: mix, strata by the root of their tiles, slides, tiles
    index, rows = sampler.index, catalog(folders)
    strata = {tuple(s[k] for k in ("magnification", "stain", "institution")): s for s in sampler.strata}
    for cell in index.cells:
        for tile in range(int(cell["start"]), int(cell["start"] + cell["count"])):
            row = rows[index.address(tile).name]
            stratum = strata[(row["magnification"], row["stain"], row["institution"])]
            chances[tile] = (stratum["target"] / stratum["slides"] / int(cell["count"]), row[name])
    assert math.isclose(sum(chance for chance, _ in chances.values()), 1)
    mean = sum(chance * value for chance, value in chances.values())
    spread = math.sqrt(sum(chance * (value - mean) ** 2 for chance, value in chances.values()))
    assert (field.mean, field.spread) == pytest.approx((mean, spread), rel=1e-5)
    for draw, truth in drawn(sampler, folders, 5):
        wanted = [(row[name] - mean) / spread for row in truth]
        assert field.labels(draw).tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-5)
        assert field.labels(draw).dtype == np.float32


def test_shares_are_those_of_the_labelled_draws(sampler, folders):
    (field,) = fields(sampler, ["institution"])
    counts = Counter(row["institution"] for _, rows in drawn(sampler, folders, 1500) for row in rows)
    labelled = counts["A"] + counts["B"]
    assert field.known == pytest.approx(labelled / counts.total(), abs=0.02)
    assert field.shares == pytest.approx((counts["A"] / labelled, counts["B"] / labelled), abs=0.02)


def test_columns_follow_the_index_where_a_filter_leaves_some_tiles(folders, tmp_path):
    for _ in range(2):  # made, then as it was kept
        index = open_index(folders, tmp_path, where="focus > 0.015 and magnification = '20x'")
        rows, focus = catalog(folders), TileNumbers(index, "focus")
        assert len(list(tmp_path.rglob("tiles-focus.arrow"))) in (0, len(index.parts))
        for cell in index.cells:
            tiles = np.arange(int(cell["start"]), int(cell["start"] + cell["count"]))
            wanted = [rows[index.address(tile).name]["focus"] for tile in tiles]
            assert focus[tiles].tolist() == pytest.approx(wanted)
            assert min(wanted) > 0.015
    assert slide_texts(index, "scanner")[0] in ("S", "T", None)
    assert np.isnan(TileNumbers(index, "od_eosin")[np.arange(3)]).all()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("vendor", r"guide.vendor has nothing to tell apart.*none has any.*institution \(2\), scanner \(3\), stain"),
        ("tissue", r"guide.tissue.*none has any"),
        ("od_dab", r"guide.od_dab.*none has any"),
        ("hospital", r"'hospital' can guide.*institution, scanner.*od_dab"),
    ],
)
def test_a_field_that_cannot_be_told_is_refused_with_those_that_can(sampler, name, says):
    with pytest.raises(BadOption, match=says) as told:
        fields(sampler, [name])
    assert "\n" not in str(told.value)


def test_a_field_of_one_value_among_the_tiles_that_can_be_drawn_is_refused(folders, tmp_path):
    index = open_index(folders, tmp_path, where="institution != 'B'")
    with pytest.raises(BadOption, match=r"all have 'A', or none; leave it out"):
        fields(Sampler(index, SETTINGS), ["institution"])
    with pytest.raises(BadOption, match=r"all have 0.5, or none"):
        fields(Sampler(index, SamplingSettings(batch=8, mix={"20x": 1})), ["mpp"])


def test_the_settings_name_the_fields_that_there_are():
    assert tuple(GuideSettings().__dict__) == CLASSES + NUMBERS
    assert GuideSettings(scanner=-0.1, stain=0.0).wanted == {"scanner": -0.1}
